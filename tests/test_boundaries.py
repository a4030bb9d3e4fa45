# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the table of the design, read off the sources without running them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import rimc_onnx

ROOT = Path(__file__).resolve().parents[1]

SOURCES = {
    **{f"rimc_onnx.{p.stem}": p for p in (ROOT / "rimc_onnx").glob("*.py")},
    **{f"rimc_onnx.device.{p.stem}": p for p in (ROOT / "rimc_onnx" / "device").glob("*.py")},
    **{
        f"rimc_onnx.calibration.{p.stem}": p
        for p in (ROOT / "rimc_onnx" / "calibration").glob("*.py")
    },
    **{f"rimc_onnx.studies.{p.stem}": p for p in (ROOT / "rimc_onnx" / "studies").glob("*.py")},
    **{f"rimc_onnx.passes.{p.stem}": p for p in (ROOT / "passes").glob("*.py")},
    **{f"rimc_onnx.runtime.{p.stem}": p for p in (ROOT / "runtime").glob("*.py")},
}

BASE = {"numpy", "onnx", "rimc_onnx.opset", "rimc_onnx.errors"}
CALIBRATION = BASE | {
    "onnxscript",
    "scipy",
    "threadpoolctl",
    "rimc_onnx.adapter",
    "rimc_onnx.calibration",
    "rimc_onnx.config",
    "rimc_onnx.device",
    "rimc_onnx.passes",
    "rimc_onnx.reference",
    "rimc_onnx.runtime",
}
ALLOWED = {
    # part -> packages and own modules, beside the standard library
    "rimc_onnx.__init__": {"rimc_onnx.api"},
    "rimc_onnx.opset": set(),
    "rimc_onnx.errors": set(),
    "rimc_onnx.reference": BASE | {"rimc_onnx.device"},
    "rimc_onnx.config": BASE | {"rimc_onnx.device"},
    "rimc_onnx.device": BASE | {"rimc_onnx.device"},
    # the standard library has tomllib from Python 3.11 on
    "rimc_onnx.device.user_file": BASE | {"rimc_onnx.device", "tomli"},
    "rimc_onnx.adapter": BASE,
    "rimc_onnx.functions": BASE | {"onnxscript", "rimc_onnx.line_functions"},
    "rimc_onnx.line_functions": BASE | {"onnxscript"},
    "rimc_onnx.passes": BASE
    | {
        "onnx_ir",
        "onnxscript",
        "rimc_onnx.adapter",
        "rimc_onnx.config",
        "rimc_onnx.device",
        "rimc_onnx.functions",
        "rimc_onnx.passes",
    },
    "rimc_onnx.runtime": {
        "numpy",
        "onnxruntime",
        "rimc_onnx.opset",
        "rimc_onnx.errors",
        "rimc_onnx.runtime",
    },
    "rimc_onnx.calibration": CALIBRATION,
    # the only solver with gradients
    "rimc_onnx.calibration.adam": CALIBRATION | {"torch"},
    # the only parts that write files
    "rimc_onnx.calibration.report": CALIBRATION | {"rimc_onnx.files"},
    "rimc_onnx.calibration.report_page": CALIBRATION | {"matplotlib"},
    "rimc_onnx.calibration.statistics_file": CALIBRATION | {"rimc_onnx.files"},
    "rimc_onnx.adapter_file": BASE
    | {
        "onnxruntime",
        "onnxscript",
        "rimc_onnx.adapter",
        "rimc_onnx.files",
        "rimc_onnx.passes",
    },
    "rimc_onnx.reports": set(),
    # built of whole commands
    "rimc_onnx.studies": BASE
    | {
        "rimc_onnx.api",
        "rimc_onnx.calibration.config",
        "rimc_onnx.calibration.taps",
        "rimc_onnx.config",
        "rimc_onnx.evaluation",
        "rimc_onnx.feeds",
    },
    "rimc_onnx.data": BASE,
    "rimc_onnx.evaluation": BASE | {"rimc_onnx.data"},
    "rimc_onnx.files": BASE | {"google", "onnxscript"},
    "rimc_onnx.api": BASE
    | {
        "rimc_onnx.ageing",
        "rimc_onnx.calibrating",
        "rimc_onnx.calibration.taps",
        "rimc_onnx.converting",
        "rimc_onnx.data",
        "rimc_onnx.evaluation",
        "rimc_onnx.feeds",
        "rimc_onnx.files",
        "rimc_onnx.reports",
        "rimc_onnx.sessions",
        "rimc_onnx.teacher",
    },
    "rimc_onnx.calibrating": BASE
    | {
        "onnxscript",
        "rimc_onnx.adapter_file",
        "rimc_onnx.calibration",
        "rimc_onnx.data",
        "rimc_onnx.feeds",
        "rimc_onnx.files",
        "rimc_onnx.passes",
        "rimc_onnx.reports",
        "rimc_onnx.sessions",
        "rimc_onnx.teacher",
    },
    "rimc_onnx.converting": BASE
    | {
        "rimc_onnx.calibration.ranges",
        "rimc_onnx.config",
        "rimc_onnx.feeds",
        "rimc_onnx.files",
        "rimc_onnx.passes",
        "rimc_onnx.reports",
        "rimc_onnx.runtime.programming",
        "rimc_onnx.sessions",
        "rimc_onnx.teacher",
    },
    "rimc_onnx.provider_options": BASE
    | {
        "onnxscript",
        "rimc_onnx.calibration.ranges",
        "rimc_onnx.config",
        "rimc_onnx.feeds",
        "rimc_onnx.files",
        "rimc_onnx.passes",
        "rimc_onnx.sessions",
    },
    "rimc_onnx.feeds": BASE | {"onnxscript", "rimc_onnx.data"},
    "rimc_onnx.sessions": {"rimc_onnx.errors", "rimc_onnx.runtime"},
    "rimc_onnx.teacher": {"onnxscript", "rimc_onnx.errors", "rimc_onnx.files", "rimc_onnx.opset"},
    "rimc_onnx.ageing": BASE
    | {
        "rimc_onnx.files",
        "rimc_onnx.passes",
        "rimc_onnx.reports",
        "rimc_onnx.runtime",
        "rimc_onnx.teacher",
    },
    "rimc_onnx.quickstart": {"rimc_onnx.api", "rimc_onnx.errors", "rimc_onnx.files"},
    "rimc_onnx._console": {"rich"},
    # cli: configuration types, so that it can build one, but nothing that computes
    "rimc_onnx._options": {
        "typer",
        "rimc_onnx.calibration.config",
        "rimc_onnx.config",
        "rimc_onnx.device",
        "rimc_onnx.errors",
        "rimc_onnx.runtime.any_provider",
    },
    "rimc_onnx._tables": {
        "rimc_onnx._console",
        "rimc_onnx.device",
        "rimc_onnx.evaluation",
        "rimc_onnx.reports",
        "rimc_onnx.studies",
    },
    "rimc_onnx._device_commands": {
        "typer",
        "rimc_onnx._console",
        "rimc_onnx._options",
        "rimc_onnx._tables",
        "rimc_onnx.api",
        "rimc_onnx.device",
    },
    "rimc_onnx._study_commands": {
        "typer",
        "rimc_onnx._console",
        "rimc_onnx._options",
        "rimc_onnx._tables",
        "rimc_onnx.calibration.config",
        "rimc_onnx.quickstart",
        "rimc_onnx.studies",
    },
    "rimc_onnx.cli": {
        "typer",
        "rimc_onnx._console",
        "rimc_onnx._device_commands",
        "rimc_onnx._options",
        "rimc_onnx._study_commands",
        "rimc_onnx._tables",
        "rimc_onnx.adapter_file",
        "rimc_onnx.api",
        "rimc_onnx.calibration.config",
        "rimc_onnx.config",
        "rimc_onnx.device",
        "rimc_onnx.errors",
        "rimc_onnx.evaluation",
        "rimc_onnx.files",
    },
}
FORBIDDEN_AT_TOP = {"torch", "matplotlib"}
"""Never imported when a module is: they are extras."""


