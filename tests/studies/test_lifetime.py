# SPDX-License-Identifier: Apache-2.0
"""Ten years of one device: who is fitted when, on which arrays, and what it is said to cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.device.time_laws import LogRelaxation
from rimc_onnx.errors import ConfigError, UsageError
from rimc_onnx.io.feeds import graph_inputs
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.samples import load_samples
from rimc_onnx.studies.lifetime import LifetimeConfig, LifetimeReport, Policy, lifetime
from rimc_onnx.studies.lifetime_page import write_lifetime

LAW = LogRelaxation(t0_s=1.0, t_max_s=1e8, sigma_us=0.4, sigma_us_per_ln=0.35)
"""Strong enough to spoil the sample: a standard deviation of a sixth of G_max at the end."""
CONFIG = ConvertConfig(
    device=replace(
        get_preset("cmo-hfox-2025-2pct", g_max_us=40.0, g_min_us=9.0),
        preset="relaxing",
        time_law=LAW,
        read_noise_curve=None,
    )
)
YEAR_S = 365.25 * 86400


@pytest.fixture(scope="module")
def report(digits: Path) -> LifetimeReport:
    life = LifetimeConfig(
        policies=(Policy.NEVER, Policy.PERIODIC, Policy.PROBE, Policy.SCHEDULE),
        checkpoints=4,
        period_s=YEAR_S / 2,
        probe_samples=32,
        levels=2,
        schedule="magnitude",
    )
    return lifetime(
        digits / "model.onnx",
        test=digits / "test.npz",
        data=digits / "calibration.npz",
        config=CONFIG,
        calibrate=CalibrateConfig(sram_budget_frac=0.1),
        life=life,
    )


def points(report: LifetimeReport, policy: str) -> list[Any]:
    return [p for p in report.points if p.policy == policy]


def test_checkpoints_are_even_on_a_logarithmic_axis_and_end_where_asked(
    report: LifetimeReport,
) -> None:
    ages = [p.time_s for p in points(report, "never")]
    assert ages[0] == 1.0
    assert ages[-1] == 1e8
    assert np.diff(np.log(ages)) == pytest.approx(np.log(1e8) / 3)


def test_every_policy_begins_with_the_same_device_but_the_one_made_off_line(
    report: LifetimeReport,
) -> None:
    # Another seed for each policy: what looks like a better policy would be a better device.
    first = {p.policy: p.value for p in report.points if p.time_s == 1.0}
    assert first["never"] == first["periodic"] == first["probe"]


def test_never_loses_what_probing_keeps(report: LifetimeReport) -> None:
    # Adapters fitted at one age and then taken from another file, or arrays that do not age.
    found = {p.policy: p for p in report.policies}
    assert found["never"].lowest_frac < 0.97
    assert found["probe"].lowest_frac > found["never"].lowest_frac + 0.02
    assert found["never"].calibrations == 1
    assert 1 < found["probe"].calibrations <= 4
    fits = [p for p in points(report, "probe") if p.before is not None]
    assert len(fits) == found["probe"].calibrations - 1
    assert all(p.agreement is not None and p.value > p.before for p in fits)
    errors = [p.probe_error for p in points(report, "probe")[1:]]
    assert all(error is not None and error > 0 for error in errors)


def test_periods_between_checkpoints_are_counted(report: LifetimeReport) -> None:
    (periodic,) = (p for p in report.policies if p.policy == "periodic")
    # Deployed at 1 s, then every half year up to 1e8 s.
    assert periodic.calibrations == 1 + int((1e8 - 1) // (YEAR_S / 2))
    assert periodic.sram_writes >= periodic.calibrations * 100


def test_value_of_a_point_is_that_of_convert_age_calibrate_evaluate(
    report: LifetimeReport, digits: Path, tmp_path: Path
) -> None:
    # A study that measures something else than the commands do.
    api.convert(digits / "model.onnx", tmp_path / "a.onnx", config=CONFIG)
    config = CalibrateConfig(sram_budget_frac=0.1)
    data, teacher = digits / "calibration.npz", digits / "model.onnx"
    api.calibrate(
        tmp_path / "a.onnx", tmp_path / "b.onnx", data=data, teacher=teacher, config=config
    )
    api.age(tmp_path / "b.onnx", tmp_path / "c.onnx", time_s=1e8, teacher=teacher)
    value = api.evaluate(tmp_path / "c.onnx", data=digits / "test.npz").top1
    assert points(report, "never")[-1].value == value


def test_costs_are_those_of_the_constants(report: LifetimeReport) -> None:
    cost, found = report.costs, {p.policy: p for p in report.policies}
    never, schedule = found["never"], found["schedule"]
    assert cost.device_uj == pytest.approx(4 * 10 * cost.inference_uj)
    written = never.sram_bytes * 1.25e-6
    assert never.energy_uj == pytest.approx(cost.device_uj + cost.fit_uj + written)
    # Made off line: the device pays for the writes alone.
    assert schedule.energy_uj == pytest.approx(schedule.sram_writes * 1.25e-6)
    assert schedule.calibrations == 2
    assert all(p.rram_writes == 0 for p in report.policies)
    assert never.rram_endurance_left_frac == pytest.approx(1 - 1e-8)
    weights = sum(np.prod(shape) for shape in _weight_shapes(report))
    assert cost.rewrite_seconds == pytest.approx(2 * weights * 100e-9)


def _weight_shapes(report: LifetimeReport) -> list[tuple[int, ...]]:
    graph = load_model(Path(report.model)).graph
    values = [n.inputs[1] for n in graph if n.op_type in {"Conv", "Gemm", "MatMul"}]
    return [tuple(v.const_value.shape.numpy()) for v in values if v and v.const_value]


def test_probe_samples_are_not_those_of_the_calibration(digits: Path) -> None:
    # Agreement on the very samples that the adapters were fitted to says that all is well.
    samples = load_samples(
        digits / "calibration.npz", graph_inputs(load_model(digits / "model.onnx"))
    )

    def rows(found: Any) -> set[bytes]:
        return {x.tobytes() for b in found.batches(1) for x in b.feeds.values()}

    assert not rows(samples.draw(10, seed=3)) & rows(samples.draw(20, seed=3, after=10))


def test_regressor_is_probed_by_its_error(tmp_path: Path) -> None:
    # One value a sample has no classes to agree on; the life by a metric ended in that.
    random = np.random.default_rng(0)
    info = onnx.helper.make_tensor_value_info
    weights = {"w": random.standard_normal((8, 16)), "v": random.standard_normal((16, 1))}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            onnx.helper.make_node("Relu", ["h"], ["r"]),
            onnx.helper.make_node("MatMul", ["r", "v"], ["y"], name="last"),
        ],
        "g",
        [info("x", onnx.TensorProto.FLOAT, ["N", 8])],
        [info("y", onnx.TensorProto.FLOAT, ["N", 1])],
        [onnx.numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    model = tmp_path / "model.onnx"
    imports = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), model)
    data = {"x": random.standard_normal((96, 8), dtype=np.float32)}
    found = lifetime(
        model,
        test=data,
        data=data,
        metric=lambda outputs, _: float(np.abs(outputs["y"]).mean()),
        config=CONFIG,
        life=LifetimeConfig(policies=(Policy.PROBE,), checkpoints=3, probe_samples=32),
    )
    assert all(p.agreement is None for p in found.points)
    assert all(p.probe_error is not None for p in found.points[1:])


def test_page_json_and_plot_are_written_together(report: LifetimeReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    written = write_lifetime(report, tmp_path / "life", command="rimc-onnx lifetime <&>")
    assert written.folder == str(tmp_path / "life")
    found = json.loads((tmp_path / "life" / "lifetime.json").read_text())
    assert len(found["points"]) == 16
    assert (tmp_path / "life" / "lifetime.png").read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "life" / "lifetime.html").read_text()
    assert "rimc-onnx lifetime &lt;&amp;&gt;" in html
    assert "<svg" in html
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?\s*(https?:)?//", html)  # no network
    for policy in Policy:
        assert policy.value in html


@pytest.mark.parametrize(
    ("life", "words"),
    [
        ({"policies": ()}, "`policies`"),
        ({"policies": (Policy.NEVER, Policy.NEVER)}, "each once"),
        ({"checkpoints": 1}, "`checkpoints` must be 2 or more"),
        ({"threshold": 1.5}, "`threshold`"),
        ({"period_s": 0.0}, "`period_s`"),
        ({"growth": 0.5}, "`growth`"),
    ],
)
def test_wrong_configuration_is_refused(life: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LifetimeConfig(**life)


def test_ages_that_no_law_knows_are_refused(digits: Path) -> None:
    given = {"test": digits / "test.npz", "data": digits / "calibration.npz"}
    with pytest.raises(UsageError, match="has no time axis"):
        lifetime(digits / "model.onnx", config=ConvertConfig(), **given)
    late = LifetimeConfig(last_s=1e9)
    with pytest.raises(UsageError, match=r"`last_s` is 1e\+09 s"):
        lifetime(digits / "model.onnx", config=CONFIG, life=late, **given)


def test_command_line_names_its_options(digits_folder: Path, fails: Callable[..., str]) -> None:
    command = ["lifetime", "model.onnx", "--test", "test.npz"]
    assert "--policy 'often'" in fails(digits_folder, 2, *command, "--policy", "often")
    assert "--checkpoints must be" in fails(digits_folder, 2, *command, "--checkpoints", "1")
    line = fails(digits_folder, 2, *command, "--device", "gaussian-relative")
    assert "has no time axis" in line
    line = fails(digits_folder, 1, *command, "--probe-samples", "64")
    assert "Give fewer --probe-samples" in line
    options = ["--policy", "schedule", "--schedule", "bias", "--schedule-option", "samples=4"]
    assert "option 'samples' of a baseline" in fails(digits_folder, 2, *command, *options)
    (digits_folder / "life").write_text("no folder")
    assert "is no folder" in fails(digits_folder, 1, *command, "-o", "life")
