# SPDX-License-Identifier: Apache-2.0
"""A command imports what it uses: the time from the key press to the first line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """\
import sys
from rimc_onnx.cli.entry import main
sys.argv = ["rimc-onnx", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(*(name for name in sys.modules), file=sys.stderr)
"""


def loaded(folder: Path, *command: str) -> set[str]:
    """Modules in memory once the command has run in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", _RUN, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("command", "others"),
    [
        (["inspect", "model.onnx"], {"scipy", "onnxruntime", "onnx.reference"}),
        (["convert", "model.onnx"], {"scipy", "onnxruntime", "onnx.reference"}),
        (["calibrate", "model.rimc.onnx"], {"onnx.reference"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_command_imports_no_library_of_another(
    command: list[str], others: set[str], digits_job: Path
) -> None:
    # One import at the top of a module: every command waits for it, and nobody sees why.
    shared = {"torch", "onnxscript", "sympy.core", "matplotlib", "pyarrow"}
    modules = loaded(digits_job, *command, "--json", *["--force"] * (command[0] != "inspect"))
    assert "onnx_ir" in modules
    assert modules & (shared | others) == set()


_LATER = """\
import sys
from rimc_onnx.cli.later import run_later
run_later("sympy", "onnx_ir._symbolic_shapes", "no_such_module")
"""


@pytest.mark.parametrize(
    "code",
    [
        # An attribute, a part of the package first, a name out of it; all are one module.
        "import sympy\nassert sympy.Symbol('n') + 1 == 1 + sympy.Symbol('n')",
        "import sympy.core.expr\nimport sympy\n"
        "assert sympy.core.expr is sys.modules['sympy.core.expr']\n"
        "assert sympy.Expr is sympy.core.expr.Expr and sympy.core.__spec__.origin",
        "from sympy import Max\nassert Max(1, 2) == 2",
        "import onnx_ir as ir\nassert 'sympy.core' not in sys.modules\n"
        "assert (ir.SymbolicDim('N') + 1).value == 'N + 1'",
        "import sympy\nassert not hasattr(sympy, 'no_such_name')",
        "try:\n    import no_such_module\nexcept ModuleNotFoundError:\n    pass",
        "import threading, sympy\nfound = []\n"
        "many = [threading.Thread(target=lambda: found.append(sympy.Max)) for _ in range(8)]\n"
        "[t.start() for t in many] and [t.join() for t in many]\nassert len(found) == 8",
    ],
    ids=["attribute", "part", "from", "onnx_ir", "missing", "no module", "threads"],
)
def test_module_that_runs_later_is_the_module(code: str) -> None:
    # Classes twice in memory, so that isinstance fails; a thread that sees half of the module.
    subprocess.run([sys.executable, "-c", _LATER + code], check=True)