def part_of(module: str) -> str:
    """The row of the table: the longest name in ``ALLOWED`` that ``module`` lies in."""
    names = [n for n in ALLOWED if module == n or module.startswith(f"{n}.")]
    return max(names, key=len)


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


def is_allowed(module: str, allowed: set[str]) -> bool:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__future__":
        return True
    return any(module == a or module.startswith(f"{a}.") for a in allowed)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_imports_what_its_part_may(module: str) -> None:
    # A pass that needs a session, a device model that needs a pass: the next one can't be tested
    # without the whole house.
    allowed = ALLOWED[part_of(module)]
    wrong = sorted(m for m in imports(SOURCES[module]) if not is_allowed(m, allowed))
    assert wrong == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_needs_no_extra_to_be_imported(module: str) -> None:
    # torch and matplotlib are extras: whoever lacks them must be able to import everything.
    top = {m.split(".")[0] for m in imports(SOURCES[module], run_time_only=True)}
    assert not top & FORBIDDEN_AT_TOP


def test_only_the_console_uses_rich() -> None:
    # Two ideas of what a terminal is.
    users = {m for m, path in SOURCES.items() if "rich" in {i.split(".")[0] for i in imports(path)}}
    assert users == {"rimc_onnx._console"}


def test_only_the_command_line_exits() -> None:
    # Library code raises; a notebook must not die of a wrong path.
    for module, path in SOURCES.items():
        names = {
            ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        }  # fmt: skip
        if module != "rimc_onnx.cli":
            assert not names & {"sys.exit", "exit", "quit", "os._exit"}, module


def test_what_is_walked_is_what_is_imported() -> None:
    # A table that checks another copy of the sources, or none.
    assert len(SOURCES) > 40
    assert Path(rimc_onnx.__file__).resolve() == (ROOT / "rimc_onnx" / "__init__.py") or (
        Path(rimc_onnx.__file__).read_text() == (ROOT / "rimc_onnx" / "__init__.py").read_text()
    )
