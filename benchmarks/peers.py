# SPDX-License-Identifier: Apache-2.0
"""Our column of the tables of docs/peers.md: one linear layer, and a network before calibration.

    python -m benchmarks.peers [--draws 400] [--network] [--seeds 3]

The layer is the one that other simulators were run on: 64 outputs, 128 inputs, 256 input vectors.
A row is the standard deviation of the error of all outputs over all programmings, in units of that
of the outputs. ``--network`` needs the data of :mod:`benchmarks.datasets`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import rimc_onnx
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import DeviceConfig, get_preset, program
from rimc_onnx.reference import rram_matmul

__all__ = ["MODELS", "ErrorFigures", "LayerModel", "layer", "measure"]

Array = npt.NDArray[np.float64]

_IDEAL = get_preset("gaussian-relative", drift_frac=0.0)
_PROPORTIONAL = get_preset("gaussian-relative", drift_frac=0.2)


def _with_ratio(device: DeviceConfig, ratio: float) -> DeviceConfig:
    """The device with G_max of 40 microsiemens in all, and G_min a ``ratio``-th of it."""
    return replace(device, g_max_us=40.0 - 40.0 / ratio, g_min_us=40.0 / ratio)


@dataclass(frozen=True, kw_only=True)
class LayerModel:
    """What the layer is put on, under the name of its row."""

    device: DeviceConfig = _IDEAL
    converters: tuple[str, ...] = ()
    """``dac`` and ``adc``: 8 bits at the largest x and the largest y."""
    read: dict[str, Any] = field(default_factory=dict)
    """Other attributes of the operator; an ``adc_range`` replaces the largest y."""
    most_draws: int = 10**9
    """Programmings, or reads, that say something; 1 where nothing is drawn."""


MODELS = {
    "A: programming 20 % of G": LayerModel(device=_PROPORTIONAL),
    "A, on/off ratio 100": LayerModel(device=_with_ratio(_PROPORTIONAL, 100)),
    "A, on/off ratio 10": LayerModel(device=_with_ratio(_PROPORTIONAL, 10)),
    "B: programming 2 % of G_max": LayerModel(
        device=get_preset("gaussian-absolute", drift_frac=0.02)
    ),
    # drift_frac counts from G_min up, 2 % of all 40 microsiemens are 2 / 0.9 % of that
    "B, on/off ratio 10": LayerModel(
        device=_with_ratio(get_preset("gaussian-absolute", drift_frac=0.02 / 0.9), 10)
    ),
    "C: ADC 8 bits": LayerModel(converters=("adc",), most_draws=1),
    "C, ADC range of the worst case": LayerModel(
        converters=("adc",), read={"adc_range": [128 * 0.41014934 * 4.18412447]}, most_draws=1
    ),
    "D: DAC 8 bits": LayerModel(converters=("dac",), most_draws=1),
    "C + D": LayerModel(converters=("dac", "adc"), most_draws=1),
    "A + C + D": LayerModel(device=_PROPORTIONAL, converters=("dac", "adc")),
    "A + C + D, 64 rows": LayerModel(
        device=_PROPORTIONAL, converters=("dac", "adc"), read={"num_tiles": 2}
    ),
    "read noise 5 % of G": LayerModel(
        read={"read_noise": 0.05, "read_noise_relative": 1}, most_draws=5
    ),
    "RRAM of Wan et al., 40 uS, 1 s": LayerModel(device=get_preset("wan2022-aihwkit")),
}


def _torch_normals(seed: int, count: int) -> npt.NDArray[np.float32]:
    """``torch.randn`` on a CPU after ``torch.manual_seed(seed)``, to the last bit but one.

    Mersenne Twister words, their lower 24 bits as uniforms, and the transform of Box and Muller
    (1958) on blocks of 16; ``count`` is a multiple of 16.
    """
    words = np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)
    uniform = ((words & 0xFFFFFF) * 2.0**-24).reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - uniform[:, 0]))
    # rounded to float32 by torch, which moves a weight by up to 4e-7
    angle = (np.float32(2 * np.pi) * uniform[:, 1].astype(np.float32)).astype(np.float64)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel().astype(np.float32)


def layer() -> tuple[Array, Array]:
    """Weight [128, 64] and inputs [256, 128], as the peers were given them."""
    w = (_torch_normals(0, 64 * 128) * np.float32(0.1)).reshape(64, 128)
    return w.T.astype(np.float64), _torch_normals(1, 256 * 128).reshape(256, 128).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class ErrorFigures:
    """What the table shows, and how sure it is."""

    error: float
    """Standard deviation of the error over that of y."""
    standard_error: float
    """Of ``error``, from the scatter of the draws; 0 for one draw."""
    gain: float
    """Slope of the regression of the outputs on the exact ones."""
    draws: int


def measure(model: LayerModel, draws: int) -> ErrorFigures:
    """Run the layer on ``draws`` programmings or reads, as many as the model has."""
    draws = min(draws, model.most_draws)
    w, x = layer()
    y = x @ w
    centred = y - y.mean()
    sums, squares, slopes = [], [], []
    for read in _reads(model, w, x, y, draws):
        error = read - y
        sums.append(error.mean())
        squares.append((error**2).mean())
        slopes.append((error * centred).mean() / y.var())
    spread = float(np.sqrt(np.mean(squares) - np.mean(sums) ** 2))
    scatter = float(np.std(squares, ddof=1) / (2 * spread)) if draws > 1 else 0.0
    return ErrorFigures(
        error=spread / float(y.std()),
        standard_error=scatter / float(y.std()) / np.sqrt(draws),
        gain=1 + float(np.mean(slopes)),
        draws=draws,
    )


def _reads(model: LayerModel, w: Array, x: Array, y: Array, draws: int) -> Iterator[Array]:
    """Outputs of every draw. What is programmed once and read exactly needs no rounding."""
    exact = not model.converters and not model.read
    largest_y = float(np.abs(y).max())
    read: dict[str, Any] = {"num_tiles": 1, "w_max": [float(np.abs(w).max())], **model.read}
    if "dac" in model.converters:
        read |= {"dac_bits": 8, "dac_range": float(np.abs(x).max())}
    if "adc" in model.converters:
        read = {"adc_range": [largest_y], **read, "adc_bits": 8}
    for seed in range(draws):
        cells = program(w, node="layer", seed=seed, config=model.device, column_axis=1).w_realised
        if exact:
            yield x @ cells.astype(np.float64)
        else:
            got = rram_matmul(x.astype(np.float32), cells, run=seed, **read)
            yield got.astype(np.float64)


_CONVERTERS = PeripheryConfig(dac_bits=8, adc_bits=8, range_percentile=100)
_NETWORKS = {
    "DAC 8": (_IDEAL, PeripheryConfig(dac_bits=8, range_percentile=100)),
    "DAC 8, ADC 8, tiles of 128": (_IDEAL, replace(_CONVERTERS, tile_rows=128)),
    "DAC 8, programming 20 % of G": (
        _PROPORTIONAL,
        PeripheryConfig(dac_bits=8, range_percentile=100),
    ),
    "DAC 8, ADC 8, tiles of 128, programming 20 % of G": (
        _PROPORTIONAL,
        replace(_CONVERTERS, tile_rows=128),
    ),
    "the same, read noise 5 % of G": (
        _PROPORTIONAL,
        replace(
            _CONVERTERS,
            tile_rows=128,
            read_noise_frac=0.05,
            read_noise_law=ReadNoiseLaw.RELATIVE,
        ),
    ),
    # the peers' runs had no read noise
    "RRAM of Wan et al., 1 s": (
        get_preset("wan2022-aihwkit"),
        PeripheryConfig(device_reads=False),
    ),
    "RRAM of Wan et al., 1 d": (
        get_preset("wan2022-aihwkit"),
        PeripheryConfig(device_reads=False),
    ),
    "CMO/HfOx, 0.2 %, 1 s": (
        get_preset("cmo-hfox-2025-0.2pct"),
        PeripheryConfig(device_reads=False),
    ),
    "CMO/HfOx, 0.2 %, 1 d": (
        get_preset("cmo-hfox-2025-0.2pct"),
        PeripheryConfig(device_reads=False),
    ),
}


def _print_layer(draws: int) -> None:
    print("| model | rimc-onnx | standard error | gain | draws |\n|---|---|---|---|---|")
    for name, model in MODELS.items():
        got = measure(model, draws)
        print(
            f"| {name} | {got.error:.5f} | {got.standard_error:.5f} | {got.gain:.5f} "
            f"| {got.draws} |",
            flush=True,
        )


def _print_network(seeds: int) -> None:
    from benchmarks.datasets import DATA

    teacher = DATA / "resnet20_cifar100" / "resnet20.onnx"

    def top1(model: str | Path) -> float:
        found = rimc_onnx.evaluate(model, data="benchmarks.datasets:cifar100_test").top1
        assert found is not None, "the data has labels"
        return 100 * found

    print(f"\nfp32 {top1(teacher):.1f} %\n\n| model | top-1 |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (device, periphery) in _NETWORKS.items():
            config = ConvertConfig(
                device=device,
                periphery=periphery,
                time_s=86400.0 if name.endswith("1 d") else None,
            )
            draw = _converter(teacher, Path(folder) / "net.rimc.onnx", config)
            one = device is _IDEAL
            figures = [top1(draw(seed)) for seed in range(1 if one else seeds)]
            spread = "" if one else f" +- {np.std(figures):.1f}"
            print(f"| {name} | {np.mean(figures):.1f}{spread} |", flush=True)


def _converter(teacher: Path, target: Path, config: ConvertConfig) -> Callable[[int], str]:
    def draw(seed: int) -> str:
        return rimc_onnx.convert(
            teacher,
            target,
            data="benchmarks.datasets:cifar100_calibration",
            config=replace(config, seed=seed),
            force=True,
        ).output

    return draw


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--network", action="store_true", help="accuracies of ResNet-20 as well")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    _print_layer(arguments.draws)
    if arguments.network:
        _print_network(arguments.seeds)


if __name__ == "__main__":
    main()
