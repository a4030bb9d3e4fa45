# SPDX-License-Identifier: Apache-2.0
"""Readers for ``--data``: the real networks' samples, as feed dicts of their models.

The data lies in ``../shared/data`` (seen from the project's root) and is not part of the project.
Use from the project's root, for example::

    rimc-onnx evaluate resnet20.onnx --data benchmarks.datasets:cifar100_test
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = [
    "DATA",
    "cifar100_calibration",
    "cifar100_test",
    "spearman",
    "sts14",
    "sts14_calibration",
]

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _cifar100(name: str, *, run: int) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """``run`` images a dict; calibration takes a dict for one sample."""
    with np.load(DATA / "resnet20_cifar100" / name) as file:
        images, labels = file["x"], file["y"]
    for start in range(0, len(images), run):
        part = images[start : start + run].astype(np.float32) / 255
        x = np.ascontiguousarray(((part - _MEAN) / _STD).transpose(0, 3, 1, 2))
        yield {"input": x, "labels": labels[start : start + run]}


def cifar100_test() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """All 5,000 test images."""
    return _cifar100("test.npz", run=256)


def cifar100_calibration() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """256 training images."""
    return _cifar100("calibration.npz", run=1)


def sts14_calibration() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """256 sentences, each without its padding."""
    with np.load(DATA / "minilm_sts" / "calibration.npz") as file:
        ids, mask = file["input_ids"].astype(np.int64), file["attention_mask"].astype(np.int64)
    for row, length in enumerate(mask.sum(axis=1)):
        one = slice(row, row + 1)
        yield {"input_ids": ids[one, :length], "attention_mask": mask[one, :length]}


def sts14() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """All sentences of STS14, 64 of like length at a time; ``row`` says where they came from."""
    with np.load(DATA / "minilm_sts" / "sts14.npz") as file:
        ids, mask = file["input_ids"].astype(np.int64), file["attention_mask"].astype(np.int64)
    order = np.argsort(mask.sum(axis=1), kind="stable")
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        length = int(mask[rows].sum(axis=1).max())
        yield {
            "input_ids": np.ascontiguousarray(ids[rows, :length]),
            "attention_mask": np.ascontiguousarray(mask[rows, :length]),
            "row": rows,
        }


def spearman(
    outputs: dict[str, npt.NDArray[np.float32]], extras: dict[str, npt.NDArray[np.int64]]
) -> float:
    """Rank correlation of the cosine of both sentences with the annotators' score, all pairs."""
    from scipy.stats import spearmanr

    with np.load(DATA / "minilm_sts" / "sts14.npz") as file:
        pairs, score = file["pairs"], file["score"]
    embedding = np.empty_like(outputs["embedding"])
    embedding[extras["row"]] = outputs["embedding"]
    cosine = (embedding[pairs[:, 0]] * embedding[pairs[:, 1]]).sum(axis=1)
    return float(spearmanr(cosine, score).statistic)
