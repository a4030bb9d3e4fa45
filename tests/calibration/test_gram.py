# SPDX-License-Identifier: Apache-2.0
"""Gram matrices kept as rows say what the matrices themselves would."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import CellPrior, problem_from_device
from rimc_onnx.ops.geometry import NodeGeometry

Array = np.ndarray


def normals(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


ROWS = normals(0, 2, 5, 12)
MATRIX = normals(1, 2, 20, 12).transpose(0, 2, 1) @ normals(1, 2, 20, 12)
RIDGE = np.array([0.3, 2.0])
PARTS = {
    "rows": (Gram(rows=ROWS), ROWS.transpose(0, 2, 1) @ ROWS),
    "matrix": (Gram(matrix=MATRIX), MATRIX),
    "all": (
        Gram(rows=ROWS, matrix=MATRIX, ridge=RIDGE),
        ROWS.transpose(0, 2, 1) @ ROWS + MATRIX + RIDGE[:, None, None] * np.eye(12),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_question_has_the_answer_of_the_matrix(name: str) -> None:
    # A part left out of a product, a diagonal or a group of its own.
    gram, whole = PARTS[name]
    w = normals(2, 2, 12, 3)
    np.testing.assert_allclose(gram @ w, whole @ w, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram.dense(), whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram.diagonal(), np.diagonal(whole, axis1=1, axis2=2), rtol=1e-12)
    np.testing.assert_allclose(gram[1] @ w[1], whole[1] @ w[1], rtol=1e-12, atol=1e-12)
    cells = np.array([[0, 3, 7], [11, 2, 3], [5, 1, 9]])
    among = np.stack([whole[1][np.ix_(some, some)] for some in cells])
    np.testing.assert_allclose(gram[1].among(cells) @ w[1][cells], among @ w[1][cells], rtol=1e-12)
    v = normals(3, 2, 12)
    more = whole + v[:, :, None] * v[:, None, :]
    np.testing.assert_allclose(gram.plus(v).dense(), more, rtol=1e-12, atol=1e-12)
    # In float32: 4 K eps of sums of K = 26 products that are at most 20.
    np.testing.assert_allclose(gram.over(4.0).dense(), whole / 4, rtol=0, atol=1.2e-4)


@pytest.mark.parametrize("name", PARTS)
def test_inverse_undoes_the_product(name: str) -> None:
    # Woodbury's identity with a sign or a transpose wrong; a ridge that is not the same for all.
    gram, whole = PARTS[name]
    ridge, f = np.linspace(0.1, 3, 12), normals(4, 12, 3)
    found = gram[1].inverse(ridge)(f.astype(np.float32))
    # Solved in float32, sums of K = 12 products of up to 100.
    np.testing.assert_allclose((whole[1] + np.diag(ridge)) @ found, f, rtol=0, atol=2.4e-4)


def test_node_is_judged_alike_by_rows_and_by_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    # The covariance of rows without their mean taken off; an error found from half the rows.
    # Whole numbers: X'X is exact in float32, so both ways solve the same system.
    x = np.rint(4 * normals(5, 7, 40) + 4).astype(np.float32)
    target, error = (normals(i, 1, 40, 6).astype(np.float32) for i in (6, 7))
    found = []
    # To the end: two runs that stop early need not stop at the same step.
    monkeypatch.setattr("rimc_onnx.calibration.problem._TOLERANCE", 1e-5)
    for few in (True, False):
        monkeypatch.setattr("rimc_onnx.calibration.moments.are_few", lambda _p, _d, few=few: few)
        moments = SecondMoments(NodeGeometry(weight_shape=(40, 6)))
        for part in (x[:3], x[3:]):
            moments.update(part, part @ target[0], part @ (target - 0.1 * error)[0])
        prior = CellPrior(error=np.zeros_like(target), variance=np.square(target))
        found.append(problem_from_device("fc", moments, target, bias_frac=0.4, prior=prior))
    rows, matrix = found
    assert rows.statistics.x_cov.matrix is None
    assert matrix.statistics.x_cov.rows is None
    # Rounded to float32 at another place: values up to 60.
    np.testing.assert_allclose(rows.metric.dense(), matrix.metric.dense(), rtol=0, atol=2e-5)
    # Solved in float32, in directions that the prior of 1e-3 damps and rounding does not: 1e3 *
    # 2^-24 of the loudest direction, which is d = 40 times as loud as the mean.
    np.testing.assert_allclose(rows.error, matrix.error, rtol=0, atol=2.4e-3)


def test_rows_that_become_many_become_a_matrix() -> None:
    # Calibrations on thousands of samples that keep every row.
    moments = SecondMoments(NodeGeometry(weight_shape=(8, 2)))
    x = np.ones((3, 8), np.float32)
    moments.update(x, x[:, :2])
    assert moments.gram.matrix is None
    moments.update(x, x[:, :2])
    assert moments.gram.rows is None
    assert np.array_equal(moments.gram.dense()[0], np.full((8, 8), 6.0))
