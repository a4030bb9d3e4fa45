# SPDX-License-Identifier: Apache-2.0
"""The figures of the documentation: measured rows, and the plots that are made of them.

    python -m benchmarks.plots docs/figures --measure   # rows.json; needs ../shared/data
    python -m benchmarks.latency --networks ResNet-20 --rank 2 --threads 1 --cpu-time > latency.txt
    python -m benchmarks.plots docs/figures --latency latency.txt   # puts its ratios into rows.json
    python -m benchmarks.plots docs/figures               # *.svg of rows.json

ResNet-20 / CIFAR-100 has 1,000 test images, digits 500; calibrations take 10 samples.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rimc_onnx
from benchmarks.datasets import DATA, cifar100_test
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import DeviceConfig, format_time, get_preset

Row = dict[str, Any]

_DRIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_HOUR_S, _DAY_S = 3600.0, 86400.0
_TIMES_S = {
    "wan2022-aihwkit": (1.0, 60.0, _HOUR_S, 6 * _HOUR_S, _DAY_S, 2 * _DAY_S),
    "pcm-natcomm2020": (20.0, 600.0, _HOUR_S, _DAY_S, 7 * _DAY_S, 30 * _DAY_S, 365.25 * _DAY_S),
}
_BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_TEST_IMAGES = 1000
# Okabe and Ito's colours, which people with any colour vision tell apart.
_GREY, _BLUE, _ORANGE, _GREEN = "#7a808a", "#0072b2", "#d55e00", "#009e73"


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A teacher with its data, and a folder to convert it in."""

    name: str
    model: Path
    calibration: str
    test: str
    folder: Path

    def accuracy(self, file: str | Path) -> float:
        return rimc_onnx.evaluate(file, data=self.test).top1 or 0.0

    def point(
        self, device: DeviceConfig, *, time_s: float | None = None, seed: int = 0, **fit: Any
    ) -> tuple[float, Any]:
        """Drifted accuracy and the report of a calibration, which is in ``self.calibrated``."""
        converted = self.folder / "c.rimc.onnx"
        config = ConvertConfig(device=device, time_s=time_s, seed=seed)
        rimc_onnx.convert(self.model, converted, config=config, force=True)
        report = rimc_onnx.calibrate(
            converted,
            self.calibrated,
            data=self.calibration,
            teacher=self.model,
            config=CalibrateConfig(**fit),
            force=True,
        )
        return self.accuracy(converted), report

    @property
    def calibrated(self) -> Path:
        return self.folder / "calibrated.onnx"


def _networks(folder: Path) -> Iterator[_Network]:
    digits = Path(__file__).resolve().parents[1] / "samples" / "digits"
    images = list(cifar100_test())
    count = 1 + _TEST_IMAGES // len(images[0]["input"])
    test = {
        name: np.concatenate([run[name] for run in images[:count]])[:_TEST_IMAGES]
        for name in ("input", "labels")
    }
    np.savez(folder / "test.npz", **test)
    for name, model, calibration, samples in (
        ("digits", digits / "model.onnx", str(digits / "calibration.npz"), digits / "test.npz"),
        (
            "ResNet-20",
            DATA / "resnet20_cifar100" / "resnet20.onnx",
            "benchmarks.datasets:cifar100_calibration",
            folder / "test.npz",
        ),
    ):
        yield _Network(
            name=name, model=model, calibration=calibration, test=str(samples), folder=folder
        )


def measure() -> Iterator[Row]:
    """Every row but those of latency."""
    with tempfile.TemporaryDirectory() as folder:
        for network in _networks(Path(folder)):
            yield from _measure(network)


