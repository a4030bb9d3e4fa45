# SPDX-License-Identifier: Apache-2.0
"""Files that are no model, or one that can't be mapped: one line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------------- files that are no model


@pytest.mark.parametrize("command", ["convert", "calibrate", "inspect", "evaluate"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"plain text, not a model\n", "not an ONNX model"),
        (b"\x08", "not an ONNX model"),
        (b"\x08\x08", "holds no ONNX graph"),
    ],
    ids=["missing", "empty", "text", "truncated", "protobuf without a graph"],
)
def test_no_model_is_refused_by_every_command(
    fails: Callable[..., str], digits_folder: Path, command: str, content: bytes | None, says: str
) -> None:
    # A parser's exception (DecodeError, FileNotFoundError) that reaches the user as a traceback.
    if content is not None:
        (digits_folder / "bad.onnx").write_bytes(content)
    extra = ["--data", "test.npz"] if command == "evaluate" else []
    line = fails(digits_folder, 1, command, "bad.onnx", *extra)
    assert "bad.onnx" in line
    assert says in line


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_model_is_refused(
    fails: Callable[..., str], digits_folder: Path, share: float
) -> None:
    # A partial download: protobuf may parse a prefix that ends between two fields.
    content = (digits_folder / "model.onnx").read_bytes()
    (digits_folder / "model.onnx").write_bytes(content[: int(share * len(content))])
    fails(digits_folder, 1, "convert", "model.onnx")


def test_folder_is_no_model(fails: Callable[..., str], digits_folder: Path) -> None:
    # The default output's name is computed from the model's, which "." has not; and "no such file"
    # for what is plainly there.
    assert ".: is a folder" in fails(digits_folder, 1, "convert", ".")


@pytest.mark.parametrize("command", ["calibrate", "inspect", "age --time 1d"])
def test_model_of_an_earlier_format_is_to_be_converted_again(
    fails: Callable[..., str], digits_job: Path, command: str
) -> None:
    # An attribute that came later: what ONNX Runtime says of a piece of the model, or a KeyError.
    model = onnx.load(digits_job / "model.rimc.onnx")
    node = next(n for n in model.graph.node if n.op_type == "RramConv")
    node.attribute.remove(next(a for a in node.attribute if a.name == "read_noise_curve"))
    onnx.save(model, digits_job / "old.onnx")
    line = fails(digits_job, 1, *command.split(), "old.onnx")
    assert f"node '{node.name}' (RramConv): lacks attribute 'read_noise_curve'" in line
    assert "convert the model again" in line


def external_model(folder: Path, matmul_model: Callable[..., onnx.ModelProto]) -> Path:
    weight = rng().standard_normal((64, 32), dtype=np.float32)
    path = folder / "external.onnx"
    onnx.save(
        matmul_model(weight),
        path,
        save_as_external_data=True,
        location="external.data",
        size_threshold=0,
    )
    return path


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_missing_external_data_is_named(
    fails: Callable[..., str],
    tmp_path: Path,
    matmul_model: Callable[..., onnx.ModelProto],
    command: str,
) -> None:
    # A model copied without its weights: found only in the middle of the work, or not at all.
    external_model(tmp_path, matmul_model)
    (tmp_path / "external.data").unlink()
    line = fails(tmp_path, 1, command, "external.onnx")
    assert "'w1'" in line
    assert "external.data" in line


def test_truncated_external_data_is_named(
    fails: Callable[..., str], tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # Weights beyond the end of the file read as garbage, or crash a memory map.
    external_model(tmp_path, matmul_model)
    data = tmp_path / "external.data"
    data.write_bytes(data.read_bytes()[:-1])
    line = fails(tmp_path, 1, "convert", "external.onnx")
    assert "'w1'" in line
    assert f"has {64 * 32 * 4 - 1}" in line


def test_maps_are_refused_with_what_to_do(
    fails: Callable[..., str], tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # A classifier of scikit-learn as it is exported by default: "the graph can't be read", and the
    # checker that the line named finds no fault with it.
    model = matmul_model(np.ones((3, 2), np.float32))
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    probabilities = helper.make_value_info("p", helper.make_sequence_type_proto(kind))
    zipmap = helper.make_node(
        "ZipMap",
        [model.graph.output[0].name],
        ["p"],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
    )
    model.graph.node.append(zipmap)
    model.graph.output.append(probabilities)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, tmp_path / "zipmap.onnx")
    line = fails(tmp_path, 1, "inspect", "zipmap.onnx")
    assert "'p'" in line
    assert "options={'zipmap': False}" in line


# ------------------------------------------------------------------- models that can't be mapped


def test_old_opset_is_refused(
    fails: Callable[..., str], tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # Function bodies don't load below opset 13, and ONNX Runtime reads nothing below 7.
    onnx.save(matmul_model(np.ones((3, 2), np.float32), opset=6), tmp_path / "old.onnx")
    line = fails(tmp_path, 1, "convert", "old.onnx")
    assert "opset is 6" in line
    assert "Export the model" in line


def test_curve_without_samples_is_refused_as_what_it_is(
    fails: Callable[..., str], tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # The line spoke of converters' resolution to someone who had asked for none.
    onnx.save(matmul_model(np.ones((3, 2), np.float32)), tmp_path / "m.onnx")
    line = fails(tmp_path, 1, "convert", "m.onnx", "--iv-sinh", "2")
    assert "I-V curves need samples" in line
    assert "--data" in line


def test_converted_model_is_not_converted_again(
    fails: Callable[..., str], digits_job: Path
) -> None:
    # Drift on top of drift, silently.
    line = fails(digits_job, 1, "convert", "model.rimc.onnx", "-o", "twice.onnx")
    assert "already converted" in line


def test_model_without_mappable_node_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    # A converted file with nothing in RRAM would look like a success.
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="scores")],
        "g",
        [helper.make_tensor_value_info(n, kind, [4, 4]) for n in "ab"],
        [helper.make_tensor_value_info("y", kind, [4, 4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "none.onnx",
    )
    line = fails(tmp_path, 1, "convert", "none.onnx")
    assert "scores" in line
    assert "both operands are activations" in line


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_named(
    fails: Callable[..., str],
    tmp_path: Path,
    matmul_model: Callable[..., onnx.ModelProto],
    value: float,
) -> None:
    # One NaN makes W_max NaN and with it every weight of the node.
    bad = np.ones((3, 3), np.float32)
    bad[1, 2] = value
    onnx.save(matmul_model(np.ones((4, 3), np.float32), bad), tmp_path / "bad.onnx")
    line = fails(tmp_path, 1, "convert", "bad.onnx")
    assert "'fc2'" in line
    assert "--keep-digital" in line


def _dangling(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


def _unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def _without_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "elsewhere"


def _without_weight(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[1]


def _short_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _two_of_a_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


@pytest.mark.parametrize(
    "damage",
    [_dangling, _unsorted, _without_output, _without_weight, _short_data, _two_of_a_name],
    ids=lambda f: f.__name__[1:],
)
def test_invalid_graph_is_one_line(
    fails: Callable[..., str],
    tmp_path: Path,
    matmul_model: Callable[..., onnx.ModelProto],
    damage: Callable[[onnx.ModelProto], None],
) -> None:
    # An IndexError in a pass, and warnings of the graph library beside it.
    model = matmul_model(np.ones((3, 4), np.float32), np.ones((4, 2), np.float32))
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    assert "damaged.onnx" in fails(tmp_path, 1, "convert", "damaged.onnx")


def test_bias_that_does_not_fit_is_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    # ONNX's checker does not look at the length of a bias.
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, ["N", 4, 6, 6])],
        [
            numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.ones(3, np.float32), "b"),
        ],
    )
    imports = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    onnx.save(model, tmp_path / "bias.onnx")
    assert "'conv'" in fails(tmp_path, 1, "convert", "bias.onnx")


def test_model_that_is_not_converted_is_not_calibrated(
    fails: Callable[..., str], digits_folder: Path
) -> None:
    # The plain model named by mistake: no RRAM node to fit.
    assert "not a converted model" in fails(digits_folder, 1, "calibrate", "model.onnx")


# ------------------------------------------------------------------------------- hostile files


def chain(*nodes: Any) -> onnx.ModelProto:
    """A graph of ``nodes`` from x [4, 4] to y, with a weight w."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def matmul(x: str, y: str, name: str = "fc") -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, "w"], [y], name=name)


