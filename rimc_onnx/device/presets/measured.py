# SPDX-License-Identifier: Apache-2.0
"""Device models fitted to measurements, in the numbers that were published."""

from __future__ import annotations

from typing import Final

from rimc_onnx.device.config import DeviceConfig, DriftLaw
from rimc_onnx.device.curves import Logarithmic, Polynomial, Power, Saturating
from rimc_onnx.device.duration import DAY_S, YEAR_S
from rimc_onnx.device.iv_curve import IvPolynomial
from rimc_onnx.device.presets.entry import Preset
from rimc_onnx.device.read_noise_curve import ReadNoiseCurve
from rimc_onnx.device.time_laws import LogRelaxation, PowerDecay, SigmaAtTimes, TimeAxis

__all__ = ["MEASURED_PRESETS"]

_NEURRAM = (
    "Wan et al., Nature 608, 504 (2022), doi 10.1038/s41586-022-04992-8, Extended Data Fig. 3d"
)
_IBM_KIT = "the IBM analog hardware acceleration kit"

# Wan et al. in the fit of the IBM kit: microsiemens, powers of G / 40 uS.
_WAN_1_S = (0.348, 16.030, -43.853, 45.393, -16.815)
_WAN_1_D = (0.701, 22.086, -50.773, 47.095, -16.458)
_WAN_2_D = (0.782, 20.274, -43.507, 37.062, -11.934)


def _wan(coefficients: tuple[float, ...]) -> Polynomial:
    return Polynomial(coefficients=coefficients, g_ref_us=40.0)


_WAN_AIHWKIT = Preset(
    config=DeviceConfig(
        preset="wan2022-aihwkit",
        law=DriftLaw.MEASURED,
        drift_frac=0.0,
        g_max_us=40.0,
        programming_sigma_us=_wan(_WAN_1_S),
        time_law=SigmaAtTimes(
            t0_s=1.0,
            times_s=(DAY_S, 2 * DAY_S),
            sigma_us=(_wan(_WAN_1_D), _wan(_WAN_2_D)),
        ),
        g_range_us=(0.0, 40.0),
        read_noise_frac=0.01,
    ),
    summary="HfO2 RRAM of the NeuRRAM chip, 1 s to 2 days, largest error at mid conductance",
    source=(
        f"{_NEURRAM}, 1 s, 1 day and 2 days, in the fourth-order fits of {_IBM_KIT}. "
        f"read_noise_frac: the notes of that kit on its ReRAM models, about 1 % of full scale."
    ),
)

_WAN_CROSSSIM = Preset(
    config=DeviceConfig(
        preset="wan2022-crosssim",
        law=DriftLaw.MEASURED,
        drift_frac=0.0,
        g_max_us=39.26,
        programming_sigma_us=Polynomial(coefficients=(1.053, 2.374e-1, -1.167e-2, 1.536e-4)),
        time_law=SigmaAtTimes(t0_s=1.0),
        g_range_us=(0.0, 39.26),
    ),
    summary="the same figure of the NeuRRAM chip in another fit, 1 s only",
    source=f"{_NEURRAM}, 1 s, in the cubic fit of CrossSim.",
)

_MILO = Preset(
    config=DeviceConfig(
        preset="milo2021",
        law=DriftLaw.MEASURED,
        drift_frac=0.0,
        g_max_us=175.0,
        g_min_us=50.0,
        programming_sigma_us=Polynomial(coefficients=(4.782321, -0.009107)),
        g_range_us=(50.0, 225.0),
        # all digits: the terms cancel to a few parts in a thousand
        iv_polynomial=IvPolynomial(
            v_max_v=0.5,
            square=(7.063e-3, 5.711e-3, 1.541e-3, 1.388e-4),
            cube=(1.297e-3, 6.792e-4, 8.871e-5),
            g_range_us=(50.0, 225.0),
        ),
    ),
    summary="HfO2 RRAM written by incremental gate and verify pulses, no time axis",
    source=(
        "Milo et al., IRPS 2021, Fig. 4, write scheme IGVVA-100, in the linear fit of CrossSim "
        "for 50 to 225 uS. iv_polynomial: the same paper in CrossSim's fit, 62.5 to 110 uS and 0 "
        "at 225 uS, up to 0.5 V."
    ),
)


