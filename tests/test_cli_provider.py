# SPDX-License-Identifier: Apache-2.0
"""``--provider``: another execution provider of ONNX Runtime in place of the simulator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import HAS_PROVIDERS, needs_providers

from rimc_onnx import calibrate, evaluate, runtime
from rimc_onnx.errors import ModelError, UsageError
from rimc_onnx.runtime.any_provider import provider_device

Cli = Callable[..., Any]

OWN = "RimcExecutionProvider"
CPU = "CPUExecutionProvider"
ON_ARRAYS = ["--provider-option", "preset=gaussian-relative", "--provider-option", "seed=3"]


# ------------------------------------------------------------------------------- what runs where


@needs_providers
@pytest.mark.parametrize("by_file", [False, True])
def test_plugin_calibrates_as_the_simulator_does(cli: Cli, digits_job: Path, by_file: bool) -> None:
    # A provider that is registered and never asked: function bodies give other adapters.
    extra = ["--provider-library", runtime.library_path()] if by_file else []
    options = ["--provider", OWN, *extra, "-o", "plugin.onnx", "--json"]
    cli("calibrate", "model.rimc.onnx", *options, cwd=digits_job).json()
    want = (digits_job / "model.rimc.calibrated.onnx").read_bytes()
    assert (digits_job / "plugin.onnx").read_bytes() == want
    figures = [
        cli("evaluate", "plugin.onnx", "--data", "test.npz", "--json", *chosen, cwd=digits_job)
        for chosen in ([], ["--provider", OWN, *extra])
    ]
    assert figures[0].json()["top1"] == figures[1].json()["top1"]


def test_cpu_provider_runs_the_function_bodies(cli: Cli, digits_job: Path) -> None:
    # A session that has the native library registered all the same: its counter tells.
    before = runtime.kernels_created()
    options = ["--provider", CPU, "--json"]
    cli("calibrate", "model.rimc.onnx", *options, "-o", "cpu.onnx", cwd=digits_job).json()
    found = cli("evaluate", "cpu.onnx", "--data", "test.npz", *options, cwd=digits_job).json()
    assert runtime.kernels_created() == before
    assert found["top1"] > 0.95
    stock = cli("evaluate", "cpu.onnx", "--data", "test.npz", "--stock", "--json", cwd=digits_job)
    assert stock.json()["top1"] == found["top1"]


@needs_providers
def test_options_reach_the_provider(cli: Cli, digits_folder: Path) -> None:
    # An ordinary model on arrays: without the options the provider claims none of its nodes, and
    # with another seed other devices answer.
    arguments = ["evaluate", "model.onnx", "--data", "test.npz", "--teacher", "model.onnx"]
    chosen = ["--provider", OWN, *ON_ARRAYS, "--json"]
    (own,) = cli(*arguments, *chosen, cwd=digits_folder).json()["sqnr_db"].values()
    (other,) = (
        cli(*arguments, *chosen[:-2], "seed=4", "--json", cwd=digits_folder)
        .json()["sqnr_db"]
        .values()
    )
    assert 5 < own < 30
    assert own != other


def test_study_runs_devices_on_the_provider_and_the_clean_model_without(
    cli: Cli, digits_folder: Path
) -> None:
    before = runtime.kernels_created()
    options = ["--seeds", 1, "--draws", 1, "--provider", CPU, "--json"]
    found = cli("study", "recovery", "model.onnx", "--test", "test.npz", *options,
                cwd=digits_folder).json()  # fmt: skip
    assert runtime.kernels_created() == before
    assert found["uncalibrated"]["mean"] < found["calibrated"]["mean"]


def test_device_of_ones_own_evaluates(digits_job: Path) -> None:
    # A session that is asked more than `run`.
    class Device:
        def __init__(self, model: bytes) -> None:
            self._session = onnxruntime.InferenceSession(model, providers=[CPU])

        def run(self, names: Any, feeds: Any) -> Any:
            return [-y for y in self._session.run(names, feeds)]

    model, data = digits_job / "model.rimc.onnx", str(digits_job / "test.npz")
    top1 = evaluate(model, data=data, device=Device).top1
    assert top1 is not None
    assert top1 < 0.1  # the least likely class: the device was asked, and no one else


def test_model_with_weights_in_another_file_goes_to_the_device_whole(
    digits_job: Path, tmp_path: Path
) -> None:
    # Bytes that name a file which a session cannot find from where it is.
    model = onnx.load(digits_job / "model.rimc.onnx")
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    data = str(digits_job / "test.npz")
    want = evaluate(digits_job / "model.rimc.onnx", data=data, native=False)
    assert evaluate(path, data=data, device=provider_device(CPU)).top1 == want.top1


def test_model_beyond_one_protobuf_is_refused_for_a_device(tmp_path: Path) -> None:
    # A ValueError of protobuf, after minutes of reading. The file has holes in place of weights.
    shape = (1 << 15, 1 << 14)
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape)
    w.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": str(1 << 31)}.items():
        w.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", shape[1]])],
        [w],
    )
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(1 << 31)
    data = {"x": np.zeros((1, shape[0]), np.float32), "labels": np.zeros(1, np.int64)}
    with pytest.raises(ModelError, match=r"large\.onnx: its weights are more than the 2 GiB"):
        evaluate(path, data=data, device=provider_device(CPU))


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--provider", "NoneSuch"], "has no provider 'NoneSuch', but "),
        (["--provider-option", "a=b"], "--provider-option needs --provider"),
        (["--provider-library", "lib.so"], "--provider-library needs --provider"),
        (["--provider", CPU, "--provider-option", "ab"], "'ab' is not of the form KEY=VALUE"),
        (["--provider", CPU, "--provider-option", "=b"], "'=b' is not of the form KEY=VALUE"),
        (
            ["--provider", CPU, "--provider-option", "a=1", "--provider-option", "a=2"],
            "--provider-option a is given twice",
        ),
        (
            ["--provider", CPU, "--provider-option", "threads=2"],
            "CPUExecutionProvider takes no provider options, got threads",
        ),
    ],
)
@pytest.mark.parametrize("command", [["calibrate"], ["evaluate", "--data", "test.npz"]])
def test_wrong_provider_is_one_line(
    fails: Callable[..., str], digits_job: Path, command: list[str], arguments: list[str], says: str
) -> None:
    # ONNX Runtime warns of an unknown name and goes on with the CPU provider, which drops options.
    model = "model.rimc.onnx"
    assert says in fails(digits_job, 2, command[0], model, *command[1:], *arguments)


def test_unknown_provider_is_told_what_there_is(
    fails: Callable[..., str], digits_job: Path
) -> None:
    arguments = ["evaluate", "model.rimc.onnx", "--data", "test.npz", "--provider", "NoneSuch"]
    line = fails(digits_job, 2, *arguments)
    assert CPU in line
    assert (OWN in line) == HAS_PROVIDERS
    assert line.endswith("with --provider-library.")


def test_stock_and_provider_exclude_each_other(fails: Callable[..., str], digits_job: Path) -> None:
    arguments = ["evaluate", "model.rimc.onnx", "--data", "test.npz", "--stock", "--provider", CPU]
    assert "--stock and --provider exclude each other" in fails(digits_job, 2, *arguments)


@needs_providers
def test_library_that_brings_no_such_provider_is_refused(
    fails: Callable[..., str], digits_job: Path
) -> None:
    shutil.copy(runtime.library_path(), digits_job / "libvendor.so")
    (digits_job / "text.so").write_text("no library")
    command = ["evaluate", "model.rimc.onnx", "--data", "test.npz", "--provider", "VendorProvider"]
    for name, says in {
        "missing.so": r"missing.so: no such file. Give the library of provider 'VendorProvider'",
        "text.so": "text.so: ONNX Runtime can't register it as a provider (",
        "libvendor.so": "libvendor.so: has no provider 'VendorProvider', but ",
    }.items():
        assert says in fails(digits_job, 2, *command, "--provider-library", name)


def test_library_needs_an_onnxruntime_that_registers_it(
    fails: Callable[..., str], digits_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An AttributeError of an older binding.
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    command = ["calibrate", "model.rimc.onnx", "--provider", "Vendor", "--provider-library", "v.so"]
    line = fails(digits_job, 2, *command)
    assert "a provider's library needs ONNX Runtime 1.24 or newer, got 1.23.2" in line


@needs_providers
def test_ordinary_model_without_a_preset_is_no_model_for_the_arrays(
    fails: Callable[..., str], digits_folder: Path
) -> None:
    # A clean accuracy from the CPU provider, taken for that of the arrays.
    command = ["evaluate", "model.onnx", "--data", "test.npz", "--provider", OWN]
    assert "Give the provider option preset" in fails(digits_folder, 1, *command)
    bad = ["--provider-option", "preset=rram"]
    assert "device preset 'rram' is not known" in fails(digits_folder, 2, *command, *bad)


@needs_providers
@pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no provider that takes nothing",
)
def test_provider_that_takes_no_node_is_refused(
    fails: Callable[..., str], digits_job: Path
) -> None:
    # Adapters fitted to the function bodies on the CPU provider, and sold as a chip's.
    command = ["calibrate", "model.rimc.onnx", "-o", "x.onnx"]
    line = fails(digits_job, 1, *command, "--provider", "AzureExecutionProvider")
    assert "AzureExecutionProvider takes none of the model's nodes" in line


def test_failing_device_is_one_line(
    fails: Callable[..., str], digits_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A chip that is unplugged in the middle of a job: "this should not happen".
    def unplugged(*_: object) -> None:
        raise RuntimeError("no such device\nor address")

    monkeypatch.setattr("onnxruntime.InferenceSession.run", unplugged)
    command = ["evaluate", "model.rimc.onnx", "--data", "test.npz", "--provider", CPU]
    assert f"{CPU} fails in a run (no such device or address)" in fails(digits_job, 1, *command)


def test_model_that_the_provider_cannot_load_is_named_so() -> None:
    graph = helper.make_graph(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=f"^{CPU} can't load the model \\(.*NoSuchOperator"):
        provider_device(CPU)(model.SerializeToString())


def test_provider_is_looked_up_before_any_work(digits_job: Path) -> None:
    # A typo that is found when the last node is fitted.
    with pytest.raises(UsageError, match="has no provider"):
        calibrate(digits_job / "model.rimc.onnx", device=provider_device("Typo"), force=True)
