# SPDX-License-Identifier: Apache-2.0
"""The job ``advise``: what mappings, devices and SRAM would give, before anything is converted."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.calibration.forecast import (
    NodeForecast,
    TeacherNode,
    forecast,
    measured_nodes,
    weighed_nodes,
)
from rimc_onnx.calibration.moments import check_summable
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import Scaling
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.feeds import feeds_of, graph_inputs
from rimc_onnx.io.model_files import blame_model, load_model
from rimc_onnx.io.samples import Data, Samples, load_samples
from rimc_onnx.jobs.convert import num_unequal, with_mapping
from rimc_onnx.runtime.programming import native_programmer

__all__ = ["AdviceOption", "AdviseReport", "advise"]

_SRAM_FRACS = (0.02, 0.05, 0.1)
_DEVICES_PER_WEIGHT = (1, 2, 4)
_JUDGED_ON = 32
"""Samples that errors are judged on."""


@dataclass(frozen=True, kw_only=True)
class AdviceOption:
    """One way to convert and calibrate a model."""

    equalized: bool
    """The model is equalized first."""
    scaling: str
    """``auto`` or ``node``."""
    clip_sigma: str
    """``auto`` or ``none``."""
    devices_per_weight: int
    num_slices: int
    sram_frac: float
    """SRAM of a calibration, as a share of the weights."""
    sram_bytes: int
    num_devices: int
    """Devices of all pairs."""
    output_error: float | None
    """Expected power of the error at the model's outputs, over theirs; ``None`` without data."""
    node_error: float
    """Expected error of a node's output relative to the power of the teacher's, median of nodes."""
    node_error_uncalibrated: float
    nodes: list[NodeForecast]


@dataclass(frozen=True, kw_only=True)
class AdviseReport:
    """Options, the cheapest first: by devices, then by SRAM."""

    model: str
    device: str
    rram_weights: int
    samples: int | None
    """Of a calibration; ``None`` where no data told of the inputs."""
    options: list[AdviceOption]
    seconds: float


