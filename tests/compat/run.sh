#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs converted and calibrated files in old and new ONNX Runtimes, with the native library, without
# it and by the execution provider, and in Node; all have to give the same predictions. Not part of the default tests: it
# installs packages into a temporary folder.
#
#   tests/compat/run.sh                         ONNX Runtime 1.17.3, 1.20.1, 1.24.4, newest, and Node
#   PYTHON=... tests/compat/run.sh 1.17.3 node  the Python that has rimc-onnx; the runtimes to try
#
# Needs Python 3.11 or 3.12 (what all these versions have wheels for) with rimc-onnx installed, and,
# for node, Node 18 or later with npm.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if [ $# -eq 0 ]; then set -- 1.17.3 1.20.1 1.24.4 newest node; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Outside the checkout, the installed package is what runs.
cd "$work"
"$python" "$here/prepare.py" "$work"
library=$("$python" -c "import rimc_onnx.runtime as r; print(r.library_path())")

for runtime in "$@"; do
  echo "running $runtime" >&2
  if [ "$runtime" = node ]; then
    mkdir "$work/node"
    npm install --prefix "$work/node" --silent --no-save --no-audit --no-fund --ignore-scripts \
      onnxruntime-node >&2
    cp "$here/run_node.mjs" "$work/node/"
    node "$work/node/run_node.mjs" "$work"
    continue
  fi
  case $runtime in
    newest) packages=(onnxruntime numpy) ;;
    # Built against numpy 1.
    1.1[0-8].*) packages=("onnxruntime==$runtime" "numpy<2") ;;
    *) packages=("onnxruntime==$runtime" numpy) ;;
  esac
  "$python" -m venv "$work/venv-$runtime"
  "$work/venv-$runtime/bin/pip" install --quiet "${packages[@]}" >&2
  "$work/venv-$runtime/bin/python" "$here/run_python.py" "$work"
  "$work/venv-$runtime/bin/python" "$here/run_python.py" "$work" "$library"
  "$work/venv-$runtime/bin/python" "$here/run_provider.py" "$work" "$library"
done
"$python" "$here/compare.py" "$work"
