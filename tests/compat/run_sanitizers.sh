#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the native library with the checkers of the compiler and runs it under them. Not part of the
# default tests: it takes half an hour of two cores.
#
#   tests/compat/run_sanitizers.sh                     address, thread, provider and memory
#   PYTHON=... tests/compat/run_sanitizers.sh thread   the Python that has rimc-onnx; which to run
#
# address: AddressSanitizer and UndefinedBehaviorSanitizer over tests/runtime, but for those that
#   measure memory. ONNX Runtime and Python are as they are and keep memory to the end, so leaks are
#   left to those tests and to `memory`.
# thread: ThreadSanitizer over host.cc, which takes the place of ONNX Runtime: the thread pool of that
#   one orders tasks by means that the checker doesn't see, so every task would be reported.
# provider: ThreadSanitizer over provider_threads.cc: sessions of the provider in ONNX Runtime itself,
#   opened, run and closed by many threads. What ONNX Runtime's own library does to its own memory is
#   left out, its atomics being unseen; that a race in the provider's code is found is tried first.
# memory: valgrind over host.cc, without leaks, definite ones too; it knows AVX2.
#
# The checkers see what the compiler writes, not the masked loads of vector kernels, so everything
# runs with the scalar kernels too; valgrind sees every instruction. Needs GCC, cmake, a regular
# install of rimc-onnx with its tests' packages, and for memory valgrind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
compiler=${CXX:-g++}
nodes=${NODES:-200}
if [ $# -eq 0 ]; then set -- address thread provider memory; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Outside the checkout, the installed package is what runs.
cd "$work"
isas=(scalar "$("$python" -c "import rimc_onnx.runtime as r; print(r.build_info()['available_isas'][-1])")")

build() { # build SANITIZER
  cmake -S "$root/runtime" -B "$work/$1" -DCMAKE_BUILD_TYPE=Release -DRIMC_SANITIZE="$1" \
    -DCMAKE_CXX_COMPILER="$compiler" >"$work/cmake.log"
  cmake --build "$work/$1" -j2 >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; return 1; }
}
build_host() { # build_host FLAG...
  "$compiler" -std=c++17 -O1 -g -Wall -Wextra -Wconversion -Werror "$@" "-I$root/runtime/include" \
    "$here/host.cc" -o "$work/host" -ldl -pthread
}

run_address() {
  build address
  # A copy of the package with the library in its place, where no other checker finds it.
  mkdir "$work/checked"
  cp -rL "$("$python" -c "import pathlib, rimc_onnx; print(pathlib.Path(rimc_onnx.__file__).parent)")" \
    "$work/checked/rimc_onnx"
  cp "$work/address/librimc_ops.so" "$work/checked/rimc_onnx/runtime/"
  local preload
  preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
  # Without C++'s library, exceptions of ONNX Runtime are not found.
  preload+=" $("$compiler" -print-file-name=libstdc++.so)"
  # Stacks of the checker's own are aligned to 32 bytes, vectors want 64.
  for isa in "${isas[@]}"; do
    echo "address and undefined behaviour, $isa" >&2
    RIMC_ISA=$isa PYTHONPATH="$work/checked${PYTHONPATH:+:$PYTHONPATH}" LD_PRELOAD=$preload \
      ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 \
      UBSAN_OPTIONS=print_stacktrace=1 \
      "$python" -m pytest -q -c "$root/pyproject.toml" --rootdir="$root" -p no:cacheprovider \
      --capture=sys -k "not flat and not registering_again" --random-cases "$nodes" "$root/tests/runtime"
  done
}

run_thread() {
  build thread
  build_host -fsanitize=thread
  if TSAN_OPTIONS=exitcode=66 "$work/host" - race >"$work/race.log" 2>&1; then
    echo "the checker does not find the race that is there" >&2
    return 1
  fi
  for isa in "${isas[@]}"; do
    echo "threads, $isa" >&2
    RIMC_ISA=$isa TSAN_OPTIONS=halt_on_error=1:exitcode=66 \
      "$work/host" "$work/thread/librimc_ops.so" "$work/cases.bin"
  done
}

run_provider() {
  # A copy of the sources, for the race that is planted there.
  cp -r "$root/runtime" "$work/planted"
  cmake -S "$work/planted" -B "$work/provider" -DCMAKE_BUILD_TYPE=Release -DRIMC_SANITIZE=thread \
    -DCMAKE_CXX_COMPILER="$compiler" >"$work/cmake.log"
  cmake --build "$work/provider" -j2 >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; return 1; }
  cp "$work/provider/librimc_ops.so" "$work/sound.so"
  cp -r "$work/provider/devices" "$work/devices"
  sed -i 's|^void CompiledNode::Run(.*{|int planted = 0;\n&\n  ++planted;|' \
    "$work/planted/src/provider/compiled_node.cc"
  grep -q ++planted "$work/planted/src/provider/compiled_node.cc"
  cmake --build "$work/provider" -j2 >"$work/build.log" 2>&1
  "$compiler" -std=c++17 -O1 -g -Wall -Wextra -Wconversion -Werror -fsanitize=thread \
    "-I$root/runtime/include" "$here/provider_threads.cc" -o "$work/provider_threads" -ldl -pthread
  "$python" - "$root/samples/digits" <<'EOF'
import pathlib, shutil, sys
import numpy as np
import rimc_onnx
digits = pathlib.Path(sys.argv[1])
shutil.copy(digits / "model.onnx", "model.onnx")
rimc_onnx.convert("model.onnx", "converted.onnx", force=True)
np.load(digits / "test.npz")["input"][:4].astype("<f4").tofile("images.f32")
EOF
  local ort
  ort=$("$python" -c "import onnxruntime, pathlib; print(*pathlib.Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so.*'))")
  export TSAN_OPTIONS=exitcode=66:ignore_noninstrumented_modules=1
  if "$work/provider_threads" "$ort" "$work/provider/librimc_ops.so" model.onnx converted.onnx \
    images.f32 >"$work/race.log" 2>&1 || ! grep -q "compiled_node.cc.*CompiledNode::Run" "$work/race.log"; then
    tail -3 "$work/race.log" >&2
    echo "the checker does not find the race that is in the provider" >&2
    return 1
  fi
  for isa in "${isas[@]}"; do
    echo "provider, $isa" >&2
    RIMC_ISA=$isa "$work/provider_threads" "$ort" "$work/sound.so" model.onnx converted.onnx images.f32
  done
}

run_memory() {
  cmake -S "$root/runtime" -B "$work/memory" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS=-g \
    -DCMAKE_CXX_COMPILER="$compiler" >"$work/cmake.log"
  cmake --build "$work/memory" -j2 >"$work/build.log"
  build_host
  for isa in scalar avx2; do
    echo "memory, $isa" >&2
    RIMC_ISA=$isa valgrind --quiet --error-exitcode=66 --leak-check=full --errors-for-leak-kinds=definite \
      "$work/host" "$work/memory/librimc_ops.so" "$work/cases.bin"
  done
}

case " $* " in *" thread "* | *" memory "*)
  PYTHONPATH="$root/tests/helpers:$root/tests/runtime${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" "$here/host_cases.py" "$work/cases.bin" "$nodes"
  ;;
esac
for checker in "$@"; do "run_$checker"; done
echo "nothing found" >&2
