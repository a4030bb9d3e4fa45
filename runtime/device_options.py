# SPDX-License-Identifier: Apache-2.0
"""A device model in options of the provider, compiled into the file that the library reads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rimc_onnx.crossbar import DEVICE_SUFFIX, compiled_device
from rimc_onnx.device import DeviceConfig, Scaling, get_preset
from rimc_onnx.errors import ConfigError, suggest

__all__ = ["COMPILED_OPTIONS", "compiled_options"]

_OF_LIBRARY: Final = (
    "preset",
    "device",
    "mapping",
    "seed",
    "keep_digital",
    "device_reads",
    "periphery",
)
_FRACTIONAL: Final = (
    "drift_frac",
    "drift_mean_frac",
    "g_max_us",
    "g_min_us",
    "clip_sigma",
    "stuck_min_frac",
    "stuck_max_frac",
)
_WHOLE: Final = ("level_bits", "num_slices", "devices_per_weight")
COMPILED_OPTIONS: Final = ("time_s", "scaling", *_FRACTIONAL, *_WHOLE)
"""What is compiled, beside the model itself; names of :class:`DeviceConfig` but for the time."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MOST_SHOWN = 60


@contextmanager
def compiled_options(options: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Options that the library takes; a file that they name lives as long as the context.

    ``preset``, or ``device`` as JSON, with time and parameters become ``device=@FILE``. Options
    without a device model, and ``device=@FILE`` itself, stay as they are.

    Raises:
        ConfigError: an option is not known, or its value is bad.
    """
    for name in options:
        if name not in _OF_LIBRARY + COMPILED_OPTIONS:
            known = suggest(name, [*_OF_LIBRARY, *COMPILED_OPTIONS])
            raise ConfigError(f"provider option {_shown(name)} is not known. {known}")
    model = options.get("device")
    is_file = model is not None and model.startswith("@")
    if is_file or (model is None and "preset" not in options):
        for name in COMPILED_OPTIONS:
            if name in options and is_file:
                raise ConfigError(f"provider option {name}: a compiled device has its own")
            if name in options:
                raise ConfigError(f"provider option {name} needs the option preset")
        yield dict(options)
        return
    if model is not None and "preset" in options:
        raise ConfigError("provider options preset and device exclude each other")
    if options.get("device_reads", "1") not in {"0", "1"}:
        raise ConfigError(
            f"provider option device_reads must be 0 or 1, got {_shown(options['device_reads'])}"
        )
    try:
        content = compiled_device(
            _device(options),
            time_s=_number("time_s", options["time_s"]) if "time_s" in options else None,
            device_reads=options.get("device_reads") != "0",
        )
    except ConfigError as error:
        text = str(error)
        is_named = text.startswith("provider option")
        raise ConfigError(text if is_named else f"provider options: {text}") from error
    rest = {name: options[name] for name in _OF_LIBRARY[2:] if name in options}
    with tempfile.TemporaryDirectory(prefix="rimc-onnx-") as folder:
        file = Path(folder) / f"device{DEVICE_SUFFIX}"
        file.write_bytes(content)
        yield {"device": f"@{file}", **rest}


def _device(options: Mapping[str, str]) -> DeviceConfig:
    """The device model of ``preset`` or ``device``, with the parameters that are given."""
    if "device" in options:
        device = DeviceConfig.from_json(options["device"])
    else:
        device = get_preset(options["preset"])
    given: dict[str, Any] = {n: _number(n, options[n]) for n in _FRACTIONAL if n in options}
    for name in _WHOLE:
        if name in options:
            value = _number(name, options[name])
            given[name] = int(value) if value.is_integer() else value
    if "scaling" in options:
        known = [scaling.value for scaling in Scaling]
        if options["scaling"] not in known:
            raise ConfigError(
                f"provider option scaling must be {' or '.join(known)}, got "
                f"{_shown(options['scaling'])}"
            )
        given["scaling"] = Scaling(options["scaling"])
    return replace(device, **given)


def _number(name: str, text: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        raise ConfigError(f"provider option {name} must be a number, got {_shown(text)}")
    return float(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")
