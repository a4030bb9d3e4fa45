# SPDX-License-Identifier: Apache-2.0
"""Outputs of converted nodes against the published read noise of their devices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import Scaling, get_preset
from rimc_onnx.jobs.age import age
from rimc_onnx.jobs.convert import convert
from rimc_onnx.runtime import make_session


def pcm_variance_us2(g_us: np.ndarray, t_s: float) -> np.ndarray:
    """Of a device at ``g_us`` and one at 0; the share follows the programmed conductance."""
    programmed = np.linspace(1e-9, 25, 200_001)
    nu = np.clip(0.0244 - 0.0155 * np.log(programmed / 25), 0.049, 0.1)
    x = np.interp(g_us, programmed * (t_s / 20) ** -nu, programmed) / 25
    share = np.minimum(0.0088 * np.maximum(x, 1e-12) ** -0.65, 0.2)
    return np.square(g_us * share) * np.log((t_s + 250e-9) / 500e-9)


def cmo_variance_us2(g_us: np.ndarray, t_s: float) -> np.ndarray:
    """Of a device ``g_us`` above the mean of one of 9 microsiemens, and of that one."""
    low = 9.0 - 0.08900206 * np.log(t_s)
    logs = np.square(np.log10(low + g_us)) + np.log10(low) ** 2
    return np.asarray(0.0277316483**2 * logs * np.log((t_s + 1e-6) / 2e-6))


LAWS = {"pcm-natcomm2020": pcm_variance_us2, "cmo-hfox-2025-0.2pct": cmo_variance_us2}


@pytest.mark.parametrize("preset", LAWS)
def test_outputs_of_a_node_have_the_published_noise_as_it_ages(tmp_path: Path, preset: str) -> None:
    # The way from the preset to the sums of a session: a law, time, key or unit lost on it; noise
    # of the first time in an aged file; G_min left out; noise that all reads share.
    rng = np.random.default_rng(8)
    w = rng.standard_normal((60, 30)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 60])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 30])],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx")
    device = get_preset(preset, scaling=Scaling.NODE, clip_sigma=math.inf)
    convert(tmp_path / "m.onnx", tmp_path / "new.onnx", config=ConvertConfig(device=device))
    age(tmp_path / "new.onnx", tmp_path / "old.onnx", time_s=86400.0)
    x = rng.uniform(-1, 1, (50, 60)).astype(np.float32)
    spreads = []
    for name, t_s in (("new", device.resolve_time(None)), ("old", 86400.0)):
        model = onnx.load(tmp_path / f"{name}.onnx")
        (crossbar,) = (n for n in model.graph.node if n.op_type == "RramMatMul")
        (held,) = (t for t in model.graph.initializer if t.name == crossbar.input[1])
        realised = numpy_helper.to_array(held).astype(np.float64)
        w_max = float(np.abs(w).max())
        g_us = np.minimum(np.abs(realised) / w_max, 1) * device.g_max_us
        variance = LAWS[preset](g_us, t_s) * (w_max / device.g_max_us) ** 2
        deviation = np.sqrt(np.square(x.astype(np.float64)) @ variance)
        session = make_session(tmp_path / f"{name}.onnx", num_threads=1)
        reads = np.stack([session.run(None, {"x": x})[0] for _ in range(40)])
        z = (reads - x.astype(np.float64) @ realised) / deviation
        # 60,000 draws: 4 standard errors, and the straight lines of the table, 1e-3
        assert abs(z.mean()) < 4 / np.sqrt(z.size)
        assert abs(z.std() - 1) < 4 / np.sqrt(2 * z.size) + 1e-3
        assert abs(np.mean(z[1:] * z[:-1])) < 4 / np.sqrt(z.size)
        spreads.append(float((deviation / np.abs(realised).mean()).mean()))
    # of the weights that are left: 1/f noise has gathered
    assert spreads[1] > 1.1 * spreads[0]
