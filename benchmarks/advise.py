# SPDX-License-Identifier: Apache-2.0
"""What ``advise`` expects of every way against what other devices then have, node by node.

    python -m benchmarks.advise [--network NAME ...] [--device NAME ...] [--seeds 1]

For every way: the median over nodes of expected over true error, and both errors. "Ranking" is the
rank correlation of the ways by them. Reads are ideal on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import rimc_onnx
from benchmarks.zoo import NETWORKS, Network
from rimc_onnx import passes
from rimc_onnx.api import AdviceOption, advise
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.forecast import TeacherNode, measured_nodes, true_errors
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import read_clip_sigma, read_scaling
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.feeds import feeds_of, graph_inputs
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.samples import load_samples
from rimc_onnx.studies.study_file import shipped_study

DEVICES = {p.names["device"]: p.trial.convert for p in shipped_study("zoo", seeds=1).points}
"""Device and time of the zoo's, by name."""
_IDEAL_READS = PeripheryConfig(device_reads=False)
_FORECAST_SEED = 100
_JUDGED_ON = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--device", action="append", choices=list(DEVICES))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.network or ("ResNet-20", "digits, depthwise", "digits, plain"):
        with tempfile.TemporaryDirectory() as folder:
            network = NETWORKS[name](Path(folder), 100)
            for device in arguments.device or ("wan2022-aihwkit 1 d", "gaussian-absolute 8 %"):
                _compare(name, network, DEVICES[device], device, arguments.seeds, Path(folder))


def _compare(
    name: str, network: Network, device: ConvertConfig, title: str, seeds: int, folder: Path
) -> None:
    report = advise(
        network.model,
        config=ConvertConfig(
            device=device.device,
            time_s=device.time_s,
            seed=_FORECAST_SEED,
            periphery=_IDEAL_READS,
        ),
        data=network.calibration,
    )
    nodes = _teacher_nodes(network)
    print(f"\n{name}, {title}: {len(nodes)} nodes, advised in {report.seconds:.1f} s\n")
    print("| scaling, clip, pairs, SRAM | expected / true | expected | true |\n|---|---|---|---|")
    expected, true = [], []
    for option in report.options:
        runs = [_true(network, device, option, seed, nodes, folder) for seed in range(seeds)]
        found = {node: float(np.mean([run[node] for run in runs])) for node in runs[0]}
        ratios = [n.error_after / found[n.name] for n in option.nodes]
        expected.append(option.node_error)
        true.append(float(np.median(list(found.values()))))
        what = f"{option.scaling}, {option.clip_sigma}, {option.devices_per_weight}"
        print(
            f"| {what}, {100 * option.sram_frac:g} % | {np.median(ratios):.2f} | "
            f"{expected[-1]:.4f} | {true[-1]:.4f} |",
            flush=True,
        )
    print(f"\nranking: {spearmanr(expected, true).statistic:.3f}")


def _teacher_nodes(network: Network) -> list[TeacherNode]:
    """The nodes with statistics of samples that no calibration here sees."""
    graph = load_model(network.model)
    passes.prepare_pipeline()(graph)
    samples = load_samples(network.calibration, graph_inputs(graph))
    judged_on = samples.draw(min(_JUDGED_ON, samples.num_samples), seed=1)
    feeds = feeds_of(judged_on)
    units = list(passes.find_units(graph).values())
    return measured_nodes(graph, units, feeds[:1], feeds, digital_session, seed=0)


def _true(
    network: Network,
    device: ConvertConfig,
    option: AdviceOption,
    seed: int,
    nodes: list[TeacherNode],
    folder: Path,
) -> dict[str, float]:
    mapping = {
        "scaling": read_scaling(option.scaling),
        "clip_sigma": read_clip_sigma(option.clip_sigma),
        "devices_per_weight": option.devices_per_weight,
    }
    converted = rimc_onnx.convert(
        network.model,
        folder / "net.rimc.onnx",
        config=ConvertConfig(
            device=replace(device.device, **mapping),
            time_s=device.time_s,
            seed=seed,
            periphery=_IDEAL_READS,
        ),
        data=network.calibration,
        force=True,
    )
    found = rimc_onnx.calibrate(
        str(converted.output),
        data=network.calibration,
        teacher=network.model,
        config=CalibrateConfig(sram_budget_frac=option.sram_frac),
        report=False,
        force=True,
    )
    return true_errors(load_model(Path(found.output)), nodes, num_samples=10)


if __name__ == "__main__":
    main()