# The kit's sigma = 0.0277316483 log10(G) sqrt(ln((t + 1 us) / 2 us)) uS, by ln G.
_CMO_READ_NOISE = ReadNoiseCurve(
    sigma_us=Logarithmic(offset=0.0, slope=0.0277316483 / 2.302585092994046, low=0.0, high=1.0),
    t_read_s=1e-6,
)


def _cmo(name: str, acceptance: str, coefficients: tuple[float, float]) -> Preset:
    return Preset(
        config=DeviceConfig(
            preset=name,
            law=DriftLaw.MEASURED,
            drift_frac=0.0,
            g_max_us=79.2,
            g_min_us=9.0,
            programming_sigma_us=Polynomial(coefficients=coefficients),
            time_law=LogRelaxation(
                t0_s=1.0,
                t_max_s=10 * YEAR_S,
                mean_us_per_ln=-0.08900206,
                sigma_us=0.41183342,
                sigma_us_per_ln=0.04201137,
            ),
            g_range_us=(9.0, 88.2),
            read_noise_curve=_CMO_READ_NOISE,
        ),
        summary=f"CMO/HfOx RRAM programmed to {acceptance} of the target, 1 s to 10 years",
        source=(
            "Falcone et al. 2025, arXiv 2502.04524, programming error at an acceptance of "
            f"{acceptance} and relaxation, in the linear fits of {_IBM_KIT}; the paper takes the "
            "relaxation to 10 years. read_noise_curve: the 1/f noise of the same kit."
        ),
    )


_PCM = Preset(
    config=DeviceConfig(
        preset="pcm-natcomm2020",
        law=DriftLaw.MEASURED,
        drift_frac=0.0,
        g_max_us=25.0,
        programming_sigma_us=Polynomial(coefficients=(0.26348, 1.9650, -1.1731), g_ref_us=25.0),
        time_law=PowerDecay(
            t0_s=20.0,
            t_max_s=YEAR_S,
            nu_mean=Logarithmic(offset=0.0244, slope=-0.0155, low=0.049, high=0.1, g_ref_us=25.0),
            nu_sigma=Logarithmic(
                offset=-0.0059, slope=-0.0125, low=0.008, high=0.045, g_ref_us=25.0
            ),
        ),
        g_range_us=(0.0, 25.0),
        read_noise_curve=ReadNoiseCurve(
            sigma_frac=Power(amplitude=0.0088, exponent=-0.65, low=0.0, high=0.2, g_ref_us=25.0),
            t_read_s=250e-9,
        ),
    ),
    summary="phase-change memory with its drift exponent of each device, 20 s to 1 year",
    source=(
        "Joshi et al., Nat. Commun. 11, 2473 (2020), and Nandakumar et al., ICECS 2019, in the "
        f"fits of {_IBM_KIT}; measured for about a day, the power law is taken on from there. "
        "read_noise_curve: the 1/f noise of the same papers and kit."
    ),
)

_RETENTION = Preset(
    config=DeviceConfig(
        preset="retention-power",
        law=DriftLaw.GAUSSIAN_RELATIVE,
        drift_frac=0.0,
        g_max_us=40.0,
        time_law=PowerDecay(
            t0_s=1.0,
            t_max_s=10 * YEAR_S,
            nu_mean=Polynomial(coefficients=(0.1,)),
            nu_sigma=Polynomial(coefficients=(0.0,)),
        ),
    ),
    summary="every device loses conductance as t^-0.1, none differs from another",
    source=(
        "Law: Boybat et al., NVMTS 2018, with the exponent 0.1 that is usual for phase-change "
        "memory. g_max_us: as gaussian-relative."
    ),
)

