# SPDX-License-Identifier: Apache-2.0
"""Random nodes on every instruction set of the machine: the bits of the scalar kernels.

    python tests/compat/compare_isas.py [--nodes 10000] [--first 0] [--isas avx2 ...]

Nodes are those of tests/helpers/random_cases.py, each fed twice: whole, then with half of its
batch, on one to three threads. Prints the nodes that differ, and exits 1; otherwise nodes a second
of each instruction set. The numpy oracle is not asked: ``pytest tests/runtime/test_random_cases.py
--random-cases 10000`` does that.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS / "helpers"), str(_TESTS / "runtime")]

import random_cases  # noqa: E402
import test_random_cases  # noqa: E402

from rimc_onnx import runtime  # noqa: E402

_PER_MODEL = 40
_SCALAR = "scalar"


def main() -> int:
    """Compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0, help="number of the first node")
    parser.add_argument("--isas", nargs="+", help="instead of all that the machine has")
    parser.add_argument("--digests", action="store_true", help="print those of RIMC_ISA alone")
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.nodes)
    if arguments.digests:
        for line in digests(numbers):
            print(line, flush=True)
        return 0
    isas = arguments.isas or runtime.build_info()["available_isas"]
    want = _digests_of(_SCALAR, numbers)
    bad = 0
    for isa in isas:
        if isa == _SCALAR:
            continue
        for number in differences(want, _digests_of(isa, numbers)):
            print(f"{isa}: node {number} is not what the scalar kernels make of it")
            bad += 1
    return 1 if bad else 0


def digests(numbers: range) -> list[str]:
    """One line a node: its number, and a digest of its outputs in both runs."""
    lines = []
    for first in range(numbers.start, numbers.stop, _PER_MODEL):
        part = range(first, min(first + _PER_MODEL, numbers.stop))
        nodes = [random_cases.random_node(n) for n in part]
        model = test_random_cases.model_of(nodes)
        session = runtime.make_session(model, num_threads=1 + first // _PER_MODEL % 3)
        sums = [hashlib.blake2b(digest_size=8) for _ in nodes]
        for _ in range(2):
            outputs = session.run(None, test_random_cases.feeds_of(nodes))
            for got, total in zip(outputs, sums, strict=True):
                got[np.isnan(got)] = np.nan  # a NaN's own bits mean nothing
                total.update(got.tobytes())
            nodes = [node.cut() for node in nodes]
        lines += [f"{n} {s.hexdigest()}" for n, s in zip(part, sums, strict=True)]
    return lines


def differences(want: list[str], got: list[str]) -> list[str]:
    """Numbers of the nodes whose lines differ, or are missing."""
    lines = set(got)
    return [line.split()[0] for line in want if line not in lines]


def _digests_of(isa: str, numbers: range) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--digests"]
    command += ["--first", str(numbers.start), "--nodes", str(len(numbers))]
    start = time.monotonic()
    result = subprocess.run(
        command, check=True, env={**os.environ, "RIMC_ISA": isa}, stdout=subprocess.PIPE, text=True
    )
    lines = result.stdout.splitlines()
    rate = len(lines) / (time.monotonic() - start)
    print(f"{isa}: {len(lines)} nodes, {rate:.0f} a second", flush=True)
    return lines


if __name__ == "__main__":
    sys.exit(main())
