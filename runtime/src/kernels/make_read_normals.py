# SPDX-License-Identifier: Apache-2.0
"""Fits the normals of read noise, and writes them for the native library.

Run where rimc_onnx is installed, the first with scipy:

    python runtime/src/kernels/make_read_normals.py fit       rows of CUBICS of device/read_noise.py
    python runtime/src/kernels/make_read_normals.py > read_normals.inc
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.random.read_draws import CUBICS

Array = npt.NDArray[Any]

_POWERS = 4
_MAGNITUDES = np.arange(2**15) + 0.5
_ROWS = np.frexp(_MAGNITUDES)[1]
# A kernel's magnitudes are 2^16 a, and it looks rows up by the lowest bits of the exponent that
# float32 stores, 127 more than that of 2^16 a: row 0 is at (127 + 15) % 16.
_SHIFT = 16
_FIRST_PLACE = (127 + 15) % 16


def fit() -> Array:
    """[16, 4]: abs(z) over a in every octave, float32, for all 2^16 values a variance of 1."""
    cubics = _unscaled()
    scale = 1.0
    for _ in range(20):
        scale /= np.sqrt(_variance((cubics * scale).astype(np.float32)))
    # What rounding the coefficients leaves: the best one of some factors next to it.
    factors = scale * (1 + 3e-9 * np.arange(-200, 201))
    best = min(factors, key=lambda f: abs(_variance((cubics * f).astype(np.float32)) - 1))
    return np.asarray((cubics * best).astype(np.float32))


def _unscaled() -> Array:
    """The mean of the normal distribution over each 2^-16, for the smallest largest error."""
    from scipy.special import ndtri

    ends = -ndtri(np.arange(2**15 + 1) * 2.0**-16)
    density = np.exp(-(ends**2) / 2) / np.sqrt(2 * np.pi)
    means = (density[1:] - density[:-1]) * 2.0**16
    cubics = np.zeros((16, _POWERS))
    for row in range(16):
        inside = row == _ROWS
        octave = 2.0 ** (row - 1)
        t, wanted = _MAGNITUDES[inside] / octave, means[inside]
        weights = np.ones(t.size)
        found = np.zeros(1)
        for _ in range(2000):
            # Lawson's weights: the points that are off most count more in the next round.
            found = np.polyfit(t, wanted, min(_POWERS, t.size) - 1, w=np.sqrt(weights))
            off = np.abs(np.polyval(found, t) - wanted)
            if off.max() < 1e-13:
                break
            weights *= (off / off.max()) ** 0.2 + 1e-9
            weights /= weights.sum()
        cubics[row, : found.size] = found[::-1] / octave ** np.arange(found.size)
    return cubics


def _variance(cubics: Array) -> float:
    rows = cubics[_ROWS]
    value = rows[:, _POWERS - 1]
    for power in range(_POWERS - 2, -1, -1):
        value = (value * _MAGNITUDES + rows[:, power]).astype(np.float32)
    return float(np.mean(value.astype(np.float64) ** 2))


def read_normals_inc() -> str:
    """The file: 16 coefficients of each power, lowest first, as kernels look them up."""
    lines = ["// SPDX-License-Identifier: Apache-2.0", "// Made by make_read_normals.py."]
    places = [(_FIRST_PLACE + row) % 16 for row in range(16)]
    for power in range(_POWERS):
        values = [0.0] * 16
        for row, place in enumerate(places):
            values[place] = float(np.float32(CUBICS[row][power])) * 2.0 ** (-_SHIFT * power)
        parts = [f"{value:.9e}f" for value in values]
        rows = [", ".join(parts[i : i + 4]) for i in range(0, 16, 4)]
        lines.append("{" + ",\n ".join(rows) + "},")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["fit"]:
        for coefficients in fit():
            print(f"    ({', '.join(repr(float(c)) for c in coefficients)}),")
    else:
        print(read_normals_inc(), end="")