def advise(
    model: str | Path,
    *,
    config: ConvertConfig | None = None,
    data: Data | None = None,
    num_samples: int = 10,
    sram_fracs: Sequence[float] | None = None,
    devices_per_weight: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> AdviseReport:
    """Expected error, devices and bytes of ways to convert and calibrate a model.

    Of one W_max a node with nothing clipped, and of the configuration's mapping with each
    combination of ``sram_fracs`` and ``devices_per_weight``; of a device with levels also with one
    slice more; of a model whose word lines are so unequal that :func:`.convert` tells of it, also
    of what :func:`.equalize` makes of it. Converters of the periphery are left out of the errors,
    read noise is not.

    Args:
        model: the teacher, an .onnx file.
        config: device, time, seed, nodes.
        data: samples of the inputs; without any all inputs count the same, and less is known.
        num_samples: samples of a calibration, or fewer that fill runs of a fixed batch; errors are
            judged on up to 32 of the data.
        sram_fracs: SRAM of a calibration, as shares of the weights; default 2, 5 and 10 %.
        devices_per_weight: numbers of pairs in parallel; default 1, 2 and 4.
        progress: called with (options done, options in all).

    Raises:
        RimcError: see the subclasses.
    """
    start = time.perf_counter()
    config = config or ConvertConfig()
    source = Path(model)
    given = _Model.of(source, config, data, num_samples, equalized=False)
    models = [given]
    if num_unequal(given.decisions, config):
        models.append(_Model.of(source, config, data, num_samples, equalized=True))
    fracs, pairs = sram_fracs or _SRAM_FRACS, devices_per_weight or _DEVICES_PER_WEIGHT
    ways = [
        (one, way, frac)
        for one in models
        for way, frac in _ways(config, fracs, pairs, one.equalized)
    ]
    mapped = {}
    options = []
    for done, (one, way, sram_frac) in enumerate(ways):
        key = (one.equalized, way.device)
        if key not in mapped:
            mapped[key] = with_mapping(way, one.graph, one.units, one.feeds)
        options.append(_option(mapped[key], way, one, sram_frac))
        progress(done + 1, len(ways))
    return AdviseReport(
        model=str(source),
        device=config.device.preset,
        rram_weights=given.num_weights,
        samples=None if data is None else given.num_samples,
        options=sorted(options, key=lambda o: (o.num_devices, o.sram_bytes, -o.node_error)),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """A model as it would be converted, and what is known of its nodes."""

    equalized: bool
    graph: ir.Model
    decisions: list[passes.MappingDecision]
    nodes: list[TeacherNode]
    num_samples: int
    """Of a calibration."""
    feeds: list[Feed]
    """Samples that errors are judged on."""

    @classmethod
    def of(
        cls,
        source: Path,
        config: ConvertConfig,
        data: Data | None,
        num_samples: int,
        *,
        equalized: bool,
    ) -> _Model:
        """``equalized`` or as it lies in its file."""
        graph = load_model(source)
        with blame_model(source):
            if equalized:
                passes.equalize_model(graph, keep_digital=config.keep_digital)
            passes.prepare_pipeline(keep_digital=config.keep_digital)(graph)
            decisions = passes.select_rram_nodes(graph, config)
        passes.require_mapped(decisions)
        units = [d.unit for d in decisions if d.unit]
        drawn = num_samples
        feeds: list[Feed] = []
        if data is None:
            nodes = weighed_nodes(units)
        else:
            samples = load_samples(data, graph_inputs(graph))
            drawn = samples.whole_runs(num_samples)
            nodes, feeds = _measured(graph, units, samples, drawn, config.seed)
        return cls(
            equalized=equalized,
            graph=graph,
            decisions=list(decisions),
            nodes=nodes,
            num_samples=drawn,
            feeds=feeds,
        )

    @property
    def units(self) -> list[passes.RramUnit]:
        """Nodes that go to RRAM."""
        return [node.unit for node in self.nodes]

    @property
    def num_weights(self) -> int:
        """In RRAM."""
        return sum(int(np.prod(node.unit.weight.shape)) for node in self.nodes)


def _measured(
    graph: ir.Model,
    units: Sequence[passes.RramUnit],
    samples: Samples,
    num_samples: int,
    seed: int,
) -> tuple[list[TeacherNode], list[Feed]]:
    """What is known of the nodes, and the samples that errors are judged on."""
    for unit in units:
        check_summable(unit.name, unit.weight.float32())
    drawn = feeds_of(samples.draw(num_samples, seed=0))
    judged_on = feeds_of(samples.draw_at_most(_JUDGED_ON, seed=1))
    return measured_nodes(graph, units, drawn, judged_on, digital_session, seed=seed), judged_on


def _ways(
    config: ConvertConfig,
    sram_fracs: Sequence[float],
    devices_per_weight: Sequence[int],
    equalized: bool,
) -> Iterator[tuple[ConvertConfig, float]]:
    """Conversions, each with the SRAM of its calibration."""
    device = replace(config.device, devices_per_weight=devices_per_weight[0])
    plain = replace(device, scaling=Scaling.NODE, clip_sigma=math.inf)
    for sram_frac in [] if equalized else sram_fracs:
        yield replace(config, device=plain), sram_frac
    slices = [device.num_slices]
    if device.level_bits is not None:
        slices.append(device.num_slices + 1)
    for pairs, count, sram_frac in itertools.product(devices_per_weight, slices, sram_fracs):
        device = replace(config.device, devices_per_weight=pairs, num_slices=count)
        yield replace(config, device=device), sram_frac


def _option(
    mapped: ConvertConfig,
    way: ConvertConfig,
    model: _Model,
    sram_frac: float,
) -> AdviceOption:
    device, nodes, weights = way.device, model.nodes, model.num_weights
    budget = int(sram_frac * weights)
    found = forecast(
        nodes,
        mapped,
        num_samples=model.num_samples,
        budget_bytes=budget,
        programmer=native_programmer(),
    )
    output_error = None
    if all(node.statistics.sensitivity is not None for node in nodes):
        output_error = sum(
            one.error_after
            * float(node.statistics.y_variance.sum(dtype=np.float64))
            * (node.statistics.sensitivity or 0.0)
            for one, node in zip(found, nodes, strict=True)
        )
    scaling = "auto" if device.scaling is None else device.scaling.value
    clip = "none" if not device.clips else f"{device.clip_sigma:g}"
    clip = "auto" if device.clip_sigma is None else clip
    return AdviceOption(
        equalized=model.equalized,
        scaling=scaling,
        clip_sigma=clip,
        devices_per_weight=device.devices_per_weight,
        num_slices=device.num_slices,
        sram_frac=sram_frac,
        sram_bytes=budget,
        num_devices=2 * weights * device.devices_per_weight * device.num_slices,
        output_error=output_error,
        node_error=float(np.median([one.error_after for one in found])),
        node_error_uncalibrated=float(np.median([one.error_before for one in found])),
        nodes=found,
    )
