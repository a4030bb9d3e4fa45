# SPDX-License-Identifier: Apache-2.0
"""Weights in the middle of a training as they will be used: converted for a device, calibrated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx import passes
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.guard import fit_adapters
from rimc_onnx.calibration.walk import Sessions
from rimc_onnx.crossbar import ConvertConfig
from rimc_onnx.execution.sessions import (
    digital_session,
    native_session,
    open_session,
    run_session,
)
from rimc_onnx.io.feeds import feeds_of
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.io.samples import Data, Samples
from rimc_onnx.jobs.convert import convert
from rimc_onnx.training import write_back

if TYPE_CHECKING:
    from rimc_onnx.training.finetune import Run

__all__ = ["CalibratedState"]

Array = npt.NDArray[Any]

_SAMPLES = CalibrateConfig().num_samples


class CalibratedState:
    """Converts and calibrates trained weights of one file as the commands do, with their defaults.

    Weights that were trained behind an I-V curve are wrong without it, and a teacher runs without:
    theirs are the weights of the file. All others teach themselves.
    """

    def __init__(
        self, source: Path, samples: Samples, data: Data | None, config: ConvertConfig, seed: int
    ) -> None:
        """``data`` gives the ranges; the samples of the calibrations are drawn by ``seed``."""
        self._source, self._data, self._config = source, data, config
        drawn = samples.draw_at_most(_SAMPLES, seed=seed)
        self._num_samples, self._feeds = drawn.num_samples, feeds_of(drawn)

    def run(
        self, weights: Mapping[str, Array], metadata: Mapping[str, str], device_seed: int
    ) -> Run:
        """The calibrated model on the device of ``device_seed``.

        Args:
            weights: arrays by the names of initializers.
            metadata: what the file says of the training beside them.
            device_seed: key of the device.

        Raises:
            RimcError: as a conversion and a calibration.
        """
        with tempfile.TemporaryDirectory(prefix="rimc-finetune-") as folder:
            trained = Path(folder) / "trained.onnx"
            converted = trained.with_suffix(".rimc.onnx")
            write_back(self._source, trained, weights, metadata=metadata)
            config = replace(self._config, seed=device_seed)
            data = self._data if config.needs_ranges else None
            convert(trained, converted, config=config, data=data)
            student = load_model(converted)
            teacher = load_model(trained if config.iv_curve is None else self._source)
            passes.prepare_pipeline(keep_digital=config.keep_digital)(teacher)
            fit_adapters(
                student,
                teacher,
                self._feeds,
                num_samples=self._num_samples,
                config=CalibrateConfig(num_samples=self._num_samples, allow_identity=True),
                sessions=Sessions(device=native_session, digital=digital_session),
            )
            calibrated = converted.with_suffix(".calibrated.onnx")
            save_model(student, calibrated, force=False)
            session = open_session(calibrated, native=True)
        names = [output.name for output in session.get_outputs()]

        def run(feeds: dict[str, Array]) -> dict[str, Array]:
            found = run_session(session, names, feeds, "the calibrated model")
            return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}

        return run
