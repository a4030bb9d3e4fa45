# SPDX-License-Identifier: Apache-2.0
"""Measuring what the arrays hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.random.keyed_draws import Purpose, standard_normals
from rimc_onnx.errors import ConfigError

__all__ = ["read_out"]


def read_out(
    w_realised: npt.NDArray[np.float32], *, node: str, seed: int, noise_frac: float
) -> npt.NDArray[np.float32]:
    """W_r as a read-out finds it: each weight off by N(0, (noise_frac * w)^2), of the same shape.

    The draw of a cell depends on (seed, node, cell) alone; cells count in C order.

    Raises:
        ConfigError: ``noise_frac`` is negative.
    """
    if not noise_frac >= 0:
        raise ConfigError(f"read-out noise must be 0 or more, got {noise_frac} (a fraction)")
    if noise_frac == 0:
        return w_realised
    z = standard_normals(
        seed=seed, node=node, device=0, purpose=Purpose.READ_OUT, start=0, count=w_realised.size
    )
    return (w_realised * (1 + noise_frac * z.reshape(w_realised.shape))).astype(np.float32)
