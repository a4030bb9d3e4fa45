#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs one wheel for several Pythons, each with an old and the newest ONNX Runtime that it has, and
# runs the quickstart there. Not part of the default tests: it downloads into a temporary folder.
#
#   tests/compat/run_pythons.sh WHEEL PYTHON...    such as python3.10 python3.13
set -euo pipefail
wheel=$(realpath "${1:?usage: run_pythons.sh WHEEL PYTHON...}")
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for python in "$@"; do
  version=$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])")
  case $version in
    3.10 | 3.11 | 3.12) old=("onnxruntime==1.17.3" "numpy<2") ;; # built against numpy 1
    *) old=("onnxruntime==1.20.1") ;;
  esac
  for packages in "${old[*]}" onnxruntime; do
    rm -rf venv demo
    "$python" -m venv venv
    # shellcheck disable=SC2086 # two words are two packages
    venv/bin/pip install --quiet --disable-pip-version-check "$wheel" $packages >&2
    # What the interpreter calls deprecated breaks with a later one.
    venv/bin/python -W error::DeprecationWarning:rimc_onnx -m rimc_onnx quickstart demo --json >found.json
    venv/bin/python - "$version" <<'PY'
import json, sys
import onnxruntime
rows = json.load(open("found.json"))["rows"]
print(f"Python {sys.argv[1]}, ONNX Runtime {onnxruntime.__version__}:", [(r["top1"], r["top1_stock"]) for r in rows])
clean, drifted, calibrated = (r["top1"] for r in rows)
assert clean > 0.97 and calibrated > clean - 0.02 > drifted, rows
PY
  done
done
