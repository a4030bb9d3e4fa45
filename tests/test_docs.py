# SPDX-License-Identifier: Apache-2.0
"""What the documentation states is what the code does: tables are parsed, examples are run."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

import rimc_onnx
from rimc_onnx import api, reference, runtime
from rimc_onnx.calibration.solvers.closed_form import ClosedFormConfig
from rimc_onnx.cli.main import app
from rimc_onnx.crossbar import PeripheryConfig, attribute_types
from rimc_onnx.device import (
    DeviceConfig,
    DeviceDescription,
    Purpose,
    format_time,
    list_presets,
    random_words,
    standard_normals,
)
from rimc_onnx.jobs.evaluate import EvaluationReport
from rimc_onnx.jobs.quickstart import QuickstartReport
from rimc_onnx.ops import schema
from rimc_onnx.runtime.device_options import COMPILED_OPTIONS
from rimc_onnx.studies.lifetime import LifetimeReport
from rimc_onnx.studies.recovery import RecoveryReport
from rimc_onnx.studies.study import StudyReport

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
OPS = sorted(schema.OPS)

Row = dict[str, str]


def section(page: str, title: str) -> str:
    """Text of docs/<page> from the heading ``title`` to the next one of its level or above."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip("#").strip() == title)
    level = len(lines[start]) - len(lines[start].lstrip("#"))
    kept, fenced = [], False
    for line in lines[start + 1 :]:
        fenced ^= line.startswith("```")
        if not fenced and re.match(rf"#{{1,{level}}} ", line):
            break
        kept.append(line)
    return "\n".join(kept)


def tables(text: str) -> list[tuple[str, list[Row]]]:
    """Every table of ``text`` with the paragraph in front of it."""
    found = []
    for match in re.finditer(r"(?m)^\|.*\|\n\|[-|]+\|\n(?:\|.*\|\n?)*", text):
        head, _, *body = (line.strip("|").split("|") for line in match[0].splitlines())
        names = [cell.strip().strip("`") for cell in head]
        rows = [
            dict(zip(names, (cell.strip() for cell in line), strict=True)) for line in body if line
        ]
        before = text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]
        found.append((before, rows))
    return found


def table(text: str, first_column: str) -> list[Row]:
    """The one table whose first column has that name."""
    (rows,) = (r for _, r in tables(text) if r and next(iter(r[0])) == first_column)
    return rows


def settings(text: str) -> dict[str, float]:
    """Numbers that a paragraph gives as "`name` = 1.5"."""
    return {n: float(v) for n, v in re.findall(r"`(\w+)`\s=\s(-?\d+(?:\.\d+)?)", text)}


def name_of(row: Row, column: str = "name") -> str:
    return row[column].strip("`")


def worked(op: str, first_column: str) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Rows of the worked examples of an operator's page, each with the settings above them."""
    found = False
    for before, rows in tables(section(f"ops/{op}.md", "Rounding, worked")):
        if next(iter(rows[0])) == first_column:
            for row in rows:
                found = True
                yield settings(before), {k: float(v) for k, v in row.items()}
    assert found


# --- operator pages


@pytest.mark.parametrize("op", OPS)
def test_operator_page_lists_the_inputs_and_attributes_of_the_operator_set(op: str) -> None:
    # An attribute added to NodePeriphery and not to its page, or listed with another type.
    spec = schema.OPS[op]
    inputs = table(section(f"ops/{op}.md", "Inputs"), "name")
    assert tuple(map(name_of, inputs)) == spec.inputs
    attributes = tables(section(f"ops/{op}.md", "Attributes"))[0][1]
    assert {name_of(row): row["type"] for row in attributes} == attribute_types(op)
    assert [name_of(row) for row in attributes] == list(attribute_types(op))
    (output,) = table(section(f"ops/{op}.md", "Outputs"), "name")
    assert name_of(output) == "y"


@pytest.mark.parametrize("op", OPS)
def test_operator_page_states_its_version(op: str) -> None:
    text = (DOCS / "ops" / f"{op}.md").read_text("utf-8")
    assert text.startswith(f"# {op}\n\nDomain `{schema.DOMAIN}`, version {schema.VERSION}.")


@pytest.mark.parametrize("op", [schema.RRAM_CONV, schema.RRAM_MATMUL])
def test_dac_table_is_what_the_reference_computes(op: str) -> None:
    # A tie that goes away from zero, a sign or a saturation that the code does otherwise.
    for given, row in worked(op, "x"):
        x_dac = reference.dac_quantize(
            np.float32([row["x"]]),
            dac_bits=int(given["dac_bits"]),
            dac_range=given["dac_range"],
            dac_signed=int(given["dac_signed"]),
        )
        top = 2 ** (given["dac_bits"] - given["dac_signed"]) - 1
        assert x_dac[0] == np.float32(row["x_dac"])
        assert row["code"] == row["x_dac"] * top / given["dac_range"]


