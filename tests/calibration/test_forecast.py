# SPDX-License-Identifier: Apache-2.0
"""What is expected of a calibration, against calibrations of other devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rimc_onnx import passes
from rimc_onnx.api import AdviceOption, advise, calibrate, convert
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.forecast import measured_nodes, true_errors
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset, read_clip_sigma, read_scaling
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.feeds import feeds_of, graph_inputs
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.samples import load_samples

IDEAL_READS = PeripheryConfig(device_reads=False)


def measured(folder: Path, option: AdviceOption, seed: int) -> dict[str, float]:
    """True errors of the nodes of a device that was converted and calibrated as advised."""
    data = folder / "calibration.npz"
    device = get_preset(
        "wan2022-aihwkit",
        scaling=read_scaling(option.scaling),
        clip_sigma=read_clip_sigma(option.clip_sigma),
        devices_per_weight=option.devices_per_weight,
    )
    config = ConvertConfig(device=device, seed=seed, time_s=86400.0, periphery=IDEAL_READS)
    converted = convert(folder / "model.onnx", config=config, data=data, force=True)
    fit = CalibrateConfig(sram_budget_frac=option.sram_frac)
    found = calibrate(str(converted.output), data=data, config=fit, report=False, force=True)
    teacher = load_model(folder / "model.onnx")
    passes.prepare_pipeline()(teacher)
    samples = load_samples(data, graph_inputs(teacher))
    feeds = feeds_of(samples.draw(samples.num_samples, seed=1))
    units = list(passes.find_units(teacher).values())
    nodes = measured_nodes(teacher, units, feeds, feeds, digital_session, seed=0)
    return true_errors(load_model(Path(found.output)), nodes, num_samples=10)


def test_forecast_is_what_another_device_has(digits_folder: Path) -> None:
    # Errors of the samples that adapters were fitted on, which are too small; an answer of the
    # arrays of the wrong sign; SRAM or pairs that make no difference; options out of order.
    config = ConvertConfig(
        device=get_preset("wan2022-aihwkit"), time_s=86400.0, periphery=IDEAL_READS, seed=7
    )
    report = advise(
        digits_folder / "model.onnx",
        config=config,
        data=digits_folder / "calibration.npz",
        sram_fracs=(0.05, 0.1),
        devices_per_weight=(1, 4),
    )
    assert len(report.options) == 6
    costs = [(o.num_devices, o.sram_bytes) for o in report.options]
    assert costs == sorted(costs)
    # One device each: nodes of a network of 11 differ by more than the mean of a bigger one's.
    found = []
    for option in report.options:
        true = measured(digits_folder, option, seed=0)
        ratios = [n.error_after / true[n.name] for n in option.nodes]
        assert 0.8 < np.median(ratios) < 1.25
        found.append(float(np.median(list(true.values()))))
    expected = [o.node_error for o in report.options]
    assert np.argsort(expected).tolist() == np.argsort(found).tolist()
    assert all(o.output_error is not None for o in report.options)


def test_weights_alone_tell_which_way_is_better(digits_folder: Path) -> None:
    # A mapping or devices that are not in the arrays where no sample is there.
    config = ConvertConfig(device=get_preset("gaussian-absolute"))
    report = advise(digits_folder / "model.onnx", config=config, sram_fracs=(0.1,))
    plain, *chosen = report.options
    assert (plain.scaling, plain.clip_sigma) == ("node", "none")
    assert plain.node_error > 1.5 * chosen[0].node_error
    errors = [o.node_error for o in chosen]
    assert errors == sorted(errors, reverse=True)
    assert report.samples is None
    assert chosen[0].output_error is None
