# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from node_geometries import CONV_2D, DEPTHWISE, MATMUL, by_node

from rimc_onnx.calibration.moments import rows_of
from rimc_onnx.calibration.solvers.adam import AdamConfig, fit_adam
from rimc_onnx.calibration.solvers.closed_form import Adapter
from rimc_onnx.errors import CalibrationError, ConfigError
from rimc_onnx.ops.geometry import NodeGeometry

torch = pytest.importorskip("torch", reason="torch is an extra")

Array = np.ndarray

FAST = AdamConfig(epochs=60, learning_rate=0.05)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normals(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def windows(geometry: NodeGeometry, x: Array) -> Array:
    """Rows of X [P, G, d], from the im2col that the other tests check."""
    return np.concatenate([rows for (rows,) in rows_of(geometry, x)])


def output(geometry: NodeGeometry, x: Array, matrices: Array) -> Array:
    """What a node with the matrices [G, d, m] writes, by explicit windows."""
    rows = np.einsum("pgd,gdm->pgm", windows(geometry, x), matrices).reshape(-1, geometry.columns)
    if not geometry.is_conv:
        return rows.reshape(*x.shape[:-1], -1).astype(np.float32)
    half = len(geometry.pads) // 2
    out = [
        (n + b + e - d * (k - 1) - 1) // s + 1
        for n, b, e, d, k, s in zip(
            x.shape[2:],
            geometry.pads[:half],
            geometry.pads[half:],
            geometry.dilations,
            geometry.weight_shape[2:],
            geometry.strides,
            strict=True,
        )
    ]
    return np.moveaxis(rows.reshape(len(x), *out, -1), -1, 1).astype(np.float32)


def problem(geometry: NodeGeometry, x_shape: tuple[int, ...], rank: int = 1) -> dict[str, Any]:
    """A node whose array lacks a matrix of ``rank`` and nothing else."""
    shape = (geometry.group, geometry.depth, geometry.group_columns)
    realised = normals(*shape, seed=1)
    lacking = normals(*shape[:2], rank, seed=2) @ normals(shape[0], rank, shape[2], seed=3) / 4
    x = normals(*x_shape, seed=4)
    return {
        "geometry": geometry,
        "x_chunks": [x],
        "h_chunks": [output(geometry, x, realised)],
        "y_chunks": [output(geometry, x, realised + lacking)],
        "target": realised + lacking,
        "rank": rank,
        "magnitude": True,
        "node": "n",
        "seed": 0,
    }


def loss_of(adapter: Adapter, given: dict[str, Any]) -> float:
    """Mean squared error of the deployed form, relative to the teacher's mean square."""
    total = power = 0.0
    for x, h, y in zip(given["x_chunks"], given["h_chunks"], given["y_chunks"], strict=True):
        for x_rows, h_rows, y_rows in rows_of(given["geometry"], x, h, y):
            branch = np.einsum("pgd,gdr,grm->pgm", x_rows, adapter.a, adapter.b)
            total += np.square(adapter.m * (h_rows + branch) - y_rows).sum(dtype=np.float64)
            power += np.square(y_rows).sum(dtype=np.float64)
    return float(total / power)


def identity_loss(given: dict[str, Any]) -> float:
    rest = np.square(given["y_chunks"][0] - given["h_chunks"][0]).sum(dtype=np.float64)
    return float(rest / np.square(given["y_chunks"][0]).sum(dtype=np.float64))


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Losses of the steps taken from here on."""
    losses: list[float] = []
    grad = torch.autograd.grad

    def counted(loss: Any, *args: Any, **kwargs: Any) -> Any:
        losses.append(float(loss.detach()))
        return grad(loss, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return losses


@pytest.mark.parametrize("magnitude", [True, False], ids=["dora", "lora"])
def test_error_of_low_rank_is_found_and_descent_stops(
    magnitude: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sign, a transposed A or B, a threshold that is never looked at.
    given = problem(MATMUL, (16, 4, 12), rank=2) | {"magnitude": magnitude, "seed": 1}
    losses = steps_of(monkeypatch)
    adapter = fit_adam(**given, config=replace(FAST, loss_threshold_frac=1e-4))
    assert len(losses) % 16 == 0
    assert len(losses) < 16 * FAST.epochs
    epochs = np.reshape(losses, (-1, 16)).mean(axis=1)
    assert epochs[-1] <= 1e-4 < epochs[-2]
    assert epochs[-1] < 1e-3 * epochs[0]
    # The loss of an epoch is the mean on the way; the end is as good.
    assert loss_of(adapter, given) <= 1e-4


def test_epochs_and_samples_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches instead of single samples (200 updates for 10 samples and 20 epochs in the paper).
    given = problem(CONV_2D, (10, 4, 5, 9))
    for name in ("x_chunks", "h_chunks", "y_chunks"):
        given[name] = [given[name][0][:7], given[name][0][7:]]
    losses = steps_of(monkeypatch)
    fit_adam(**given)
    assert len(losses) == 200


@pytest.mark.parametrize(
    ("shape", "chunk_samples", "steps"),
    [((6, 4, 12), None, 6), ((24, 12), [6], 6), ((24, 12), None, 24), ((5, 12), [9], 5)],
    ids=["batched", "flattened tokens", "rows", "fewer rows than samples"],
)
def test_one_sample_is_all_its_positions(
    shape: tuple[int, ...],
    chunk_samples: list[int] | None,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tokens taken for samples: a step for each of them.
    losses = steps_of(monkeypatch)
    given = problem(MATMUL, shape)
    fit_adam(**given, chunk_samples=chunk_samples, config=AdamConfig(epochs=1))
    assert len(losses) == steps


@by_node
@pytest.mark.parametrize("magnitude", [True, False], ids=["dora", "lora"])
def test_deployed_form_repairs_every_kind_of_node(
    geometry: NodeGeometry, x_shape: tuple[int, ...], magnitude: bool
) -> None:
    # Trained on other positions than the node has: a pad, stride, dilation or group in the wrong
    # place, channels of groups interleaved. The loss is that of explicit windows.
    given = problem(geometry, x_shape) | {"magnitude": magnitude}
    adapter = fit_adam(**given, config=FAST)
    assert loss_of(adapter, given) < 0.5 * identity_loss(given)
    assert magnitude or (adapter.m == 1).all()


@by_node
def test_merged_form_is_the_training_form(geometry: NodeGeometry, x_shape: tuple[int, ...]) -> None:
    # M' deployed without its norm, or with the norm of another axis: at M' / ||V|| of a theta that
    # is no optimum, both forms must agree. Sums of at most 36 products in float32.
    from rimc_onnx.calibration.solvers import adam as module

    given = problem(geometry, x_shape, rank=1)
    student = module._Student(geometry, given["target"], rank=1, magnitude=True)
    theta = torch.from_numpy(1 + normals(sum(student.sizes), seed=5) / 4)
    [sample, *_] = module._samples(
        geometry, given["x_chunks"], given["h_chunks"], given["y_chunks"], None
    )
    y = student.feature(theta, sample.x, sample.h).numpy()
    adapter = student.merged(theta)
    x = given["x_chunks"][0][:1]
    corrected = adapter.m[:, None, :] * (adapter.a @ adapter.b)
    gain = adapter.m.reshape(-1, *[1] * (y.ndim - 2)) if geometry.is_conv else adapter.m.reshape(-1)
    merged = gain * given["h_chunks"][0][:1] + output(geometry, x, corrected)
    np.testing.assert_allclose(merged.reshape(y.shape), y, rtol=1e-4, atol=1e-4)

    weight = given["target"]
    a, b, m = (part.numpy() for part in theta.split(student.sizes))
    norm = np.linalg.norm(weight, axis=1)
    v = weight + adapter.a @ adapter.b
    np.testing.assert_allclose(
        adapter.m, m.reshape(norm.shape) * norm / np.linalg.norm(v, axis=1), rtol=1e-5
    )
    np.testing.assert_array_equal(adapter.a, a.reshape(student.a_shape).transpose(0, 2, 1))
    np.testing.assert_allclose(
        adapter.b, (b.reshape(student.b_shape) * norm[:, :, None]).transpose(0, 2, 1), rtol=1e-6
    )


def test_start_is_the_device_alone() -> None:
    # B at random or M' at 1: the first student is not the chip. No sample, no step.
    given = problem(CONV_2D, (2, 4, 5, 9)) | {"x_chunks": [], "h_chunks": [], "y_chunks": []}
    adapter = fit_adam(**given)
    assert adapter.a.any()
    assert not adapter.b.any()
    assert (adapter.m == 1).all()
    # Kaiming: 36 values of variance 1 / 12, standard error of their mean square 0.02.
    assert np.square(adapter.a).mean() == pytest.approx(1 / 12, abs=0.08)


def test_steps_are_those_of_adam() -> None:
    # A slip in the hand-written update: torch's own optimizer is the oracle. Float32, 20 steps.
    from rimc_onnx.calibration.solvers import adam as module

    given = problem(MATMUL, (1, 5, 12))
    student = module._Student(MATMUL, given["target"], rank=1, magnitude=True)
    [sample] = module._samples(
        MATMUL, given["x_chunks"], given["h_chunks"], given["y_chunks"], None
    )
    theta = student.start("n", 0)
    optimizer = torch.optim.Adam([theta], lr=0.01)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 20)
        optimizer.zero_grad()
        loss = (student.feature(theta, sample.x, sample.h) - sample.y).square().mean()
        loss.backward()
        optimizer.step()
    expected = student.merged(theta.detach())
    got = fit_adam(**given, config=AdamConfig(epochs=20, learning_rate=0.01))
    for name in ("a", "b", "m"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-4)


def test_scale_of_a_node_does_not_matter() -> None:
    # One learning rate for all nodes: ResNet-20's last has norms of 50, its first of 0.3.
    given = problem(MATMUL, (8, 12))
    larger = given | {"target": given["target"] * np.float32(64)}
    for name in ("h_chunks", "y_chunks"):
        larger[name] = [given[name][0] * np.float32(64)]
    small, large = fit_adam(**given), fit_adam(**larger)
    # Powers of two change no digit of the steps.
    np.testing.assert_array_equal(large.a, small.a)
    np.testing.assert_array_equal(large.b, 64 * small.b)
    np.testing.assert_array_equal(large.m, small.m)


def test_quiet_bit_lines_are_repaired_beside_loud_ones() -> None:
    # Steps of one absolute size: the bit lines of small weights never settle.
    given = problem(MATMUL, (8, 12))
    scale = np.float32(2) ** np.arange(-4, 5, dtype=np.float32)
    for name in ("h_chunks", "y_chunks"):
        given[name] = [given[name][0] * scale]
    adapter = fit_adam(**given | {"target": given["target"] * scale})
    x, h, y = (given[name][0] for name in ("x_chunks", "h_chunks", "y_chunks"))
    left = adapter.m[0] * (h + x @ adapter.a[0] @ adapter.b[0]) - y
    assert (np.square(left).sum(axis=0) < np.square(h - y).sum(axis=0)).all()


def test_global_state_of_torch_neither_matters_nor_changes() -> None:
    # Another adapter in a notebook that has drawn from torch before, or another notebook after.
    given = problem(CONV_2D, (2, 4, 5, 9))
    expected = fit_adam(**given)
    threads = torch.get_num_threads()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is the point
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad(), torch.inference_mode():
                got = fit_adam(**given)
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        for name in ("a", "b", "m"):
            assert getattr(got, name).dtype == np.float32
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        assert torch.equal(torch.get_rng_state(), state)
        assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_seed_and_node_are_the_key_of_the_start() -> None:
    # All nodes of a network with one A, or a seed that is not used.
    given = problem(MATMUL, (3, 12))
    first = fit_adam(**given)
    for change in ({"seed": 1}, {"node": "other"}):
        assert np.abs(fit_adam(**given | change).a - first.a).max() > 0.1


def test_inputs_of_any_layout_are_read_and_left_alone() -> None:
    # Read-only and reversed arrays, of which torch warns or which it refuses; features used later.
    given = problem(DEPTHWISE, (2, 4, 5, 4))
    expected = fit_adam(**given)
    odd = dict(given)
    for name in ("x_chunks", "h_chunks", "y_chunks"):
        array = np.asfortranarray(given[name][0])[:, ::-1][:, ::-1]
        array.flags.writeable = False
        odd[name] = [array]
    copies = [odd[n][0].copy() for n in ("x_chunks", "h_chunks", "y_chunks")]
    got = fit_adam(**odd)
    np.testing.assert_array_equal(got.b, expected.b)
    for copy, name in zip(copies, ("x_chunks", "h_chunks", "y_chunks"), strict=True):
        np.testing.assert_array_equal(copy, odd[name][0])


def test_bit_lines_without_weights_stay_finite() -> None:
    # 0 / 0 in the norm of a dead channel spreads NaN over A, which all bit lines share.
    given = problem(MATMUL, (8, 12))
    given["target"] = given["target"].copy()
    given["target"][:, :, 3] = 0
    given["h_chunks"] = [given["h_chunks"][0].copy()]
    given["y_chunks"] = [given["y_chunks"][0].copy()]
    given["y_chunks"][0][:, 3] = 0
    noisy = fit_adam(**given)
    given["h_chunks"][0][:, 3] = 0
    silent = fit_adam(**given)
    for adapter in (noisy, silent):
        for name in ("a", "b", "m"):
            assert np.isfinite(getattr(adapter, name)).all()
        assert (adapter.m > 0).all()
    assert noisy.m[0, 3] < 1
    assert silent.m[0, 3] == 1
    assert not silent.b[0, :, 3].any()


def test_bad_samples_are_named() -> None:
    # Adapters full of NaN in a file that was written.
    given = problem(MATMUL, (3, 12))
    given["h_chunks"] = [given["h_chunks"][0] * np.float32(np.nan)]
    with pytest.raises(CalibrationError, match=r"^node 'n': every sample has NaN, .* Check"):
        fit_adam(**given)


def test_missing_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # A traceback that says "No module named torch" and not what to do.
    given = problem(MATMUL, (3, 12))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CalibrationError, match=r'pip install "rimc-onnx\[torch\]"') as error:
        fit_adam(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"loss_threshold_frac": -1.0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
    ],
)
def test_config_is_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="need epochs >= 1"):
        AdamConfig(**bad)