def _measure(network: _Network) -> Iterator[Row]:
    clean = network.accuracy(network.model)
    for drift in _DRIFTS:
        device = get_preset("gaussian-relative", drift_frac=drift)
        drifted, _ = network.point(device)
        yield {
            "figure": "drift",
            "network": network.name,
            "x": drift,
            "clean": clean,
            "drifted": drifted,
            "calibrated": network.accuracy(network.calibrated),
        }
    for preset, times in _TIMES_S.items():
        for time_s in times:
            drifted, _ = network.point(get_preset(preset), time_s=time_s)
            yield {
                "figure": "time",
                "network": network.name,
                "preset": preset,
                "x": time_s,
                "clean": clean,
                "drifted": drifted,
                "calibrated": network.accuracy(network.calibrated),
            }
    device = get_preset("gaussian-relative")
    for share in _BUDGETS:
        for knowledge, read_out in (("black box", False), ("read out", True)):
            drifted, report = network.point(device, sram_budget_frac=share, read_out=read_out)
            yield {
                "figure": "sram",
                "network": network.name,
                "series": knowledge,
                "x": share,
                "bytes": report.sram_bytes,
                "clean": clean,
                "drifted": drifted,
                "calibrated": network.accuracy(network.calibrated),
            }
            if share == 0.05 and not read_out:
                for node in report.nodes:
                    yield {
                        "figure": "nodes",
                        "network": network.name,
                        "node": node.name,
                        "before": node.error_before,
                        "after": node.error_after,
                    }


def latency_rows(text: str) -> Iterator[Row]:
    """Ratios in what ``benchmarks.latency`` printed."""
    title = ""
    for line in text.splitlines():
        if found := re.match(r"(.*): fp32 teacher [\d.]+ ms", line):
            title = found[1]
        elif found := re.match(r"  (.{20}) +([\d.]+) \(([\d.]+)-([\d.]+)\)", line):
            yield {
                "figure": "latency",
                "network": title,
                "series": found[1].strip(),
                "ratio": float(found[2]),
                "low": float(found[3]),
                "high": float(found[4]),
            }


