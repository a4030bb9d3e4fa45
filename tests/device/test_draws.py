# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from rimc_onnx.device import Purpose, philox4x32, random_words, standard_normals
from rimc_onnx.device.random.normal import normal_from_words
from rimc_onnx.errors import ConfigError

ONES = 0xFFFFFFFF
GOLDEN_SHA256 = "3c06bf05c8e9464a57c1b81fc3936582f81cb9a02ca0d87bd4898e7df178e531"
GOLDEN_DRAW = """
import hashlib
from rimc_onnx.device import Purpose, standard_normals
z = standard_normals(seed=2**40 + 7, node="layer1/conv", device=1, purpose=Purpose.PROGRAMMING,
                     start=5, count=100003)
print(hashlib.sha256(z.astype("<f8").tobytes()).hexdigest())
"""


def draw(start: int = 0, count: int = 64, **changes: object) -> np.ndarray:
    address = {"seed": 0, "node": "conv1", "device": 0, "purpose": Purpose.PROGRAMMING, **changes}
    return standard_normals(start=start, count=count, **address)


# Random123, tests/kat_vectors: a wrong constant, round count or word order.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox4x32(counter, key)) == expected


# The same file, seven rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        ((ONES,) * 4, (ONES,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_of_seven_rounds_gives_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox4x32(counter, key, rounds=7)) == expected


def test_philox_of_arrays_equals_philox_of_scalars():
    # A carry or a mask lost in the vectorised form shows only with large words.
    words = np.array([0, 1, ONES, 0x80000000, 0x243F6A88], np.uint32)
    together = philox4x32((words, 7, words[::-1], ONES), (ONES, 5))
    for i, word in enumerate(words):
        alone = philox4x32((word, 7, words[::-1][i], ONES), (ONES, 5))
        assert [int(column[i]) for column in together] == [int(column) for column in alone]


def test_words_sit_at_their_documented_address():
    # The table in draws.py is the file format: a second implementation is written from it.
    seed, node, device, cell = 2**40 + 7, "layer1/conv", 1, 4 * 1234 + 2
    digest = hashlib.sha256(node.encode()).digest()
    name = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    block = philox4x32((1234, device, *name), (7, 2**8))
    got = random_words(
        seed=seed, node=node, device=device, purpose=Purpose.PROGRAMMING, start=cell, count=1
    )
    assert got.tolist() == [int(block[2])]


def test_normal_is_the_inverse_of_the_distribution():
    # A mistyped coefficient, a wrong branch or the far tail. PPND7 states 1e-7 relative, which is
    # 7e-7 at the ends (+-6.34).
    rng = np.random.default_rng(0)
    words = np.concatenate(
        [
            np.arange(1 << 16, dtype=np.uint32),
            np.uint32(ONES) - np.arange(1 << 16, dtype=np.uint32),
            np.uint32(1 << 31) + np.arange(-1000, 1000).astype(np.uint32),
            rng.integers(0, 2**32, 1_000_000, dtype=np.uint32),
        ]
    )
    z = normal_from_words(words)
    exact = ndtri((words + 0.5) / 2.0**32)
    assert np.abs(z - exact).max() < 1e-6
    assert np.abs(z / exact - 1).max() < 2e-7


def test_complementary_words_give_opposite_normals():
    # A half-open mapping of words (p = word / 2^32) would shift the mean and give -inf at 0.
    words = np.array([0, 1, 12345, 1 << 28, (1 << 31) - 1], np.uint32)
    assert np.array_equal(normal_from_words(words), -normal_from_words(~words))


def test_normals_have_the_moments_of_a_standard_normal():
    # Correlated words or a lost tail. n = 1e6: standard errors 1e-3 (mean), 7e-4 (sigma),
    # sqrt(6 / n) (skewness), sqrt(24 / n) (kurtosis), 1e-3 (lag-1 correlation).
    n = 1_000_000
    z = draw(count=n)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    for lag in (1, 2, 3, 4):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / np.sqrt(n)


def run_golden_draw(disabled: str) -> str:
    folder = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": folder, "NPY_DISABLE_CPU_FEATURES": disabled}
    result = subprocess.run(
        [sys.executable, "-c", GOLDEN_DRAW], env=env, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.parametrize("simd", ["all", "none"])
def test_draw_has_its_golden_bits_at_any_simd_level(simd):
    # Converted files must stay reproducible from their annotation: any change of these bits is a
    # change of format. "none" runs without the SIMD levels numpy would pick here.
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    assert run_golden_draw("" if simd == "all" else " ".join(found)) == GOLDEN_SHA256


def test_draws_use_no_function_whose_last_bits_depend_on_the_machine():
    # np.log & co. differ in the last bit between SIMD levels and numpy versions; sums and dot
    # products differ with the order of additions; x ** y calls the C library.
    exact = {
        *("abs", "arange", "array", "asarray", "ascontiguousarray", "copysign", "divide"),
        *("empty", "flatnonzero", "frexp", "isfinite", "maximum", "reshape", "shape", "sqrt"),
        *("zeros", "zeros_like", "float32", "float64", "int64", "uint32", "uint64", "prod"),
        *("errstate", "floating", "int16", "uint16"),
        *("int32", "ldexp", "minimum", "ndarray", "dtype", "ndim", "rint", "take", "ones"),
        # a running sum has one order of additions; the rest moves or compares values
        *("cumsum", "broadcast_to", "newaxis", "divmod", "full_like", "where", "stack", "uint64"),
    }
    draws = ("random.philox", "random.normal", "random.keyed_draws", "random.read_draws")
    laws = ("reproducible_math", "curves", "time_laws", "conductance_table", "mapping", "iv_curve")
    device = (*draws, *laws, "config", "duration", "programming")
    for name in (*(f"device.{n}" for n in device), "crossbar.wires"):
        tree = ast.parse(inspect.getsource(importlib.import_module(f"rimc_onnx.{name}")))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "np"
        }
        assert used <= exact, name
        powers = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Pow)
            and not (isinstance(node.left, ast.Constant))
        ]
        assert not powers, name


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 2**34 - 300), skip=st.integers(0, 40), count=st.integers(0, 40))
def test_sub_range_equals_the_whole(start, skip, count):
    # Chunks that do not begin at a multiple of four cells, and cells beyond 2^32.
    whole = draw(start, 100)
    assert np.array_equal(draw(start + skip, count), whole[skip : skip + count])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": 1 << 32},
        {"node": "conv2"},
        {"node": ""},
        {"device": 1},
        {"start": 64},
    ],
)
def test_every_part_of_the_address_changes_the_draw(change):
    # A part left out of the counter or key, or seed 0 taken for "no seed". n = 64 independent
    # pairs: |correlation| beyond 0.6 has probability < 1e-6.
    base, changed = draw(), draw(**change)
    assert not np.any(base == changed)
    assert abs(np.corrcoef(base, changed)[0, 1]) < 0.6


def test_last_cell_can_be_drawn():
    # An off-by-one in the limit.
    assert draw(2**34 - 1, 1).shape == (1,)


@pytest.mark.parametrize("start", [-1, 2**34])
def test_cell_out_of_range_is_an_error(start):
    with pytest.raises(ConfigError, match=r"node 'conv1': cells .* lie outside 0\.\.2\^34-1"):
        draw(start, 1)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ConfigError, match=rf"seed must lie in 0\.\.2\^64-1, got {seed}"):
        draw(seed=seed)
