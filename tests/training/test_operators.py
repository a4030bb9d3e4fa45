# SPDX-License-Identifier: Apache-2.0
"""Every operator of the table: values against ONNX Runtime, slopes against differences."""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from rimc_onnx.errors import ModelError  # noqa: E402
from rimc_onnx.training import load  # noqa: E402
from rimc_onnx.training.operators import OPERATORS  # noqa: E402

Array = np.ndarray[Any, Any]

NO_CASE = {
    "Cast": "below",
    "CastLike": "a Cast to the type of its second input",
    "GlobalLpPool": "below",
    "SimplifiedLayerNormalization": "the RMSNormalization of ONNX Runtime's exporters",
}
TORCH_HAS_NO = {"uint16", "uint32", "uint64"}
"""Arithmetic of these types."""

MOST_CASES = 16
"""Of one operator: Cast has hundreds, of pairs of types."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A node of the onnx package's backend tests."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Array]
    outputs: list[Array]


def _cases() -> dict[str, list[Case]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package makes the data of all cases when asked
        from onnx.backend.test.case.node import collect_testcases

        shipped = collect_testcases(None)
    found: dict[str, list[Case]] = defaultdict(list)
    for case in shipped:
        nodes = case.model.graph.node
        inputs, outputs = case.data_sets[0]
        plain = all(isinstance(a, np.ndarray | np.generic) for a in (*inputs, *outputs))
        if len(nodes) != 1 or nodes[0].op_type not in OPERATORS or nodes[0].domain or not plain:
            continue
        arrays = [np.asarray(a) for a in (*inputs, *outputs)]
        if any(a.dtype.kind not in "biuf" or a.dtype.name in TORCH_HAS_NO for a in arrays):
            continue
        for domain in case.model.opset_import:
            domain.version = max(domain.version, 7)  # Not has cases of opset 1
        names = [i.name for i in case.model.graph.input]
        feeds = dict(zip(names, arrays[: len(inputs)], strict=True))
        expected = arrays[len(inputs) :]
        if len(found[nodes[0].op_type]) == MOST_CASES:
            continue
        found[nodes[0].op_type].append(
            Case(name=case.name, model=case.model, feeds=feeds, outputs=expected)
        )
    return found


CASES = _cases()


def _expected(case: Case) -> list[Array]:
    """What ONNX Runtime gives; where it has no kernel, what the case says."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), options)
        return list(session.run(None, case.feeds))
    except Exception:
        return case.outputs


def _run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    found = load(model)(**{n: torch.from_numpy(a.copy()) for n, a in feeds.items()})
    values = found if isinstance(found, tuple) else (found,)
    return [v.detach().numpy() for v in values]


@pytest.mark.parametrize("op_type", sorted(CASES))
def test_operator_gives_the_values_of_onnx_runtime(op_type: str) -> None:
    # An attribute read wrongly, or left out: the module would train another network.
    compared = 0
    for case in CASES[op_type]:
        try:
            found = _run(case.model, case.feeds)
        except ModelError as error:
            assert "fails" not in str(error) or "empty_set" in case.name, case.name  # noqa: PT017
            continue
        for got, want in zip(found, _expected(case), strict=True):
            assert got.shape == want.shape, case.name
            half = want.dtype.itemsize == 2 and want.dtype.kind == "f"
            tolerance = 5e-3 if half else 1e-5  # 16-bit floats are computed in float32
            np.testing.assert_allclose(
                got.astype(np.float64),
                want.astype(np.float64),
                rtol=tolerance,
                atol=tolerance,
                err_msg=case.name,
            )
        compared += 1
    assert compared


def test_every_operator_of_the_table_is_compared() -> None:
    # A new operator without a case would be trusted unseen.
    assert set(OPERATORS) - set(CASES) <= set(NO_CASE)
    assert len(OPERATORS) > 130


DISCRETE = {"ArgMax", "ArgMin", "NonZero", "OneHot", "QuantizeLinear", "Range"}
"""What a difference would measure is not their slope."""


def _slope_case(op_type: str) -> Case | None:
    for case in CASES[op_type]:
        floats = [a for a in (*case.feeds.values(), *case.outputs) if a.dtype == np.float32]
        small = sum(a.size for a in case.feeds.values()) < 20000
        is_finite = all(np.isfinite(a).all() for a in floats)
        if case.outputs[0].dtype == np.float32 and len(floats) > 1 and small and is_finite:
            return case
    return None


SLOPES = [op for op in sorted(CASES) if op not in DISCRETE and _slope_case(op)]


@pytest.mark.parametrize("op_type", SLOPES)
def test_slope_is_that_of_finite_differences(op_type: str) -> None:
    # A detach, an in-place edit or a wrong formula in a backward would train in a wrong direction.
    case = _slope_case(op_type)
    assert case is not None
    try:
        module = load(case.model)
    except ModelError:
        pytest.skip("refused, with its name")
    rng = np.random.default_rng(0)
    free = next(n for n, a in case.feeds.items() if a.dtype == np.float32)
    feeds = {
        n: torch.from_numpy(a.astype(np.float64) if a.dtype == np.float32 else a.copy())
        for n, a in case.feeds.items()
    }
    # Away from the kinks at whole numbers that many cases lie on.
    shift = torch.from_numpy(rng.uniform(0.01, 0.04, tuple(feeds[free].shape)))
    x = (feeds[free] + shift).requires_grad_()
    direction = torch.from_numpy(rng.normal(size=x.shape))

    def value(at: Any) -> Any:
        found = module(**{**feeds, free: at})
        first = found[0] if isinstance(found, tuple) else found
        weights = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(first.shape)))
        return (first * weights).sum()

    loss = value(x)
    if not loss.requires_grad:
        pytest.skip("no float reaches the output")
    (slope,) = torch.autograd.grad(loss, x)
    step = 1e-6
    with torch.no_grad():
        up, down = value(x + step * direction), value(x - step * direction)
        difference = float(up - down) / (2 * step)
    got = float((slope * direction).sum())
    size = float(slope.norm() * direction.norm()) + 1.0
    assert abs(got - difference) < 1e-5 * size


def one_node(op_type: str, dtype: int, **attributes: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["y"], name="node", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", dtype, None)],
        [helper.make_tensor_value_info("y", dtype, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_global_lp_pool_which_has_no_case_gives_the_values_too() -> None:
    # See the table above.
    model = one_node("GlobalLpPool", TensorProto.FLOAT)
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(_run(model, {"x": x})[0], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.float32, TensorProto.INT64),
        (np.float32, TensorProto.DOUBLE),
        (np.float32, TensorProto.BOOL),
        (np.int64, TensorProto.FLOAT),
        (np.bool_, TensorProto.INT32),
        (np.float64, TensorProto.UINT8),
    ],
)
def test_cast_which_has_no_case_gives_the_values_too(source: type, target: int) -> None:
    # Towards zero and to bool, as exporters write them around masks and positions.
    x = np.array([0, 1.7, 2.5, 100.9]).astype(source)
    model = one_node("Cast", helper.np_dtype_to_tensor_dtype(x.dtype), to=target)
    model.graph.output[0].type.tensor_type.elem_type = target
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    (found,) = _run(model, {"x": x})
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)
