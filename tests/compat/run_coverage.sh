#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Lines of the native library that its tests run: those of ctest, and tests/runtime on the newest
# instruction set of the machine, then on AVX2 and the scalar kernels. Kernels of other processors
# are not compiled and count for nothing.
#
#   tests/compat/run_coverage.sh            PYTHON=... names the Python that has rimc-onnx
#
# Needs GCC, cmake, gcovr, and a regular install of rimc-onnx with its tests' packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake -S "$root/runtime" -B "$work/build" -DCMAKE_BUILD_TYPE=Debug -DRIMC_SANITIZE=coverage \
  -DRIMC_TESTS=ON >"$work/cmake.log"
cmake --build "$work/build" -j2 >"$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
"$work/build/rimc_tests" >&2
if [ "${CTEST_ONLY:-}" = "" ]; then
  # A copy of the package with the library in its place.
  cd "$work"
  mkdir "$work/counted"
  cp -rL "$("$python" -c "import pathlib, rimc_onnx; print(pathlib.Path(rimc_onnx.__file__).parent)")" \
    "$work/counted/rimc_onnx"
  cp "$work/build/librimc_ops.so" "$work/counted/rimc_onnx/runtime/"
  for isa in "" avx2 scalar; do
    RIMC_ISA=$isa PYTHONPATH="$work/counted${PYTHONPATH:+:$PYTHONPATH}" "$python" -m pytest -q \
      -c "$root/pyproject.toml" --rootdir="$root" -p no:cacheprovider "$root/tests/runtime" >&2
  done
fi
gcovr --root "$root/runtime" --filter "$root/runtime/src" --gcov-ignore-parse-errors=all \
  --print-summary "$work/build"