def _read_out(op: str, given: Mapping[str, float], p: list[float]) -> float:
    """y of one bit line whose tiles have the partial sums ``p``, one word line each."""
    periphery = {
        "num_tiles": len(p),
        "dac_bits": 0,
        "dac_range": 1.0,
        "dac_signed": 1,
        "adc_bits": int(given["adc_bits"]),
        "adc_range": [given["adc_range"]],
    }
    x, w = np.ones((1, len(p)), np.float32), np.float32(p)
    if op == schema.RRAM_MATMUL:
        return float(reference.rram_matmul(x, w.reshape(-1, 1), **periphery)[0, 0])
    geometry = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    y = reference.rram_conv(x.reshape(1, -1, 1, 1), w.reshape(1, -1, 1, 1), **geometry, **periphery)
    return float(y[0, 0, 0, 0])


@pytest.mark.parametrize("op", [schema.RRAM_CONV, schema.RRAM_MATMUL])
def test_adc_table_is_what_the_reference_computes(op: str) -> None:
    # Tiles added before they are rounded, or saturation of the sum in place of each tile.
    for given, row in worked(op, "p of tile 0"):
        p = [row["p of tile 0"], row["p of tile 1"]]
        assert given["num_tiles"] == len(p)
        assert _read_out(op, given, p) == row["y"]
        worth = given["adc_range"] / (2 ** (given["adc_bits"] - 1) - 1)
        for tile, code in enumerate((row["code 0"], row["code 1"])):
            assert _read_out(op, given, [p[tile]]) == code * worth
        assert sum(p) == pytest.approx(row["ideal"], rel=1e-12)  # decimals of the table


