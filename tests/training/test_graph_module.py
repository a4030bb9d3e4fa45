# SPDX-License-Identifier: Apache-2.0
"""Models as torch modules: their values, their parameters, and the file that they go back into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

torch = pytest.importorskip("torch")

from rimc_onnx.errors import ModelError, OutputError, UsageError  # noqa: E402
from rimc_onnx.training import load, write_back  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RNG = np.random.default_rng(0)
REAL = {
    "resnet20_cifar100/resnet20.onnx": (46, {"input": ((2, 3, 32, 32), np.float32)}),
    "resnet20_cifar100/resnet20_unfused_opset17.onnx": (
        66,
        {"input": ((2, 3, 32, 32), np.float32)},
    ),
    "minilm_sts/minilm_l6.onnx": (
        101,
        {"input_ids": ((2, 9), np.int64), "attention_mask": ((2, 9), np.int64)},
    ),
    "imagenet/efficientnet_lite0.onnx": (100, {"input": ((1, 3, 224, 224), np.float32)}),
    "imagenet/squeezenet_fp16.onnx": (52, {"data_0": ((1, 3, 224, 224), np.float16)}),
}


def ort_run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(ort.InferenceSession(path).run(None, feeds))


@pytest.mark.parametrize("name", REAL)
def test_real_model_is_imported_and_goes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    # An exporter's habit that the table reads in another way; a parameter that is lost or renamed.
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    num_parameters, inputs = REAL[name]
    feeds = {
        n: (RNG.normal(size=shape) if np.dtype(kind).kind == "f" else np.ones(shape)).astype(kind)
        for n, (shape, kind) in inputs.items()
    }
    module = load(path)
    with torch.no_grad():
        found = module(**{n: torch.from_numpy(a) for n, a in feeds.items()})
    (want,) = ort_run(path, feeds)
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-3, atol=2e-5 * np.abs(want).max())
    names = {n for n, _ in module.named_parameters()}
    assert len(names) == num_parameters
    assert names <= {t.name for t in onnx.load(path).graph.initializer}
    assert write_back(path, tmp_path / "same.onnx", module.weights()) == []
    assert (tmp_path / "same.onnx").read_bytes() == path.read_bytes()


def test_trained_weights_are_all_that_changes_in_the_file(digits: Path, tmp_path: Path) -> None:
    # A file written anew loses fields that the installed onnx does not know.
    path = digits / "model.onnx"
    module = load(path)
    weights = module.weights()
    name = next(n for n, a in weights.items() if a.ndim == 4)
    weights[name] = weights[name] * 2
    assert write_back(path, tmp_path / "out.onnx", weights) == [name]
    old, new = path.read_bytes(), (tmp_path / "out.onnx").read_bytes()
    changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    assert changed[-1] - changed[0] < weights[name].nbytes
    tensors = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    assert (tensors[name] == weights[name]).all()
    with pytest.raises(OutputError, match="exists already"):
        write_back(path, tmp_path / "out.onnx", weights)


def test_weights_in_external_files_go_to_a_file_of_the_output(digits: Path, tmp_path: Path) -> None:
    # Writing into the file beside the teacher would train the teacher too.
    source = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(digits / "model.onnx"), source, save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    before = (tmp_path / "w.bin").read_bytes()
    module = load(source)
    weights = {n: a * 3 for n, a in module.weights().items()}
    write_back(source, tmp_path / "out.onnx", weights)
    assert (tmp_path / "w.bin").read_bytes() == before
    again = load(tmp_path / "out.onnx").weights()
    assert all((again[n] == weights[n]).all() for n in weights)


@pytest.mark.parametrize("fault", ["name", "shape", "type"])
def test_weight_that_the_file_does_not_have_is_refused(
    fault: str, digits: Path, tmp_path: Path
) -> None:
    # Bytes of another length would shift all that follows.
    weights = load(digits / "model.onnx").weights()
    name, array = next(iter(weights.items()))
    wrong = {"name": ("no", array), "shape": (name, array[:1]), "type": (name, array.astype("f8"))}
    with pytest.raises(ModelError, match=r"initializer '\w"):
        write_back(digits / "model.onnx", tmp_path / "o.onnx", dict([wrong[fault]]))
    assert not (tmp_path / "o.onnx").exists()


def test_values_are_freed_after_their_last_use(digits: Path) -> None:
    # A network that keeps all its values while it only runs has no room for large batches.
    module = load(digits / "model.onnx")
    freed = [name for step in module._steps for name in step.free]
    assert len(freed) == len(set(freed)) > 20
    assert not set(freed) & set(module.output_names)


def test_shared_weight_is_one_parameter_with_both_slopes() -> None:
    # Two copies would drift apart, and only one goes back into the file.
    w = RNG.normal(size=(4, 4)).astype(np.float32)
    graph = parser.parse_graph(
        "m (float[N, 4] x) => (float[N, 4] y)"
        "{ a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  y = Mul (c, one) }"
    )
    tensors = {"w": w, "one": np.ones(1, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    imports = [helper.make_opsetid("", 17)]
    module = load(helper.make_model(graph, opset_imports=imports, ir_version=8))
    assert [n for n, _ in module.named_parameters()] == ["w"]
    x = torch.from_numpy(RNG.normal(size=(3, 4)).astype(np.float32))
    module(x).sum().backward()
    own = torch.from_numpy(w).requires_grad_()
    (torch.relu(x @ own) @ own).sum().backward()
    torch.testing.assert_close(module.parameter("w").grad, own.grad)


def _custom(where: str) -> onnx.ModelProto:
    """A Loop in front of the only weight, or behind it."""
    body = parser.parse_graph(
        "body (int64 i, bool go, float[N, 4] s) => (bool more, float[N, 4] t)"
        "{ more = Identity (go) t = Add (s, s) }"
    )
    front = where == "front"
    nodes = [
        helper.make_node(
            "Loop", ["trips", "", "x" if front else "h"], ["l"], name="repeat", body=body
        ),
        helper.make_node("MatMul", ["l" if front else "x", "w"], ["h"], name="fc"),
    ]
    nodes = nodes if front else nodes[::-1]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("h" if front else "l", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(np.array(3), "trips"),
            numpy_helper.from_array(RNG.normal(size=(4, 4)).astype(np.float32), "w"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_control_flow_in_front_of_all_weights_is_run_by_onnx_runtime() -> None:
    # Prompts are often built by a loop; no gradient has to pass it.
    model = _custom("front")
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    module = load(model)
    found = module(torch.from_numpy(x))
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=1e-5)
    found.sum().backward()
    assert module.parameter("w").grad is not None


def test_control_flow_behind_a_weight_is_refused_with_its_name() -> None:
    # Without its gradient, training would leave out a part of the network in silence.
    with pytest.raises(ModelError, match=r"node 'repeat' \(Loop\)"):
        load(_custom("behind"))


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_bodies_and_sequences_in_front_of_all_weights_keep_their_types(kind: str) -> None:
    # The module computes 16-bit floats in float32, which a body of the file does not take; a
    # sequence that one node hands to the next was typed as a tensor.
    body = f"body () => ({kind}[N, 4] t) {{ t = Mul(x, two) }}"
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]> g ({kind}[N, 4] x) => ({kind}[N, 3] y)
        {{ parts = SplitToSequence<axis = 1>(x, one)
           joined = ConcatFromSequence<axis = 1>(parts) s = Shape(x) n = Gather<axis = 0>(s, zero)
           many = Greater(n, one) y = MatMul(joined, w) }}
    """)
    dtype = np.float32 if kind == "float" else np.float16
    arrays = {"two": np.array(2, dtype), "one": np.array(1), "zero": np.array(0)}
    arrays["w"] = RNG.normal(size=(4, 3)).astype(dtype)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    bodies = [parser.parse_graph(body), parser.parse_graph(body.replace("Mul", "Add"))]
    branch = helper.make_node(
        "If", ["many"], ["chosen"], name="if", then_branch=bodies[0], else_branch=bodies[1]
    )
    model.graph.node.insert(5, branch)
    model.graph.node[-1].input[0] = "both"
    model.graph.node.insert(6, helper.make_node("Add", ["chosen", "joined"], ["both"]))
    x = RNG.normal(size=(5, 4)).astype(dtype)
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    found = load(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, want, rtol=1e-5 if kind == "float" else 0.02)


