# SPDX-License-Identifier: Apache-2.0
"""From fitted adapters to the int8 codes in SRAM: symmetric, a scale per rank and per bit line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rimc_onnx.adapter import QuantizedAdapter
from rimc_onnx.calibration.closed_form import Adapter
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.opset import MAX_LORA_A_L1

__all__ = ["quantize"]

F64 = npt.NDArray[np.float64]

_CODES = 127
_X_RMS = 12.0
_U_RMS = 6.0
"""Full scale of X and of X A in units of their root mean square: rarer values saturate."""


def quantize(
    adapter: Adapter, moments: SecondMoments, bias: npt.NDArray[np.float32]
) -> tuple[QuantizedAdapter, Adapter]:
    """Codes of an adapter, and the adapter in real numbers that the codes stand for.

    A is rounded first and B refitted to the rounded A, so B takes up part of A's rounding error.
    """
    geometry = moments.geometry
    rows = max(moments.num_rows, 1)
    x_rms = np.sqrt(np.trace(moments.x_x, axis1=1, axis2=2).sum() / moments.x.size / rows)
    x_scale = np.float32(min(moments.x_abs_max, _X_RMS * x_rms) / _CODES) or np.float32(1.0)

    # Small enough a code sum that the branch is exact in fp32 (opset.MAX_LORA_A_L1).
    a_scale = np.maximum(
        np.abs(adapter.a).max(axis=1) / _CODES,
        np.abs(adapter.a).sum(axis=1) / (MAX_LORA_A_L1 - geometry.depth),
    )
    a_scale[a_scale == 0] = 1.0
    a_codes = np.rint(adapter.a / a_scale[:, None, :])
    a = a_codes * a_scale[:, None, :]

    # The power of X A, which rounding can leave just below zero where few rows were seen.
    u_power = np.einsum("gdr,gde,ger->gr", a, moments.x_x, a, optimize=True) / rows
    u_rms = np.sqrt(np.maximum(u_power, 0.0))
    u_step = _U_RMS * u_rms / _CODES
    u_step[u_step == 0] = 1.0
    rank_step = (u_step / (np.float64(x_scale) * a_scale)).astype(np.float32)
    u_step = rank_step.astype(np.float64) * np.float64(x_scale) * a_scale

    b = _refit(adapter, a)
    b_units = b * u_step[:, :, None]
    b_scale = (np.abs(b_units).max(axis=1) / _CODES).astype(np.float32)
    b_scale[b_scale == 0] = 1.0
    b_codes = np.rint(b_units / b_scale[:, None, :].astype(np.float64))

    m_scale = np.float32(np.abs(adapter.m).max() / _CODES)
    m_codes = np.rint(adapter.m / np.float64(m_scale))

    codes = QuantizedAdapter(
        lora_a=_layout_a(a_codes.astype(np.int8), geometry.weight_shape, geometry.conv),
        lora_b=_layout_b(b_codes.astype(np.int8), geometry.weight_shape, geometry.conv),
        magnitude=m_codes.astype(np.int8).reshape(-1),
        x_scale=np.array([x_scale], np.float32),
        rank_step=rank_step.reshape(-1),
        lora_b_scale=b_scale.reshape(-1),
        magnitude_scale=np.array([m_scale], np.float32),
        bias=bias,
    )
    stored = Adapter(
        a=a,
        b=b_codes * b_scale[:, None, :].astype(np.float64) / u_step[:, :, None],
        m=m_codes * np.float64(m_scale),
    )
    return codes, stored


def _refit(adapter: Adapter, a: F64) -> F64:
    """B for the rounded A that keeps A B nearest to what was fitted, in the weights' own metric."""
    b = np.empty_like(adapter.b)
    for g in range(len(a)):
        b[g] = np.linalg.lstsq(a[g], adapter.a[g] @ adapter.b[g], rcond=None)[0]
    return b


def _layout_a(
    codes: npt.NDArray[np.int8], weight_shape: tuple[int, ...], conv: bool
) -> npt.NDArray[np.int8]:
    if not conv:
        return codes[0]
    group, _, rank = codes.shape
    rows = codes.transpose(0, 2, 1).reshape(group * rank, *weight_shape[1:])
    return np.ascontiguousarray(rows)


def _layout_b(
    codes: npt.NDArray[np.int8], weight_shape: tuple[int, ...], conv: bool
) -> npt.NDArray[np.int8]:
    if not conv:
        return codes[0]
    ones = [1] * (len(weight_shape) - 2)
    return np.ascontiguousarray(
        codes.transpose(0, 2, 1).reshape(weight_shape[0], codes.shape[1], *ones)
    )
