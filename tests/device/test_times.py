# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rimc_onnx.device import format_time, parse_time
from rimc_onnx.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("10min", 600.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("30d", 2592000.0),
        ("10y", 315576000.0),
        ("0", 0.0),
        ("3600", 3600.0),
        ("1.5 h", 5400.0),
        ("1e3s", 1000.0),
        # what a file can hold: float32, so that a recorded time is the time that was used
        ("100000001", 100000000.0),
    ],
)
def test_time_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1m", r"the unit 'm' is not known\. Known: s, min, h, d, y"),  # month or minute?
        ("", "is not a time since programming"),
        ("-1s", "is not a time since programming"),
        ("1.2.3s", "is not a time since programming"),
        ("one day", "is not a time since programming"),
        ("nan", "is not a time since programming"),
        ("1e13", "time_s must lie in 0..1e12 seconds"),
    ],
)
def test_text_that_is_no_time_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_time(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (1.0, "1 s"), (27.36, "27.36 s"), (5400.0, "1.5 h"), (86400.0, "1 d")],
)
def test_time_is_written_in_its_largest_unit(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
    assert format_time(315576000.0) == "10 y"
