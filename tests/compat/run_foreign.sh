#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Tries wheels of other systems on this one: a manylinux aarch64 wheel runs the quickstart in Debian's Python
# for ARM under emulation, and the library of a musllinux wheel is opened by a program of musl (there is no
# ONNX Runtime for musl). Not part of the default tests: it downloads into a temporary folder.
#
#   tests/compat/run_foreign.sh WHEEL...
#
# Needs Debian's apt, qemu-user for aarch64, pip install "ziglang>=0.15" for musl (PYTHON=... names its Python).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
# 1.32 ends in a segmentation fault when qemu 7.2 runs its import.
onnxruntime=${ONNXRUNTIME:-1.25.1}
wheels=()
for wheel in "$@"; do wheels+=("$(realpath "$wheel")"); done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# debian ARCHITECTURE FOLDER PACKAGE...: unpacked, not installed
debian() {
  local architecture=$1 folder=$2
  shift 2
  mkdir -p "apt-$architecture/lists/partial" "apt-$architecture/cache/archives/partial" debs
  touch "apt-$architecture/status"
  local options=(-qq -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
    -o "Dir::State::Lists=$work/apt-$architecture/lists" -o "Dir::Cache=$work/apt-$architecture/cache"
    -o "Dir::State::status=$work/apt-$architecture/status" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update >&2
  (cd debs && apt-get "${options[@]}" download "$@" >&2)
  for deb in debs/*.deb; do dpkg-deb -x "$deb" "$folder"; done
  rm -r debs
}

manylinux_aarch64() {
  debian arm64 arm python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 \
    libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1
  "$python" -m pip download --quiet --only-binary=:all: --python-version 3.11 --implementation cp \
    --abi cp311 --abi abi3 --abi none --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --platform any \
    --dest packages "$1" "onnxruntime==$onnxruntime" >&2
  for package in packages/*.whl; do "$python" -m zipfile -e "$package" site; done
  # A processor without SVE, whose products OpenBLAS gets wrong there.
  PYTHONPATH=$work/site OPENBLAS_NUM_THREADS=1 qemu-aarch64 -cpu cortex-a72 -L "$work/arm" \
    arm/usr/bin/python3.11 -m rimc_onnx quickstart demo --json >found.json
  "$python" - <<'PY'
import json
rows = json.load(open("found.json"))["rows"]
print("aarch64:", [(r["top1"], r["top1_stock"]) for r in rows])
clean, drifted, calibrated = (r["top1"] for r in rows)
assert clean > 0.97 and calibrated > clean - 0.02 > drifted, rows
PY
}

musllinux() {
  local architecture=$2 zig run=()
  case $architecture in x86_64) debian amd64 musl musl ;; *) debian arm64 musl musl && run=(qemu-aarch64) ;; esac
  zig=$("$python" -c "import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name('zig'))")
  "$zig" cc -O2 -fno-sanitize=undefined -target "$architecture-linux-musl" -dynamic "$here/open_library.c" -o open
  "$python" -m zipfile -e "$1" "library-$architecture"
  "${run[@]}" "musl/lib/ld-musl-$architecture.so.1" ./open \
    "library-$architecture/rimc_onnx/runtime/librimc_ops.so"
  rm -r musl open
}

for wheel in "${wheels[@]}"; do
  case $wheel in
    *manylinux*_aarch64.whl) manylinux_aarch64 "$wheel" ;;
    *musllinux*_x86_64.whl) musllinux "$wheel" x86_64 ;;
    *musllinux*_aarch64.whl) musllinux "$wheel" aarch64 ;;
    *) echo "$wheel: neither of ARM nor of musl" >&2; exit 2 ;;
  esac
done
