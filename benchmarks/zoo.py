# SPDX-License-Identifier: Apache-2.0
"""Networks of the zoo: models and samples. What they are for is ``rimc-onnx study --zoo``.

    rimc-onnx study --zoo --networks benchmarks/zoo.toml -o ZOO [--seeds 1] [--only network=MiniLM]

from the project's root. Networks whose data is missing are left out with a message. A reader's name
ends in the number of its test samples (``resnet20_test_500``), so that zoo.toml says it and rows of
another number are other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.datasets import DATA
from benchmarks.plain_network import digits, write_plain_network

Arrays = dict[str, npt.NDArray[Any]]
Metric = Callable[[Arrays, Arrays], float]

_SAMPLES = Path(__file__).resolve().parents[1] / "samples"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model with its data; every score is a share, more is better."""

    model: Path
    calibration: Arrays
    test: Arrays
    metric: Metric | None = None
    """None: top-1 of ``labels``."""


def _strided(arrays: Arrays, images: int) -> Arrays:
    """Up to ``images`` of the samples, equally far apart: files are sorted by class."""
    total = len(next(iter(arrays.values())))
    picked = np.linspace(0, total - 1, min(images, total)).round().astype(np.int64)
    return {name: array[picked] for name, array in arrays.items()}


def _resnet20(model: str, images: int) -> Network:
    folder = DATA / "resnet20_cifar100"
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)

    def read(name: str, count: int) -> Arrays:
        with np.load(folder / name) as file:
            part = _strided({"x": file["x"], "labels": file["y"]}, count)
        x = (part["x"].astype(np.float32) / 255 - mean) / std
        return {"input": np.ascontiguousarray(x.transpose(0, 3, 1, 2)), "labels": part["labels"]}

    return Network(
        model=folder / model,
        calibration=read("calibration.npz", 256),
        test=read("test.npz", images),
    )


def _imagenet(model: str, feed: Callable[[npt.NDArray[np.uint8]], Arrays], images: int) -> Network:
    with np.load(DATA / "imagenet" / "images.npz") as file:
        test = _strided({"x": file["test"], "labels": file["labels"]}, images)
        calibration = feed(file["calibration"])
    return Network(
        model=DATA / "imagenet" / model,
        calibration=calibration,
        test={**feed(test["x"]), "labels": test["labels"]},
        metric=_top1,
    )


def lite0_input(images: npt.NDArray[np.uint8]) -> Arrays:
    """What EfficientNet-lite0 takes of RGB images [N, 224, 224, 3]."""
    x = (images.astype(np.float32) - 127) / 128
    return {"input": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}


def _squeezenet(images: npt.NDArray[np.uint8]) -> Arrays:
    x = images[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    return {"data_0": np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float16)}


def _top1(outputs: Arrays, extras: Arrays) -> float:
    """Of outputs [N, classes, 1...]."""
    logits = next(iter(outputs.values()))
    return float((logits.reshape(len(logits), -1).argmax(1) == extras["labels"]).mean())


def _minilm(pairs: int) -> Network:
    """Sentence pairs of STS14, shortest sentence first, score: Spearman."""
    from scipy.stats import spearmanr

    folder = DATA / "minilm_sts"
    with np.load(folder / "sts14.npz") as file:
        picked = _strided({"pairs": file["pairs"], "score": file["score"]}, pairs)
        rows = np.unique(picked["pairs"])
        rows = rows[np.argsort(file["attention_mask"][rows].sum(axis=1), kind="stable")]
        ids, mask = file["input_ids"][rows], file["attention_mask"][rows]
    length = int(mask.sum(axis=1).max())
    with np.load(folder / "calibration.npz") as file:
        calibration = {name: file[name] for name in ("input_ids", "attention_mask")}
    place = np.empty(rows.max() + 1, np.int64)
    place[rows] = np.arange(len(rows))

    def spearman(outputs: Arrays, _extras: Arrays) -> float:
        sentence = outputs["embedding"][place[picked["pairs"]]]
        cosine = (sentence[:, 0] * sentence[:, 1]).sum(axis=1)
        return float(spearmanr(cosine, picked["score"]).statistic)

    return Network(
        model=folder / "minilm_l6.onnx",
        calibration=calibration,
        test={
            "input_ids": ids[:, :length].astype(np.int64),
            "attention_mask": mask[:, :length].astype(np.int64),
        },
        metric=spearman,
    )


