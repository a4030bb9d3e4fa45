# SPDX-License-Identifier: Apache-2.0
"""Tables whose columns differ in size: a network that a device loses, and its equal word lines.

    python -m benchmarks.unequal_inputs [--seeds 3]

Networks of one hidden layer on two data sets that scikit-learn carries (wine: 13 columns of 0.1 to
1,700; breast cancer: 30 of 0.001 to 4,000), their scaler of the inputs folded into the first layer,
as exporters do it. Half of the rows train, the others test; a calibration has ten of the training
rows. Columns: top-1 in per cent clean, of the default conversion, of its default calibration, and
the same of what ``equalize`` writes; means over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

import rimc_onnx
from rimc_onnx import CalibrateConfig, ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset

Array = npt.NDArray[Any]

_SETS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
}
_EIGHT_BITS = PeripheryConfig(dac_bits=8, adc_bits=8, tile_rows=128)
_DEVICES = {
    "wan2022-aihwkit 1 d": ConvertConfig(device=get_preset("wan2022-aihwkit"), time_s=86_400.0),
    "pcm-natcomm2020 1 h": ConvertConfig(device=get_preset("pcm-natcomm2020"), time_s=3_600.0),
    "milo2021": ConvertConfig(device=get_preset("milo2021")),
    "gaussian-relative 20 %": ConvertConfig(),
    "the same, 8 bits": ConvertConfig(periphery=_EIGHT_BITS),
}


def main() -> None:
    """Train, then a row for each network and device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print(
        "| network | device | clean | converted | calibrated | equalized: converted | calibrated |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, read in _SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            model, equal = _prepare(Path(folder), *read(return_X_y=True))
            clean = _top1(model)
            for device, config in _DEVICES.items():
                found = [
                    _score(path, config, seed)
                    for seed in range(arguments.seeds)
                    for path in (model, equal)
                ]
                means = [np.mean(found[start::2], axis=0) for start in (0, 1)]
                cells = " | ".join(f"{value:.1f}" for mean in means for value in mean)
                print(f"| {name} | {device} | {clean:.1f} | {cells} |", flush=True)


def _prepare(folder: Path, x: Array, labels: Array) -> tuple[Path, Path]:
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order].astype(np.float32), labels[order].astype(np.int64)
    half = len(x) // 2
    scaler = StandardScaler().fit(x[:half])
    network = MLPClassifier((32,), max_iter=2000, random_state=0)
    network.fit(scaler.transform(x[:half]), labels[:half])
    first, second = network.coefs_
    hidden, last = network.intercepts_
    if second.shape[1] == 1:  # the logit of class 1, that of class 0 is 0
        second, last = np.hstack([0 * second, second]), np.concatenate([0 * last, last])
    folded = first / scaler.scale_[:, None]
    tensors = {"w": folded, "c": hidden - scaler.mean_ @ folded, "v": second, "d": last}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "c"], ["h"], name="hidden"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("Gemm", ["r", "v", "d"], ["logits"], name="logits"),
        ],
        "table",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", x.shape[1]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", second.shape[1]])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in tensors.items()],
    )
    path = folder / "table.onnx"
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path
    )
    np.savez(folder / "calibration.npz", x=x[:half])
    np.savez(folder / "test.npz", x=x[half:], labels=labels[half:])
    return path, Path(rimc_onnx.equalize(path).output)


def _score(model: Path, config: ConvertConfig, seed: int) -> tuple[float, float]:
    """Top-1 of the conversion and of its calibration."""
    folder = model.parent
    data = str(folder / "calibration.npz")
    seeded = replace(config, seed=seed)
    converted = rimc_onnx.convert(
        model, folder / "c.rimc.onnx", config=seeded, data=data, force=True
    )
    found = rimc_onnx.calibrate(
        str(converted.output),
        data=data,
        teacher=model,
        config=CalibrateConfig(sample_seed=seed, allow_identity=True),
        force=True,
    )
    return _top1(Path(str(converted.output))), _top1(Path(found.output))


def _top1(model: Path) -> float:
    return 100 * (rimc_onnx.evaluate(model, data=str(model.parent / "test.npz")).top1 or 0.0)


if __name__ == "__main__":
    main()
