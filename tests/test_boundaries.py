# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the table of the design, read off the sources without running them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import rimc_onnx

ROOT = Path(__file__).resolve().parents[1]


def _sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, package in (
        ("rimc_onnx", "rimc_onnx"),
        ("passes", "rimc_onnx.passes"),
        ("runtime", "rimc_onnx.runtime"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            if inside[0] != "src":  # generators of tables, run by hand
                found[".".join((package, *inside))] = path
    return found


SOURCES = _sources()

ERRORS = {"numpy", "onnx", "rimc_onnx.errors"}
OPS = ERRORS | {"rimc_onnx.ops"}
DEVICE = OPS | {"rimc_onnx.device"}
CROSSBAR = DEVICE | {"rimc_onnx.crossbar"}
PASSES = CROSSBAR | {"onnx_ir", "rimc_onnx.bodies", "rimc_onnx.passes"}
RUNTIME = PASSES | {"onnxruntime", "rimc_onnx.runtime"}
EXECUTION = RUNTIME | {"rimc_onnx.execution"}
CALIBRATION = (PASSES | EXECUTION | {"scipy", "rimc_onnx.calibration"}) - {"onnxruntime"}
IO = PASSES | EXECUTION | {"rimc_onnx.calibration", "rimc_onnx.io"}
COST = (PASSES | EXECUTION | {"rimc_onnx.cost"}) - {"onnxruntime"}
TRAINING = (PASSES | EXECUTION | {"rimc_onnx.io", "rimc_onnx.training"}) - {"onnxruntime"}
JOBS = CALIBRATION | COST | IO | {"rimc_onnx.jobs", "rimc_onnx.training"}
CONFIGS = {"rimc_onnx.calibration.config", "rimc_onnx.training.config"}
CLI = CROSSBAR | CONFIGS | {"rimc_onnx.api", "rimc_onnx.cli"}

ALLOWED = {
    # part -> packages and own modules beside the standard library; each row may import those above
    "rimc_onnx.errors": set(),
    "rimc_onnx.ops": OPS,
    "rimc_onnx.device": DEVICE,
    "rimc_onnx.crossbar rimc_onnx.reference": CROSSBAR,
    "rimc_onnx.bodies": CROSSBAR | {"onnx_ir", "rimc_onnx.bodies"},
    "rimc_onnx.passes": PASSES,
    "rimc_onnx.runtime": RUNTIME,
    "rimc_onnx.execution": EXECUTION,
    "rimc_onnx.calibration": CALIBRATION,
    "rimc_onnx.cost": COST,
    "rimc_onnx.io": IO,
    "rimc_onnx.training": TRAINING,
    "rimc_onnx.jobs": JOBS,
    "rimc_onnx.studies": JOBS | {"rimc_onnx.api", "rimc_onnx.studies"},
    "rimc_onnx.api rimc_onnx.__init__": JOBS | {"rimc_onnx.api"},
    "rimc_onnx.cli rimc_onnx.__main__": CLI
    | {"typer", "rimc_onnx.io", "rimc_onnx.jobs", "rimc_onnx.runtime", "rimc_onnx.studies"},
}
USERS = {
    # package -> the only modules, or parts, that may import it
    "google": ("rimc_onnx.io",),
    "jinja2": ("rimc_onnx.calibration.report.page",),
    "markupsafe": ("rimc_onnx.calibration.report.page",),
    "matplotlib": ("rimc_onnx.calibration.report.plot",),
    "pyarrow": ("rimc_onnx.studies.rows",),
    "ray": ("rimc_onnx.studies.ray_engine",),
    "rich": ("rimc_onnx.cli.console",),  # two ideas of what a terminal is
    "threadpoolctl": ("rimc_onnx.execution.parallel",),
    "tomli": ("rimc_onnx.device.toml_file",),  # the standard library has tomllib from 3.11 on
    "torch": ("rimc_onnx.calibration.solvers.adam", "rimc_onnx.training"),
}
FORBIDDEN_AT_TOP = {"jinja2", "markupsafe", "matplotlib", "pyarrow", "ray", "torch"}
"""Never imported when a module is: they are extras."""


def part_of(module: str) -> str:
    """The row of the table that ``module`` lies in; a new module of the root needs one."""
    (part,) = (row for row in ALLOWED if any(is_in(module, name) for name in row.split()))
    return part


def is_in(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def imports(path: Path, *, run_time_only: bool = False) -> set[str]:
    """Modules that a source imports, at its top, inside functions and for type checking.

    ``from rimc_onnx import x`` counts as ``rimc_onnx.x``. ``run_time_only`` leaves out what is
    under ``if TYPE_CHECKING`` and inside functions.
    """
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                module = node.module or ""
                if module == "rimc_onnx":
                    found.update(f"rimc_onnx.{alias.name}" for alias in node.names)
                else:
                    found.add(module)
            elif run_time_only and (
                isinstance(node, ast.FunctionDef)
                or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            ):
                continue
            else:
                for field in ("body", "orelse", "finalbody", "handlers"):
                    visit([n for n in getattr(node, field, []) if isinstance(n, ast.AST)])

    visit(ast.parse(path.read_text()).body)
    return found


OF_TORCH = {
    m
    for m, path in SOURCES.items()
    if m.startswith("rimc_onnx.training.")
    and not m.endswith("__init__")
    and any(i.split(".")[0] == "torch" for i in imports(path, run_time_only=True))
}
"""Modules of :mod:`rimc_onnx.training` that define torch modules, or work on tensors."""
OF_TORCH |= {"rimc_onnx.training.operators", "rimc_onnx.training.operators.__init__"}


def is_allowed(module: str, allowed: set[str]) -> bool:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__future__":
        return True
    return top in USERS or any(is_in(module, a) for a in allowed)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_imports_what_its_part_may(module: str) -> None:
    # A pass that needs a session, a device model that needs a pass: the next one can't be tested
    # without the whole house.
    allowed = ALLOWED[part_of(module)]
    wrong = sorted(m for m in imports(SOURCES[module]) if not is_allowed(m, allowed))
    assert wrong == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_needs_no_extra_to_be_imported(module: str) -> None:
    # torch and matplotlib are extras: whoever lacks them must be able to import everything but
    # the modules of torch's own classes, which others import inside functions.
    found = imports(SOURCES[module], run_time_only=True)
    if module in OF_TORCH:
        return
    assert not {m.split(".")[0] for m in found} & FORBIDDEN_AT_TOP
    assert not found & OF_TORCH


def test_nobody_uses_the_oracle() -> None:
    # A wrong word line in a function that the package shares with its oracle passes every test that
    # compares the two.
    users = {m for m, path in SOURCES.items() if "rimc_onnx.reference" in imports(path)}
    assert users == set()


@pytest.mark.parametrize("package", USERS)
def test_package_has_its_users(package: str) -> None:
    # An extra that everybody needs in the end, or a row for a package that nobody imports.
    found = [m for m, path in SOURCES.items() if any(is_in(i, package) for i in imports(path))]
    assert found
    assert [m for m in found if not any(is_in(m, user) for user in USERS[package])] == []


def test_only_the_command_line_names_options() -> None:
    # "Give it with --teacher" where somebody called a function. Docstrings may.
    found = set()
    for module, path in SOURCES.items():
        tree = ast.parse(path.read_text())
        docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and id(node) not in docstrings
            if is_text and re.search(r"(^|[\s(])--([a-z]|$)", str(node.value)):
                found.add((module, node.value))
    assert {f for f in found if not f[0].startswith("rimc_onnx.cli.")} == set()


def test_only_the_command_line_exits() -> None:
    # Library code raises; a notebook must not die of a wrong path.
    for module, path in SOURCES.items():
        names = {
            ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        }  # fmt: skip
        if module not in {"rimc_onnx.cli.main", "rimc_onnx.cli.entry"}:
            assert not names & {"sys.exit", "exit", "quit", "os._exit"}, module


def test_what_is_walked_is_what_is_imported() -> None:
    # A table that checks another copy of the sources, or none.
    assert len(SOURCES) > 40
    assert Path(rimc_onnx.__file__).resolve() == (ROOT / "rimc_onnx" / "__init__.py") or (
        Path(rimc_onnx.__file__).read_text() == (ROOT / "rimc_onnx" / "__init__.py").read_text()
    )
