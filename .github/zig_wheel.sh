#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the wheel of a Linux platform on any other Linux, without a container: the compiler is zig's
# clang (PyPI: ziglang), which brings the C library of every target along.
#
#   .github/zig_wheel.sh manylinux_2_28_x86_64 [FOLDER]      or musllinux_1_2_x86_64, ..._aarch64
#
# Needs pip install "ziglang>=0.15" wheel, and a cmake of this system: pip would take the target's. The releases are built by cibuildwheel (workflows/wheels.yml) and
# checked by the same .github/check_wheel.py.
set -euo pipefail
platform=${1:?usage: zig_wheel.sh manylinux_2_28_x86_64|musllinux_1_2_x86_64|... [FOLDER]}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${2:-dist}"
folder=$(cd "${2:-dist}" && pwd)
python=${PYTHON:-python3}
arch=${platform#*linux_*_*_}
case $platform in
  manylinux_*) version=${platform#manylinux_}; version=${version%_"$arch"}; target=$arch-linux-gnu.${version/_/.} ;;
  musllinux_*) target=$arch-linux-musl ;;
  *) echo "$platform: not a Linux platform of wheels" >&2; exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# By its path: in the build's own environment Python does not find the package.
zig=$("$python" -c "import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name('zig'))")
for tool in cc c++ ar ranlib; do
  case $tool in c*) flags="-target $target" ;; *) flags="" ;; esac
  printf '#!/bin/sh\nexec "%s" %s %s "$@"\n' "$zig" "$tool" "$flags" >"$work/zig-$tool"
  chmod +x "$work/zig-$tool"
done
# Objects of a foreign system take no part in the build folder of this one.
_PYTHON_HOST_PLATFORM=linux-$arch CC=$work/zig-cc CXX=$work/zig-c++ "$python" -m pip wheel --quiet --no-deps \
  --wheel-dir "$work/wheel" -C build-dir="$work/build" \
  -C cmake.define.CMAKE_SYSTEM_NAME=Linux -C cmake.define.CMAKE_SYSTEM_PROCESSOR="$arch" \
  -C cmake.define.CMAKE_MODULE_LINKER_FLAGS=-s \
  -C cmake.define.CMAKE_AR="$work/zig-ar" -C cmake.define.CMAKE_RANLIB="$work/zig-ranlib" "$root" >&2
# zig links the libraries of C++ in, so there is nothing to graft; check_wheel.py holds the tag to its word.
"$python" -m wheel tags --remove --platform-tag "$platform" "$work"/wheel/*.whl >&2
mv "$work"/wheel/*.whl "$folder"
"$python" "$root/.github/check_wheel.py" "$folder"/*-py3-none-"$platform".whl
