# SPDX-License-Identifier: Apache-2.0
"""Networks x devices x knowledge: what a calibration gives back, by default settings.

    python -m benchmarks.zoo ROWS.jsonl [--network NAME ...] [--device NAME|PRESET@TIME ...]
        [--seeds 3] [--images 1000] [--sram-budget 5%] [--devices-per-weight 1] [--table]

A row for every network, device, seed and knowledge is appended to the file as it is measured; rows
that are there are not measured again, so a run that was stopped goes on. ``--table`` prints what
the file holds. Networks whose data is missing are left out with a message.

Columns of the table: score of the teacher, of a conversion with one unclipped W_max a node
("drifted": the array without this tool's mapping and calibration), and calibrated from 10 samples
with the default mapping, adapters and SRAM as a black box, with arrays read out, and with a
statistics file beside. "Restored" is (calibrated - drifted) / (clean - drifted).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import rimc_onnx
from benchmarks.datasets import DATA
from benchmarks.plain_network import digits, write_plain_network
from rimc_onnx.calibration.config import CalibrateConfig, parse_budget
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import DeviceConfig, Scaling, get_preset, parse_time

Arrays = dict[str, npt.NDArray[Any]]
Metric = Callable[[Arrays, Arrays], float]

_SAMPLES = Path(__file__).resolve().parents[1] / "samples"
_KEYS = (
    *("network", "device", "seed", "knowledge"),
    *("samples", "images", "sram_budget", "devices_per_weight"),
)
"""What a row was measured for."""
KNOWLEDGE = ("black box", "read-out", "statistics")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model with its data; every score is a share, more is better."""

    model: Path
    calibration: Arrays
    test: Arrays
    metric: Metric | None = None
    """None: top-1 of ``labels``."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A preset at a time."""

    preset: str
    time: str | None = None
    drift_frac: float | None = None

    def config(self, **mapping: Any) -> DeviceConfig:
        """The device model."""
        if self.drift_frac is not None:
            mapping["drift_frac"] = self.drift_frac
        return get_preset(self.preset, **mapping)

    @property
    def time_s(self) -> float | None:
        """Seconds since programming."""
        return None if self.time is None else parse_time(self.time)


DEVICES = {
    "gaussian-relative 20 %": Device(preset="gaussian-relative", drift_frac=0.2),
    "gaussian-absolute 4 %": Device(preset="gaussian-absolute", drift_frac=0.04),
    "gaussian-absolute 8 %": Device(preset="gaussian-absolute", drift_frac=0.08),
    "wan2022-aihwkit 1 s": Device(preset="wan2022-aihwkit", time="1s"),
    "wan2022-aihwkit 1 d": Device(preset="wan2022-aihwkit", time="1d"),
    "milo2021": Device(preset="milo2021"),
    "cmo-hfox-2025-2pct 10 y": Device(preset="cmo-hfox-2025-2pct", time="10y"),
    "pcm-natcomm2020 1 h": Device(preset="pcm-natcomm2020", time="1h"),
}


def device_of(name: str) -> Device:
    """One of ``DEVICES``, or ``PRESET`` or ``PRESET@TIME``."""
    if name in DEVICES:
        return DEVICES[name]
    preset, _, time = name.partition("@")
    return Device(preset=preset, time=time or None)


def _device_name(name: str) -> str:
    config = device_of(name).config()
    config.resolve_time(device_of(name).time_s)
    return name


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


def _lite0(images: npt.NDArray[np.uint8]) -> Arrays:
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
    """Sentence pairs of STS14, score: Spearman."""
    from scipy.stats import spearmanr

    folder = DATA / "minilm_sts"
    with np.load(folder / "sts14.npz") as file:
        picked = _strided({"pairs": file["pairs"], "score": file["score"]}, pairs)
        rows = np.unique(picked["pairs"])
        ids, mask = file["input_ids"][rows], file["attention_mask"][rows]
    length = int(mask.sum(axis=1).max())
    with np.load(folder / "calibration.npz") as file:
        calibration = {name: file[name] for name in ("input_ids", "attention_mask")}

    def spearman(outputs: Arrays, _extras: Arrays) -> float:
        sentence = outputs["embedding"][np.searchsorted(rows, picked["pairs"])]
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
    "EfficientNet-lite0": lambda _, n: _imagenet("efficientnet_lite0.onnx", _lite0, n),
    "SqueezeNet": lambda _, n: _imagenet("squeezenet_fp16.onnx", _squeezenet, n),
    "MiniLM": lambda _, n: _minilm(n),
    "digits, depthwise": lambda _, n: _digits(n),
    "digits, plain": _plain,
}


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file of rows, one JSON object a line")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--device", action="append", type=_device_name, metavar="NAME")
    parser.add_argument("--knowledge", action="append", choices=KNOWLEDGE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--images", type=int, default=1000, help="of the test set, at most")
    parser.add_argument("--sram-budget", metavar="BYTES|SHARE%%", help="default: the tool's")
    parser.add_argument("--devices-per-weight", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the rows, measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table(read_rows(arguments.rows))))
        return
    for name in arguments.network or NETWORKS:
        try:
            network = NETWORKS[name](arguments.rows.resolve().parent, arguments.images)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error.filename} is missing", file=sys.stderr)
            continue
        measure(name, network, arguments)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEYS)


