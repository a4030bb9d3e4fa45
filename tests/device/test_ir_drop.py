# SPDX-License-Identifier: Apache-2.0
"""What wires lose, against the resistive network solved exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from rimc_onnx.crossbar import ArrayLayout, apply_ir_drop, wire_loss
from rimc_onnx.device import ConductancePair, ProgrammedWeight, get_preset, pair_shares, program
from rimc_onnx.errors import NodeMappingError
from rimc_onnx.ops.geometry import NodeGeometry


def solve_network(g_us: np.ndarray, voltage: np.ndarray, wire_ohm: float) -> np.ndarray:
    """Currents into the converters, microampere: Kirchhoff at every node of both wires.

    Word lines are driven in front of column 0, bit lines end at 0 V behind the last row.
    """
    rows, columns = g_us.shape
    wire = 1e6 / wire_ohm  # microsiemens
    number = np.arange(rows * columns).reshape(rows, columns)
    word, bit = number, number + rows * columns
    matrix = scipy.sparse.lil_matrix((2 * rows * columns, 2 * rows * columns))
    known = np.zeros(2 * rows * columns)

    def connect(a: int, b: int | None, conductance: float, volt: float = 0.0) -> None:
        matrix[a, a] += conductance
        if b is None:
            known[a] += conductance * volt
        else:
            matrix[b, b] += conductance
            matrix[a, b] -= conductance
            matrix[b, a] -= conductance

    for i in range(rows):
        for j in range(columns):
            connect(word[i, j], bit[i, j], g_us[i, j])
            connect(word[i, j], word[i, j - 1] if j else None, wire, voltage[i])
            connect(bit[i, j], bit[i + 1, j] if i + 1 < rows else None, wire)
    solved = scipy.sparse.linalg.spsolve(matrix.tocsc(), known)
    return solved[bit[-1]] * wire


RNG = np.random.default_rng(3)
ARRAYS = {
    "one cell": (1, 1),
    "one word line": (1, 9),
    "one bit line": (9, 1),
    "wide": (5, 12),
    "tall": (12, 5),
}


@pytest.mark.parametrize("shape", ARRAYS.values(), ids=ARRAYS)
def test_loss_is_the_network_up_to_second_order(shape: tuple[int, int]) -> None:
    # The driver at the wrong end, a sum that runs the wrong way, a segment left out: each leaves an
    # error of first order, which halves with R. Of second order it is a quarter.
    g_us = RNG.uniform(1, 40, shape)
    voltage = RNG.uniform(-0.3, 0.3, shape[0])
    errors, drops = [], []
    for wire_ohm in (4.0, 2.0, 1.0):
        exact = solve_network(g_us, voltage, wire_ohm)
        ideal = voltage @ g_us
        first_order = voltage @ (g_us * (1 - wire_loss(g_us, wire_ohm)))
        errors.append(np.abs(first_order - exact).max())
        drops.append(np.abs(ideal - exact).max())
    # The third order is a few percent of the second for these arrays.
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)
    assert errors[2] < 0.05 * drops[2]


def paired(w: np.ndarray, *, g_max_us: float = 40.0, g_min_us: float = 2.0) -> ProgrammedWeight:
    """A weight of W_max 1 without any error."""
    g_us = w * g_max_us
    pair = ConductancePair(
        g_pos_us=np.maximum(g_us, 0).astype(np.float32) + np.float32(g_min_us),
        g_neg_us=np.maximum(-g_us, 0).astype(np.float32) + np.float32(g_min_us),
        share=1.0,
    )
    return ProgrammedWeight(
        w_realised=w.astype(np.float32), w_max=np.ones(1, np.float32), pairs=(pair,)
    )


def drop(
    w: np.ndarray,
    wire_ohm: float = 1.0,
    *,
    num_tiles: int = 1,
    tile_columns: int,
    group: int = 1,
    **g: float,
) -> np.ndarray:
    spatial = w.ndim - 2
    geometry = NodeGeometry(
        weight_shape=w.shape,
        strides=(1,) * spatial,
        pads=(0,) * (2 * spatial),
        dilations=(1,) * spatial,
        group=group,
    )
    layout = ArrayLayout(geometry=geometry, num_tiles=num_tiles, tile_columns=tile_columns)
    return apply_ir_drop(paired(w, **g), node="fc", g_max_us=40.0, wire_ohm=wire_ohm, layout=layout)


def one_array(w: np.ndarray, wire_ohm: float = 1.0, g_min_us: float = 2.0) -> np.ndarray:
    """A matrix in one array of each polarity, spelt out."""
    held = [np.maximum(sign * w, 0) * 40 + g_min_us for sign in (1, -1)]
    held = [g.astype(np.float32).astype(np.float64) for g in held]
    left = [g * (1 - wire_loss(g, wire_ohm)) for g in held]
    return (left[0] - left[1]) / 40


def test_each_polarity_has_an_array_of_its_own() -> None:
    # One array for both, or the loss of G+ taken off G-.
    w = RNG.uniform(-1, 1, (12, 7))
    got = drop(w, tile_columns=7)
    np.testing.assert_allclose(got, one_array(w), rtol=0, atol=1e-6)  # float32 of a value near 1
    assert np.abs(got - w).max() > 1e-3


def test_every_tile_is_an_array_of_its_own() -> None:
    # Wires that run on through all tiles; a last tile that is cut too long.
    w = RNG.uniform(-1, 1, (11, 10))
    got = drop(w, num_tiles=3, tile_columns=4)
    for row in (0, 4, 8):
        for column in (0, 4, 8):
            part = np.s_[row : row + 4, column : column + 4]
            np.testing.assert_allclose(got[part], one_array(w[part]), rtol=0, atol=1e-6)


def test_convolution_lies_in_arrays_by_group_and_channel() -> None:
    # Kernel positions for channels, output channels of one group in the arrays of another.
    w = RNG.uniform(-1, 1, (6, 5, 2, 3))
    got = drop(w, group=2, num_tiles=2, tile_columns=12)
    for group in range(2):
        for channels in (slice(0, 3), slice(3, 5)):
            part = w[group * 3 : group * 3 + 3, channels]
            matrix = part.reshape(3, -1).T
            found = got[group * 3 : group * 3 + 3, channels].reshape(3, -1).T
            np.testing.assert_allclose(found, one_array(matrix), rtol=0, atol=1e-6)


def test_weight_of_programmed_devices_loses_what_their_conductances_say() -> None:
    # Target conductances in place of realised ones; a W_max of the node where columns have theirs.
    config = get_preset("gaussian-absolute", g_min_us=1.0)
    w = RNG.standard_normal((9, 4)).astype(np.float32)
    programmed = program(w, node="fc", seed=3, config=config, column_axis=1, keep_conductances=True)
    (pair,) = programmed.pairs
    scale = programmed.w_max / config.g_max_us
    realised = (pair.g_pos_us.astype(np.float64) - pair.g_neg_us) * scale
    np.testing.assert_allclose(realised, programmed.w_realised, rtol=0, atol=1e-5)
    layout = ArrayLayout(geometry=NodeGeometry(weight_shape=w.shape), num_tiles=1, tile_columns=4)
    got = apply_ir_drop(
        programmed, node="fc", g_max_us=config.g_max_us, wire_ohm=2.0, layout=layout
    )
    left = [
        g.astype(np.float64) * (1 - wire_loss(g.astype(np.float64), 2.0))
        for g in (pair.g_pos_us, pair.g_neg_us)
    ]
    np.testing.assert_allclose(got, (left[0] - left[1]) * scale, rtol=0, atol=1e-5)


def test_conductances_are_kept_without_changing_the_weight() -> None:
    config = get_preset("gaussian-relative")
    w = RNG.standard_normal((30, 40)).astype(np.float32)
    for drift in (0.2, 0.0):
        arguments = {"node": "a", "seed": 1, "config": replace(config, drift_frac=drift)}
        plain = program(w, column_axis=1, **arguments)
        kept = program(w, column_axis=1, keep_conductances=True, **arguments)
        assert plain.pairs == ()
        assert kept.w_realised.tobytes() == plain.w_realised.tobytes()
    assert np.array_equal(kept.pairs[0].g_pos_us > 0, w > 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"level_bits": 2, "num_slices": 3},
        {"level_bits": 3, "devices_per_weight": 2, "drift_frac": 0.1},
        {"level_bits": 2, "num_slices": 2, "devices_per_weight": 3, "stuck_max_frac": 0.02},
    ],
    ids=["slices", "parallel", "both"],
)
def test_pairs_and_their_shares_are_the_weight(fields: dict[str, float]) -> None:
    # Pairs in the order of another loop than their shares, targets for what devices hold, or the
    # conductances of one chunk of cells in the place of another: there are two chunks here.
    config = get_preset("gaussian-absolute", g_min_us=1.0, **fields)
    w = RNG.standard_normal((180, 100)).astype(np.float32)
    programmed = program(w, node="fc", seed=3, config=config, column_axis=1, keep_conductances=True)
    shares = pair_shares(config)
    assert [pair.share for pair in programmed.pairs] == list(shares)
    pairs = config.num_slices * config.devices_per_weight
    assert len(shares) == pairs
    total = sum(
        (pair.g_pos_us.astype(np.float64) - pair.g_neg_us) * pair.share for pair in programmed.pairs
    )
    realised = total * (programmed.w_max / config.g_max_us)
    np.testing.assert_allclose(realised, programmed.w_realised, rtol=0, atol=2e-6)


def test_array_beyond_first_order_is_refused() -> None:
    # A negative weight, or one that has changed its sign, for an array that no wire could feed.
    w = np.ones((100, 100))
    with pytest.raises(NodeMappingError, match=r"node 'fc': wires of 100 ohm take \d+ % of a cell"):
        drop(w, tile_columns=100, wire_ohm=100.0)
