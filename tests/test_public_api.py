# SPDX-License-Identifier: Apache-2.0
"""Public names are in ``__all__``, documented, and those that people are told of."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rimc_onnx

ROOT = Path(__file__).resolve().parents[1]
HAS_TORCH = importlib.util.find_spec("torch") is not None


def module_names() -> list[str]:
    names = set()
    for folder, package in (
        ("rimc_onnx", "rimc_onnx"),
        ("passes", "rimc_onnx.passes"),
        ("runtime", "rimc_onnx.runtime"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[0] == "training" and len(parts) > 1 and not HAS_TORCH:
                continue
            private = any(part.startswith("_") and part != "__init__" for part in parts)
            if parts[0] != "src" and not private:
                names.add(".".join((package, *parts)).removesuffix(".__init__"))
    return sorted(names)


MODULES = module_names()

DOCSTRING_ONLY = {
    name
    for name in MODULES
    if hasattr(module := importlib.import_module(name), "__path__")
    and not hasattr(module, "__all__")
}
"""Packages that export nothing themselves."""


def test_package_exposes_the_jobs() -> None:
    # `from rimc_onnx import convert` as in the README.
    assert sorted(rimc_onnx.__all__) == [
        "CalibrateConfig",
        "ConvertConfig",
        "FinetuneConfig",
        "PeripheryConfig",
        "ReadNoiseLaw",
        "advise",
        "age",
        "calibrate",
        "convert",
        "equalize",
        "evaluate",
        "finetune",
        "get_ep_name",
        "get_ep_names",
        "get_library_path",
        "inference_cost",
        "inspect",
        "write_statistics",
    ]
    for name in rimc_onnx.__all__:
        assert callable(getattr(rimc_onnx, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = rimc_onnx.no_such_name


def test_package_alone_imports_nothing_heavy() -> None:
    # `import rimc_onnx` in a web worker that may never convert a model.
    code = (
        "import sys, rimc_onnx\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'onnxscript', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [m for m in MODULES if m not in DOCSTRING_ONLY])
def test_all_names_exactly_what_is_public(name: str) -> None:
    # A helper that becomes public by accident, or a public name that import * does not give.
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public
    if hasattr(module, "__path__"):
        return  # packages re-export; their modules are checked
    own = {
        n
        for n, value in vars(module).items()
        if not n.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    not_listed = own - set(module.__all__)
    # A protocol, a command of the command line and an onnxscript body have their own places.
    special = {
        "rimc_onnx.cli.main": {"convert", "evaluate", "inspect"},
    }
    assert not_listed == special.get(name, set())


@pytest.mark.parametrize("name", MODULES)
def test_public_things_have_a_docstring(name: str) -> None:
    # The docstring is the reference: shapes, units, errors.
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public}"
        if inspect.isclass(value):
            assert value.__doc__, f"{name}.{public}"
            for method_name, method in vars(value).items():
                if not method_name.startswith("_") and inspect.isfunction(method):
                    assert inspect.getdoc(method), f"{name}.{public}.{method_name}"


def test_a_job_imports_its_own_only() -> None:
    # Every command waits for what all the others need: scipy alone takes a third of a second.
    program = (
        "import sys; from rimc_onnx import inspect; "
        "print(*{name.split('.')[0] for name in sys.modules} & {'scipy', 'onnxruntime'}); "
        "from rimc_onnx import convert; print(*{'scipy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.stdout.split(), done.returncode) == ([], 0), done.stderr
