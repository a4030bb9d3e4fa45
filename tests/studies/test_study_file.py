# SPDX-License-Identifier: Apache-2.0
"""Study files: every field reaches its trial, tables and pages say what the rows say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="the rows of a study need pyarrow (extra `study`)")

from rimc_onnx.calibration.config import CalibrateConfig, Solver
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import Scaling, get_preset
from rimc_onnx.errors import UsageError
from rimc_onnx.studies.comparison import Paper, compare
from rimc_onnx.studies.rows import read_rows
from rimc_onnx.studies.settings import FIELDS, trial_of
from rimc_onnx.studies.study_file import load_study, shipped_studies, shipped_study
from rimc_onnx.studies.tables import Named, PlotSpec, TableSpec, curves, make_table
from rimc_onnx.studies.trial import MEASURED, BaselineMethod, Trial
from rimc_onnx.training.config import FinetuneConfig, Loss, PenaltyWeight

STUDY = """
title = "Two ways"
about = "A <b>sample</b>."
[base]
model = "model.onnx"
test = "test.npz"
data = "calibration.npz"
samples = 4
[grid]
drift_frac = [0.1, 0.3]
[zip]
seed = [0, 1]
draw = [5, 6]
[variants.method]
none = {method = "none"}
ours = {rank = 2}
[[table]]
title = "By drift"
rows = ["drift_frac"]
columns = "method"
[[plot]]
title = "A plot"
x = "drift_frac"
series = "method"
[paper]
source = "Nobody 2020"
clean = 0.9
uncalibrated = 0.4
[[paper.point]]
figure = "Fig. 1"
what = "30 %"
sweep = "study"
at = {method = "ours", drift_frac = 0.3}
also = [{method = "none"}]
value = 0.65
"""


@pytest.fixture
def study_toml(digits_folder: Path) -> Path:
    path = digits_folder / "study.toml"
    path.write_text(STUDY)
    return path


def test_points_are_the_product_of_axes(study_toml: Path) -> None:
    # A zip that is a product, an axis that does not reach its trial, paths seen from elsewhere.
    points = load_study(study_toml).points
    assert len(points) == 2 * 2 * 2
    assert {tuple(p.names) for p in points} == {("method", "drift_frac", "seed", "draw")}
    for point in points:
        trial = point.trial
        assert trial.convert.device.drift_frac == point.names["drift_frac"]
        assert (trial.convert.seed, point.names["draw"] - 5) == (point.names["seed"],) * 2
        assert trial.model == study_toml.parent / "model.onnx"
        if point.names["method"] == "none":
            assert trial.method is None
        else:
            want = CalibrateConfig(
                num_samples=4, sample_seed=point.names["draw"], rank=2, allow_identity=True
            )
            assert trial.method == want
    fewer = load_study(study_toml, seeds=1, only=[("method", "ours"), ("drift_frac", 0.3)]).points
    assert [(p.names["drift_frac"], p.trial.convert.seed) for p in fewer] == [(0.3, 0)]
    changed = load_study(study_toml, settings={"samples": 9}).points
    assert {p.trial.method.num_samples for p in changed if p.trial.method} == {9}


def test_a_field_of_a_table_is_changed_where_there_is_one(study_toml: Path) -> None:
    # Fewer steps for all trainings that train the network of the trials without one.
    study_toml.write_text(
        STUDY.replace("none = {", "trained = {training = {penalty = 0.0, steps = 7}}\nnone = {")
    )
    points = load_study(study_toml, settings={"training.steps": 3}).points
    for point in points:
        training = point.trial.training
        if point.names["method"] == "trained":
            assert isinstance(training, FinetuneConfig)
            assert (training.steps, training.penalty) == (3, 0.0)
        else:
            assert training is None
    with pytest.raises(UsageError, match="Did you mean 'training'"):
        load_study(study_toml, settings={"trainings.steps": 3})
    with pytest.raises(UsageError, match="Did you mean 'steps'"):
        load_study(study_toml, settings={"training.stepz": 3})


def test_a_field_that_is_an_axis_is_not_set(study_toml: Path) -> None:
    # All trials ran at the one value, under the labels of the axis' places.
    with pytest.raises(UsageError, match=r"drift_frac is an axis of sweep 'study', so it can't be"):
        load_study(study_toml, settings={"drift_frac": 0.2})


def test_places_that_are_not_there_are_named(study_toml: Path) -> None:
    # "There is no trial to run", whatever was misspelt.
    with pytest.raises(UsageError, match=r"no axis 'methods'\. Did you mean 'method'"):
        load_study(study_toml, only=[("methods", "ours")])
    with pytest.raises(UsageError, match=r"No place of its axes is drift_frac=0\.2"):
        load_study(study_toml, only=[("drift_frac", 0.2)])


def test_sweeps_that_are_left_out_leave_their_tables_out(digits: Path) -> None:
    # A chosen part of a study with several sweeps, refused since a table is of another part.
    settings = {"model": str(digits / "model.onnx"), "test": str(digits / "test.npz")}
    study = shipped_study("dong2025", settings=settings, only=[("samples", 10)])
    assert {p.sweep for p in study.points} == {"fig. 4"}
    row = {"error": None, "clean": 0.9, "uncalibrated": 0.5, "calibrated": 0.7}
    rows = [Named(sweep=p.sweep, names=p.names, row=row) for p in study.points]
    filled = {spec.sweep for spec in study.tables if make_table(spec, rows).rows}
    assert filled == {"fig. 4"}
    with pytest.raises(UsageError, match="there is no trial to run"):
        shipped_study("dong2025", settings=settings, only=[("samples", 11)])


def test_fields_reach_the_configuration_that_has_them(digits: Path) -> None:
    # A field that a trial takes and forgets.
    given: dict[str, Any] = {
        "model": "model.onnx", "test": "test.npz", "labels": "labels", "batch_size": 8,
        "device": "gaussian-absolute", "drift_frac": 0.05, "scaling": "column",
        "clip_sigma": "none", "time": "none", "seed": 3, "branch_rank": 2, "keep_digital": ["a*"],
        "map_shared": True,
        "adc_bits": 8, "read_noise_frac": 0.01, "read_noise_law": "relative",
        "rank": 2, "adapter": "lora", "solver": "adam", "samples": 7, "draw": 5,
    }  # fmt: skip
    trial = trial_of(given, digits)
    device = get_preset("gaussian-absolute", drift_frac=0.05, scaling=Scaling.COLUMN,
                        clip_sigma=float("inf"))  # fmt: skip
    assert trial == Trial(
        model=digits / "model.onnx",
        test=digits / "test.npz",
        labels="labels",
        batch_size=8,
        convert=ConvertConfig(
            device=device,
            seed=3,
            rank=2,
            keep_digital=("a*",),
            map_shared=True,
            periphery=PeripheryConfig(
                adc_bits=8,
                read_noise_frac=0.01,
                read_noise_law=type(PeripheryConfig().read_noise_law)("relative"),
            ),
        ),
        method=CalibrateConfig(
            num_samples=7,
            sample_seed=5,
            rank=2,
            adapter="lora",
            solver=Solver.ADAM,
            allow_identity=True,
        ),
    )
    least = {"model": "model.onnx", "test": "test.npz"}
    found = trial_of({**least, "knowledge": "statistics", "sram_budget": "2%"}, digits)
    assert found.statistics == MEASURED
    assert isinstance(found.method, CalibrateConfig)
    assert (found.method.read_out, found.method.sram_budget_frac) == (True, 0.02)
    found = trial_of({**least, "method": "bias", "samples": 3, "options": {"a": 1}}, digits)
    assert found.method == BaselineMethod(name="bias", num_samples=3, options={"a": 1})
    found = trial_of({**least, "seed": 4, "training": {"loss": "features", "steps": 5}}, digits)
    assert found.training == FinetuneConfig(
        loss=Loss.FEATURES, steps=5, convert=replace(found.convert, seed=0)
    )
    found = trial_of({**least, "training": {"penalty_weight": "fisher"}}, digits)
    assert isinstance(found.training, FinetuneConfig)
    assert found.training.penalty_weight is PenaltyWeight.FISHER
    # One training for both uses of a network, where there would be two.
    training = {"uncalibrated": False}
    both = [
        trial_of({**least, "uncalibrated": u, "training": training}, digits) for u in (False, True)
    ]
    assert [t.convert.uncalibrated for t in both] == [False, True]
    with pytest.raises(UsageError, match="is true or false, got 'yes'"):
        trial_of({**least, "training": {"uncalibrated": "yes"}}, digits)
    assert both[0].training == both[1].training
    assert trial_of({**least, "test": "module:reader"}, digits).test == "module:reader"
    assert trial_of({**least, "model": "sample:digits/model.onnx"}, Path()).model.is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[grid]\ndraft_frac = [1]", "Did you mean 'drift_frac'"),
        ("[grid]\nrank = []", "axis rank must be a list"),
        ("[grid]\nrank = [1, 1]", "axis rank repeats itself"),
        ("[zip]\nrank = [1, 2]\nseed = [1]", "must be equally long, got rank 2, seed 1"),
        ("[base]\nsamples = 0", "`num_samples` must be 1 or more"),
        ("[base]\nmethod = 'biass'", "Did you mean 'bias'"),
        ("[base]\nknowledge = 'all'", "`knowledge` 'all' is not known"),
        ("[base]\nseed = 'x'", "another kind"),
        ("[grids]\nrank = [1]", "Did you mean 'grid'"),
        ("[[plot]]\ntitle = 'x'", "a plot needs x"),
        ("[[table]]\nrows = ['rankk']", "a table has axis 'rankk'"),
        ("[grid]\nrank = [1]\n[[plot]]\nx = 'rank'\nseries = 'rnk'", "Did you mean 'rank'"),
        ("[[table]]\nshow = ['median']", "aggregate 'median' is not known"),
        ("a = ", "not TOML"),
        ("[paper]\nsource = 'x'", "paper needs 'clean'"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_by_name(change: str, message: str, digits_folder: Path) -> None:
    # A field that is misspelt and silently left out: a table of the defaults.
    path = digits_folder / "wrong.toml"
    base = "" if "[base]" in change else "[base]\n"
    least = 'model = "model.onnx"\ntest = "test.npz"\n'
    text = f"{change}\n{least}" if "[base]" in change else f"{base}{least}{change}"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        load_study(path)
    assert str(path) in str(error.value)


def _named(score: float, *, uncalibrated: float = 0.5, **names: Any) -> Named:
    row = {"clean": 0.9, "uncalibrated": uncalibrated, "calibrated": score, "error": None}
    return Named(sweep="study", names=names, row=row)


def test_cells_are_means_over_what_is_left() -> None:
    # Shares as means of shares, n for n - 1, a failed trial that counts as 0.
    rows = [_named(0.6, method="a"), _named(0.8, method="a", uncalibrated=0.7),
            _named(0.7, method="b")]  # fmt: skip
    rows.append(Named(sweep="study", names={"method": "b"}, row={"error": "x"}))
    axes = {"study": {"method"}}
    table = make_table(TableSpec.of({"rows": ["method"]}, axes), rows)
    assert table.header == ("method", "calibrated", "restored")
    assert table.rows == (("a", "70.0 ± 14.1", "33 %"), ("b", "70.0", "50 %"))
    across = make_table(TableSpec.of({"columns": "method", "show": ["max"]}, axes), rows)
    assert (across.header, across.rows) == (("a", "b"), (("80.0", "70.0"),))
    column = {"at": {"method": "a"}, "aggregate": "restored", "against": {"method": "b"}}
    spec = TableSpec.of({"column": [column]}, axes)
    assert make_table(spec, rows).rows == (("0 %",),)
    spec = PlotSpec.of({"x": "uncalibrated", "series": "method"}, axes)
    assert [(c.name, [p[0] for p in c.points]) for c in curves(spec, rows)] == [
        ("a", [0.5, 0.7]),
        ("b", [0.5]),
    ]


def test_dots_of_a_plot_are_places_of_an_axis() -> None:
    # A line from trial to trial where x is measured; a plot of two drifts at once.
    rows = [
        Named(sweep="study", names={"rank": rank, "seed": seed, "drift_frac": drift},
              row={"error": None, "energy_nj": 10.0 * rank + seed, "calibrated": score})
        for rank, seed, drift, score in
        [(2, 0, 0.1, 0.7), (2, 1, 0.1, 0.9), (1, 0, 0.1, 0.5), (1, 0, 0.2, 0.1)]
    ]  # fmt: skip
    axes = {"study": {"rank", "seed", "drift_frac"}}
    spec = PlotSpec.of({"x": "energy_nj", "by": "rank", "at": {"drift_frac": 0.1}}, axes)
    (curve,) = curves(spec, rows)
    assert [p[:2] for p in curve.points] == [(10.0, 50.0), (20.5, pytest.approx(80.0))]
    with pytest.raises(UsageError, match=r"a plot is at axis 'drift'\. Did you mean 'drift_frac'"):
        PlotSpec.of({"x": "energy_nj", "at": {"drift": 0.1}}, axes)


def test_ours_is_compared_by_what_comes_back() -> None:
    # A better network passes for a better calibration.
    point = {"figure": "1", "what": "x", "sweep": "study", "at": {"method": "a"}, "value": 0.65}
    paper = Paper.of({"source": "s", "clean": 0.9, "uncalibrated": 0.4, "point": [point]})
    (one,) = compare(paper, [_named(0.68, method="a")])
    assert (one.ours, one.paper, one.paper_restored) == (0.68, 0.65, pytest.approx(0.5))
    assert one.ours_restored == pytest.approx(0.45)
    assert one.is_worse
    assert not compare(paper, [_named(0.75, method="a")])[0].is_worse
    # A conversion for a calibration is worse without one than another is: it looks like a gain.
    paper = Paper.of(
        {"source": "s", "clean": 0.9, "point": [{**point, "against": {"method": "b"}}]}
    )
    rows = [_named(0.8, uncalibrated=0.1, method="a"), _named(0.7, uncalibrated=0.7, method="b")]
    (one,) = compare(paper, rows)
    assert one.ours_restored == pytest.approx(0.5)


def test_methods_of_others_are_not_ours(study_toml: Path) -> None:
    # Back-propagation that gives back less than a paper says counts as ours being worse.
    point = {"figure": "1", "what": "x", "sweep": "study", "at": {"method": "a"},
             "also": [{"method": "b"}], "value": 0.65}  # fmt: skip
    table = {"source": "s", "clean": 0.9, "uncalibrated": 0.4, "point": [point], "redone": ["a"]}
    rows = [_named(0.6, method="a"), _named(0.6, method="b")]
    other, ours = compare(Paper.of(table, {"a", "b"}), rows)
    assert (other.is_less, other.is_worse) == (True, False)
    assert (ours.is_less, ours.is_worse) == (True, True)
    # A list that names nobody; one that names a method which --only leaves out.
    text = STUDY.replace("clean = 0.9", 'clean = 0.9\nredone = ["none"]')
    study_toml.write_text(text)
    study = load_study(study_toml, only=[("method", "ours")])
    assert study.paper is not None
    assert study.paper.redone == {"none"}
    study_toml.write_text(text.replace('["none"]', '["nome"]'))
    with pytest.raises(UsageError, match=r"redone has 'nome'. Did you mean 'none'"):
        load_study(study_toml)


def test_command_writes_rows_tables_plots_and_a_page(
    cli: Callable[..., Any], study_toml: Path
) -> None:
    # A page with other figures than the rows; a script or a picture that is fetched.
    folder = study_toml.parent
    arguments = ["study", "study.toml", "-o", "out", "--seeds", 1, "--workers", 1]
    first = cli(*arguments, cwd=folder)
    assert first.code == 0, first.stderr
    rows = read_rows(folder / "out" / "rows.parquet")
    assert len(rows) == 4
    ours = next(r for r in rows if r["method"] == "calibrate" and r["drift_frac"] == 0.3)
    page = (folder / "out" / "study.html").read_text("utf-8")
    for text in (f"{100 * ours['calibrated']:.1f}", "Beside Nobody 2020", "A &lt;b&gt;sample"):
        assert text in page
    assert "<svg" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "http://www.w3.org" not in re.sub(r"xmlns[:\w]*=\"[^\"]*\"", "", page)
    assert (folder / "out" / "plot-1.png").read_bytes()[:4] == b"\x89PNG"
    assert "| 0.3 |" in (folder / "out" / "tables.md").read_text("utf-8")
    # Once more, through the name of the command: nothing is measured again.
    again = cli("study", "run", *arguments[1:], "--json", cwd=folder).json()
    assert (again["trials"], again["measured"], again["failed"]) == (4, 0, 0)
    assert again["worse"] == 1  # without a calibration nothing comes back
    study_toml.write_text(STUDY.replace("clean = 0.9", 'clean = 0.9\nredone = ["none"]'))
    others = cli(*arguments, "--json", cwd=folder).json()
    assert (others["worse"], others["measured"]) == (0, 0)
    page = (folder / "out" / "study.html").read_text("utf-8")
    assert "redone here, give back less than they state at: Fig. 1 30 % (none)" in page


def test_command_says_which_study_is_missing(
    fails: Callable[..., str], digits_folder: Path
) -> None:
    assert "give one study" in fails(digits_folder, 2, "study", "run")
    assert "Did you mean 'dong2025'" in fails(digits_folder, 2, "study", "--paper", "dong2024")
    assert "no.toml: can't be read" in fails(digits_folder, 2, "study", "no.toml")
    assert "model is missing" in fails(digits_folder, 2, "study", "--paper", "dong2025")


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_study_is_whole(name: str, digits: Path) -> None:
    # A field or an axis that was renamed, a paper's point that no trial stands beside.
    settings = {} if name == "zoo" else {"model": str(digits / "model.onnx"),
                                         "test": str(digits / "test.npz")}  # fmt: skip
    study = shipped_study(name, settings=settings)
    assert len(study.points) >= 15
    rows = [
        Named(
            sweep=p.sweep,
            names=p.names,
            row={"error": None, "clean": 0.9, "uncalibrated": 0.5, "calibrated": 0.7, "gamma": 0.1},
        )
        for p in study.points
    ]
    for spec in study.tables:
        assert all(any(cells) for cells in make_table(spec, rows).rows)
    if study.paper is not None:
        places = sum(1 + len(p.also) for p in study.paper.points)
        assert len(compare(study.paper, rows)) == places


def test_documentation_lists_the_fields() -> None:
    # A field that nobody finds.
    text = (Path(__file__).resolve().parents[2] / "docs" / "studies.md").read_text("utf-8")
    fields = text.partition("## Fields of a trial")[2].partition("\n## ")[0]
    listed = {n for line in fields.splitlines() if line.startswith("| `")
              for n in re.findall(r"`(\w+)`", line.split("|")[1])}  # fmt: skip
    assert listed == set(FIELDS)
