# SPDX-License-Identifier: Apache-2.0
"""From fitted adapters to the int8 codes in SRAM: symmetric, a scale per rank and per bit line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.problem import NodeProblem
from rimc_onnx.calibration.solvers.closed_form import Adapter
from rimc_onnx.execution.parallel import for_parts
from rimc_onnx.ops.adapter import SPARSE_CODES, QuantizedAdapter, lora_shapes, magnitude_codes
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.schema import MAX_CODE_SUM

__all__ = ["quantize"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

_CODES = 127
_X_RMS = 12.0
_U_RMS = 4.5
"""Full scale of X and of X A in units of their root mean square: rarer values saturate. X A is a
sum of many terms, near a Gaussian, for which codes of 8 bits err least at about 4 (Banner et al.,
Post training 4-bit quantization of convolutional networks, NeurIPS 2019); inputs have longer tails.
"""


def quantize(
    adapter: Adapter, problem: NodeProblem, bias: F32, *, dense: bool
) -> tuple[QuantizedAdapter, Adapter]:
    """Codes of an adapter, and the adapter in real numbers that the codes stand for.

    A is rounded first and B refitted to the rounded A in the metric of the inputs, so B takes up
    what it can of A's rounding error. ``dense`` keeps every sparse cell, zeros too.
    """
    statistics, geometry = problem.statistics, problem.geometry
    x_rms = float(np.sqrt(statistics.x_x.diagonal().mean()))
    x_scale = np.float32(min(statistics.x_abs_max, _X_RMS * x_rms) / _CODES) or np.float32(1.0)

    a_codes, a_scale = _codes(adapter.a)
    a = (a_codes * a_scale[:, None, :]).astype(np.float32)
    u_power = np.einsum("gdr,gdr->gr", a, statistics.x_x @ a)
    u_step = _U_RMS * np.sqrt(np.maximum(u_power, 0)) / _CODES
    u_step[u_step == 0] = 1.0
    rank_step = (u_step / (np.float64(x_scale) * a_scale)).astype(np.float32)
    u_step = rank_step.astype(np.float64) * np.float64(x_scale) * a_scale

    b_codes, b_scale = _codes(_refit(adapter, a, problem.metric) * u_step[:, :, None])
    b_scale_f32 = b_scale.astype(np.float32)

    m_codes, m_scale = magnitude_codes(adapter.m)

    s_codes, s_scale = _cell_codes(adapter.s, problem.target.shape, dense=dense)
    s_scale_f32 = (s_scale * np.float64(x_scale)).astype(np.float32)
    values, index = _sparse(s_codes, geometry, dense=dense)
    a_shape, b_shape, ranks = lora_shapes(geometry, a.shape[2])
    codes = QuantizedAdapter(
        lora_a=_in_place(a_codes.astype(np.int8), geometry, a_shape),
        lora_b=_in_place(b_codes.astype(np.int8), geometry, b_shape),
        magnitude=m_codes,
        x_scale=np.array([x_scale], np.float32),
        rank_step=rank_step.reshape(ranks),
        lora_b_scale=b_scale_f32.reshape(-1),
        magnitude_scale=np.array([m_scale], np.float32),
        bias=bias,
        sparse_values=values,
        sparse_index=index,
        sparse_scale=s_scale_f32.reshape(-1),
    )
    stored = Adapter(
        a=a,
        b=(b_codes * b_scale_f32[:, None, :] / u_step[:, :, None]).astype(np.float32),
        m=(m_codes * np.float64(m_scale)).astype(np.float32).reshape(adapter.m.shape),
        s=None if adapter.s is None else _stored_cells(s_codes, s_scale_f32, float(x_scale)),
    )
    return codes, stored


def _cell_codes(s: F32 | None, shape: tuple[int, ...], *, dense: bool) -> tuple[Int8, F64]:
    """Codes of sparse cells [G, d, m], and the scale of each bit line [G, m]."""
    codes, scale = np.zeros(shape, np.int8), np.ones(shape[::2])
    if s is None:
        return codes, scale
    cells, most = s, _CODES if dense else SPARSE_CODES

    def fill(lines: slice) -> None:
        codes[:, :, lines], scale[:, lines] = _codes(cells[:, :, lines], most)

    for_parts(fill, shape[2], shape[0] * shape[1])
    return codes, scale


def _stored_cells(codes: Int8, scale: F32, x_scale: float) -> F32:
    """What codes of sparse cells stand for."""
    found = np.empty(codes.shape, np.float32)

    def fill(lines: slice) -> None:
        part = np.s_[:, :, lines]
        found[part] = codes[part].astype(np.float64) * scale[:, None, lines] / x_scale

    for_parts(fill, codes.shape[2], codes.shape[0] * codes.shape[1])
    return found


def _codes(values: F32 | F64, most: int = _CODES) -> tuple[F64, F64]:
    """Codes [G, i, j] with a scale for each j: |code| <= ``most``, and sums exact in fp32."""
    if values.shape[1] == 0:
        return np.zeros(values.shape), np.ones(values.shape[::2])
    size = np.abs(values.astype(np.float64))
    scale = np.maximum(size.max(axis=1) / most, size.sum(axis=1) / (MAX_CODE_SUM - values.shape[1]))
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    # The scale is stored in fp32, so the codes are made for the stored one.
    scale = scale.astype(np.float32).astype(np.float64)
    return np.clip(np.rint(values / scale[:, None, :]), -most, most), scale


def _refit(adapter: Adapter, a: F32, metric: Gram) -> F64:
    """B for the rounded A that keeps A B nearest to what was fitted."""
    b = np.zeros(adapter.b.shape)
    for g in range(len(a) if a.shape[2] else 0):
        loud = (metric[g] @ a[g]).astype(np.float64)
        b[g] = np.linalg.lstsq(
            a[g].T @ loud, (loud.T @ adapter.a[g]) @ adapter.b[g].astype(np.float64), rcond=None
        )[0]
    return b


def _sparse(
    codes: Int8, geometry: NodeGeometry, *, dense: bool
) -> tuple[Int8, npt.NDArray[np.int64]]:
    """Values and C-order index in the weight's own layout; codes of zero need no place."""
    flat = geometry.weight(codes).reshape(-1)
    index = np.arange(flat.size) if dense else np.flatnonzero(flat)
    return flat[index], index.astype(np.int64)


def _in_place(codes: Int8, geometry: NodeGeometry, shape: tuple[int, ...]) -> Int8:
    """Codes of A or B, [G, i, j], as the operator reads them."""
    outputs_first = codes.transpose(0, 2, 1) if geometry.is_conv else codes
    return np.ascontiguousarray(outputs_first.reshape(shape))
