# SPDX-License-Identifier: Apache-2.0
"""Fields that errors of the library name, and the options that the command line prints for them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from rimc_onnx import CalibrateConfig, api
from rimc_onnx.cli.field_options import OPTIONS, in_options
from rimc_onnx.cli.main import app
from rimc_onnx.crossbar import ConvertConfig, PeripheryConfig
from rimc_onnx.device import DeviceConfig
from rimc_onnx.io.samples import SampleArrays
from rimc_onnx.runtime import any_provider
from rimc_onnx.studies.lifetime import LifetimeConfig, lifetime
from rimc_onnx.studies.recovery import recovery_study
from rimc_onnx.studies.runner import Engine


def options(command: Any) -> Iterator[str]:
    """Options of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def names() -> set[str]:
    """Fields of configurations and arguments of functions."""
    configs = (ConvertConfig, PeripheryConfig, CalibrateConfig, DeviceConfig, SampleArrays)
    configs += (LifetimeConfig,)
    found = {f.name for config in configs for f in dataclasses.fields(config)}
    found |= {name for name in vars(Engine) if not name.startswith("_")}
    functions = [getattr(api, name) for name in api.__all__]
    functions += [
        recovery_study,
        lifetime,
        *(getattr(any_provider, name) for name in any_provider.__all__),
    ]
    for function in functions:
        found |= set(inspect.signature(function).parameters)
    return found


def test_every_field_and_every_option_is_there() -> None:
    # An option that was renamed: the advice is "No such option". A field that no error can name.
    known = set(options(typer.main.get_command(app)))
    assert set(OPTIONS.values()) <= known
    assert {field.partition("=")[0] for field in OPTIONS} <= names()


@pytest.mark.parametrize(
    ("library", "command_line"),
    [
        (
            "records no teacher. Give it with `teacher`.",
            "records no teacher. Give it with --teacher.",
        ),
        ("`read_noise_frac` must be above 0", "--read-noise must be above 0"),
        ("Use `device_reads=False`, or", "Use --ideal-reads, or"),
        ("leave out `propagate=student`.", "leave out --propagate student."),
        ("`a_field` of a file", "a_field of a file"),
        ("node 'a`b': no", "node 'a`b': no"),
    ],
)
def test_fields_are_printed_as_options(library: str, command_line: str) -> None:
    # A word of the sentence taken for a field, or a field left in its backticks.
    assert in_options(library) == command_line
