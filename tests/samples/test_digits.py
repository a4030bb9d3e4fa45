# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
FILES = ("model.onnx", "calibration.npz", "test.npz")


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (result,) = session.run(["logits"], {"input": images})
    return result


@pytest.mark.parametrize("name", FILES)
def test_file_is_small_and_names_no_folder(name):
    # The exporter writes stack traces with the paths of the machine into node metadata.
    data = (DIGITS / name).read_bytes()
    assert len(data) <= 1 << 20
    assert not re.search(rb"\.py\b|site-packages|/(home|root|Users|usr|opt|tmp)/", data)


def test_model_is_clean_and_loads_in_old_runtimes():
    # IR version 10 and later is refused by ONNX Runtime 1.17; external data would go missing.
    model = onnx.load(DIGITS / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 9
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        assert not part.doc_string
        assert not part.metadata_props
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in graph.initializer)


def test_model_has_the_nodes_a_sample_is_for():
    # A newer exporter may fold the batch norms or the groups away: then the sample shows less.
    model = onnx.load(DIGITS / "model.onnx")
    nodes = model.graph.node
    convs = [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in nodes
        if node.op_type == "Conv"
    ]
    assert sum(node.op_type == "BatchNormalization" for node in nodes) == len(convs) == 10
    assert sum(node.op_type == "Gemm" for node in nodes) == 1
    assert {1, 4, 16, 32, 48} == {attributes["group"] for attributes in convs}
    assert [2, 2] in [list(attributes["strides"]) for attributes in convs]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(("name", "at_least"), [("calibration.npz", 64), ("test.npz", 450)])
def test_arrays_fit_the_model(name, at_least):
    with np.load(DIGITS / name) as data:
        assert sorted(data) == ["input", "labels"]
        images, labels = data["input"], data["labels"]
    assert images.dtype == np.float32
    assert images.shape[1:] == (1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(images) == len(labels) >= at_least
    assert set(labels.tolist()) == set(range(10))


def test_calibration_shares_no_image_with_the_test_set():
    # Calibrating on test images would flatter every figure.
    with np.load(DIGITS / "calibration.npz") as seen, np.load(DIGITS / "test.npz") as held_out:
        known = {image.tobytes() for image in seen["input"]}
        assert not any(image.tobytes() in known for image in held_out["input"])


def test_model_has_the_accuracy_that_the_readme_states():
    # A model file regenerated without its figure, or the other way round.
    stated = re.search(r"Accuracy on `test\.npz`: ([\d.]+) %", (DIGITS / "README.md").read_text())
    assert stated is not None
    with np.load(DIGITS / "test.npz") as data:
        right = logits(DIGITS / "model.onnx", data["input"]).argmax(axis=1) == data["labels"]
    assert round(100 * right.mean(), 1) >= float(stated[1])


def load_train() -> ModuleType:
    for module in ("torch", "sklearn"):
        pytest.importorskip(module, reason=f"train.py needs {module}, an optional dependency")
    spec = importlib.util.spec_from_file_location("digits_train", DIGITS / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
# torch.onnx.export of torch 2.13 warns of its own use of a deprecated class
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_train_exports_a_model_that_computes_what_was_trained(tmp_path):
    # train.py out of step with torch's exporter: renamed inputs, a fixed batch, lost weights.
    train = load_train()
    training, test = train.load_split()
    model = train.train({name: array[:256] for name, array in training.items()}, num_epochs=1)
    train.export(model, tmp_path / "model.onnx")
    images = test["input"][:7]
    expected = model(train.torch.from_numpy(images)).detach().numpy()
    # float32 sums of at most 288 products, ten layers deep: 10 * 288 * 2^-24 of values near 1
    np.testing.assert_allclose(
        logits(tmp_path / "model.onnx", images), expected, rtol=2e-4, atol=2e-4
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_split_of_train_is_the_committed_data():
    # A changed seed or scaling in train.py would make the committed model see its test images.
    training, test = load_train().load_split()
    with np.load(DIGITS / "calibration.npz") as data:
        assert np.array_equal(data["input"], training["input"][:64])
    with np.load(DIGITS / "test.npz") as data:
        assert np.array_equal(data["input"], test["input"])
        assert np.array_equal(data["labels"], test["labels"])
