# SPDX-License-Identifier: Apache-2.0
"""Adapter files: written, checked against a model, swapped into a live session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rimc_onnx import calibrate, inspect, passes, runtime
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import ModelError, OutputError, UsageError
from rimc_onnx.io.adapter_file import read_adapter_file, rram_digest, write_adapter_file
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.ops.adapter import QuantizedAdapter

MakeModel = Callable[..., onnx.ModelProto]
Adapters = dict[str, QuantizedAdapter]
needs_adapters = pytest.mark.skipif(
    not hasattr(ort, "AdapterFormat"), reason="adapter files came with ONNX Runtime 1.20"
)


def weights() -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.standard_normal(s, dtype=np.float32) / 4 for s in ((20, 12), (12, 6))]


@pytest.fixture
def make(matmul_model: MakeModel) -> Callable[..., ir.Model]:
    """Two MatMuls fc1 and fc2, 20 -> 12 -> 6, converted with a seed."""

    def convert(seed: int = 0) -> ir.Model:
        model = ir.from_proto(matmul_model(*weights()))
        passes.convert_model(model, ConvertConfig(seed=seed, rank=2))
        return ir.from_proto(ir.to_proto(model))

    return convert


def random_adapters(model: ir.Model, seed: int, *, rank: int, cells: int) -> Adapters:
    random = np.random.default_rng(seed)
    found = {}
    for b in passes.rram_branches(model):
        rows, columns = b.geometry.weight_shape
        found[b.node] = QuantizedAdapter(
            lora_a=random.integers(-127, 128, (rows, rank), dtype=np.int8),
            lora_b=random.integers(-127, 128, (rank, columns), dtype=np.int8),
            magnitude=random.integers(40, 90, columns, dtype=np.int8),
            x_scale=np.full(1, 0.02, np.float32),
            rank_step=random.uniform(100, 300, rank).astype(np.float32),
            lora_b_scale=random.uniform(1e-4, 1e-3, columns).astype(np.float32),
            magnitude_scale=np.full(1, 1 / 64, np.float32),
            bias=random.standard_normal(columns, dtype=np.float32),
            sparse_values=random.integers(-127, 128, cells, dtype=np.int8),
            sparse_index=random.permutation(rows * columns)[:cells].astype(np.int64),
            sparse_scale=random.uniform(1e-4, 1e-3, columns).astype(np.float32),
        )
    return found


def same(a: QuantizedAdapter, b: QuantizedAdapter) -> bool:
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------------------------------ file


@needs_adapters
@pytest.mark.parametrize(("rank", "cells"), [(2, 5), (0, 4), (3, 0), (0, 0)])
def test_file_gives_back_what_was_written(
    make: Callable[..., ir.Model], tmp_path: Path, rank: int, cells: int
) -> None:
    # An empty tensor that comes back with another shape, or views of a file that is closed.
    model, path = make(), tmp_path / "a.onnx_adapter"
    adapters = random_adapters(model, 1, rank=rank, cells=cells)
    write_adapter_file(path, adapters, model)
    found = read_adapter_file(path, model)
    path.unlink()
    assert list(found) == ["fc1", "fc2"]
    assert all(same(found[n], adapters[n]) for n in adapters)
    assert list(tmp_path.iterdir()) == []


@needs_adapters
def test_file_may_hold_some_of_the_nodes(make: Callable[..., ir.Model], tmp_path: Path) -> None:
    model, path = make(), tmp_path / "a.onnx_adapter"
    adapters = random_adapters(model, 1, rank=1, cells=2)
    write_adapter_file(path, {"fc2": adapters["fc2"]}, model)
    assert list(read_adapter_file(path, model)) == ["fc2"]


@needs_adapters
def test_two_writes_give_the_same_bytes(make: Callable[..., ir.Model], tmp_path: Path) -> None:
    # A file under version control that changes with nothing.
    model = make()
    adapters = random_adapters(model, 1, rank=2, cells=5)
    for name in ("a", "b"):
        write_adapter_file(tmp_path / name, adapters, model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@needs_adapters
def test_existing_file_is_replaced_only_when_told_to(
    make: Callable[..., ir.Model], tmp_path: Path
) -> None:
    model, path = make(), tmp_path / "a.onnx_adapter"
    path.write_text("mine")
    adapters = random_adapters(model, 1, rank=2, cells=5)
    with pytest.raises(OutputError, match="exists already"):
        write_adapter_file(path, adapters, model)
    assert path.read_text() == "mine"
    write_adapter_file(path, adapters, model, force=True)
    assert len(read_adapter_file(path, model)) == 2


# ---------------------------------------------------------------------------------- whose it is


def test_digest_is_of_the_arrays_alone(make: Callable[..., ir.Model]) -> None:
    # Calibration would change it if adapters were in it; and a seed has to.
    model = make()
    digest = rram_digest(model)
    assert len(digest) == len(hashlib.sha256().hexdigest())
    assert rram_digest(make(seed=1)) != digest
    passes.AttachAdaptersPass(random_adapters(model, 1, rank=1, cells=2))(model)
    passes.MakeAdaptersSwappablePass()(model)
    assert rram_digest(model) == digest
    w = passes.rram_branches(model)[1].rram.inputs[1]
    assert w is not None
    assert w.const_value is not None
    cells = w.const_value.numpy().copy()
    cells[-1, -1] = np.nextafter(cells[-1, -1], np.float32(9))
    w.const_value = ir.tensor(cells)
    assert rram_digest(model) != digest


@needs_adapters
def test_adapter_of_other_arrays_is_an_error(make: Callable[..., ir.Model], tmp_path: Path) -> None:
    # It fits in every shape, and makes the network worse than none.
    path = tmp_path / "a.onnx_adapter"
    write_adapter_file(path, random_adapters(make(), 1, rank=2, cells=5), make())
    with pytest.raises(ModelError, match=r"a\.onnx_adapter: was made for other arrays"):
        read_adapter_file(path, make(seed=1))


def _raw(path: Path, model: ir.Model, parameters: dict[str, Any], *, version: int = 1) -> None:
    file = ort.AdapterFormat()
    file.set_adapter_version(version)
    file.set_model_version(int(rram_digest(model)[:8], 16) >> 1)
    file.set_parameters(
        {k: ort.OrtValue.ortvalue_from_numpy(np.asarray(v)) for k, v in parameters.items()}
    )
    file.export_adapter(str(path))


@needs_adapters
@pytest.mark.parametrize(
    ("change", "version", "message"),
    [
        ({"fc1/dora/bais": np.zeros(3, np.float32)}, 1, "'fc1/dora/bais' is no adapter input of"),
        ({"fc1/dora/bias": None}, 1, "lacks 'fc1/dora/bias'"),
        (
            {"fc1/dora/bias": np.zeros(3, np.float32)},
            1,
            r"'bias' must have shape \[12\], got \[3\]",
        ),
        ({"fc1/dora/bias": np.zeros(12)}, 1, "'bias' must be float"),
        ({"fc1/dora/lora_b": np.zeros((3, 12), np.int8)}, 1, r"'lora_b' must have shape \[2, 12\]"),
        (
            {"fc1/dora/sparse_index": np.array([0, 1, 2, 3, 240])},
            1,
            r"must lie in 0..239, got 0..2",
        ),
        ({"fc1/dora/sparse_index": np.array([0, 1, 2, 3, -1])}, 1, r"must lie in 0..239, got -1.."),
        ({"fc1/dora/sparse_index": np.array([0, 1, 2, 3, 3])}, 1, "names a cell twice"),
        ({}, 2, "its adapters are of version 2 of ai.rimc, the model's are of version 1"),
    ],
)
def test_file_that_does_not_fit_is_one_line(
    make: Callable[..., ir.Model],
    tmp_path: Path,
    change: dict[str, Any],
    version: int,
    message: str,
) -> None:
    # Each of these reaches ONNX Runtime otherwise, which crashes, complains in its own words or,
    # of cells that are named twice, computes something.
    model, path = make(), tmp_path / "a.onnx_adapter"
    tensors: dict[str, Any] = {
        f"{n}/dora/{k}": v
        for n, a in random_adapters(model, 1, rank=2, cells=5).items()
        for k, v in a.tensors().items()
    }
    tensors = {k: v for k, v in {**tensors, **change}.items() if v is not None}
    _raw(path, model, tensors, version=version)
    with pytest.raises(ModelError, match=message) as error:
        read_adapter_file(path, model)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@needs_adapters
def test_misfit_is_refused_before_it_is_written(
    make: Callable[..., ir.Model], tmp_path: Path
) -> None:
    model, path = make(), tmp_path / "a.onnx_adapter"
    adapters = random_adapters(model, 1, rank=2, cells=5)
    wrong = replace(adapters["fc1"], bias=np.zeros(3, np.float32))
    with pytest.raises(ModelError, match="'bias' must have shape"):
        write_adapter_file(path, {"fc1": wrong}, model)
    with pytest.raises(ModelError, match="no RRAM node is named 'fc3'"):
        write_adapter_file(path, {"fc3": adapters["fc1"]}, model)
    with pytest.raises(UsageError, match="no adapter to write"):
        write_adapter_file(path, {}, model)
    assert list(tmp_path.iterdir()) == []
    # The check attaches adapters to a copy: the model itself must not have them now.
    assert not any(b.adapter().lora_a.any() for b in passes.rram_branches(model))


@needs_adapters
@pytest.mark.parametrize("content", [b"", b"not a flatbuffer at all", None])
def test_other_file_is_one_line(
    make: Callable[..., ir.Model], tmp_path: Path, content: bytes | None
) -> None:
    # ONNX Runtime's own text is a stack trace.
    model, path = make(), tmp_path / "a.onnx_adapter"
    if content is None:
        write_adapter_file(path, random_adapters(model, 1, rank=2, cells=5), model)
        content = path.read_bytes()[:1000]
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX Runtime adapter file, or truncated") as error:
        read_adapter_file(path, model)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="no such file"):
        read_adapter_file(tmp_path / "b.onnx_adapter", model)


@needs_adapters
def test_file_with_an_array_beyond_all_memory_is_one_line(
    make: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ONNX Runtime reads a shape of 2^60 x 0 (a fuzzer found one), and numpy can't make it.
    class Value:
        def numpy(self) -> np.ndarray:
            raise ValueError("array is too big")

    class Format:
        @staticmethod
        def read_adapter(_path: str) -> Any:
            return SimpleNamespace(get_parameters=lambda: {"a": Value()})

    (tmp_path / "a.onnx_adapter").write_bytes(b"a flatbuffer")
    monkeypatch.setattr(ort, "AdapterFormat", Format)
    with pytest.raises(ModelError, match="not an ONNX Runtime adapter file, or truncated"):
        read_adapter_file(tmp_path / "a.onnx_adapter", make())


def test_old_runtime_is_told_so(
    make: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ort, "AdapterFormat", raising=False)
    with pytest.raises(UsageError, match=r"adapter files need ONNX Runtime 1\.20 or newer"):
        write_adapter_file(tmp_path / "a", random_adapters(make(), 1, rank=1, cells=1), make())
    with pytest.raises(UsageError, match=r"adapter files need ONNX Runtime 1\.20 or newer"):
        read_adapter_file(tmp_path / "a", make())


# --------------------------------------------------------------------------------- live session


def run_with(session: Any, path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    # The options don't own the adapter: it has to live until the run is over.
    adapter = ort.LoraAdapter()
    adapter.Load(str(path))
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    (result,) = session.run(None, feeds, options)
    return result


@needs_adapters
@pytest.mark.parametrize("native", [False, True])
def test_live_session_swaps_adapters(
    make: Callable[..., ir.Model], tmp_path: Path, native: bool
) -> None:
    # Kernels that pack an adapter when they are made, or that keep the last one they saw.
    model = make()
    x = np.random.default_rng(9).standard_normal((5, 20), dtype=np.float32)
    kinds = {"a": (2, 0), "b": (1, 7), "c": (0, 30), "d": (0, 0)}
    wanted, files = {}, {}
    for seed, (name, (rank, cells)) in enumerate(kinds.items()):
        adapters = random_adapters(model, seed, rank=rank, cells=cells)
        files[name] = tmp_path / f"{name}.onnx_adapter"
        write_adapter_file(files[name], adapters, model)
        fixed = make()
        passes.AttachAdaptersPass(adapters)(fixed)
        save_model(fixed, tmp_path / f"{name}.onnx", force=False)
        constant = runtime.make_session(tmp_path / f"{name}.onnx", native=native)
        (wanted[name],) = constant.run(None, {"x": x})

    passes.MakeAdaptersSwappablePass()(model)
    save_model(model, tmp_path / "live.onnx", force=False)
    live = runtime.make_session(tmp_path / "live.onnx", native=native)
    assert [i.name for i in live.get_inputs()] == ["x"]
    (own,) = live.run(None, {"x": x})
    for name in "abcdabdca":
        got = run_with(live, files[name], {"x": x})
        # Integer sums are exact; of the float epilogue ONNX Runtime may fuse what is constant:
        # a few ulp of values of order 1, through a sum of 12 products.
        np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-5)
    assert min(np.abs(w - own).max() for w in wanted.values()) > 0.01
    # A run without an adapter is what the file holds, whatever was active before.
    np.testing.assert_array_equal(live.run(None, {"x": x})[0], own)


@needs_adapters
@pytest.mark.parametrize("native", [False, True])
def test_calibrated_convolutions_swap_in_a_live_session(
    digits_job: Path, tmp_path: Path, native: bool
) -> None:
    # The whole way on the sample: what calibration fitted, as a file, on the converted model.
    fitted = load_model(digits_job / "model.rimc.calibrated.onnx")
    converted = load_model(digits_job / "model.rimc.onnx")
    path = tmp_path / "fitted.onnx_adapter"
    write_adapter_file(path, {b.node: b.adapter() for b in passes.rram_branches(fitted)}, fitted)
    assert len(read_adapter_file(path, converted)) == len(passes.rram_branches(converted))
    passes.MakeAdaptersSwappablePass()(converted)
    save_model(converted, tmp_path / "live.onnx", force=False)

    with np.load(digits_job / "test.npz") as data:
        feeds = {"input": data["input"][:64]}
    live = runtime.make_session(tmp_path / "live.onnx", native=native)
    plain = runtime.make_session(digits_job / "model.rimc.calibrated.onnx", native=native)
    got = run_with(live, path, feeds)
    (want,) = plain.run(None, feeds)
    # A constant adapter lets ONNX Runtime fuse the epilogues of ten layers: 1 ulp of a feature may
    # move an int8 code of the next layer's X by one, that is by 1/127 of a small correction.
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    assert (got.argmax(axis=1) == want.argmax(axis=1)).all()
    assert not np.allclose(live.run(None, feeds)[0], want, atol=0.1)


# --------------------------------------------------------------------- swappable, the other jobs


def test_swappable_model_is_inspected_and_calibrated_as_any_other(digits_job: Path) -> None:
    # 121 inputs that nobody feeds: taken for samples, or asked for in the data.
    source = digits_job / "model.rimc.onnx"
    model = load_model(source)
    passes.MakeAdaptersSwappablePass()(model)
    live = digits_job / "live.onnx"
    save_model(model, live, force=False)
    assert inspect(live).nodes == inspect(source).nodes
    assert inspect(live).sram_bytes == inspect(source).sram_bytes
    # A file that is taken for calibrated, or for one whose adapters are fixed.
    assert (inspect(source).swappable, inspect(live).swappable) == (False, True)
    assert (inspect(source).adapters, inspect(live).adapters) == (0, 0)
    calibrate(live)
    fitted = inspect(digits_job / "model.rimc.calibrated.onnx").adapters
    assert inspect(digits_job / "live.calibrated.onnx").adapters == fitted > 5
    got = load_model(digits_job / "live.calibrated.onnx")
    want = load_model(digits_job / "model.rimc.calibrated.onnx")
    assert rram_digest(got) == rram_digest(want)
    for a, b in zip(passes.rram_branches(got), passes.rram_branches(want), strict=True):
        # The same machine and sums; only constants that ONNX Runtime folds differ, in the last
        # bits of the bias, which is a mean over samples.
        assert np.array_equal(a.adapter().lora_a, b.adapter().lora_a)
        np.testing.assert_allclose(a.adapter().bias, b.adapter().bias, rtol=1e-4, atol=1e-5)
    assert passes.is_swappable(got)
