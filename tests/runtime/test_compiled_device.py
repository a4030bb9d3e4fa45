# SPDX-License-Identifier: Apache-2.0
"""Compiled devices: what the library reads of them, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from provider_models import needs_providers, normal, one_node

from rimc_onnx import runtime
from rimc_onnx.crossbar import ConvertConfig, PeripheryConfig, compiled_device
from rimc_onnx.device import Scaling, get_preset, list_presets, table_file
from rimc_onnx.errors import ConfigError, OutputError
from rimc_onnx.jobs.device_file import write_device_file
from rimc_onnx.jobs.provider_options import provider_options
from rimc_onnx.runtime.provider import provider_session, register_provider, translated

ROOT = Path(__file__).resolve().parents[2]
MODEL = one_node("MatMul", normal(5, 80, 50))
X = normal(6, 3, 80)


def native(options: dict[str, str]) -> list[bytes]:
    """Two runs of a session whose options the library gets as they are, without Python's help."""
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    session_options.add_provider_for_devices(register_provider(), options)
    try:
        session = onnxruntime.InferenceSession(MODEL, session_options, enable_fallback=0)
    except Exception as error:
        raise translated(error) from error
    return [session.run(None, {"x": X})[0].tobytes() for _ in range(2)]


def by_python(**options: object) -> list[bytes]:
    session = provider_session(MODEL, provider_options=options)
    return [session.run(None, {"x": X})[0].tobytes() for _ in range(2)]


def values_of(file: bytes) -> dict[str, Any]:
    """What :func:`table_file` was given."""
    (length,) = struct.unpack("<I", file[12:16])
    header = json.loads(file[16 : 16 + length])
    at = 16 + length
    tables = []
    for size in header["tables"]:
        tables.append(np.frombuffer(file[at : at + 8 * size], "<f8").astype(np.float64))
        at += 8 * size
    law = header["values"]["law"]
    for name, value in law.items():
        if isinstance(value, dict):
            law[name] = tables[value["table"]]
    return dict(header["values"])


def test_presets_beside_the_library_are_those_of_the_package() -> None:
    # A preset, an attribute or the format changed, and the files not compiled again.
    folder = ROOT / "runtime" / "src" / "device"
    spec = importlib.util.spec_from_file_location("make_presets", folder / "make_presets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    want = module.compiled_presets()
    assert {p.name: p.read_bytes() for p in (folder / "presets").iterdir()} == want
    installed = runtime.library_path().parent / "devices"
    assert {p.name: p.read_bytes() for p in installed.iterdir()} == want


@needs_providers
@pytest.mark.parametrize("preset", list_presets())
def test_library_finds_a_preset_by_its_name(preset: str) -> None:
    # The presets of another folder; a preset that means something else without Python.
    stated = {"periphery": '{"*": {"dac_range": 3.0}}', "seed": "4"}
    assert native({"preset": preset, **stated}) == by_python(preset=preset, **stated)


@needs_providers
def test_file_holds_time_and_parameters(tmp_path: Path) -> None:
    # A field that is compiled at its default.
    device = get_preset(
        "pcm-natcomm2020", scaling=Scaling.COLUMN, clip_sigma=2.0, devices_per_weight=2, g_max_us=20
    )
    path = write_device_file(device, tmp_path / "pcm.rimcdev", time_s=86400.0)
    with pytest.raises(OutputError, match="exists already"):
        write_device_file(device, tmp_path / "pcm.rimcdev")
    want = by_python(
        preset="pcm-natcomm2020", scaling="column", clip_sigma=2.0, devices_per_weight=2,
        g_max_us=20, time_s=86400, seed=3,
    )  # fmt: skip
    assert native({"device": f"@{path}", "seed": "3"}) == want
    assert by_python(device=f"@{path}", seed=3) == want
    quiet = write_device_file(device, tmp_path / "quiet.rimcdev", device_reads=False)
    assert len(set(native({"device": f"@{quiet}"}))) == 1


@needs_providers
def test_options_for_programs_without_python_name_a_compiled_device(tmp_path: Path) -> None:
    # Options that only this package can read.
    (tmp_path / "model.onnx").write_bytes(MODEL)
    np.savez(tmp_path / "calibration.npz", x=X)
    config = ConvertConfig(
        device=get_preset("cmo-hfox-2025-2pct"), time_s=1e5, periphery=PeripheryConfig(adc_bits=8)
    )
    model = tmp_path / "model.onnx"
    texts = provider_options(model, config=config)
    files = provider_options(model, config=config, device_file=tmp_path / "cmo.rimcdev")
    assert set(texts) - set(files) == {"time_s"}
    assert native(files) == by_python(**texts)


def test_command_compiles_a_device(cli: Callable[..., Any], tmp_path: Path) -> None:
    # An option of the command that does not reach the file.
    compile_it = ["devices", "wan2022-aihwkit", "-o", "wan.rimcdev"]
    found = cli(*compile_it, "--time", "1d", "--slices", "2", "--level-bits", "3", "--json",
                cwd=tmp_path).json()  # fmt: skip
    device = get_preset("wan2022-aihwkit", num_slices=2, level_bits=3)
    written = tmp_path / "wan.rimcdev"
    assert found["output"] == str(written)
    assert written.read_bytes() == compiled_device(device, time_s=86400.0)
    assert cli(*compile_it, cwd=tmp_path).code == 1
    plain = cli(*compile_it, "--force", "--ideal-reads", cwd=tmp_path)
    assert plain.stdout == f"wrote {written}\n"
    assert written.read_bytes() == compiled_device(
        get_preset("wan2022-aihwkit"), device_reads=False
    )
    for wrong in (["devices", "-o", "x"], ["devices", "milo2021", "--slices", "2"]):
        assert cli(*wrong, cwd=tmp_path).code == 2


# --- what is refused


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        native({"device": f"@{path}"})
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"provider option device: '{path}'")
    return text


