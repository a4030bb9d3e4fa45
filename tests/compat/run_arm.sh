#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the native library for 64-bit ARM, runs it in ONNX Runtime for ARM under emulation, and
# compares every output with this machine's, byte for byte: the NEON kernels, the scalar ones, the
# programming of crossbars, operators and provider. Not part of the default tests: it downloads
# ONNX Runtime for ARM into a temporary folder.
#
#   tests/compat/run_arm.sh            PYTHON=... names the Python that has rimc-onnx
#
# Needs g++-aarch64-linux-gnu and qemu-user (Debian's names), cmake, and ONNX Runtime 1.24 or newer.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
runtime="$here/../../runtime"
python=${PYTHON:-python3}
prefix=${ARM_PREFIX:-/usr/aarch64-linux-gnu}
compiler=${ARM_COMPILER:-aarch64-linux-gnu-g++}
version=${ONNXRUNTIME:-1.25.1}

# ARM_LIBRARY=FILE runs the library of a wheel in place of one that is built here.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "${ARM_LIBRARY:-}" ]; then
  library=$(realpath "$ARM_LIBRARY")
else
  library=$work/build/librimc_ops.so
  cmake -S "$runtime" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_CXX_FLAGS=-Werror >"$work/cmake.log"
  cmake --build "$work/build" -j2 >"$work/build.log"
fi
"$compiler" -std=c++17 -O2 -Wall -Wextra -Wconversion -Werror "-I$runtime/include" \
  "$here/run_models.cc" -o "$work/run_models" -ldl
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --dest "$work" \
  "onnxruntime==$version" >&2
(cd "$work" && "$python" -m zipfile -e ./onnxruntime-*.whl wheel)
# Outside the checkout, the installed package is what runs.
cd "$work"
mkdir cases
export PYTHONPATH="$here/../helpers${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$here/arm_cases.py" write cases
for isa in neon scalar; do
  RIMC_ISA=$isa qemu-aarch64 -L "$prefix" ./run_models wheel/onnxruntime/capi/libonnxruntime.so.* \
    "$library" cases "$isa"
done
"$python" "$here/arm_cases.py" compare cases neon scalar
