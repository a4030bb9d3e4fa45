# SPDX-License-Identifier: Apache-2.0
"""Constants of the cost: each has a source; a file of one's own replaces some, or says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rimc_onnx.cost.constants import default_constants, load_constants
from rimc_onnx.errors import ConfigError


def test_every_constant_has_a_source_and_a_range_around_its_value() -> None:
    # A number that somebody typed in: nobody can check it, or say how wrong it may be.
    for constant in default_constants().all():
        assert len(constant.source) > 20, constant.name
        assert constant.year is not None, constant.name
        assert constant.low <= constant.value <= constant.high


def test_file_replaces_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[adc]\nenergy_pj_per_bit = 0.5\n[structure]\ncolumns = 256\n")
    own, default = load_constants(path), default_constants()
    assert own.values()["adc.energy_pj_per_bit"] == 0.5
    # A plain number is all that is known: a range of the package's would not be of it.
    assert own.lowest()["adc.energy_pj_per_bit"] == own.highest()["adc.energy_pj_per_bit"] == 0.5
    changed = {n for n, v in own.values().items() if v != default.values()[n]}
    assert changed == {"adc.energy_pj_per_bit", "structure.columns"}
    (given,) = (c for c in own.all() if c.name == "adc.energy_pj_per_bit")
    assert str(path) in given.source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[adc]\nenergy_pj = 1\n", ["adc.energy_pj", "Did you mean", "adc.energy_pj_per_bit"]),
        ("adc = 3\n", ["is no table"]),
        ("[adc]\nenergy_pj_per_bit = -1\n", ["not negative", "-1"]),
        ("[adc]\nenergy_pj_per_bit = 'x'\n", ["finite number"]),
        ("[adc]\nenergy_pj_per_bit = inf\n", ["finite number"]),
        ("[adc.energy_pj_per_bit]\nrange = [0, 1]\n", ["no value"]),
        ("[adc.energy_pj_per_bit]\nvalue = 2\nrange = [0, 1]\n", ["not in its range"]),
        ("[adc.energy_pj_per_bit]\nvalue = 2\nunit = 'J'\n", ["unknown field 'unit'"]),
        ("[structure]\ncolumns = 0.5\n", ["whole number"]),
        ("[structure]\ncolumns = 0\n", ["whole number"]),
        ("[adc\n", ["not TOML"]),
    ],
)
def test_wrong_file_is_an_error_that_names_it(tmp_path: Path, text: str, words: list[str]) -> None:
    # A misspelt constant that is silently left at its default.
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_constants(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_command_line_says_one_line_of_a_wrong_file(
    digits_job: Path, fails: Callable[..., str]
) -> None:
    (digits_job / "own.toml").write_text("[dac]\nenergy_pj = 'a'\n")
    model = "model.rimc.onnx"
    line = fails(digits_job, 2, "inspect", model, "--cost", "--constants", "own.toml")
    assert "dac.energy_pj" in line
    for option in (["--explain"], ["--constants", "own.toml"], ["--data", "test.npz"]):
        assert "Give --cost too" in fails(digits_job, 2, "inspect", model, *option)
    assert "not a converted model" in fails(digits_job, 1, "inspect", "model.onnx", "--cost")