@needs_providers
def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    # A table that lost a bit on its way and programs weights that no device has.
    path, sound = tmp_path / "device.rimcdev", compiled_device(get_preset("sonos-40nm"))
    rng = np.random.default_rng(3)
    ends = [*range(24), *range(len(sound) - 34, len(sound))]
    for at in [*ends, *rng.integers(24, len(sound) - 34, 60)]:
        changed = bytearray(sound)
        changed[at] ^= 1 << rng.integers(8)
        text = refusal(path, bytes(changed))
        if at >= 12:
            assert "is damaged" in text
    for size in (0, 7, 8, 16, 47, 48, 100, len(sound) - 1):
        refusal(path, sound[:size])
    assert "is damaged" in refusal(path, sound + b"\0")


def signed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@needs_providers
def test_other_version_is_refused(tmp_path: Path) -> None:
    # A later file whose numbers mean something else.
    later = bytearray(compiled_device(get_preset("sonos-40nm"))[:-32])
    later[8] = 2
    text = refusal(tmp_path / "d", signed(bytes(later)))
    assert "is a compiled device of version 2, this library reads version 1. Compile it" in text


@needs_providers
@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("law", "g_max_us"), 0.0, "law: g_max_us must lie in"),
        (("law", "g_min_us"), -1.0, "law: g_min_us must lie in"),
        (("law", "level_bits"), 2.5, "law: level_bits must be a whole number"),
        (("law", "num_slices"), 3, "law: a weight can't have 3 slices of 0 bits"),
        (("law", "devices_per_weight"), 0, r"law: devices_per_weight must lie in 1\.\.64"),
        (("law", "stuck_max_words"), 2**32 + 1, r"law: stuck_max_words must lie in 0\.\."),
        (("law", "mean_us"), np.zeros(4096), "law: mean_us must have 4097 knots, got 4096"),
        (("law", "mean_us"), np.full(4097, np.nan), "law: mean_us has a knot that is not finite"),
        (("law", "mean_us"), {"table": 1}, r"law: mean_us: table must lie in 0\.\.0, got 1"),
        (("law", "mean_us"), {"table": 0, "g": 1}, "law: mean_us has no field 'g'"),
        (("law", "tunnels"), 1.0, "law has no field 'tunnels'"),
        (("law",), None, "law must be an object"),
        (("scaling",), "row", "scaling 'row' is not known"),
        (("has_error",), 1, "has_error must be true or false"),
        (("clip_sigma",), -1.0, "clip_sigma must lie in"),
        (("device",), 3, "device must be a text"),
        (("attributes", "dac_bits"), {"int": 1.5}, "dac_bits must be a whole number"),
        (("attributes", "dac_bits"), {"bits": 8}, "dac_bits has the unknown type 'bits'"),
        (("attributes", "dac_bits"), {}, "dac_bits must have one type"),
        (("reads",), [{"what": "x", "needs": [], "attributes": {"dac_bits": 8}}], "is no attribut"),
        (("wires",), 1, "has no field 'wires'"),
    ],
)
def test_forged_value_is_refused_by_name(
    tmp_path: Path, where: tuple[str, ...], value: Any, message: str
) -> None:
    # A kernel that reads beyond a table or shifts by more bits than there are.
    values = values_of(compiled_device(get_preset("sonos-40nm")))
    part = values
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    content = table_file(values)
    path = tmp_path / "d"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        native({"device": f"@{path}"})


@needs_providers
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "is not JSON"),
        (b'{"values":{},"tables":[1.5]}', "has a table of 1.5 knots"),
        (b'{"values":{},"tables":[8]}', "ends within a table"),
        (b'{"values":{},"tables":[]}', "lacks device"),
        (b'{"values":{},"tables":[' + b"0," * 70 + b"0]}", "has 71 tables"),
    ],
)
def test_forged_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    front = b"rimc-dev" + struct.pack("<II", 1, len(header))
    assert message in refusal(tmp_path / "d", signed(front + header))
    longer = b"rimc-dev" + struct.pack("<II", 1, len(header) + 1)
    assert "ends within its header" in refusal(tmp_path / "d", signed(longer + header))


@needs_providers
def test_attribute_of_a_later_package_is_refused(tmp_path: Path) -> None:
    # A number that the library leaves out of account.
    values = values_of(compiled_device(get_preset("sonos-40nm")))
    values["attributes"]["adc_delay"] = {"float": 0.0}
    (tmp_path / "d").write_bytes(table_file(values))
    with pytest.raises(ConfigError, match="this library has no attribute adc_delay"):
        native({"device": f"@{tmp_path / 'd'}", "periphery": '{"*": {"adc_delay": 1}}'})


@needs_providers
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "of-my-own"}, "option preset: no device 'of-my-own' lies beside the library"),
        ({"preset": "../devices/milo2021"}, "option preset must be the name of a device model"),
        ({"device": "{}"}, "option device must be @ and the path of a compiled device"),
        ({"device": "@."}, r"option device: the file '\.' can't be read"),
        ({"preset": "milo2021", "time_s": "3"}, "option 'time_s' is not known.* --time TIME -o FI"),
        ({"preset": "milo2021", "device_reads": "2"}, "option device_reads must be 0 or 1, got"),
    ],
)
def test_option_that_needs_python_is_refused(options: dict[str, str], message: str) -> None:
    # A parameter that is read over: the preset's own would run.
    with pytest.raises(ConfigError, match=f"^provider {message}"):
        native(options)
