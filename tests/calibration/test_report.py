# SPDX-License-Identifier: Apache-2.0
"""The report of a calibration: its figures are the files', and its page opens anywhere."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import re
import sys
import types
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.fit import CalibratedNode
from rimc_onnx.calibration.guard import Calibration
from rimc_onnx.calibration.report.record import (
    CalibrationRecord,
    NodeRecord,
    gamma_of,
    make_record,
    peak_rss_bytes,
)
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import CalibrationError, OutputError
from rimc_onnx.execution.sessions import native_session
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.outputs import Outputs
from rimc_onnx.io.report_files import put_report, require_page_modules
from rimc_onnx.jobs import calibrate as calibrate_job
from rimc_onnx.passes import rram_branches
from rimc_onnx.runtime.any_provider import provider_device

ADAPTER = "dora+sparse"


Job = tuple[CalibrationRecord, list[CalibratedNode], api.CalibrateReport]


def write_report(
    path_json: Path | None, path_html: Path | None, record: CalibrationRecord, *, force: bool
) -> None:
    with Outputs(force=force) as out:
        put_report(path_json, path_html, record, out)


@pytest.fixture(scope="module")
def job(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """Calibrates the sample: ``job(num_samples=1)`` gives the record and what it was made of."""
    folder = tmp_path_factory.mktemp("report")
    model = folder / "model.rimc.onnx"
    api.convert(digits / "model.onnx", model)

    @functools.cache
    def run(**config: Any) -> Job:
        fitted: list[CalibratedNode] = []
        fit = calibrate_job.fit_adapters

        def spy(*args: Any, **kwargs: Any) -> Calibration:
            found = fit(*args, **kwargs)
            fitted.extend(found.nodes)
            return found

        asked = CalibrateConfig(**config)
        data, target = digits / "calibration.npz", folder / f"{len(list(folder.iterdir()))}.onnx"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibrate_job, "fit_adapters", spy)
            result = api.calibrate(model, target, data=data, config=asked)
        record = make_record(
            result,
            fitted,
            load_model(target),
            model=str(model),
            config=asked,
            teacher_sha256="ab" * 32,
        )
        return record, fitted, result

    return run


def node(name: str = "conv", **changes: Any) -> NodeRecord:
    start = NodeRecord(
        name=name,
        op_type="RramMatMul",
        weight_shape=(8, 4),
        num_weights=32,
        adapter="dora",
        rank=1,
        sparse_cells=0,
        num_parameters=16,
        low_rank_bytes=12,
        magnitude_bytes=4,
        sparse_bytes=0,
        sram_bytes=16,
        error_before=0.1,
        error_after=0.01,
    )
    return dataclasses.replace(start, **changes)


def record_of(*nodes: NodeRecord) -> CalibrationRecord:
    return CalibrationRecord(
        result={
            "output": "m.rimc.calibrated.onnx",
            "samples": 10,
            "solver": "closed-form",
            "gamma": 0.5,
            "sram_bytes": sum(n.sram_bytes for n in nodes),
            "seconds": 1.25,
            "peak_rss_bytes": None,
            "drifted": {"error": 0.5, "agreement": 0.6, "sqnr_db": {"y": 3.0}},
            "calibrated": {"error": 0.05, "agreement": 1.0, "sqnr_db": {"y": 13.0}},
            "taken_back": None,
            "is_identity": False,
            "warning": None,
        },
        model="m.rimc.onnx",
        teacher_sha256=None,
        config={"rank": None, "kinds": {"sparse": False}},
        device={"preset": "gaussian-relative"},
        periphery={"tile_rows": None, "dac_bits": 8, "adc_bits": None},
        device_seed=3,
        sample_seed=4,
        versions={"rimc-onnx": "0.1.0"},
        nodes=list(nodes),
    )


class Page(HTMLParser):
    """What a browser would load, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [v or "" for k, v in attrs if k in {"src", "href", "srcset", "data"}]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def page_of(record: CalibrationRecord, folder: Path) -> tuple[Page, ElementTree.Element]:
    path = folder / "page.html"
    write_report(None, path, record, force=True)
    text = path.read_text("utf-8")
    page = Page(text)
    (image,) = page.loaded
    svg = ElementTree.fromstring(base64.b64decode(image.partition("base64,")[2]))
    return page, svg


# --- what the record says


