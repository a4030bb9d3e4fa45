# SPDX-License-Identifier: Apache-2.0
"""From a folder of images to data and a network that the studies take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
image = pytest.importorskip("PIL.Image")

from benchmarks import cifar10_networks  # noqa: E402
from rimc_onnx import convert, evaluate  # noqa: E402


@pytest.mark.slow
# torch.onnx.export of torch 2.13 warns of its own use of a deprecated class
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_a_folder_of_classes_becomes_a_network(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A test image that was trained on, a fixed batch, classes in another order than the labels,
    # a path of this machine in the file.
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 200)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("no image")
        for i in range(12):
            pixels = rng.integers(level - 20, level + 20, (40, 36, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / f"{i:02d}.png")
    out = tmp_path / "out"
    arguments = f"{tmp_path / 'images'} -o {out} --network {network} --width 4 --epochs 4"
    monkeypatch.setattr("sys.argv", ["cifar10", *arguments.split(), "--batch-size", "5"])
    cifar10_networks.main()
    parts = {}
    for name in ("train", "calibration", "test"):
        with np.load(out / f"{name}.npz") as file:
            parts[name] = dict(file)
    assert {n: len(p["labels"]) for n, p in parts.items()} == {
        "train": 20, "calibration": 20, "test": 4,
    }  # fmt: skip
    seen = {x.tobytes() for x in parts["train"]["input"]}
    assert not seen & {x.tobytes() for x in parts["test"]["input"]}
    path = out / f"{network}.onnx"
    model = onnx.load(path)
    (names,) = [p.value for p in model.metadata_props if p.key == "names"]
    assert json.loads(names) == {"0": "bright", "1": "dark"}
    brightness = parts["test"]["input"].mean((1, 2, 3))
    assert np.array_equal(brightness > 0, parts["test"]["labels"] == 0)
    assert b"site-packages" not in path.read_bytes()
    assert evaluate(path, data=out / "test.npz").samples == 4
    mapped = convert(path, tmp_path / "m.onnx", data=out / "calibration.npz")
    assert mapped.rram_weights > 0
