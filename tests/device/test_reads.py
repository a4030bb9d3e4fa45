# SPDX-License-Identifier: Apache-2.0
"""Read noise and I-V curves that belong to a device model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import DeviceConfig, IvPolynomial, get_preset, list_presets, load_device
from rimc_onnx.errors import ConfigError
from rimc_onnx.reference import rram_matmul

MILO = get_preset("milo2021")


def milo_current_a(g_us: np.ndarray, v: float) -> np.ndarray:
    """Milo et al. in CrossSim's fit, written down again."""
    log_g = np.log10(g_us * 1e-6)
    n2 = 1.388e-4 * log_g**3 + 1.541e-3 * log_g**2 + 5.711e-3 * log_g + 7.063e-3
    n3 = 8.871e-5 * log_g**2 + 6.792e-4 * log_g + 1.297e-3
    return np.asarray(g_us * 1e-6 * v + n2 * v**2 + n3 * v**3)


def test_milo_has_the_published_asymmetry() -> None:
    # A coefficient in the wrong place; a base of e; rounded digits, which cancel to nothing.
    curve = MILO.iv_polynomial
    assert curve is not None
    stated = {(62.5, 0.5): -0.153, (62.5, -0.5): 0.229, (110.0, 0.5): -0.033, (110.0, -0.5): 0.026}
    for (g_us, volts), relative in stated.items():
        current = curve.current_a(g_us, volts)
        assert current / (g_us * 1e-6 * volts) - 1 == pytest.approx(relative, abs=6e-4)
        assert current == pytest.approx(float(milo_current_a(np.array(g_us), volts)), rel=1e-12)
    # forced to the straight line at 225 uS
    assert abs(curve.current_a(225.0, 0.5) / (225e-6 * 0.5) - 1) < 4e-3


@pytest.mark.parametrize("shrink", [1.0, 0.4])
def test_node_carries_the_currents_of_its_pairs(shrink: float) -> None:
    # The whole way: attributes of a conversion, through the oracle, against the sum of the
    # currents of both devices. One curve for all weights would pass with small ones only.
    config = ConvertConfig(device=MILO, periphery=PeripheryConfig(input_shrink=shrink))
    square, cube = config.iv_curves
    rng = np.random.default_rng(0)
    w = rng.uniform(-1, 1, (40, 7)).astype(np.float32)
    w[0, 0] = 1.0
    x = rng.uniform(-3, 3, (90, 40)).astype(np.float32)
    got = rram_matmul(x, w, num_tiles=1, dac_range=3.0, iv_square=square, iv_cube=cube, w_max=[1.0])
    volts = x.astype(np.float64) / 3.0 * 0.5 * shrink
    g = 175.0 * np.abs(w.astype(np.float64))
    pair = np.stack([50.0 + np.where(w > 0, g, 0), 50.0 + np.where(w < 0, g, 0)])
    amperes = np.zeros((90, 7))
    for k in range(40):
        for row, v in enumerate(volts[:, k]):
            current = milo_current_a(pair[:, k], v)
            amperes[row] += current[0] - current[1]
    want = amperes / (175e-6 * 0.5 * shrink) * 3.0
    straight = x @ w
    # P and Q meet the curve at eight conductances and stay within 1e-3 in between; 40 rows of up
    # to 3.
    assert np.abs(got - want).max() < 1e-3 * np.abs(x).sum(axis=1).max() * shrink
    assert np.abs(got - straight).max() > 0.5 * shrink
    # the error has a sign: it doesn't change with the input's
    flipped = rram_matmul(
        -x, w, num_tiles=1, dac_range=3.0, iv_square=square, iv_cube=cube, w_max=[1.0]
    )
    assert np.abs(got + flipped).max() > 0.5 * shrink


def test_presets_bring_along_what_was_published_and_nothing_else() -> None:
    # A default that appears where nobody measured one.
    stated = {
        name: (p.config.read_noise_frac or p.config.read_noise_law, p.config.iv_curve)
        for name, p in list_presets().items()
        if p.config.read_noise_law or p.config.iv_curve
    }
    assert stated == {
        "wan2022-aihwkit": (0.01, None),
        "milo2021": (None, "polynomial"),
        "cmo-hfox-2025-0.2pct": ("curve", None),
        "cmo-hfox-2025-2pct": ("curve", None),
        "pcm-natcomm2020": ("curve", None),
    }
    fields = {0.01: "read_noise_frac", "curve": "read_noise_curve", None: "iv_polynomial"}
    for name in stated:
        assert fields[stated[name][0]] in list_presets()[name].source
    for name in list_presets().keys() - stated.keys():
        config = ConvertConfig(device=get_preset(name))
        assert config.reads == PeripheryConfig()
        assert not config.needs_ranges


