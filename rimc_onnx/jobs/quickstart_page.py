# SPDX-License-Identifier: Apache-2.0
"""The page to play with: the digits sample over drift and over time, in one HTML file.

The page is ``quickstart_page.html`` beside this file; here is the data that it
shows. Everything but the digits that people draw is computed here, so it opens from a disk, without
a network.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx import passes
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import DeviceConfig, format_time, get_preset
from rimc_onnx.execution.sessions import open_session
from rimc_onnx.io.model_files import load_model
from rimc_onnx.jobs.calibrate import calibrate
from rimc_onnx.jobs.convert import convert
from rimc_onnx.jobs.teacher import package_version

__all__ = ["NUM_POINTS", "quickstart_page"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class _Series:
    """One way of the slider: a preset at every one of its values."""

    title: str
    axis: str
    preset: str
    values: tuple[float, ...]
    """Relative drift, or seconds since programming."""
    is_time: bool

    def state(self, value: float) -> ConvertConfig:
        if self.is_time:
            return ConvertConfig(device=get_preset(self.preset), time_s=value)
        return ConvertConfig(device=get_preset(self.preset, drift_frac=value))

    def label(self, value: float) -> str:
        return format_time(value) if self.is_time else f"{100 * value:.0f} %"


_HOUR_S, _DAY_S = 3600.0, 86400.0
_SERIES = (
    _Series(
        title="Relative drift",
        axis="standard deviation of a conductance over itself",
        preset="gaussian-relative",
        values=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
        is_time=False,
    ),
    _Series(
        title="RRAM over time",
        axis="time since programming",
        preset="wan2022-aihwkit",
        values=(1.0, 60.0, _HOUR_S, 6 * _HOUR_S, _DAY_S, 2 * _DAY_S),
        is_time=True,
    ),
    _Series(
        title="PCM over time",
        axis="time since programming",
        preset="pcm-natcomm2020",
        values=(20.0, 600.0, _HOUR_S, _DAY_S, 7 * _DAY_S, 30 * _DAY_S, 365.25 * _DAY_S),
        is_time=True,
    ),
)
_SHOWN_FIRST = (0, 4)
"""Series and value that the page opens with: the quickstart's own, whose files it carries."""
NUM_POINTS = sum(len(series.values) for series in _SERIES)


def quickstart_page(
    folder: Path,
    *,
    progress: Callable[[int], None] = lambda _done: None,
) -> str:
    """The page as HTML, about 1.3 MB.

    Args:
        folder: where ``model.onnx``, ``calibration.npz`` and ``test.npz`` of the sample lie.
        progress: called with the number of states done, of ``NUM_POINTS``.
    """
    model = folder / "model.onnx"
    graph = load_model(model)
    passes.prepare_pipeline()(graph)
    targets = {name: unit.weight.float32() for name, unit in passes.find_units(graph).items()}
    with np.load(folder / "test.npz") as arrays:
        images, labels = arrays["input"], arrays["labels"]
    codec = _Codec(
        images=images,
        labels=labels,
        limits={name: float(np.abs(w).max()) for name, w in targets.items()},
    )
    live: dict[str, str] = {}
    series = []
    done = 0
    with tempfile.TemporaryDirectory() as scratch:
        for index, found in enumerate(_SERIES):
            points = []
            for at, value in enumerate(found.values):
                states, errors = _states(model, found.state(value), Path(scratch), codec)
                if (index, at) == _SHOWN_FIRST:
                    live = {
                        state: _base64(file.read_bytes())
                        for state, file in _files(Path(scratch)).items()
                    }
                points.append({"label": found.label(value), "errors": errors, **states})
                done += 1
                progress(done)
            series.append(
                {
                    "title": found.title,
                    "axis": found.axis,
                    "preset": found.preset,
                    "source": _source(found.state(found.values[0]).device),
                    "points": points,
                }
            )
    data = {
        "version": package_version(),
        "images": codec.images_text(),
        "labels": "".join(map(str, labels)),
        "nodes": [codec.node(name, w) for name, w in targets.items()],
        "clean": codec.answers(model),
        "series": series,
        "shown": _SHOWN_FIRST,
        "live": live,
    }
    template = (resources.files(__package__) / "quickstart_page.html").read_text("utf-8")
    # "</" would end the script that holds the data.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return template.replace("{{ data }}", text)


def _files(scratch: Path) -> dict[str, Path]:
    return {state: scratch / f"{state}.onnx" for state in ("drifted", "calibrated")}


def _source(device: DeviceConfig) -> str:
    from rimc_onnx.device import list_presets

    return list_presets()[device.preset or ""].source


def _states(
    model: Path, config: ConvertConfig, scratch: Path, codec: _Codec
) -> tuple[dict[str, Any], list[list[float]]]:
    """Answers and arrays, drifted and calibrated, and each node's error before and after."""
    files = _files(scratch)
    convert(model, files["drifted"], config=config, force=True)
    report = calibrate(
        files["drifted"],
        files["calibrated"],
        data=str(model.parent / "calibration.npz"),
        force=True,
    )
    fitted = passes.rram_branches(load_model(files["calibrated"]))
    arrays = {branch.node: branch.weight() for branch in fitted}
    effective = {
        branch.node: passes.folded_weight(branch.weight(), branch.adapter(), branch.geometry)
        for branch in fitted
    }
    states = {
        state: {
            **codec.answers(files[state]),
            "weights": codec.weights(arrays if state == "drifted" else effective),
        }
        for state in files
    }
    errors = [
        [float(f"{node.error_before:.3g}"), float(f"{node.error_after:.3g}")]
        for node in report.nodes
    ]
    return states, errors


@dataclass(frozen=True, kw_only=True)
class _Codec:
    """Arrays as the page reads them: bytes in base64."""

    images: Array
    """[N, 1, 8, 8] in sixteenths."""
    labels: Array
    limits: Mapping[str, float]
    """Largest target weight of every node: 100 of the page's steps."""

    def images_text(self) -> str:
        return _base64(np.rint(16 * self.images).astype(np.uint8).tobytes())

    def node(self, name: str, weight: Array) -> dict[str, Any]:
        """A node's matrix, bit lines by word lines, and its target."""
        matrix = _matrix(weight)
        return {"name": name, "shape": matrix.shape, "target": self.weights({name: weight})}

    def weights(self, weights: Mapping[str, Array]) -> str:
        """All matrices one after another, a signed byte a cell."""
        steps = [
            np.clip(np.rint(100 / self.limits[name] * _matrix(weights[name])), -127, 127)
            for name in self.limits
            if name in weights
        ]
        return _base64(np.concatenate([s.reshape(-1) for s in steps]).astype(np.int8).tobytes())

    def answers(self, file: Path) -> dict[str, Any]:
        """Accuracy, and the share of every class in every answer, [N, 10] in 255ths."""
        session = open_session(file, native=True)
        (logits,) = session.run(None, {"input": self.images})
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        answers = logits.argmax(axis=1)
        return {
            "right": int((answers == self.labels).sum()),
            "answers": "".join(map(str, answers)),
            "shares": _base64(np.rint(255 * shares).astype(np.uint8).tobytes()),
        }


def _matrix(weight: Array) -> Array:
    """[M, C / group, *kernel] or [K, N] as [bit lines, word lines]."""
    return weight.T if weight.ndim == 2 else weight.reshape(len(weight), -1)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
