# SPDX-License-Identifier: Apache-2.0
"""Training for the device on ResNet-20 / CIFAR-100 or digits: accuracy, and what a step costs.

    python -m benchmarks.training [--network digits] [--data TRAIN.npz] [--steps 300]
        [--recipes none clip penalty] [--device wan2022-aihwkit] [--time 1d] [--seeds 2]
        [--images 1000] [--models FOLDER] [--flip]
    python -m benchmarks.training --cost

A row per recipe: the trained network as it is, on devices that are not calibrated (mapped for a
calibration, and for use without one), calibrated as a black box from 10 samples, and with the
arrays read out; the default SRAM. ``none`` trains nothing, ``convert-clip`` clips in the
conversion, FILE.onnx is a network that was trained before. ``adapters-only`` trains adapters of
rank 2 for devices that are mapped for use without a calibration, which would replace them.
``--models`` keeps the trained ones, ``--flip`` trains on images of which half, drawn, are in a
mirror.
Without ``--data`` ResNet-20 is trained on the 256 training images of the shared data, digits on all
of its 1,297; a file of more has arrays ``input`` and ``labels``. ``--cost`` times a step with
deviations drawn, and one with the penalty, over a plain step of the same module.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import rimc_onnx
from benchmarks.datasets import DATA, cifar100_calibration, cifar100_test
from rimc_onnx import passes
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar import ConvertConfig
from rimc_onnx.device import get_preset, parse_time
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.jobs.finetune import finetune
from rimc_onnx.training.config import FinetuneConfig, PenaltyWeight

_TEACHER = DATA / "resnet20_cifar100" / "resnet20.onnx"
_DIGITS = Path(__file__).resolve().parents[1] / "samples" / "digits"

Arrays = dict[str, np.ndarray[Any, Any]]
_ADAPTERS = "adapters-only"
RECIPES: dict[str, dict[str, Any]] = {
    "clip": {"penalty": 0.0, "noise_scale": None},
    "penalty": {"noise_scale": None},
    "injection": {"penalty": 0.0},
    "penalty-no-clip": {"noise_scale": None, "weight_clip_sigma": None},
    "fisher": {"noise_scale": None, "penalty_weight": PenaltyWeight.FISHER},
    "penalty-injection": {},
    "penalty-injection-1.5": {"noise_scale": 1.5},
    "penalty-injection-2": {"noise_scale": 2.0},
    _ADAPTERS: {"adapters_only": True, "penalty": 0.0, "weight_clip_sigma": None},
}
"""What a recipe changes of the default; weights are clipped where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A teacher and its data."""

    model: Path
    train: Arrays | str
    calibration: Arrays
    test: Arrays


def _resnet20() -> _Network:
    calibration = _joined(cifar100_calibration())
    return _Network(
        model=_TEACHER,
        train=calibration,
        calibration=calibration,
        test=_joined(cifar100_test()),
    )


def _digits() -> _Network:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))[500:]  # as in docs/training.md
    images = (digits.images[order, None] / 16).astype(np.float32)
    calibration, test = (dict(np.load(_DIGITS / f"{n}.npz")) for n in ("calibration", "test"))
    return _Network(
        model=_DIGITS / "model.onnx",
        train={"input": images, "labels": digits.target[order].astype(np.int64)},
        calibration=calibration,
        test=test,
    )


def _joined(chunks: Iterable[Arrays]) -> Arrays:
    found = list(chunks)
    return {n: np.concatenate([c[n] for c in found]) for n in found[0]}


NETWORKS = {"resnet20": _resnet20, "digits": _digits}
"""Teachers and their data, by name."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--recipes", nargs="+", default=["none", "clip", "penalty", "injection"])
    parser.add_argument("--device", default="wan2022-aihwkit")
    parser.add_argument("--time", default="1d")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--models", type=Path, help="a folder for the trained networks")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        _cost()
        return
    device = get_preset(arguments.device)
    time_s = None if device.time_law is None else parse_time(arguments.time)
    config = ConvertConfig(device=device, time_s=time_s, rank=2)
    network = NETWORKS[arguments.network]()
    if arguments.data:
        network = replace(network, train=arguments.data)
    head = "recipe              clean  uncalibrated  mapped for it  black box  read-out  seconds"
    print(head, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in arguments.recipes:
            _row(recipe, network, Path(folder), config, arguments)


def _row(
    recipe: str,
    network: _Network,
    folder: Path,
    config: ConvertConfig,
    arguments: argparse.Namespace,
) -> None:
    start, model = time.perf_counter(), network.model
    if recipe == _ADAPTERS:
        _adapters_row(network, folder, config, arguments)
        return
    if recipe == "convert-clip":
        config = replace(config, device=replace(config.device, clip_sigma=2.5))
    elif recipe.endswith(".onnx"):
        model = Path(recipe)
    elif recipe != "none":
        model = (arguments.models or folder) / f"{recipe}.onnx"
        job = FinetuneConfig(
            convert=config,
            steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            **RECIPES[recipe],
        )
        augment = flipped if arguments.flip else None
        report = finetune(network.model, model, data=network.train, augment=augment, config=job)
        for v in report.validations:
            print(f"    {v}", flush=True)
    seconds = time.perf_counter() - start
    test = drawn(network.test, arguments.images)
    clean = _top1(model, test, native=False)
    found = []
    for seed in range(arguments.seeds):
        figures = []
        target, for_itself = folder / "model.rimc.onnx", folder / "for_itself.rimc.onnx"
        for path, uncalibrated in ((target, False), (for_itself, True)):
            job = replace(config, seed=seed, uncalibrated=uncalibrated)
            rimc_onnx.convert(model, path, config=job, data=network.calibration, force=True)
            figures.append(_top1(path, test))
        for read_out in (False, True):
            calibrated = folder / "calibrated.onnx"
            rimc_onnx.calibrate(
                target,
                calibrated,
                data=network.calibration,
                teacher=model,
                config=CalibrateConfig(read_out=read_out),
                force=True,
            )
            figures.append(_top1(calibrated, test))
        found.append(figures)
    means = np.mean(found, axis=0)
    print(
        f"{recipe:18s} {clean:6.2f} {means[0]:13.2f} {means[1]:14.2f} {means[2]:10.2f} "
        f"{means[3]:9.2f} {seconds:8.0f}",
        flush=True,
    )


def _adapters_row(
    network: _Network, folder: Path, config: ConvertConfig, arguments: argparse.Namespace
) -> None:
    """One set of adapters, on every device."""
    start = time.perf_counter()
    config = replace(config, uncalibrated=True)
    job = FinetuneConfig(convert=config, steps=arguments.steps, **RECIPES[_ADAPTERS])
    path = (arguments.models or folder) / "adapters-only.rimc.onnx"
    augment = flipped if arguments.flip else None
    finetune(network.model, path, data=network.train, augment=augment, config=job)
    seconds = time.perf_counter() - start
    adapters = {b.node: b.adapter() for b in passes.rram_branches(load_model(path))}
    test, found = drawn(network.test, arguments.images), []
    for seed in range(arguments.seeds):
        device = folder / "device.rimc.onnx"
        job = replace(config, seed=seed)
        rimc_onnx.convert(network.model, device, config=job, data=network.calibration, force=True)
        graph = load_model(device)
        passes.AttachAdaptersPass(adapters)(graph)
        save_model(graph, device, force=True)
        found.append(_top1(device, test))
    clean, mean = _top1(network.model, test, native=False), np.mean(found)
    print(f"{_ADAPTERS:18s} {clean:6.2f} {'':13s} {mean:14.2f} {'':20s} {seconds:8.0f}", flush=True)


def flipped(arrays: Arrays, generator: np.random.Generator) -> Arrays:
    """Half of the images of a batch, drawn, as in a mirror."""
    mirror = generator.random(len(arrays["input"])) < 0.5
    arrays["input"][mirror] = arrays["input"][mirror, ..., ::-1]
    return arrays


def drawn(test: Arrays, images: int) -> Arrays:
    """As many images, the same ones every time."""
    chosen = np.random.default_rng(0).permutation(len(test["labels"]))[:images]
    return {n: a[chosen] for n, a in test.items()}


def _top1(model: Path, test: dict[str, Any], *, native: bool = True) -> float:
    report = rimc_onnx.evaluate(model, data=test, native=native)
    return 100 * (report.top1 or 0.0)


def _cost() -> None:
    import torch

    from rimc_onnx.training import load
    from rimc_onnx.training.analog_layer import Cells, Draw
    from rimc_onnx.training.analog_model import AnalogModel

    feeds = {"input": torch.randn(32, 3, 32, 32)}
    config = ConvertConfig(device=get_preset("wan2022-aihwkit"), time_s=86400.0)
    analog = AnalogModel(load_model(_TEACHER), config, {})
    analog.start_measuring()
    with torch.no_grad():
        analog.module.run(feeds)
    analog.end_measuring()
    plain = load(_TEACHER)

    def step(module: Any, more: Callable[[], Any] = lambda: 0.0) -> float:
        start = time.perf_counter()
        loss = module.run(feeds)["logits"].square().mean() + more()
        loss.backward()
        return time.perf_counter() - start

    def with_deviations() -> float:
        analog.set_draw(Draw(seed=0, step=0))
        return step(analog.module)

    def penalised() -> float:
        analog.set_cells(Cells.IDEAL)
        return step(analog.module, analog.penalty)

    turns = [(step(plain), with_deviations(), penalised()) for _ in range(9)]
    base, with_draws, with_penalty = np.median(turns, axis=0)
    print(f"plain step of 32 images {base * 1e3:.0f} ms")
    print(f"deviations drawn        {with_draws / base:.2f} times")
    print(f"penalty                 {with_penalty / base:.2f} times")


if __name__ == "__main__":
    main()
