# SPDX-License-Identifier: Apache-2.0
"""Public names are in ``__all__``, documented, and those that people are told of."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

import rimc_onnx


def module_names() -> list[str]:
    names = ["rimc_onnx"]
    for package in ("", ".device", ".calibration", ".studies", ".passes", ".runtime"):
        found = importlib.import_module(f"rimc_onnx{package}")
        names += [f"rimc_onnx{package}"] if package else []
        names += [
            f"{found.__name__}.{m.name}"
            for m in pkgutil.iter_modules(found.__path__)
            if not m.name.startswith("_") and not m.ispkg
        ]
    # The native library looks like a module to pkgutil.
    names = [n for n in names if str(getattr(find_spec(n), "origin", "")).endswith(".py")]
    return sorted(set(names))


MODULES = module_names()

DOCSTRING_ONLY = {"rimc_onnx.calibration", "rimc_onnx.studies"}
"""Packages that export nothing themselves."""


def test_package_exposes_the_jobs() -> None:
    # `from rimc_onnx import convert` as in the README.
    assert sorted(rimc_onnx.__all__) == [
        "age",
        "calibrate",
        "convert",
        "evaluate",
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
        "rimc_onnx.cli": {"convert", "calibrate", "evaluate", "inspect", "statistics"},
        "rimc_onnx.evaluation": {"Session"},
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