def test_options_win_over_the_preset() -> None:
    # A preset's noise that comes on top of the one asked for, or can't be switched off.
    wan = get_preset("wan2022-aihwkit")
    assert ConvertConfig(device=wan).reads.read_noise_frac == 0.01
    for given in (
        PeripheryConfig(read_noise_frac=0.2),
        PeripheryConfig(device_reads=False),
        PeripheryConfig(read_noise_frac=0.2, device_reads=False),
    ):
        config = ConvertConfig(device=wan, periphery=given)
        assert config.reads.read_noise_frac == given.read_noise_frac
        assert not config.reads_of_device
    # the preset's share is one of G_max, whatever law would go with a share of one's own
    law = PeripheryConfig(read_noise_law=ReadNoiseLaw.RELATIVE)
    assert ConvertConfig(device=wan, periphery=law).reads.read_noise_law is ReadNoiseLaw.ABSOLUTE
    assert ConvertConfig(device=MILO).iv_curve == "polynomial"
    assert ConvertConfig(device=MILO).needs_ranges
    sinh = ConvertConfig(device=MILO, periphery=PeripheryConfig(iv_sinh=2.0))
    assert (sinh.iv_curve, sinh.iv_polynomial) == ("sinh", None)
    ideal = ConvertConfig(device=MILO, periphery=PeripheryConfig(device_reads=False))
    assert (ideal.iv_curve, ideal.needs_ranges) == (None, False)


TABLE = """
base = "gaussian-relative"
g_min_us = 4.0
g_max_us = 36.0
read_noise_frac = 0.02

[iv_polynomial]
v_max_v = 0.3
square = [1.2e-5]
cube = [-2.0e-5, -4.0e-6]
g_range_us = [4.0, 40.0]
"""


def load(tmp_path: Path, text: str) -> DeviceConfig:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return load_device(path)


def test_file_states_reads_of_its_own(tmp_path: Path) -> None:
    # A table that is read and not recorded: age would program another device.
    config = load(tmp_path, TABLE)
    assert config.read_noise_frac == 0.02
    assert config.iv_polynomial == IvPolynomial(
        v_max_v=0.3, square=(1.2e-5,), cube=(-2.0e-5, -4.0e-6), g_range_us=(4.0, 40.0)
    )
    assert DeviceConfig.from_json(config.to_json()) == config.closed
    sinh = load(tmp_path, 'base = "gaussian-absolute"\niv_sinh = 1.5\n')
    assert (sinh.iv_sinh, sinh.iv_curve) == (1.5, "sinh")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v_max_v = 0.3", "v_max_mv = 300", r"its unit is _v \(volts\), write 'v_max_v'"),
        ("v_max_v = 0.3", "v_max_v = 300", r"need 0 < v_max_v <= 10, got 300\.0 \(volts\)"),
        ("v_max_v = 0.3\n", "", r"iv_polynomial lacks v_max_v"),
        ("read_noise_frac = 0.02", "read_noise_pct = 2", r"its unit is _frac .*write 'read_noise_"),
        ("read_noise_frac = 0.02", "read_noise_frac = 2", r"need 0 < read_noise_frac <= 1, got 2"),
        ("g_range_us = [4.0, 40.0]", "g_range_us = [5.0, 40.0]", r"holds for g_range_us 5\.0 \.\."),
        ("g_range_us = [4.0, 40.0]", "g_range_us = [0.0, 40.0]", r"two rising numbers above 0"),
        ("read_noise_frac = 0.02", "iv_sinh = 2.0", r"iv_sinh and iv_polynomial are two curves"),
        ("read_noise_frac = 0.02", "iv_sinh = 9.0", r"need 0 < iv_sinh <= 6, got 9"),
        ("square = [1.2e-5]", "square = 1.2e-5", r"square must be a list of numbers"),
    ],
)
def test_wrong_units_and_values_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, TABLE.replace(old, new))


def test_slices_have_no_curve_of_their_own() -> None:
    # The bend of two slices is not the bend of their sum.
    sliced = get_preset("milo2021", level_bits=2, num_slices=2)
    with pytest.raises(ConfigError, match="needs whole weights on a pair of devices"):
        ConvertConfig(device=sliced)
    ConvertConfig(device=sliced, periphery=PeripheryConfig(device_reads=False))


def test_conversion_reports_and_writes_what_the_preset_brings(
    cli: Any, digits_folder: Path
) -> None:
    # A report that says one thing and a file that holds another; a flag that is not passed on.
    import onnx

    def attribute(name: str) -> set[float]:
        model = onnx.load(digits_folder / "model.rimc.onnx")
        return {
            a.f
            for node in model.graph.node
            for a in node.attribute
            if node.op_type.startswith("Rram") and a.name == name
        }

    found = cli("convert", "model.onnx", "--device", "wan2022-aihwkit", "--json", cwd=digits_folder)
    report = found.json()
    assert (report["read_noise_frac"], report["reads_of_device"]) == (0.01, True)
    assert attribute("read_noise") == {np.float32(0.01)}
    words = cli(
        "convert", "model.onnx", "--device", "milo2021", "--force", cwd=digits_folder
    ).stdout
    assert "reads: I-V polynomial (from milo2021; --ideal-reads leaves them out)" in words
    ideal = cli(
        *("convert", "model.onnx", "--device", "milo2021", "--ideal-reads", "--force", "--json"),
        cwd=digits_folder,
    ).json()
    assert (ideal["iv_curve"], ideal["reads_of_device"]) == (None, False)
    pcm = cli(
        *("convert", "model.onnx", "--device", "pcm-natcomm2020", "--time", "1h", "--force"),
        cwd=digits_folder,
    ).stdout
    assert "reads: noise up to 4.19 % (from pcm-natcomm2020; --ideal-reads leaves them out)" in pcm
    assert len({*attribute("read_noise")}) == 1
    found = cli("devices", cwd=digits_folder).stdout
    assert "noise 1 %" in found
    assert "noise up to 0.275 %" in found
    assert "I-V polynomial" in cli("devices", "milo2021", cwd=digits_folder).stdout