def with_weight(dims: list[int], data: bytes = b"", **fields: Any) -> onnx.ModelProto:
    """A MatMul whose weight says whatever it likes of itself."""
    model = chain(matmul("x", "y"))
    tensor = onnx.TensorProto(
        **{"name": "w", "dims": dims, "data_type": TensorProto.FLOAT, **fields}
    )
    if data:
        tensor.raw_data = data
    model.graph.initializer[0].CopyFrom(tensor)
    return model


def _external(location: str, **entries: str) -> onnx.ModelProto:
    model = with_weight([4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    return model


def _without_nodes() -> onnx.ModelProto:
    model = chain()
    model.graph.output[0].name = "x"
    return model


def _bytes_for_a_name() -> bytes:
    content = chain(matmul("x", "y", name="a_name")).SerializeToString()
    return content.replace(b"a_name", b"a_n\xd2me")


def _attribute_of_no_type() -> onnx.ModelProto:
    node = matmul("x", "y")
    node.attribute.append(onnx.AttributeProto(name="odd"))
    return chain(node)


def _large_attribute() -> onnx.ModelProto:
    node = matmul("x", "y")
    node.attribute.append(helper.make_attribute("odd", [1] * 1_000_000))
    return chain(node)


def _large_number() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", strides=[2**62, 2**62])
    model = chain(node)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    )
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    )
    return model