def measure(name: str, network: Network, arguments: argparse.Namespace) -> None:
    """Append every row of a network that the file does not have."""
    done = {_key(row) for row in read_rows(arguments.rows)}
    wanted = [
        {
            "network": name,
            "device": device,
            "seed": seed,
            "knowledge": knowledge,
            "samples": arguments.samples,
            "images": arguments.images,
            "sram_budget": arguments.sram_budget,
            "devices_per_weight": arguments.devices_per_weight,
        }
        for seed in range(arguments.seeds)
        for device in arguments.device or DEVICES
        for knowledge in arguments.knowledge or KNOWLEDGE
    ]
    missing = [row for row in wanted if _key(row) not in done]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        jobs = _Jobs(network, Path(folder), arguments)
        for row in missing:
            found = row | jobs.figures(device_of(row["device"]), row["seed"], row["knowledge"])
            with arguments.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


class _Jobs:
    """The jobs of one network; what several rows need is done once."""

    def __init__(self, network: Network, folder: Path, arguments: argparse.Namespace) -> None:
        self._network = network
        self._folder = folder
        self._samples: int = arguments.samples
        self._pairs: int = arguments.devices_per_weight
        budget = arguments.sram_budget
        self._budget = (None, None) if budget is None else parse_budget(budget)
        self._kept: dict[Any, Any] = {}

    def figures(self, device: Device, seed: int, knowledge: str) -> dict[str, Any]:
        """Scores, and the SRAM of the adapters as a share of the weights."""
        clean = self._once("clean", lambda: self._score(self._network.model, native=False))
        drifted, converted = self._once((device, seed), lambda: self._converted(device, seed))
        report = rimc_onnx.calibrate(
            converted.output,
            data=self._network.calibration,
            teacher=self._network.model,
            statistics=self._statistics() if knowledge == "statistics" else None,
            config=CalibrateConfig(
                num_samples=self._samples,
                read_out=knowledge != "black box",
                sram_budget_bytes=self._budget[0],
                sram_budget_frac=self._budget[1],
            ),
            report=False,
            force=True,
        )
        return {
            "clean": clean,
            **drifted,
            "calibrated": self._score(report.output),
            "sram_frac": report.sram_bytes / converted.rram_weights,
            "seconds": round(report.seconds, 3),
        }

    def _converted(self, device: Device, seed: int) -> tuple[dict[str, float], Any]:
        """Scores without calibration, and the conversion with the default mapping."""
        plain = self._convert(device, seed, scaling=Scaling.NODE, clip_sigma=math.inf)
        drifted = self._score(plain.output)
        converted = self._convert(device, seed, devices_per_weight=self._pairs)
        return {"drifted": drifted, "uncalibrated": self._score(converted.output)}, converted

    def _convert(self, device: Device, seed: int, **mapping: Any) -> Any:
        config = ConvertConfig(device=device.config(**mapping), seed=seed, time_s=device.time_s)
        return rimc_onnx.convert(
            self._network.model,
            self._folder / "net.rimc.onnx",
            config=config,
            data=self._network.calibration if config.needs_ranges else None,
            force=True,
        )

    def _statistics(self) -> Path:
        path = self._folder / "statistics.npz"
        self._once(
            "statistics",
            lambda: rimc_onnx.write_statistics(
                self._network.model, path, data=self._network.calibration
            ),
        )
        return path

    def _score(self, model: str | Path, *, native: bool = True) -> float:
        network = self._network
        report = rimc_onnx.evaluate(model, data=network.test, metric=network.metric, native=native)
        if network.metric is None:
            assert report.top1 is not None, "the data has labels"
            return report.top1
        return next(iter(report.metrics.values()))

    def _once(self, what: Any, make: Callable[[], Any]) -> Any:
        # Of conversions only the last: rows come device by device.
        if what not in self._kept:
            self._kept = {k: v for k, v in self._kept.items() if isinstance(k, str)}
            self._kept[what] = make()
        return self._kept[what]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: means over seeds, in per cent."""
    yield (
        "| network | device | clean | drifted | "
        + " | ".join(KNOWLEDGE)
        + " | restored, black box | SRAM | seeds |"
    )
    yield "|" + "---|" * (7 + len(KNOWLEDGE))
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        pairs = row["devices_per_weight"]
        device = row["device"] + (f", {pairs} pairs a weight" if pairs > 1 else "")
        network = row["network"] + (f", {row['sram_budget']}" if row["sram_budget"] else "")
        cells.setdefault((network, device), []).append(row)
    for (network, device), found in cells.items():
        mean = {
            name: 100 * float(np.mean([row[name] for row in found]))
            for name in ("clean", "drifted", "sram_frac")
        }
        by_knowledge = {
            knowledge: [row["calibrated"] for row in found if row["knowledge"] == knowledge]
            for knowledge in KNOWLEDGE
        }
        scores = {k: 100 * float(np.mean(v)) if v else None for k, v in by_knowledge.items()}
        lost, black_box = mean["clean"] - mean["drifted"], scores["black box"]
        restored = None if black_box is None or lost <= 0 else (black_box - mean["drifted"]) / lost
        figures = [mean["clean"], mean["drifted"], *scores.values()]
        yield (
            "| "
            + " | ".join(
                (
                    network,
                    device,
                    *("" if figure is None else f"{figure:.1f}" for figure in figures),
                    "" if restored is None else f"{100 * restored:.0f} %",
                    f"{mean['sram_frac']:.1f} %",
                    str(len({row["seed"] for row in found})),
                )
            )
            + " |"
        )


if __name__ == "__main__":
    main()