def test_json_holds_what_the_command_prints_and_more(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    # Two sources of one figure that disagree.
    record, _, result = job()
    path = tmp_path / "r.json"
    write_report(path, None, record, force=False)
    found = json.loads(path.read_text("utf-8"))
    for name in ("output", "samples", "solver", "gamma", "sram_bytes", "seconds"):
        assert found[name] == getattr(result, name)
    assert [n["name"] for n in found["nodes"]] == [n.name for n in result.nodes]
    for got, want in zip(found["nodes"], result.nodes, strict=True):
        assert {k: got[k] for k in vars(want)} == vars(want)
    assert found["config"]["num_samples"] == 10
    assert found["device"]["drift_frac"] == 0.2
    assert set(found["periphery"].values()) == {None}
    assert found["runs_on"] == "native library"
    assert (found["device_seed"], found["sample_seed"]) == (0, 0)
    assert found["teacher_sha256"] == "ab" * 32
    assert set(found["versions"]) >= {"rimc-onnx", "python", "numpy", "onnxruntime"}
    assert found["peak_rss_bytes"] > 1 << 20


def test_report_says_what_surrounded_the_arrays_and_what_ran_them(digits_folder: Path) -> None:
    # Two reports of different devices that read the same: read noise and wires left out.
    periphery = PeripheryConfig(
        tile_rows=128,
        dac_bits=8,
        adc_bits=7,
        dac_serial_bits=4,
        iv_sinh=1.5,
        input_shrink=0.7,
        read_noise_frac=0.01,
        adc_gain_error_frac=0.02,
        wire_ohm=0.25,
    )
    api.convert(digits_folder / "model.onnx", config=ConvertConfig(periphery=periphery))
    model = digits_folder / "model.rimc.onnx"

    def report_of(device: Any) -> dict[str, Any]:
        config = CalibrateConfig(num_samples=1, adapter="bias")
        found = api.calibrate(model, config=config, device=device, force=True, page=True)
        page = Path(str(found.page)).read_text("utf-8")
        text = json.loads(Path(str(found.report)).read_text("utf-8"))
        for value in ("0.25", "0.01", "1.5", text["runs_on"]):
            assert f"<td>{value}</td>" in page
        return dict(text)

    record = report_of(provider_device("CPUExecutionProvider"))
    assert record["runs_on"] == "CPUExecutionProvider"
    assert record["periphery"] == {
        "tile_rows": 128,
        "dac_bits": 8,
        "adc_bits": 7,
        "dac_serial_bits": 4,
        "iv_sinh": 1.5,
        "input_shrink": 0.7,
        "read_noise": 0.01,
        "read_noise_law": "absolute",
        "wire_ohm": 0.25,
        "iv_polynomial": None,
        "adc_errors": True,
    }

    def my_chip(content: bytes) -> Any:
        return native_session(content)

    assert report_of(my_chip)["runs_on"] == "my_chip"


def test_report_says_that_a_preset_bends_its_currents(digits_folder: Path) -> None:
    # The curve is no number that was asked for, so nothing else in the report would show it.
    config = ConvertConfig(device=get_preset("milo2021"))
    api.convert(digits_folder / "model.onnx", config=config)
    bias = CalibrateConfig(num_samples=1, adapter="bias")
    found = api.calibrate(digits_folder / "model.rimc.onnx", config=bias)
    periphery = json.loads(Path(str(found.report)).read_text("utf-8"))["periphery"]
    assert (periphery["iv_polynomial"], periphery["iv_sinh"]) == (True, None)


def test_bytes_of_the_parts_are_those_of_the_file(job: Callable[..., Job]) -> None:
    # An index that is forgotten, a magnitude counted that is not stored.
    record, _, result = job(adapter=ADAPTER)
    branches = rram_branches(load_model(Path(result.output)))
    for got, branch in zip(record.nodes, branches, strict=True):
        codes = branch.adapter()
        assert got.low_rank_bytes == codes.lora_a.size + codes.lora_b.size
        assert got.sparse_cells == codes.sparse_values.size
        assert got.magnitude_bytes == (codes.magnitude.size if codes.has_magnitude else 0)
        assert got.low_rank_bytes + got.magnitude_bytes + got.sparse_bytes == codes.sram_bytes
        assert got.weight_shape == branch.geometry.weight_shape
        assert got.rank == branch.rank
    assert any(n.magnitude_bytes for n in record.nodes)
    assert sum(n.sram_bytes for n in record.nodes) == result.sram_bytes


@pytest.mark.parametrize(
    ("adapter", "rank", "names"),
    [
        ("dora", 1, {"dora"}),
        ("lora", 1, {"lora"}),
        ("magnitude", 1, {"magnitude"}),
        ("bias", 1, {"bias"}),
        ("sparse", None, {"sparse", "dense", "bias"}),
    ],
)
def test_adapter_is_named_as_it_was_asked_for(
    adapter: str, rank: int | None, names: set[str], job: Callable[..., Job]
) -> None:
    # A magnitude of 1 everywhere is no magnitude: a report that says dora for lora. (Where every
    # cell is one of the sparse ones the node is dense.)
    record, _, _ = job(adapter=adapter, rank=rank)
    assert {n.adapter for n in record.nodes} <= names


def test_gamma_is_equation_7_for_one_rank(job: Callable[..., Job]) -> None:
    # Bytes over weights is gamma only where there is no sparse cell.
    record, nodes, result = job(adapter="dora", rank=2)
    branches = rram_branches(load_model(Path(result.output)))
    new = old = 0
    for n, branch in zip(record.nodes, branches, strict=True):
        k, group = branch.geometry.columns, branch.geometry.group
        d = n.num_weights // k
        new += group * d * n.rank + n.rank * k + k
        old += d * k
    assert gamma_of(nodes) == new / old
    assert gamma_of(nodes) == sum(n.num_parameters for n in record.nodes) / old


def test_sparse_cell_is_one_parameter_and_a_byte_and_a_half(job: Callable[..., Job]) -> None:
    record, nodes, _ = job(adapter=ADAPTER)
    assert sum(n.sparse_cells for n in record.nodes) > 0
    parameters = sum(n.num_parameters for n in record.nodes)
    assert gamma_of(nodes) == parameters / sum(n.num_weights for n in record.nodes)
    for n in record.nodes:
        beside = 0 if n.sparse_cells == n.num_weights else -(-n.sparse_cells // 2)
        assert n.sram_bytes == n.num_parameters + beside


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_error_that_is_no_number_names_the_node(bad: float, job: Callable[..., Job]) -> None:
    # "Out of range float values are not JSON compliant" after an hour of work.
    _, nodes, result = job()
    branch = rram_branches(load_model(Path(result.output)))[0]
    with pytest.raises(CalibrationError, match=rf"node '{nodes[0].name}': its error is .* {bad}"):
        NodeRecord.of(dataclasses.replace(nodes[0], error_after=bad), branch)


# --- peak memory


def test_peak_is_read_in_bytes_from_the_status(tmp_path: Path) -> None:
    # kB in the file, bytes in the report; VmPeak is address space, not memory.
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmPeak:\t 9999999 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   100 kB\n")
    assert peak_rss_bytes(status) == 2048 * 1024


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_falls_back_to_getrusage_in_its_units(
    system: str, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # macOS counts bytes: 1024 times too much.
    fake = types.ModuleType("resource")
    fake.RUSAGE_SELF = 0  # type: ignore[attr-defined]
    fake.getrusage = lambda _who: types.SimpleNamespace(ru_maxrss=5000)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr("rimc_onnx.calibration.report.record.sys.platform", system)
    assert peak_rss_bytes(tmp_path / "none") == 5000 * unit


def test_peak_is_none_where_nothing_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Windows has no resource module: a report must not fail for a nicety.
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_rss_bytes(tmp_path / "none") is None


def test_peak_grows_with_what_is_held() -> None:
    # A figure that is the present memory, or not this process's.
    before = peak_rss_bytes()
    assert before is not None
    held = bytearray(before + (32 << 20))  # larger than all there was
    after = peak_rss_bytes()
    assert after is not None
    del held
    assert after >= before + (32 << 20)
    # Still the peak; the kernel adds the threads' counts up in batches of some pages.
    assert (peak_rss_bytes() or 0) >= after - (1 << 20)


# --- the page


def test_page_needs_no_network(job: Callable[..., Job], tmp_path: Path) -> None:
    # A font or script from a server: a blank page in a laboratory without network.
    record, _, _ = job()
    page, svg = page_of(record, tmp_path)
    assert all(src.startswith("data:") for src in page.loaded)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r"url\(|@import|https?://", text)
    links = [v for e in svg.iter() for k, v in e.attrib.items() if k.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_page_lists_the_worst_node_first(tmp_path: Path) -> None:
    # Sorted by name, or by the error before.
    nodes = [node("a", error_after=0.001), node("b", error_after=0.05), node("c", error_after=0.02)]
    page, _ = page_of(record_of(*nodes), tmp_path)
    numbers = [(row[0], row[1]) for row in page.rows if len(row) > 3]
    assert numbers[1:4] == [("2", "b"), ("3", "c"), ("1", "a")]


def test_page_shows_the_figures(tmp_path: Path) -> None:
    text = page_of(record_of(node()), tmp_path) and (tmp_path / "page.html").read_text("utf-8")
    for figure in ("50.00 %", "closed-form", "1.2 s", "90.0 %", "50.0 %", "unknown"):
        assert figure in text, figure


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    # A name is the user's: markup in the page, mathtext or a control character in the plot.
    names = ["<b>bold</b>&amp;", "$\\frac{1}$", "tab\tbell\x07", "名前", "x" * 300, "-- > ]]>"]
    page, _ = page_of(record_of(*(node(n) for n in names)), tmp_path)
    shown = {row[1] for row in page.rows if len(row) > 3}
    assert "b" not in [t for t in page.tags if t == "b"][1:]
    for name in names:
        assert name in shown


@pytest.mark.parametrize(
    "errors",
    [
        [(0.0, 0.0)],
        [(0.1, 0.0), (0.0, 0.0)],
        [(0.01, 0.2)],
        [(1e-300, 1e-308), (1e12, 1.0)],
        [(0.05, 0.05)],
        [(1.0, 0.1)],
    ],
)
def test_page_takes_any_error(errors: list[tuple[float, float]], tmp_path: Path) -> None:
    # log(0); a node that got worse; one decade exactly. Warnings are errors here.
    nodes = [node(f"n{i}", error_before=b, error_after=a) for i, (b, a) in enumerate(errors)]
    page_of(record_of(*nodes), tmp_path)


def test_worse_node_is_marked(tmp_path: Path) -> None:
    # The one thing to see. A difference in the last bits of fp32 is not it.
    page_of(record_of(node(error_after=0.2), node(error_after=0.1 * (1 + 1e-6))), tmp_path)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.count('class="worse"') == 1
    assert "0 of 2 nodes err less than before, 1 err more, 1 are unchanged" in text


def test_page_without_sram_has_no_empty_plot(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("low_rank_bytes", "magnitude_bytes", "sram_bytes", "rank"), 0)
    _, with_sram = page_of(record_of(node()), tmp_path)
    _, without = page_of(record_of(node(adapter="bias", **nothing)), tmp_path)
    counts = [
        sum(e.get("id", "").startswith("axes_") for e in svg.iter()) for svg in (with_sram, without)
    ]
    assert counts == [2, 1]


def test_same_record_gives_the_same_page(tmp_path: Path) -> None:
    # A date or random ids in the plot: reports that can't be compared.
    pages = []
    for _ in range(2):
        page_of(record_of(node()), tmp_path)
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1]


# --- files


def test_existing_report_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"r\.json: exists already"):
        write_report(path, tmp_path / "r.html", record_of(node()), force=False)
    assert path.read_text() == "mine"
    assert not (tmp_path / "r.html").exists()
    write_report(path, None, record_of(node()), force=True)
    assert json.loads(path.read_text())["sram_bytes"] == 16


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_package_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The extra is not installed: said before the work, and never for the JSON alone.
    for name in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CalibrationError, match=r"pip install 'rimc-onnx\[report\]'"):
        require_page_modules()
    with pytest.raises(CalibrationError, match=f"needs {package}, which"):
        write_report(tmp_path / "r.json", tmp_path / "r.html", record_of(node()), force=False)
    assert list(tmp_path.iterdir()) == []
    write_report(tmp_path / "r.json", None, record_of(node()), force=False)


# --- its documentation


def test_documentation_lists_the_fields() -> None:
    # A field that is renamed in the code and not in docs/report.md.
    text = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text("utf-8")
    report = text.partition("## The recovery study")[0]
    listed = re.findall(r"(?m)^\| `(\w+)` \|", report)
    record = [f.name for f in dataclasses.fields(CalibrationRecord) if f.name != "result"]
    assert listed == record + [f.name for f in dataclasses.fields(NodeRecord)]
