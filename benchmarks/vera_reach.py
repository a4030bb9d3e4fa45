# SPDX-License-Identifier: Apache-2.0
"""How much of a loss that all cells share VeRA's branch can undo: the table in docs/baselines.md.

    python -m benchmarks.vera_reach MODEL.onnx ... [--rank 16]

A device that answers with g W instead of W is right again with a branch of (1 - g) W. A node of d
word lines and m bit lines has d m such numbers; VeRA's P diag(d) Q diag(b) has R + m. Printed is
the share of the energy of W that the best d and b reach (alternating least squares), median and
range over the nodes, beside rank R of one's own (R (d + m) numbers, by singular values) and a
magnitude (m numbers).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rimc_onnx.io.model_files import load_model
from rimc_onnx.passes import find_units, prepare_pipeline
from rimc_onnx.training.adapter_branch import vera_projections

F64 = npt.NDArray[np.float64]

_ROUNDS = 6


def vera_share(w: F64, p: F64, q: F64) -> float:
    """Of the energy of ``w`` [d, m], with projections ``p`` [d, R] and ``q`` [R, m]."""
    d = np.ones(p.shape[1])
    b = np.zeros(w.shape[1])
    for _ in range(_ROUNDS):
        lines = p @ (d[:, None] * q)
        b = (lines * w).sum(0) / np.maximum((lines * lines).sum(0), 1e-30)
        scaled = q * b
        # Products of rank one have inner products of their factors' inner products.
        gram, right = (p.T @ p) * (scaled @ scaled.T), ((p.T @ w) * scaled).sum(1)
        d = np.linalg.lstsq(gram, right, rcond=None)[0]
    left = w - p @ (d[:, None] * q) * b
    return 1.0 - float((left**2).sum() / (w**2).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    for path in arguments.models:
        model = load_model(path)
        prepare_pipeline()(model)
        units = find_units(model)
        geometries = [unit.geometry for unit in units.values()]
        depth, columns = max(g.depth for g in geometries), max(g.columns for g in geometries)
        p, q = vera_projections(depth, columns, arguments.rank, seed=0)
        shares = []
        for unit in units.values():
            rank = unit.geometry.clamp_rank(arguments.rank)
            reached = of_branch = total = 0.0
            groups = unit.geometry.matrices(np.array(unit.weight.float32())).astype(np.float64)
            for index, w in enumerate(groups):
                energy = float((w**2).sum())
                lines = slice(index * w.shape[1], (index + 1) * w.shape[1])
                part = q[:rank, lines].astype(np.float64)
                reached += energy * vera_share(w, p[: w.shape[0], :rank].astype(np.float64), part)
                of_branch += float((np.linalg.svd(w, compute_uv=False)[:rank] ** 2).sum())
                total += energy
            shares.append((reached / total, of_branch / total))
        names = (f"VeRA, rank {arguments.rank}", f"own A and B, rank {arguments.rank}")
        for name, found in zip(names, zip(*shares, strict=True), strict=True):
            low, median, high = 100 * np.quantile(found, [0, 0.5, 1])
            print(
                f"{path.name}: {name}: {median:.1f} % ({low:.1f} .. {high:.1f}); magnitude: 100 %"
            )


if __name__ == "__main__":
    main()