def _digits(images: int) -> Network:
    folder = _SAMPLES / "digits"
    files = [dict(np.load(folder / name)) for name in ("calibration.npz", "test.npz")]
    return Network(
        model=folder / "model.onnx", calibration=files[0], test=_strided(files[1], images)
    )


def _plain(folder: Path, images: int) -> Network:
    model = folder / "plain.onnx"
    if not model.exists():
        write_plain_network(model)
    training, test = digits()
    return Network(model=model, calibration=_strided(training, 64), test=_strided(test, images))


NETWORKS: Mapping[str, Callable[[Path, int], Network]] = {
    "ResNet-20": lambda _, n: _resnet20("resnet20.onnx", n),
    "ResNet-20, unfused": lambda _, n: _resnet20("resnet20_unfused_opset17.onnx", n),
    "EfficientNet-lite0": lambda _, n: _imagenet("efficientnet_lite0.onnx", lite0_input, n),
    "SqueezeNet": lambda _, n: _imagenet("squeezenet_fp16.onnx", _squeezenet, n),
    "MiniLM": lambda _, n: _minilm(n),
    "digits, depthwise": lambda _, n: _digits(n),
    "digits, plain": _plain,
}

_RUN = 50


def _runs(arrays: Arrays, size: int) -> list[Arrays]:
    """Dicts of ``size`` samples each: what a reader gives. Sentences are as long as the longest."""
    total = len(next(iter(arrays.values())))
    cuts = [slice(start, start + size) for start in range(0, total, size)]
    runs = [{name: array[cut] for name, array in arrays.items()} for cut in cuts]
    for run in runs:
        if (mask := run.get("attention_mask")) is not None:
            longest = int(mask.sum(axis=1).max())
            run |= {name: array[:, :longest] for name, array in run.items()}
    return runs


def _calibration(name: str) -> list[Arrays]:
    return _runs(NETWORKS[name](Path(), 1).calibration, 1)


def _test(name: str, images: int, size: int = _RUN) -> list[Arrays]:
    return _runs(NETWORKS[name](Path(), images).test, size)


def _minilm_spearman(pairs: int, outputs: dict[str, Any], _extras: dict[str, Any]) -> float:
    """Of the sentences that the reader of as many pairs gives, in its order."""
    metric = NETWORKS["MiniLM"](Path(), pairs).metric
    assert metric is not None
    return metric({name: np.concatenate(parts) for name, parts in outputs.items()}, {})


resnet20_calibration = partial(_calibration, "ResNet-20")
efficientnet_calibration = partial(_calibration, "EfficientNet-lite0")
squeezenet_calibration = partial(_calibration, "SqueezeNet")
minilm_calibration = partial(_calibration, "MiniLM")

_COUNTED: Mapping[str, Callable[..., Any]] = {
    "resnet20_test": partial(_test, "ResNet-20"),
    "efficientnet_test": partial(_test, "EfficientNet-lite0"),
    "squeezenet_test": partial(_test, "SqueezeNet", size=1),
    "minilm_test": partial(_test, "MiniLM"),
    "minilm_spearman": _minilm_spearman,
}
"""Readers and metrics whose first argument is a number of test samples."""


def __getattr__(name: str) -> Callable[..., Any]:
    """``<reader>_<number>``."""
    reader, _, count = name.rpartition("_")
    if reader not in _COUNTED or not count.isdecimal():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_COUNTED[reader], int(count))


def plain_calibration() -> list[Arrays]:
    """64 of the digits that the network without residuals was trained on."""
    return _runs(_strided(digits()[0], 64), 1)


def plain_test() -> list[Arrays]:
    """The 500 others."""
    return _runs(digits()[1], _RUN)
