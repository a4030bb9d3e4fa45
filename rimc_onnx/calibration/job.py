# SPDX-License-Identifier: Apache-2.0
"""What one calibration was given, and what follows from it for a node before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.calibration.array_read_out import read_out
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.moments import Features, check_summable
from rimc_onnx.calibration.problem import (
    CellPrior,
    NodeProblem,
    TeacherKnowledge,
    problem_from_device,
)
from rimc_onnx.calibration.sensitivity import Sensitivities
from rimc_onnx.calibration.solvers.registry import NodeSolver, solver_of
from rimc_onnx.calibration.walk import Feeds, Pair, Sessions, holding
from rimc_onnx.crossbar.read_noise import variance_of_reads
from rimc_onnx.device import DeviceConfig
from rimc_onnx.device.pair_error import expected_array
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.passes import RramUnit

__all__ = ["CalibrationJob", "Trial", "prior_of", "problem_of", "target_of"]

F32 = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """Samples on which whole models are run, and what runs their RRAM nodes."""

    feeds: Feeds
    device: SessionFactory


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationJob:
    """What a calibration was given."""

    student: ir.Model
    teacher: ir.Model
    pairs: Sequence[Pair]
    feeds: Feeds
    num_samples: int
    config: CalibrateConfig
    sessions: Sessions
    known: TeacherKnowledge | None
    progress: Progress

    @property
    def units(self) -> list[RramUnit]:
        """The teacher's nodes, in graph order."""
        return [pair.unit for pair in self.pairs]

    @property
    def solver(self) -> NodeSolver:
        """What finds adapters."""
        return solver_of(self.config.solver)

    @property
    def exact(self) -> bool:
        """True where statistics of many samples meet measured arrays.

        They are taken as exact; what is estimated from a few samples is shrunk.
        """
        return self.config.read_out and self.known is not None

    @property
    def bias_frac(self) -> float:
        """Share of a wrong mean output that the bias will take away."""
        if self.exact:
            return 1.0
        return self.num_samples / (self.num_samples + self.config.closed_form.bias_prior_samples)

    @contextmanager
    def trial(self) -> Iterator[Trial | None]:
        """The samples and the device; ``None`` without a sample.

        Where none came from the field they are those of the statistics file, and the student's
        arrays hold what was measured as long as the context lasts.
        """
        if self.feeds:
            yield Trial(feeds=self.feeds, device=self.sessions.device)
        elif self.known is not None and self.known.reference:
            measured = {pair.branch.node: _read_out(pair, self.config) for pair in self.pairs}
            with holding(self.pairs, measured):
                yield Trial(feeds=self.known.reference, device=self.sessions.digital)
        else:
            yield None


def problem_of(
    job: CalibrationJob,
    sensitivities: Sensitivities,
    pair: Pair,
    features: Features | None,
) -> NodeProblem:
    """What a node lacks.

    Raises:
        CalibrationError: float32 does not hold the sum of its weights' squares.
    """
    config, name, target = job.config, pair.branch.node, target_of(pair)
    check_summable(name, target)
    if features is None:
        assert job.known is not None, "no samples, then a statistics file"
        return NodeProblem(
            name=name,
            geometry=pair.geometry,
            statistics=job.known.statistics[name],
            target=target,
            error=target - _measured(pair, config),
            bias_frac=job.bias_frac,
        )
    sensitivity = sensitivities[name]
    problem = problem_from_device(
        name,
        features.moments(pair.geometry, sensitivity.row_limit),
        target,
        bias_frac=job.bias_frac,
        sensitivity=sensitivity.power,
        prior=prior_of(pair, config),
        has_common_loss=not config.read_out,
    )
    if job.known is not None:
        problem = replace(problem, statistics=job.known.statistics[name])
    return problem


def prior_of(pair: Pair, config: CalibrateConfig) -> CellPrior:
    """What is known of a node's cells: a measurement, or as a black box the law of its device.

    The law says what a pair that holds a weight is expected to lack, how far that varies, and how
    far reads do. Of the arrays themselves only what the conversion recorded is used: device, time,
    W_max and read noise.
    """
    attributes = pair.branch.rram.attributes
    expected = expected_array(
        pair.unit.weight.float32(),
        DeviceConfig.from_json(attributes["device_config"].as_string()),
        attributes["time_s"].as_float(),
        np.asarray(attributes["w_max"].as_floats(), np.float32),
        pair.geometry.column_axis,
        variance_of_reads(
            read_noise=attributes["read_noise"].as_float(),
            read_noise_relative=attributes["read_noise_relative"].as_int(),
            read_noise_curve=attributes["read_noise_curve"].as_floats(),
        ),
    )
    error, variance = _matrices(pair, expected.error), _matrices(pair, expected.variance)
    if config.read_out:
        measured = _measured(pair, config)
        error = target_of(pair) - measured
        variance = np.square(np.float32(config.read_out_noise_frac) * measured)
    reads = expected.read_variance
    return CellPrior(
        error=error,
        variance=variance,
        read_variance=None if reads is None else _matrices(pair, reads),
    )


def target_of(pair: Pair) -> F32:
    """W_t as matrices, [G, d, m]."""
    return _matrices(pair, pair.unit.weight.float32())


def _matrices(pair: Pair, weight: F32) -> F32:
    """The weight [G, d, m]; rows of a convolution together."""
    matrices = pair.geometry.matrices(weight)
    return np.ascontiguousarray(matrices) if pair.geometry.is_conv else matrices


def _measured(pair: Pair, config: CalibrateConfig) -> F32:
    return _matrices(pair, _read_out(pair, config))


def _read_out(pair: Pair, config: CalibrateConfig) -> F32:
    """The node's arrays as they are measured: the same draw however often it is asked."""
    return read_out(
        pair.branch.weight(),
        node=pair.branch.node,
        seed=config.read_out_seed,
        noise_frac=config.read_out_noise_frac,
    )
