# SPDX-License-Identifier: Apache-2.0
"""A large file's weights stay in it: the graph is the same, and so is what a broken file is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx.io import light_model
from rimc_onnx.io.light_model import read_proto
from rimc_onnx.io.model_files import data_files, load_model, save_model

_WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32),
    "h": np.random.default_rng(1).standard_normal((256, 256)).astype(np.float16),
    "small": np.arange(3, dtype=np.float32),
}


def _model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["h"], ["h32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["y", "h32"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 128])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(a, n) for n, a in _WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="k", value="v")
    return model


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large."""
    monkeypatch.setattr(light_model, "_LARGE_FILE_BYTES", 0)
    (tmp_path / "m.onnx").write_bytes(_model().SerializeToString())
    return tmp_path / "m.onnx"


def test_large_weights_are_not_read(path: Path) -> None:
    """Catches weights that are parsed after all, and a graph that lost a part on the way."""
    proto = read_proto(path)
    left = {t.name for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert left == {"w", "h"}
    assert proto.ByteSize() < 2000
    whole = _model()
    del proto.graph.initializer[:], whole.graph.initializer[:]
    assert proto == whole


def test_values_are_those_of_the_file(path: Path) -> None:
    """Catches a wrong offset: a length of a nested message that is counted twice, say."""
    model = load_model(path)
    for name, array in _WEIGHTS.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_model_behind_a_link_is_read(path: Path, link: object, tmp_path: Path) -> None:
    """Catches the rule for data files, which may be no links, applied to the model itself."""
    (tmp_path / "elsewhere").mkdir()
    linked = tmp_path / "elsewhere" / "m.onnx"
    link(path, linked)  # type: ignore[operator]
    tensor = load_model(linked).graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), _WEIGHTS["w"])


def test_the_file_may_be_replaced_by_its_own_model(path: Path, tmp_path: Path) -> None:
    """Catches weights that are looked for in a file that is no longer there when they are used."""
    model = load_model(path)
    save_model(model, path, force=True)
    assert data_files(path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"], "no external data"
    again = onnx.load(path)
    found = {t.name: numpy_helper.to_array(t) for t in again.graph.initializer}
    for name, array in _WEIGHTS.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_written_model_has_the_bytes_of_onnx_ir(tmp_path: Path) -> None:
    """Catches a size that is off, weights in another order, fields where protobuf has others.

    A file of other bytes would still load here, and not where messages are not merged.
    """
    model = ir.from_proto(_model())
    tensor = model.graph.initializers["h"].const_value
    assert tensor is not None
    lazy = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy()), dtype=tensor.dtype, shape=ir.Shape([256, 256]), name="h"
    )
    lazy.doc_string, lazy.metadata_props["of"] = "words", "the exporter"
    model.graph.initializers["h"].const_value = lazy
    save_model(model, tmp_path / "written.onnx", force=False)
    ir.save(model, tmp_path / "whole.onnx")
    assert (tmp_path / "written.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_broken_files_are_what_they_were(path: Path) -> None:
    """Catches bytes that crash the walk, or that it reads as another model than protobuf does."""
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        content = bytearray(whole)
        for at in random.integers(0, 400, size=random.integers(1, 4)):
            # Where messages begin: at the start, and before each weight.
            base = random.choice([0, whole.find(b"\x0a\x80\x02"), len(whole) - 400])
            content[(base + at) % len(content)] = random.integers(256)
        if random.random() < 0.2:
            content = content[: random.integers(len(content))]
        path.write_bytes(content)
        try:
            wanted = onnx.load(path, load_external_data=False)
        except (DecodeError, ValueError):
            outcomes.add("refused")
            with pytest.raises((DecodeError, ValueError)):
                read_proto(path)
            continue
        outcomes.add("read")
        found = read_proto(path)
        for tensor in found.graph.initializer:
            if any(e.key == "location" and e.value == path.name for e in tensor.external_data):
                info = onnx.external_data_helper.ExternalDataInfo(tensor)
                tensor.raw_data = bytes(content[info.offset : info.offset + info.length])
                tensor.ClearField("data_location")
                del tensor.external_data[:]
        for tensor in wanted.graph.initializer:
            if tensor.HasField("raw_data") and len(tensor.raw_data) >= 1 << 16:
                tensor.ClearField("data_location")
        assert found == wanted
    assert outcomes == {"refused", "read"}
