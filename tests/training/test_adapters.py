# SPDX-License-Identifier: Apache-2.0
"""Training of adapters: on a device that answers, and for devices that are still to come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from rimc_onnx import ConvertConfig, FinetuneConfig, convert, evaluate, finetune  # noqa: E402
from rimc_onnx.crossbar import PeripheryConfig  # noqa: E402
from rimc_onnx.device import Scaling, get_preset  # noqa: E402
from rimc_onnx.errors import UsageError  # noqa: E402
from rimc_onnx.execution.sessions import native_session, open_session  # noqa: E402
from rimc_onnx.io.adapter_file import rram_digest  # noqa: E402
from rimc_onnx.io.model_files import load_model  # noqa: E402
from rimc_onnx.passes import (  # noqa: E402
    MakeAdaptersSwappablePass,
    find_units,
    prepare_pipeline,
    rram_branches,
)
from rimc_onnx.training.adapter_branch import AdapterBranch  # noqa: E402
from rimc_onnx.training.config import Loss  # noqa: E402
from rimc_onnx.training.device_model import DeviceModel  # noqa: E402

WAN = ConvertConfig(
    device=get_preset("wan2022-aihwkit", scaling=Scaling.NODE, clip_sigma=math.inf),
    time_s=86400.0,
    periphery=PeripheryConfig(device_reads=False),  # read noise would be another at every run
)
AGED = ConvertConfig(device=get_preset("wan2022-aihwkit"), time_s=10.0)
FEW = FinetuneConfig(
    steps=60,
    batch_size=16,
    validations=2,
    validation_samples=64,
    validation_devices=1,
    learning_rate=4e-3,
)
needs_adapters = pytest.mark.skipif(
    not hasattr(ort, "AdapterFormat"), reason="adapter files need ONNX Runtime 1.20"
)


@pytest.fixture
def folder(digits_folder: Path) -> Path:
    """The sample, 300 images to train on, and the model on arrays."""
    with np.load(digits_folder / "test.npz") as file:
        for name, rows in (("train", slice(0, 300)), ("held", slice(300, None))):
            np.savez(digits_folder / f"{name}.npz", **{n: file[n][rows] for n in file.files})
    convert(digits_folder / "model.onnx", digits_folder / "model.rimc.onnx", config=WAN)
    return digits_folder


def arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as file:
        return {n: file[n] for n in file.files}


def right(model: Path, data: Any) -> float:
    found = evaluate(model, data=data).top1
    assert found is not None
    return found


def test_adapters_learn_from_the_device_and_the_arrays_stay(folder: Path) -> None:
    # Gradients of a wrong node; codes that are not the trained numbers; an array that is written.
    source, held = folder / "model.rimc.onnx", folder / "held.npz"
    report = finetune(source, data=folder / "train.npz", config=FEW)
    assert report.output == str(folder / "model.rimc.finetuned.onnx")
    assert report.changed == 11
    assert report.sram_bytes is not None
    assert report.sram_bytes > 0
    assert right(Path(report.output), held) >= right(source, held) + 0.02
    assert rram_digest(load_model(source)) == rram_digest(load_model(Path(report.output)))


def test_adapters_only_serve_devices_that_are_still_to_come(folder: Path) -> None:
    # The clean weights in place of drawn ones, or weights that move: two other devices gain, too.
    config = replace(FEW, convert=WAN, adapters_only=True)
    report = finetune(folder / "model.onnx", data=folder / "train.npz", config=config)
    trained = load_model(Path(report.output))
    assert rram_digest(trained) == rram_digest(load_model(folder / "model.rimc.onnx"))
    adapters = {b.node: b.adapter() for b in rram_branches(trained)}
    from rimc_onnx.io.model_files import save_model
    from rimc_onnx.passes import AttachAdaptersPass

    gains = []
    for seed in (1, 2):
        plain, with_them = (folder / f"{name}{seed}.rimc.onnx" for name in ("plain", "with"))
        convert(folder / "model.onnx", plain, config=replace(WAN, seed=seed))
        model = load_model(plain)
        AttachAdaptersPass(adapters)(model)
        save_model(model, with_them, force=False)
        gains.append(right(with_them, folder / "held.npz") - right(plain, folder / "held.npz"))
    assert min(gains) >= 0.0
    assert sum(gains) >= 0.02


@needs_adapters
def test_two_tasks_share_one_set_of_arrays_in_a_live_session(folder: Path) -> None:
    # The second task's adapter over the first one's, or a file that holds the first one's arrays.
    tasks = {
        "digit": lambda y: y,
        "kind": lambda y: (y >= 5) + 2 * (y % 2),  # at least five; odd
    }
    source = folder / "model.rimc.onnx"
    for name, label in tasks.items():
        data = arrays(folder / "train.npz")
        data["labels"] = label(data["labels"]).astype(np.int64)
        config = replace(FEW, loss=Loss.TASK, steps=150)
        finetune(
            source,
            folder / f"{name}.onnx",
            data=data,
            config=config,
            adapter_file=folder / f"{name}.onnx_adapter",
        )
    live = load_model(source)
    MakeAdaptersSwappablePass()(live)
    from rimc_onnx.io.model_files import save_model

    save_model(live, folder / "live.onnx", force=False)
    session = open_session(folder / "live.onnx", native=True)
    held = arrays(folder / "held.npz")
    shares = {}
    for turn in ("digit", "kind", "digit"):
        adapter, options = ort.LoraAdapter(), ort.RunOptions()
        adapter.Load(str(folder / f"{turn}.onnx_adapter"))
        options.add_active_adapter(adapter)
        (logits,) = session.run(None, {"input": held["input"]}, options)
        for task, label in tasks.items():
            found = float((logits.argmax(1) == label(held["labels"])).mean())
            assert shares.setdefault((turn, task), found) == found
    assert shares["digit", "digit"] >= 0.93
    assert shares["kind", "kind"] >= 0.75
    assert shares["kind", "digit"] < 0.5
    assert shares["digit", "kind"] < 0.5


def test_device_model_is_what_the_session_gives(folder: Path) -> None:
    # A branch of another node, its bias twice, an array answered by another one; tiles and ADC,
    # which the device has and the ideal graph has not.
    converted = folder / "tiles.rimc.onnx"
    periphery = PeripheryConfig(tile_rows=32, dac_bits=6, adc_bits=7, device_reads=False)
    config = replace(WAN, periphery=periphery)
    convert(folder / "model.onnx", converted, config=config, data=folder / "calibration.npz")
    from rimc_onnx import calibrate

    calibrated = folder / "tiles.calibrated.onnx"
    calibrate(converted, calibrated, data=folder / "calibration.npz")
    teacher = load_model(folder / "model.onnx")
    prepare_pipeline()(teacher)
    images = arrays(folder / "held.npz")["input"][:16]
    # Inputs of adapters are rounded to int8 in the file and not in training, and a DAC of 6 bits
    # makes whole steps of the difference; without adapters nothing is rounded.
    for path, least in ((converted, 1e-9), (calibrated, 0.02)):
        model = DeviceModel(load_model(path), find_units(teacher), seed=0)
        with torch.no_grad():
            found = model.module.run({"input": torch.from_numpy(images)})["logits"].numpy()
        (wanted,) = open_session(path, native=True).run(["logits"], {"input": images})
        assert np.square(found - wanted).mean() <= least * wanted.var()


def test_gradients_are_those_of_the_ideal_graph(folder: Path) -> None:
    # A device whose answers stop the gradient: only the last node's adapter would learn.
    teacher = load_model(folder / "model.onnx")
    prepare_pipeline()(teacher)
    student = load_model(folder / "model.rimc.onnx")
    calls: list[int] = []

    def device(content: bytes) -> Any:
        session = native_session(content)
        calls.append(1)
        return session

    model = DeviceModel(student, find_units(teacher), seed=0, device=device)
    assert len(calls) == 11
    images = torch.from_numpy(arrays(folder / "held.npz")["input"][:8])
    trained = model.trained()
    loss = model.module.run({"input": images})["logits"].square().mean()
    torch.autograd.backward(loss)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert name.endswith("lora_a") or float(parameter.grad.abs().max()) > 0, name


def test_branch_holds_what_a_file_holds(digits_job: Path) -> None:
    # Scales of the wrong axis: sparse cells, ranks, groups of a depthwise convolution.
    model = load_model(digits_job / "model.rimc.calibrated.onnx")
    rng = np.random.default_rng(0)
    for branch in rram_branches(model):
        adapter, geometry = branch.adapter(), branch.geometry
        layer = AdapterBranch.of(adapter, geometry, node=branch.node, seed=0)
        channels = geometry.steps * geometry.group
        shape = (2, channels, 8, 8) if geometry.is_conv else (5, channels)
        codes = rng.integers(-20, 21, shape).astype(np.float32)
        x = codes * adapter.x_scale[0]
        session = open_session(_only(model, branch.dora), native=False)
        h = np.zeros(layer_output(layer, x), np.float32)
        (wanted,) = session.run(None, {"x": x, "h": h})
        with torch.no_grad():
            found = layer(torch.from_numpy(x), torch.from_numpy(h)).numpy()
        # X A is rounded to codes in the file: half a step of 127.
        assert np.square(found - wanted).mean() <= 1e-3 * max(float(wanted.var()), 1e-12)


def layer_output(layer: AdapterBranch, x: np.ndarray[Any, Any]) -> tuple[int, ...]:
    from rimc_onnx.training.adapter_branch import array_product

    weight = torch.zeros(layer.geometry.weight_shape)
    return tuple(array_product(layer.geometry, torch.from_numpy(x), weight).shape)


def _only(model: Any, dora: Any) -> bytes:
    """A model of one adapter, with inputs x and h."""
    import onnx
    import onnx_ir as ir
    from onnx import helper

    proto = ir.to_proto(model)
    (node,) = [n for n in proto.graph.node if n.name == dora.name]
    names = set(node.input)
    tensors = [t for t in proto.graph.initializer if t.name in names]
    node.input[0], node.input[1] = "x", "h"
    given = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "h")]
    output = [onnx.ValueInfoProto(name=node.output[0])]
    graph = helper.make_graph([node], "one", given, output, tensors)
    one = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    one.functions.extend(proto.functions)
    return one.SerializeToString()


@pytest.mark.parametrize(
    ("arguments", "recipe", "words"),
    [
        ({"swappable": True}, {}, "adapters_only"),
        ({"teacher": "model.onnx"}, {}, "converted model"),
        ({"converted": True}, {"noise_scale": 2.0}, "as they are"),
        ({"converted": True}, {"convert": AGED, "life_s": (1.0, 10.0)}, "as they are"),
        ({"converted": True}, {"loss": Loss.FEATURES}, "features"),
    ],
)
def test_what_has_no_meaning_is_refused(
    folder: Path, arguments: dict[str, Any], recipe: dict[str, Any], words: str
) -> None:
    name = "model.rimc.onnx" if arguments.pop("converted", False) else "model.onnx"
    with pytest.raises(UsageError, match=words):
        finetune(
            folder / name,
            folder / "out.onnx",
            data=folder / "train.npz",
            config=replace(FEW, **recipe),
            **arguments,
        )
    assert not (folder / "out.onnx").exists()


def test_command_writes_model_and_adapter_file(folder: Path, cli: Callable[..., Any]) -> None:
    # An option that is not passed on.
    options = ["--data", "train.npz", "--steps", "4", "--validations", "1", "--json"]
    found = cli(
        *("finetune", "model.rimc.onnx", *options),
        *("--swappable", "--adapter-file", "a.onnx_adapter", "-o", "a.onnx"),
        cwd=folder,
    ).json()
    assert found["adapter_file"] == "a.onnx_adapter"
    assert (folder / "a.onnx_adapter").is_file()
    found = cli(
        *("finetune", "model.onnx", *options, "--adapters-only", "--rank", "2"),
        *("--device", "gaussian-relative"),
        cwd=folder,
    ).json()
    assert found["output"] == "model.finetuned.rimc.onnx"
    held = {b.rank for b in rram_branches(load_model(folder / found["output"]))}
    assert max(held) == 2