def _deep() -> bytes:
    """An If in an If in an If, beyond what a parser of recursive messages may take."""
    graph = helper.make_graph([matmul("x", "y")], "g", [], []).SerializeToString()
    for _ in range(300):
        attribute = onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH)
        size = len(graph)
        content = attribute.SerializeToString() + b"\x32" + _varint(size) + graph
        node = onnx.NodeProto(op_type="If", output=["y"]).SerializeToString()
        node += b"\x2a" + _varint(len(content)) + content
        graph = b"\x0a" + _varint(len(node)) + node
    model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


HOSTILE: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "cycle of two nodes": lambda: chain(matmul("b", "a", "one"), matmul("a", "b", "two")),
    "node that feeds itself": lambda: chain(matmul("y", "y")),
    "no nodes": _without_nodes,
    "sizes whose product overflows": lambda: with_weight([2**40, 2**40]),
    "sizes whose product is 0 modulo 2^64": lambda: with_weight([2**32, 2**32], b"\0" * 16),
    "negative sizes": lambda: with_weight([-4, -4], b"\0" * 64),
    "more sizes than data": lambda: with_weight([4, 4000], b"\0" * 64),
    "no data": lambda: with_weight([4, 4]),
    "data of no length": lambda: with_weight([4, 4], raw_data=b""),
    "more data than sizes": lambda: with_weight([4, 4], b"\0" * 64, data_type=TensorProto.INT4),
    "no type": lambda: with_weight([4, 4], b"\0" * 64, data_type=0),
    "type that does not exist": lambda: with_weight([4, 4], b"\0" * 64, data_type=99),
    "external data outside the folder": lambda: _external("../../../../etc/passwd"),
    "external data at a negative place": lambda: _external("model.onnx", offset="-8", length="64"),
    "external data of no length": lambda: _external("model.onnx", offset="x", length="y"),
    "external data in a folder": lambda: _external("."),
    "name that is no text": _bytes_for_a_name,
    "attribute of no type": _attribute_of_no_type,
    "million values in an attribute": _large_attribute,
    "strides of 2^62": _large_number,
    "graphs 300 deep": _deep,
}


@pytest.mark.parametrize("command", ["convert", "inspect", "calibrate"])
@pytest.mark.parametrize("fault", list(HOSTILE))
def test_hostile_file_is_one_line(
    cli: Callable[..., Any], tmp_path: Path, fault: str, command: str
) -> None:
    # A traceback, a loop without end, memory for what a file only claims to hold, a file outside
    # the model's folder.
    made = HOSTILE[fault]()
    content = made if isinstance(made, bytes) else made.SerializeToString()
    (tmp_path / "hostile.onnx").write_bytes(content)
    result = cli(command, "hostile.onnx", cwd=tmp_path)
    lines = result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert "should not happen" not in result.stderr
    if result.code == 0:
        assert fault in HARMLESS or (command == "inspect" and fault in NOT_INSPECTED)
        return
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1000


HARMLESS = ("million values in an attribute",)
"""Nothing that any step looks at."""

NOT_INSPECTED = ("node that feeds itself", "strides of 2^62")
"""What inspect does not look at."""
