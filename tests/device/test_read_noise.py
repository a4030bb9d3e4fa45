# SPDX-License-Identifier: Apache-2.0
"""Draws of read noise: all 2^16 normals, where each draw lies, and that none is drawn twice."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr, ndtri

from rimc_onnx.device import Purpose, philox4x32, random_words, read_key, read_normals
from rimc_onnx.device.random.read_draws import CUBICS, normals_of_bits

ALL_BITS = np.arange(2**16, dtype=np.uint16)
KERNELS = Path(__file__).resolve().parents[2] / "runtime" / "src" / "kernels"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("maker", KERNELS / "make_read_normals.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_normals_have_the_moments_of_a_normal() -> None:
    # Exact over all there are: a row of coefficients in the wrong place, a lost factor for the
    # variance, a half that is added to the wrong side of zero, which is a bias.
    z = normals_of_bits(ALL_BITS).astype(np.float64)
    normal = stats.norm()
    assert z.mean() == 0.0
    assert (z**3).mean() == 0.0
    assert abs(z.var() - normal.var()) < 1e-8  # what rounding leaves of the coefficients' factor
    # What the ends at 4.39 leave: 2e-4 of the kurtosis and 1e-2 of the sixth moment.
    assert abs((z**4).mean() - normal.moment(4)) < 2.5e-4
    assert abs((z**6).mean() - normal.moment(6)) < 1.2e-2
    assert 4.38 < z.max() < 4.39


def test_each_normal_is_the_mean_of_its_share() -> None:
    # A polynomial off inside one octave only, which moments don't show. 2e-4 is what the docstring
    # of CUBICS says.
    ends = ndtri(np.arange(2**16 + 1) / 2**16)
    means = -np.diff(np.exp(-(ends**2) / 2)) / np.sqrt(2 * np.pi) * 2**16
    magnitudes = np.arange(2**15) + 0.5
    signed = ALL_BITS.view(np.int16) + 0.5
    wanted = np.where(signed < 0, -1.0, 1.0) * -means[: 2**15][(np.abs(signed) - 0.5).astype(int)]
    z = normals_of_bits(ALL_BITS)
    assert np.abs(z - wanted).max() < 2e-4
    # The largest distance of distribution functions: half a step, and what 2e-4 is worth at 0.
    ordered = np.sort(z.astype(np.float64))
    steps = (np.arange(2**16) + 0.5) / 2**16
    assert np.abs(ndtr(ordered) - steps).max() < 2.0**-17 + 2e-4 / np.sqrt(2 * np.pi)
    assert len(magnitudes) == len(means) // 2


def test_complements_give_opposite_normals() -> None:
    # A sign that is lost, or the number -2^15 left without its counterpart.
    assert np.array_equal(normals_of_bits(~ALL_BITS), -normals_of_bits(ALL_BITS))


def test_normals_are_rounded_once_in_every_step() -> None:
    # Fused multiply-add with exact numbers, as kernels have it: float64 would round twice if a sum
    # didn't fit in it.
    rng = np.random.default_rng(0)
    bits = np.concatenate([rng.integers(0, 2**16, 2000), np.arange(64), 2**15 - np.arange(64)])
    for b in bits.astype(np.uint16).tolist():
        a = abs(Fraction(b - 2**16 if b >= 2**15 else b) + Fraction(1, 2))
        row = next(i for i in range(16) if a < 2**i)
        value = np.float32(CUBICS[row][3])
        for power in (2, 1, 0):
            exact = Fraction(float(value)) * a + Fraction(float(np.float32(CUBICS[row][power])))
            # float() of a fraction is rounded once, to 53 bits; here it must not be rounded at all.
            assert Fraction(float(exact)) == exact
            value = np.float32(float(exact))
        got = normals_of_bits(np.array([b], np.uint16))[0]
        assert abs(got) == abs(value)


def test_normals_keep_their_bits() -> None:
    # Another machine, another numpy: the same file must give the same reads everywhere.
    z = read_normals(key=0, run=0, stream=0, rows=2, columns=2)
    assert [v.hex() for v in z.reshape(-1).tolist()] == [
        "-0x1.22e9100000000p-1",
        "0x1.9712140000000p-2",
        "0x1.4c12b40000000p-2",
        "-0x1.ea671a0000000p-3",
    ]


def test_library_has_the_same_coefficients() -> None:
    # Coefficients that were fitted anew, and not for the kernels.
    made = maker()
    assert (KERNELS / "read_normals.inc").read_text() == made.read_normals_inc()


def test_coefficients_are_those_of_the_fit() -> None:
    # Numbers nobody can make again. A least-squares routine may round otherwise elsewhere.
    fitted = maker().fit()
    assert np.abs(fitted - np.asarray(CUBICS)).max() < 1e-5
    np.testing.assert_allclose(fitted[:, 0], np.asarray(CUBICS)[:, 0], rtol=1e-5)


def test_draw_lies_at_its_documented_address() -> None:
    # The layout is what other kernels have to repeat; read off the docstring here, one by one.
    key, run, stream = -(2**63) + 12345, 3 * 2**32 + 5, 77
    z = read_normals(key=key, run=run, stream=stream, rows=19, columns=40)
    for r, c in ((0, 0), (1, 0), (2, 39), (7, 17), (8, 17), (15, 3), (18, 39)):
        words = philox4x32(
            (c, r // 8, stream, run % 2**32),
            (key % 2**32, (key % 2**64 >> 32) ^ (run >> 32)),
            rounds=7,
        )
        word = int(words[r % 8 // 2])
        bits = word >> 16 if r % 2 else word % 2**16
        assert z[r, c] == normals_of_bits(np.array([bits], np.uint16))[0]


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 64), (8, 65), (9, 0), (17, 200)])
def test_number_of_draws_changes_none_of_them(shape: tuple[int, int]) -> None:
    # Draws that depend on how many are asked for at once.
    whole = read_normals(key=1, run=0, stream=0, rows=24, columns=300)
    rows, columns = shape
    part = read_normals(key=1, run=0, stream=0, rows=rows, columns=columns)
    assert np.array_equal(part, whole[:rows, :columns])


N = 2**18


def _draws(**changed: Any) -> np.ndarray:
    arguments = {"key": 987654321, "run": 3, "stream": 2, "rows": 512, "columns": 512} | changed
    return read_normals(**arguments).astype(np.float64)


def _check_independent(a: np.ndarray, b: np.ndarray) -> None:
    """No correlation of values, of magnitudes (squares) and of their sum's fourth moment.

    Bounds are five standard errors of N pairs: var(a b) = 1, var((a^2 - 1)(b^2 - 1)) = 4, and of
    ((a + b) / sqrt 2)^4, var 96.
    """
    a, b = a.reshape(-1), b.reshape(-1)
    n = a.size
    assert abs((a * b).mean()) < 5 / np.sqrt(n)
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 5 * np.sqrt(4 / n)
    assert abs((((a + b) ** 2 / 2) ** 2).mean() - 3) < 5 * np.sqrt(96 / n)


def test_draws_of_a_read_have_the_moments_of_a_normal() -> None:
    # The generator with too few rounds, or with a word used for two draws.
    z = _draws().reshape(-1)
    assert z.size == N
    assert abs(z.mean()) < 5 / np.sqrt(N)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / N)
    assert abs((z**3).mean()) < 5 * np.sqrt(15 / N)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / N)
    # All 2^16 of them as often as each other: chi squared over 2^10 classes of 256 draws each.
    order = np.argsort(normals_of_bits(ALL_BITS), kind="stable")
    place = np.searchsorted(normals_of_bits(ALL_BITS)[order], z)
    counts = np.bincount(place // 64, minlength=1024)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_outputs_are_independent() -> None:
    # Halves of a word that go to both its rows, words that go to several rows of a counter, a
    # counter that several columns share, groups of rows that repeat.
    z = _draws()
    for rows in range(1, 9):
        _check_independent(z[:-rows], z[rows:])
    for columns in (1, 2, 8, 16, 64, 256):
        _check_independent(z[:, :-columns], z[:, columns:])
    _check_independent(z[:-1, :-1], z[1:, 1:])
    _check_independent(z, z.T)


def test_tiles_planes_runs_and_nodes_are_independent() -> None:
    # A word of the counter that is left out, or that a key of the next round undoes: runs 2^32
    # apart, tiles and runs that change places, keys that differ in one bit.
    z = _draws()
    changes: list[dict[str, int]] = [
        *({"stream": s} for s in (0, 1, 3, 2**20)),
        *({"run": r} for r in (0, 2, 4, 2**31, 3 + 2**32, 3 + 2**40)),
        {"run": 2, "stream": 3},
        *({"key": 987654321 ^ bit} for bit in (1, 2**31, 2**32, 2**62)),
    ]
    for changed in changes:
        other = _draws(**changed)
        assert not np.array_equal(other, z)
        _check_independent(z, other)


def test_sums_of_many_draws_spread_as_independent_ones() -> None:
    # A small correlation of all pairs, which single pairs don't show: the variance of sums of 512
    # draws along rows and along columns. Of 512 sums the variance has a standard error of
    # sqrt(2 / 512).
    z = _draws()
    for axis in (0, 1):
        sums = z.sum(axis=axis) / np.sqrt(512)
        assert abs(sums.var() - 1) < 5 * np.sqrt(2 / 512)


def test_read_key_is_two_words_of_the_node_as_a_signed_number() -> None:
    # An attribute of a node holds 64 bits with a sign.
    seen = set()
    for node in ("conv1", "conv2", "fc", "a", "b"):
        low, high = random_words(
            seed=5, node=node, device=0, purpose=Purpose.READ, start=0, count=2
        )
        key = read_key(seed=5, node=node)
        assert -(2**63) <= key < 2**63
        assert key % 2**64 == int(low) + int(high) * 2**32
        seen.add(key)
    assert len(seen) == 5
    assert read_key(seed=6, node="conv1") not in seen
    assert min(seen) < 0 < max(seen)
