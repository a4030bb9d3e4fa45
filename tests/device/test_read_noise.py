# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from rimc_onnx.device import Purpose, philox4x32, random_words, read_key, read_normals
from rimc_onnx.device.read_noise import normals_of_words


def exact(words: np.ndarray) -> np.ndarray:
    lower = (words & np.uint32(0x7FFFFFFF)).astype(np.float64)
    z = -ndtri((lower + 0.5) * 2.0**-32)
    return np.where(words >> 31, -z, z)


def test_normals_are_the_inverse_distribution_function() -> None:
    # A wrong coefficient, a branch taken on the wrong side, a logarithm off by a power of two. Both
    # ends of both branches, and random words in between.
    spread = 2 ** np.random.default_rng(0).uniform(0, 32, 400_000)
    words = np.concatenate(
        [
            np.minimum(spread, 2**32 - 1).astype(np.uint32),
            np.arange(2000, dtype=np.uint32),
            np.uint32(2**31 - 1) - np.arange(2000, dtype=np.uint32),
            # w = 5 lies at p = 0.00169
            np.uint32(int(0.00169 * 2**32)) + np.arange(-5000, 5000).astype(np.uint32),
        ]
    )
    assert np.abs(normals_of_words(words) - exact(words)).max() < 3e-6  # as the docstring says


def test_opposite_words_give_opposite_normals() -> None:
    # A sign that is added before the branches would cost the symmetry, hence a bias of the noise.
    words = np.arange(0, 2**31, 99_991, dtype=np.uint32)
    flipped = words | np.uint32(2**31)
    assert np.array_equal(normals_of_words(flipped), -normals_of_words(words))


def test_normals_have_the_moments_of_a_normal() -> None:
    z = read_normals(key=7, run=3, stream=2, count=1_000_000).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)  # var(z^4) = 105 - 9
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(n)


def test_draw_lies_at_its_documented_address() -> None:
    # The layout is what other kernels have to repeat; read off the docstring here, one by one.
    key, run, stream = -(2**63) + 12345, 2**32 + 5, 77
    z = read_normals(key=key, run=run, stream=stream, count=200)
    for j in (0, 1, 15, 16, 17, 63, 64, 130, 199):
        words = philox4x32(
            (j // 64 * 16 + j % 16, stream, run % 2**32, run >> 32),
            (key % 2**32, key % 2**64 >> 32),
        )
        word = np.asarray(words[j // 16 % 4]).reshape(1)
        assert z[j] == normals_of_words(word)[0]


def test_normals_keep_their_bits() -> None:
    # Another machine, another numpy: the same file must give the same reads everywhere.
    z = read_normals(key=0, run=0, stream=0, count=4)
    assert [v.hex() for v in z.tolist()] == [
        "0x1.05f4a00000000p-2",
        "-0x1.1d3bf20000000p-4",
        "0x1.085a4c0000000p+1",
        "-0x1.1f47540000000p-1",
    ]


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


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65])
def test_number_of_draws_changes_none_of_them(count: int) -> None:
    # Draws that depend on how many are asked for at once.
    whole = read_normals(key=1, run=0, stream=0, count=300)
    assert np.array_equal(read_normals(key=1, run=0, stream=0, count=count), whole[:count])