def draw(rows: list[Row], folder: Path) -> None:
    """Write the figures as SVG, the same bytes for the same rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "font.size": 9,
        "svg.hashsalt": "rimc-onnx",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e7ec",
        "axes.axisbelow": True,
        "savefig.facecolor": "white",
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        for name, plot, size in (
            ("drift", _plot_drift, (7.2, 2.9)),
            ("time", _plot_time, (7.2, 4.8)),
            ("sram", _plot_sram, (7.2, 2.9)),
            ("nodes", _plot_nodes, (7.2, 4.6)),
            ("latency", _plot_latency, (7.2, 2.9)),
        ):
            own = [row for row in rows if row["figure"] == name]
            if not own:
                continue
            figure = Figure(figsize=size, layout="constrained")
            plot(figure, own)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _names(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _lines(axes: Any, rows: list[Row]) -> None:
    x = [row["x"] for row in rows]
    for name, color, marker in (
        ("clean", _GREY, ""),
        ("drifted", _ORANGE, "o"),
        ("calibrated", _BLUE, "o"),
    ):
        y = [100 * row[name] for row in rows]
        dashes = {} if marker else {"linestyle": "--"}
        axes.plot(x, y, color=color, marker=marker, markersize=4, label=name, **dashes)
    axes.set_ylim(0, 1.08 * max(100 * row["clean"] for row in rows))


def _plot_drift(figure: Any, rows: list[Row]) -> None:
    networks = _names(rows, "network")
    for axes, network in zip(figure.subplots(1, len(networks)), networks, strict=True):
        _lines(axes, [row for row in rows if row["network"] == network])
        axes.set(title=network, xlabel="relative drift, %", ylabel="accuracy, %")
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}")
    figure.axes[0].legend(frameon=False)


def _plot_time(figure: Any, rows: list[Row]) -> None:
    networks, presets = _names(rows, "network"), _names(rows, "preset")
    grid = figure.subplots(len(networks), len(presets), squeeze=False)
    for line, network in zip(grid, networks, strict=True):
        for axes, preset in zip(line, presets, strict=True):
            own = [r for r in rows if (r["network"], r["preset"]) == (network, preset)]
            _lines(axes, own)
            axes.set_xscale("log")
            times = [row["x"] for row in own]
            shown = [
                t for t, later in zip(times, [*times[1:], np.inf], strict=True) if later > 3 * t
            ]
            axes.set_xticks(shown, [format_time(t) for t in shown], fontsize=8)
            axes.minorticks_off()
            axes.set(title=f"{network}, {preset}", ylabel="accuracy, %")
    figure.axes[0].legend(frameon=False)


def _plot_sram(figure: Any, rows: list[Row]) -> None:
    networks = _names(rows, "network")
    for axes, network in zip(figure.subplots(1, len(networks)), networks, strict=True):
        own = [row for row in rows if row["network"] == network]
        for series, color in zip(_names(own, "series"), (_BLUE, _GREEN), strict=False):
            found = [row for row in own if row["series"] == series]
            axes.plot(
                [row["x"] for row in found],
                [100 * row["calibrated"] for row in found],
                color=color, marker="o", markersize=4, label=series,
            )  # fmt: skip
        axes.axhline(100 * own[0]["clean"], color=_GREY, linestyle="--", label="clean")
        axes.axhline(100 * own[0]["drifted"], color=_ORANGE, linestyle=":", label="drifted")
        axes.set_xscale("log")
        shares = [row["x"] for row in own if row["series"] == own[0]["series"]]
        axes.set_xticks(shares, [f"{100 * share:g}" for share in shares])
        axes.minorticks_off()
        axes.set(title=network, xlabel="SRAM, % of the weights", ylabel="accuracy, %")
    figure.axes[-1].legend(frameon=False)


def _plot_nodes(figure: Any, rows: list[Row]) -> None:
    own = [row for row in rows if row["network"] == "ResNet-20"] or rows
    axes = figure.subplots()
    y = range(len(own))
    axes.hlines(y, [r["after"] for r in own], [r["before"] for r in own], color="#c9d0d8")
    for name, key, color in (("drifted", "before", _ORANGE), ("calibrated", "after", _BLUE)):
        axes.plot([row[key] for row in own], y, "o", color=color, markersize=5, label=name)
    axes.set_yticks(y, [row["node"] for row in own], parse_math=False)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set(
        title=f"{own[0]['network']}, 20 % relative drift",
        xlabel="error power of the node's output over its variance, on the ten samples",
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _plot_latency(figure: Any, rows: list[Row]) -> None:
    networks = _names(rows, "network")
    own = [row for row in rows if row["series"] != "fp32 teacher"]
    for axes, network in zip(
        figure.subplots(1, len(networks), sharey=True, squeeze=False)[0], networks, strict=True
    ):
        found = [row for row in own if row["network"] == network]
        y = range(len(found))
        axes.barh(y, [row["ratio"] for row in found], color=_BLUE, height=0.6)
        axes.axvline(1, color=_GREY, linestyle="--")
        for at, row in zip(y, found, strict=True):
            axes.text(row["ratio"], at, f" {row['ratio']:.2f}", va="center", fontsize=8)
        axes.set_yticks(y, [row["series"] for row in found])
        axes.set(title=network, xlabel="time over the fp32 teacher's")
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.set_xlim(0.5, 30)
        axes.grid(axis="y", visible=False)
    figure.axes[0].invert_yaxis()


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds rows.json and the figures")
    parser.add_argument("--measure", action="store_true", help="rows of accuracy anew")
    parser.add_argument("--latency", type=Path, help="what benchmarks.latency printed")
    arguments = parser.parse_args()
    path = arguments.folder / "rows.json"
    rows: list[Row] = json.loads(path.read_text("utf-8")) if path.exists() else []
    if arguments.measure:
        rows = [row for row in rows if row["figure"] == "latency"]
        for row in measure():
            print(row, flush=True)
            rows.append(row)
    if arguments.latency:
        rows = [row for row in rows if row["figure"] != "latency"]
        rows += latency_rows(arguments.latency.read_text("utf-8"))
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", "utf-8")
    draw(rows, arguments.folder)


if __name__ == "__main__":
    main()
