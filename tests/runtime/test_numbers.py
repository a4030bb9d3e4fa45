# SPDX-License-Identifier: Apache-2.0
"""Native kernels against the numpy oracle and against the function bodies."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from rimc_onnx import reference, runtime
from rimc_onnx.ops import schema

RRAM = [schema.RRAM_MATMUL, schema.RRAM_CONV]
DORA = [schema.DORA_MATMUL, schema.DORA_CONV]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("op", RRAM)
def test_ideal_sum_agrees_with_float64(cases: ModuleType, op: str, seed: int) -> None:
    # Catches any wrong address: packing, tails, phases of strides, bands, groups.
    case = cases.MAKERS[op](np.random.default_rng(seed), adc=False)
    got, want = case.run(num_threads=2), case.oracle()
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= case.rounding())


@pytest.mark.parametrize("op", RRAM)
def test_adc_agrees_but_for_ties(cases: ModuleType, op: str) -> None:
    # Catches tiles that are cut at the wrong row, codes read with the range of another column,
    # truncation in place of rounding. A sum that lies on a tie of the ADC, to the rounding of
    # fp32, may go to either code: measured 3 in a million here, one in ten thousand is allowed.
    off, total = 0, 0
    for seed in range(40):
        case = cases.MAKERS[op](np.random.default_rng(1000 + seed), adc=True)
        got, want = case.run(num_threads=2), case.oracle()
        assert got.shape == want.shape
        adc_range = np.asarray(case.attributes["adc_range"], np.float32)
        step = adc_range / (2 ** (case.attributes["adc_bits"] - 1) - 1)
        if op == schema.RRAM_CONV:
            step = step.reshape(-1, *[1] * (got.ndim - 2))
        codes = np.abs(got - want) / step
        assert codes.max() < 1.5
        off += int(np.sum(codes > 0.5))
        assert codes[codes <= 0.5].max() < 1e-3  # codes are whole: the rest agrees
        total += got.size
    assert off <= 1e-4 * total


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("op", DORA)
def test_dora_is_bit_equal_to_the_oracle(cases: ModuleType, op: str, seed: int) -> None:
    # The branch is integer arithmetic and the merge has one order of operations: no tolerance.
    case = cases.MAKERS[op](np.random.default_rng(seed))
    got, want = case.run(num_threads=2), case.oracle()
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("sparse_frac", [0.0, 0.03, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("has_rank", [False, True])
@pytest.mark.parametrize("op", DORA)
def test_every_mixture_of_parts_is_bit_equal_to_the_oracle(
    cases: ModuleType, op: str, has_rank: bool, sparse_frac: float
) -> None:
    # Catches a part that is left out, or added, because of the other one; and the two ways to keep
    # sparse cells, lists and a full matrix, on either side of where they change over.
    for seed in range(3000, 3004):
        rng = np.random.default_rng(seed)
        case = cases.MAKERS[op](rng, has_rank=has_rank, sparse_frac=sparse_frac)
        assert (case.constants["lora_b"].size > 0) == has_rank
        assert (case.constants["sparse_values"].size > 0) == (sparse_frac > 0)
        want = case.oracle()
        assert case.run(num_threads=2).tobytes() == want.tobytes()
        if seed == 3000:  # what stock ONNX Runtime gives
            assert np.all(np.abs(case.run(native=False) - want) <= case.merge_rounding())


@pytest.mark.parametrize("op", DORA)
def test_empty_parts_leave_negative_zero_alone(cases: ModuleType, op: str) -> None:
    # Catches a part without values that adds 0, which would turn -0 into 0.
    case = cases.MAKERS[op](np.random.default_rng(1), has_rank=False, sparse_frac=0.0)
    case.feeds["h"].fill(-0.0)
    case.constants["bias"].fill(-0.0)
    got = case.run()
    assert np.signbit(got).all()
    assert got.tobytes() == case.oracle().tobytes()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("op", list(schema.OPS))
def test_kernel_agrees_with_the_function_body(cases: ModuleType, op: str, seed: int) -> None:
    # Catches a kernel whose meaning is not the one that stock ONNX Runtime gives the same file.
    case = cases.MAKERS[op](np.random.default_rng(2000 + seed))
    native, body = case.run(), case.run(native=False)
    assert native.shape == body.shape
    if op in DORA:
        assert np.all(np.abs(native - body) <= case.merge_rounding())
    elif case.attributes["adc_bits"] == 0:
        assert np.all(np.abs(native - body) <= 2 * case.rounding())
    else:
        # Ties as above, in both.
        assert np.mean(np.abs(native - body) > 1e-3) <= 1e-3


def test_ties_go_to_even_and_ranges_saturate(cases: ModuleType) -> None:
    # Catches rounding half away from zero and a clip before the rounding. With steps of 1 and w
    # an identity, every value is exact.
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5, 7.5, 100.0, -100.0]], np.float32)
    w = np.eye(10, dtype=np.float32)
    converters = {"dac_bits": 4, "dac_range": 7.0, "dac_signed": 1, "tile_rows": 5, "num_tiles": 2}
    attributes = {**converters, "adc_bits": 4, "adc_range": [7.0]}
    attributes |= cases.ANNOTATIONS | cases.NO_EXTRAS
    case = cases.Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=lambda: np.array([[0, 2, 2, 0, -2, -2, 6, 7, 7, -7]], np.float32),
    )
    np.testing.assert_array_equal(case.run(), case.oracle())


@pytest.mark.parametrize("op", RRAM)
def test_nan_stays_nan(cases: ModuleType, op: str) -> None:
    # Catches min/max in the wrong order, which would turn a broken input into a code.
    case = cases.MAKERS[op](np.random.default_rng(8), adc=True)
    case.feeds["x"].fill(np.nan)
    want = np.isnan(case.oracle())
    assert want.any()
    np.testing.assert_array_equal(np.isnan(case.run()), want)


@pytest.mark.parametrize("sparse_frac", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("op", DORA)
def test_nan_has_no_code(cases: ModuleType, op: str, sparse_frac: float) -> None:
    # Catches integer kernels, which have no NaN, that make a code of a broken input, and what they
    # leave behind in other outputs.
    for seed in range(20, 26):
        rng = np.random.default_rng(seed)
        case = cases.MAKERS[op](rng, has_rank=True, sparse_frac=sparse_frac)
        x = case.feeds["x"].reshape(-1)
        at = rng.integers(x.size)
        x[at] = -3.0
        one = case.oracle()
        x[at] = 3.0
        other = case.oracle()
        x[at] = np.nan
        got = case.run(num_threads=2)
        assert np.isnan(got[one != other]).all()
        kept = ~np.isnan(got)
        np.testing.assert_array_equal(got[kept], one[kept])


@pytest.mark.parametrize("op", DORA)
def test_codes_saturate_and_round_to_even(cases: ModuleType, op: str) -> None:
    # Catches a wide input that wraps around in its byte, and ties that go away from zero.
    rng = np.random.default_rng(31)
    case = cases.MAKERS[op](rng, has_rank=True, sparse_frac=0.3)
    ties = np.float32(0.25) * (rng.integers(-300, 300, case.feeds["x"].shape) + np.float32(0.5))
    case.feeds["x"][...] = np.where(rng.random(ties.shape) < 0.1, ties * np.float32(1e30), ties)
    case.constants["x_scale"][:] = 0.25
    assert case.run(num_threads=2).tobytes() == case.oracle().tobytes()


def test_codes_change_where_the_quotient_does(cases: ModuleType) -> None:
    # Catches a product with a reciprocal that gives another code than the division does, right
    # beside a tie; steps are those next to powers of two, of few bits and of all, and so small or
    # large that a reciprocal is no normal number.
    rng = np.random.default_rng(5)
    spread = rng.uniform(1.0, 2.0, 40) * 2.0 ** rng.integers(-99, 99, 40)
    named = [1.0, 0.1, 1.0 - 2.0**-24, 1.0 + 2.0**-23, 2.0**-100 * 1.25, 1e-40, 2e-38, 1e30, 5e35]
    middles = np.arange(-128, 128) + 0.5
    case = cases.Case(
        op=schema.DORA_CONV,
        feeds={"x": np.zeros((1, 1, 9 * len(middles)), np.float32), "h": np.float32([[[0.0]]])},
        constants={
            "lora_a": np.int8([[[1]]]),
            "lora_b": np.int8([[[1]]]),
            "magnitude": np.int8([1]),
            "x_scale": np.float32([1.0]),
            "rank_step": np.float32([1.0]),
            "lora_b_scale": np.float32([1.0]),
            "magnitude_scale": np.float32([1.0]),
            "bias": np.float32([0.0]),
            "sparse_values": np.zeros(0, np.int8),
            "sparse_index": np.zeros(0, np.int64),
            "sparse_scale": np.float32([1.0]),
        },
        attributes={"strides": [1], "pads": [0, 0], "dilations": [1], "group": 1},
        oracle=lambda: np.zeros(0),
    )
    case.feeds["h"] = np.zeros_like(case.feeds["x"])
    session = runtime.make_session(case.model(constant_adapter=False), num_threads=1)
    for step in np.float32([*named, *spread]):
        ties = (middles * np.float64(step)).astype(np.float32)
        values = [ties]
        for side in (-np.inf, np.inf):
            near = ties
            for _ in range(4):
                near = np.nextafter(near, np.float32(side))
                values.append(near)
        case.feeds["x"][0, 0] = np.concatenate(values)
        case.constants["x_scale"][0] = step
        with np.errstate(over="ignore"):
            want = np.clip(np.rint(case.feeds["x"] / step), -127, 127)
        np.testing.assert_array_equal(session.run(None, case.all_inputs())[0], want)


@pytest.mark.parametrize("op", DORA)
def test_zero_lora_b_is_skipped_with_the_same_result(cases: ModuleType, op: str) -> None:
    # Catches a skipped branch that skips the magnitude or the bias too.
    for sparse_frac in (0.0, 0.1, 1.0):
        rng = np.random.default_rng(3)
        case = cases.MAKERS[op](rng, has_rank=True, sparse_frac=sparse_frac)
        case.constants["lora_b"].fill(0)
        np.testing.assert_array_equal(case.run(), case.oracle())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", DORA)
def test_adapter_inputs_are_read_in_every_run(cases: ModuleType, op: str, seed: int) -> None:
    # Catches an adapter that is packed once although it is a graph input: the second run has
    # another one.
    rng = np.random.default_rng(seed)
    case = cases.MAKERS[op](rng)
    session = runtime.make_session(case.model(constant_adapter=False), num_threads=2)
    np.testing.assert_array_equal(session.run(None, case.all_inputs())[0], case.oracle())
    swapped = case.constants
    for name in ("lora_b", "sparse_values", "magnitude"):
        swapped[name][:] = rng.integers(1, 128, swapped[name].shape)
    np.testing.assert_array_equal(session.run(None, case.all_inputs())[0], case.oracle())


@pytest.mark.parametrize("op", DORA)
def test_adapter_inputs_may_change_rank_and_number_of_cells(cases: ModuleType, op: str) -> None:
    # Catches sizes that are kept from the run before. One session, and adapters of one layer that
    # have either part, both or none.
    adapters = [
        cases.MAKERS[op](np.random.default_rng(7), has_rank=has_rank, sparse_frac=sparse_frac)
        for has_rank, sparse_frac in [(True, 0.0), (False, 0.1), (False, 0.0), (False, 1.0)]
    ]
    layer = adapters[0]
    shapes = {
        name: [f"{name}{i}" for i in range(value.ndim)] for name, value in layer.constants.items()
    }
    model = layer.model(constant_adapter=False, shapes=shapes)
    session = runtime.make_session(model, num_threads=2)
    oracle = reference.dora_matmul if op == schema.DORA_MATMUL else reference.dora_conv
    both = {k: v for k, v in layer.constants.items() if not k.startswith("sparse")}
    both |= {k: v for k, v in adapters[1].constants.items() if k.startswith("sparse")}
    for adapter in [*(case.constants for case in adapters), both, layer.constants]:
        feeds = {**layer.feeds, **adapter}
        want = oracle(**feeds, **layer.attributes)
        np.testing.assert_array_equal(session.run(None, feeds)[0], want)


def test_tile_of_a_whole_column_is_blocked_without_changing_the_sum(cases: ModuleType) -> None:
    # Depths beyond a cache block are summed in several passes; with an ADC the read-out comes
    # after the last one only.
    rng = np.random.default_rng(11)
    x = rng.integers(-3, 4, (5, 1000)).astype(np.float32)
    w = rng.integers(-3, 4, (1000, 37)).astype(np.float32)
    converters = {"dac_bits": 0, "dac_range": 1.0, "dac_signed": 1, "tile_rows": 0, "num_tiles": 1}
    attributes = {**converters, "adc_bits": 8, "adc_range": [400.0]}
    case = cases.Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": w},
        attributes={**attributes, **cases.ANNOTATIONS, **cases.NO_EXTRAS},
        oracle=lambda: reference.rram_matmul(
            x, w, **{k: v for k, v in attributes.items() if k != "tile_rows"}
        ),
    )
    np.testing.assert_array_equal(case.run(), case.oracle())  # integers: the sums are exact


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("op", list(schema.OPS))
def test_batch_of_zero_gives_an_empty_output(cases: ModuleType, op: str, native: bool) -> None:
    # Catches a division by the number of rows, a task for nothing, and a Reshape that can't tell
    # what is left over when two axes have no rows.
    made = (cases.MAKERS[op](np.random.default_rng(seed)) for seed in range(20))
    for case in (c for c in made if c.feeds["x"].ndim > 1):
        is_matmul = op in (schema.RRAM_MATMUL, schema.DORA_MATMUL)
        rows = case.feeds["x"].ndim - 1 if is_matmul else 1  # axes that are rows
        shapes = {
            name: [*(f"B{i}" for i in range(rows)), *value.shape[rows:]]
            for name, value in case.feeds.items()
        }
        session = runtime.make_session(case.model(shapes=shapes), native=native)
        for num_empty in {1, rows}:
            zeros = [0] * num_empty
            empty = {
                name: np.zeros([*zeros, *value.shape[num_empty:]], np.float32)
                for name, value in case.feeds.items()
            }
            want = (*zeros, *case.oracle().shape[num_empty:])
            assert session.run(None, empty)[0].shape == want


def test_tiles_are_not_fused_with_their_transpose(cases: ModuleType, tmp_path: Path) -> None:
    # ONNX Runtime 1.17 and 1.20 divide by the number of rows in the operator that they make of a
    # Transpose of rows and tiles and the MatMul behind it: a batch of zero ended the process.
    case = cases.rram_matmul_case(np.random.default_rng(4))
    assert case.attributes["adc_bits"] > 0
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(case.model(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "o.onnx").graph.node
    assert "ReduceSum" in {node.op_type for node in nodes}  # the body is what was optimised
    assert "FusedMatMul" not in {node.op_type for node in nodes}