def test_nodes_that_no_gradient_can_pass_need_none() -> None:
    # Detectors end in indices, classifiers in labels; refused as if training had to go through.
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (float[N, 4] x) => (float[N, 3] h, int64[K, 3] kept, int64[M, N] label)
        { h = MatMul(x, w) scores = Unsqueeze(h, zero) kept = NonMaxSuppression(boxes, scores, most)
          i = ArgMax<axis = 1, keepdims = 0>(h) label = ai.onnx.ml.ArrayFeatureExtractor(names, i) }
    """)
    arrays = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "names": np.array([7, 8, 9])}
    arrays |= {"zero": np.array([0]), "most": np.array([5])}
    arrays["boxes"] = RNG.uniform(size=(1, 3, 4)).astype(np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    x = RNG.normal(size=(1, 4)).astype(np.float32)
    wants = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    module = load(model)
    found = module(torch.from_numpy(x))
    for one, want in zip(found, wants, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), want, rtol=1e-5)
    found[0].sum().backward()
    assert module.parameter("w").grad is not None


def test_draws_of_a_shape_pass_no_gradient_and_stop_none() -> None:
    # Autoencoders draw beside a mean that is trained; refused, as the draw reads a value behind it.
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 3] y)
        { h = MatMul(x, w) r = RandomNormalLike<scale = 1e-3>(h) y = Add(h, r) }
    """)
    weight = RNG.normal(size=(4, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    module = load(model)
    found = module(torch.from_numpy(x))
    np.testing.assert_allclose(found.detach().numpy(), x @ weight, atol=0.01)
    found.sum().backward()
    np.testing.assert_allclose(module.parameter("w").grad[:, 0], x.sum(axis=0), rtol=1e-5)


def test_outputs_of_strings_are_left_out() -> None:
    # Names of classes beside logits that are trained: a table of strings as numbers.
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => ('
    body = """
        { h = MatMul(x, w) i = ArgMax<axis = 1, keepdims = 0>(h) y = Gather(names, i) }
    """
    arrays = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "names": np.array([*"abc"], object)}

    def model(outputs: str) -> onnx.ModelProto:
        made = parser.parse_model(f"{head}{outputs}){body}")
        made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
        made.graph.node[-1].name = "name"
        return made

    module = load(model("float[N,3] h, string[N] y"))
    assert module.output_names == ("h",)
    assert module(torch.ones(2, 4)).shape == (2, 3)
    assert list(module.own_parameters()) == ["w"]
    with pytest.raises(ModelError, match=r"node 'name' \(Gather\): takes or gives strings"):
        load(model("string[N] y"))
    with pytest.raises(ModelError, match="node 'name'"):
        load(model("float[N,3] h, string[N] y"), outputs=["y"])


def test_wrong_names_are_told(digits: Path, matmul_model: Callable[..., onnx.ModelProto]) -> None:
    # Typing errors; each of these would come up as a KeyError.
    with pytest.raises(UsageError, match="output 'no'"):
        load(digits / "model.onnx", outputs=["no"])
    module = load(matmul_model(np.eye(4, dtype=np.float32)))
    with pytest.raises(UsageError, match="input 'x' is missing"):
        module()
    with pytest.raises(UsageError, match="node 'fc2'"):
        module.replace("fc2", torch.nn.Identity())
    with pytest.raises(ModelError, match=r"node 'fc1' \(MatMul\) fails"):
        module(torch.zeros(2, 3))