# Agrawal et al., Fig. 10: currents in nA at 0.1 V, so 1 nA is 0.01 uS. CrossSim's coefficients.
_SONOS_NA_US = 0.01
_SONOS_SPREAD_NA = (
    (19.88665, 176.3115),
    (25.59102, 186.85544),
    (28.72753, 193.56834),
    (31.04318, 198.90332),
    (33.76214, 204.77023),
    (34.57909, 207.34309),
)
_SONOS_MEAN_NA = (
    (
        *(6.83650e-01, 6.51250e-03, -4.03163e-04, 3.37944e-06, -1.87435e-08, 5.88902e-11),
        *(-1.07685e-13, 1.17751e-16, -7.60016e-20, 2.67255e-23, -3.94954e-27),
    ),
    (
        *(6.60925e-01, 8.60627e-03, -1.72936e-04, 7.44096e-07, -5.94866e-09, 2.36734e-11),
        *(-4.83740e-14, 5.56072e-17, -3.65397e-20, 1.28405e-23, -1.87450e-27),
    ),
    (
        *(1.15821e00, 1.96116e-02, -4.70807e-04, 3.67510e-06, -2.08786e-08, 6.59752e-11),
        *(-1.19499e-13, 1.28435e-16, -8.11574e-20, 2.78802e-23, -4.02057e-27),
    ),
    (
        *(8.72216e-01, 1.70926e-02, -2.23370e-04, 1.57526e-06, -1.32779e-08, 5.08256e-11),
        *(-1.01251e-13, 1.14633e-16, -7.46124e-20, 2.60559e-23, -3.78724e-27),
    ),
    (
        *(1.15294e00, 1.03149e-02, -6.05199e-05, 1.76086e-08, -6.46690e-09, 3.39044e-11),
        *(-7.53872e-14, 8.98185e-17, -6.00346e-20, 2.12615e-23, -3.11099e-27),
    ),
)


def _sonos_spread(amplitude_na: float, scale_na: float) -> Saturating:
    return Saturating(amplitude=amplitude_na * _SONOS_NA_US, g_scale_us=scale_na * _SONOS_NA_US)


def _sonos_mean(coefficients: tuple[float, ...]) -> Polynomial:
    return Polynomial(
        coefficients=tuple(c * _SONOS_NA_US for c in coefficients), g_ref_us=_SONOS_NA_US
    )


_SONOS = Preset(
    config=DeviceConfig(
        preset="sonos-40nm",
        law=DriftLaw.MEASURED,
        drift_frac=0.0,
        g_max_us=16.0,
        programming_sigma_us=_sonos_spread(*_SONOS_SPREAD_NA[0]),
        time_law=SigmaAtTimes(
            t0_s=0.0,
            axis=TimeAxis.LINEAR,
            times_s=tuple(day * DAY_S for day in range(1, 6)),
            sigma_us=tuple(_sonos_spread(*spread) for spread in _SONOS_SPREAD_NA[1:]),
            mean_us=tuple(_sonos_mean(mean) for mean in _SONOS_MEAN_NA),
        ),
        g_range_us=(0.0, 16.0),
    ),
    summary="40 nm SONOS flash below threshold, 0 to 5 days",
    source=(
        "Agrawal et al., IEDM 2022, 21.7, Fig. 10a and 10b, 128 K devices, 0 to 5 days, in the "
        "fits of CrossSim (up to 1600 nA, which are 16 uS at 0.1 V)."
    ),
)

MEASURED_PRESETS: Final = (
    _WAN_AIHWKIT,
    _WAN_CROSSSIM,
    _MILO,
    _cmo("cmo-hfox-2025-0.2pct", "0.2 %", (0.00081107, 0.00106879)),
    _cmo("cmo-hfox-2025-2pct", "2 %", (0.0112185391, 0.01129027418)),
    _PCM,
    _SONOS,
    _RETENTION,
)