def test_tile_table_is_what_the_operator_set_computes() -> None:
    for row in table(section("ops/RramConv.md", "Tiles, worked"), "C / group"):
        depth, tile_rows = int(row["C / group"]), int(row["tile_rows"])
        window = int(np.prod([int(k) for k in row["kernel"].split(" x ")]))
        tiles = schema.num_tiles(depth, window, tile_rows or None)
        channels = -(-depth // tiles)
        sizes = [min(channels, depth - t * channels) for t in range(tiles)]
        assert int(row["num_tiles"]) == tiles
        assert [int(n) for n in row["channels of each tile"].split(", ")] == sizes
        assert tile_rows == 0 or channels * window <= tile_rows


@pytest.mark.parametrize("op", [schema.DORA_CONV, schema.DORA_MATMUL])
def test_branch_table_is_what_the_reference_computes(op: str) -> None:
    # A factor in place of the divisor rank_step, a clip at -128, M applied before the branch.
    for given, row in worked(op, "x"):
        shape = (1, 1) if op == schema.DORA_MATMUL else (1, 1, 1, 1)
        vector = {
            name: np.float32([given[name]])
            for name in (
                "x_scale",
                "rank_step",
                "lora_b_scale",
                "magnitude_scale",
                "bias",
                "sparse_scale",
            )
        }
        codes = {
            "lora_a": np.full(shape, int(given["lora_a"]), np.int8),
            "lora_b": np.full(shape, int(given["lora_b"]), np.int8),
            "magnitude": np.int8([given["magnitude"]]),
            "sparse_values": np.int8([given["sparse_values"]]),
            "sparse_index": np.int64([given["sparse_index"]]),
        }
        x = np.full(shape, row["x"], np.float32)
        h = np.full(shape, row["h"], np.float32)
        if op == schema.DORA_MATMUL:
            y = reference.dora_matmul(x, h, **codes, **vector)
        else:
            y = reference.dora_conv(
                x, h, **codes, **vector, strides=[1, 1], pads=[0] * 4, dilations=[1, 1], group=1
            )
        assert y.item() == row["y"]
        q = np.clip(np.rint(row["x"] / given["x_scale"]), -127, 127)
        u = np.clip(np.rint(q * given["lora_a"] / given["rank_step"]), -127, 127)
        assert (row["q"], row["u"]) == (q, u)
        assert row["v"] == u * given["lora_b"] * given["lora_b_scale"]
        assert row["s"] == q * given["sparse_values"] * given["sparse_scale"]


@pytest.mark.parametrize("op", [schema.DORA_CONV, schema.DORA_MATMUL])
def test_bounds_of_the_exact_branch_are_those_of_the_code(op: str) -> None:
    rows = {name_of(r): r for r in table(section(f"ops/{op}.md", "Inputs"), "name")}
    for name in ("lora_a", "sparse_values"):
        assert f"at most {schema.MAX_CODE_SUM:,}" in rows[name]["meaning"]
    assert 127 * schema.MAX_CODE_SUM <= 2**24 < 127 * (schema.MAX_CODE_SUM + 1)
    assert f"R at most {schema.MAX_RANK:,}" in rows["lora_b"]["meaning"]
    assert 127 * 128 * schema.MAX_RANK <= 2**24 < 127 * 128 * (schema.MAX_RANK + 1)


# --- command line

_GROUP: Any = typer.main.get_command(app)
_COMMANDS: dict[str, Any] = {
    f"{name} {part}" if part else name: command
    for name, found in _GROUP.commands.items()
    for part, command in getattr(found, "commands", {"": found}).items()
}
_REPORTS = {
    "advise": api.AdviseReport,
    "age": api.AgeReport,
    "convert": api.ConvertReport,
    "devices": DeviceDescription,
    "calibrate": api.CalibrateReport,
    "statistics": api.StatisticsReport,
    "equalize": api.EqualizeReport,
    "evaluate": EvaluationReport,
    "finetune": api.FinetuneReport,
    "inspect": api.InspectReport,
    "lifetime": LifetimeReport,
    "quickstart": QuickstartReport,
    "study recovery": RecoveryReport,
    "study run": StudyReport,
}


def _options(command: Any) -> set[str]:
    found = {o for p in command.params for o in p.opts if o.startswith("-")}
    return found - {"--help"}


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_cli_page_lists_the_options_and_json_fields_of_every_command(name: str) -> None:
    # An option or a field that is added, renamed or removed without its documentation.
    text = section("cli.md", f"rimc-onnx {name}")
    listed = {o for row in table(text, "option") for o in re.findall(r"`(-[\w-]+)`", row["option"])}
    assert listed == _options(_COMMANDS[name])
    fields = [name_of(row, "JSON field") for row in table(text, "JSON field")]
    # The figures of a metric are fields of the object themselves.
    expected = [f.name for f in dataclasses.fields(_REPORTS[name]) if f.name != "metrics"]
    assert fields == expected


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_cli_page_states_the_defaults_of_the_code(name: str) -> None:
    rows = table(section("cli.md", f"rimc-onnx {name}"), "option")
    stated = {row["option"]: row["default"].strip("`") for row in rows if "default" in row}
    checked = 0
    for parameter in _COMMANDS[name].params:
        default = parameter.default
        option = f"`{parameter.opts[-1]}`"
        if option in stated and isinstance(default, int | str) and not isinstance(default, bool):
            assert stated[option] == str(default)
            checked += 1
    assert checked or name in {"age", "devices", "equalize", "quickstart", "statistics"}


def test_deployment_page_lists_the_options_of_the_provider() -> None:
    # The library itself says which ones it knows.
    rows = table(section("deployment.md", "As an execution provider"), "option")
    source = (ROOT / "runtime" / "src" / "provider" / "options.cc").read_text("utf-8")
    known = re.search(r'kKnown = "(.*?)";', source)
    assert known is not None
    assert [name_of(row, "option") for row in rows] == known[1].split(", ")
    rows = table(section("deployment.md", "As an execution provider"), "parameter")
    assert [name_of(row, "parameter") for row in rows] == list(COMPILED_OPTIONS)


def test_cli_page_lists_the_options_of_the_program() -> None:
    rows = table(section("cli.md", "Command line").split("\n## ")[0], "option")
    assert {name_of(r, "option") for r in rows} == _options(_GROUP) | {"--help"}


@pytest.mark.parametrize("job", [["convert", "model.onnx"], ["quickstart", "demo"]])
def test_rows_of_json_lists_have_the_documented_fields(
    job: list[str], cli: Callable[..., Any], digits_folder: Path
) -> None:
    found = cli(*job, "--json", cwd=digits_folder).json()
    field = "nodes" if job[0] == "convert" else "rows"
    rows = {name_of(r, "JSON field"): r["meaning"] for r in table(
        section("cli.md", f"rimc-onnx {job[0]}"), "JSON field")}  # fmt: skip
    assert re.findall(r"`(\w+)`", rows[field].replace("`null`", "")) == list(found[field][0])


# --- devices and calibration


def test_preset_table_has_every_preset_with_its_numbers() -> None:
    rows = {name_of(r, "preset"): r for r in tables(section("devices.md", "Presets"))[0][1]}
    assert list(rows) == list(list_presets())
    for name, preset in list_presets().items():
        config = preset.config
        assert name_of(rows[name], "law") == config.law.value
        assert name_of(rows[name], "scaling") == "auto"
        for field in ("drift_frac", "drift_mean_frac", "g_max_us", "g_min_us"):
            assert float(rows[name][field]) == getattr(config, field)
        times, range_us = config.time_range_s, config.g_range_us
        stated = [] if times is None else [format_time(t) for t in dict.fromkeys(times)]
        assert rows[name]["valid time"] == (" .. ".join(stated) or "no time axis")
        stated = [] if range_us is None else [f"{g:g}" for g in range_us]
        assert rows[name]["valid conductance"] == (" .. ".join(stated) or "any")


@pytest.mark.parametrize("name", list(list_presets()))
def test_preset_has_a_section_with_the_publications_it_comes_from(name: str) -> None:
    text = " ".join(section("devices.md", name).split())
    assert "Source:" in text
    assert "Valid:" in text
    for author in re.findall(r"(\w+) et al\.", list_presets()[name].source):
        assert f"{author} et al." in text


def test_parameter_table_has_the_fields_of_the_configuration() -> None:
    rows = table(section("devices.md", "Parameters"), "field")
    fields = dataclasses.fields(DeviceConfig)
    assert [name_of(r, "field") for r in rows] == [f.name for f in fields]
    for row, field in zip(rows, fields, strict=True):
        default = row["default"].strip("`")
        if isinstance(field.default, int | float):
            assert float(default) == field.default
        elif field.default is None:
            assert default == ("auto" if field.name in {"scaling", "clip_sigma"} else "none")


def test_table_of_the_periphery_has_the_fields_and_defaults_of_the_configuration() -> None:
    # A field, an option or a default that the page does not know.
    text = (DOCS / "periphery.md").read_text("utf-8")
    rows = {name_of(row, "field"): row for row in table(text, "field")}
    fields = dataclasses.fields(PeripheryConfig)
    assert list(rows) == [f.name for f in fields]
    for field in fields:
        default = getattr(field.default, "name", field.default)
        assert rows[field.name]["default"] == str(default)
    options = {row["option"].strip("`") for row in rows.values()}
    assert options <= _options(_COMMANDS["convert"])


def test_example_draws_are_what_the_generator_gives() -> None:
    # The layout of a draw is part of the file format.
    rows = table(section("devices.md", "Draws"), "cell")
    key = {
        "seed": 0,
        "node": "conv1",
        "device": 0,
        "purpose": Purpose.PROGRAMMING,
        "start": 0,
        "count": len(rows),
    }
    assert [int(r["word"]) for r in rows] == random_words(**key).tolist()
    assert [r["normal"] for r in rows] == [f"{z:.9f}" for z in standard_normals(**key)]


def test_regularisation_table_has_the_defaults_of_the_code() -> None:
    title = "Strength of the regularisation"
    rows = table(section("calibration.md", title), "field")
    fields = dataclasses.fields(ClosedFormConfig)
    assert {name_of(r, "field"): float(r["default"]) for r in rows} == {
        f.name: f.default for f in fields
    }


# --- Python API


@pytest.mark.parametrize("name", [n for n in rimc_onnx.__all__ if n[0].islower()])
def test_api_page_gives_the_signature(name: str) -> None:
    text = " ".join(section("python-api.md", name).split())
    stated = re.search(rf"`{name}\((.*?)\)`", text)
    assert stated is not None
    parts = []
    for parameter in inspect.signature(getattr(api, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        shown = "..." if callable(parameter.default) else repr(parameter.default)
        required = parameter.default is parameter.empty
        parts.append(parameter.name if required else f"{parameter.name}={shown}")
    assert [part for part in stated[1].split(", ") if part] == parts


def test_api_page_lists_the_functions_of_the_runtime() -> None:
    rows = table(section("python-api.md", "Running a converted model"), "function")
    stated = {name_of(r, "function").split("(")[0] for r in rows}
    assert stated == set(runtime.__all__) - {"NativeLibraryError"}


def _examples() -> list[str]:
    text = (DOCS / "python-api.md").read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(len(_examples())))
def test_example_runs(number: int, digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An import path, an argument or a file name in the documentation that does not exist.
    monkeypatch.chdir(digits_folder)
    code = _examples()[number]
    exec(compile(code, f"python-api.md example {number}", "exec"), {"__name__": "example"})


# --- all pages


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text("utf-8"))
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target


def test_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    listed = {(DOCS / t).resolve() for t in re.findall(r"\]\(([^)#]+)\)", index)}
    assert {p.resolve() for p in DOCS.rglob("*.md")} - listed == {(DOCS / "README.md").resolve()}


def test_decisions_are_numbered_without_gaps_and_say_what_follows() -> None:
    notes = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(n.name[:4]) for n in notes] == list(range(1, len(notes) + 1))
    for note in notes:
        text = note.read_text("utf-8")
        assert text.startswith(f"# {note.name[:4]} ")
        for part in ("**Context.**", "**Choice.**", "**Consequence.**"):
            assert part in text
