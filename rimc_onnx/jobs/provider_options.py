# SPDX-License-Identifier: Apache-2.0
"""What a conversion would do, as options of the execution provider: the model stays as it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.calibration.converter_ranges import measure_ranges
from rimc_onnx.crossbar import ConvertConfig, PeripheryConfig
from rimc_onnx.device import DeviceConfig, Scaling
from rimc_onnx.errors import ConfigError, UsageError
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.model_files import blame_model, files_of, load_model
from rimc_onnx.io.outputs import Outputs, check_outputs
from rimc_onnx.io.samples import Data, files_of_data
from rimc_onnx.jobs.convert import inputs_of, with_mapping
from rimc_onnx.jobs.device_file import write_device_file
from rimc_onnx.jobs.input_ranges import recorded_ranges
from rimc_onnx.passes.rram_unit import unit_periphery

__all__ = ["provider_options"]

_MOST_CHARACTERS = 8192
"""Of an option's value in ONNX Runtime."""


def provider_options(
    model: str | Path,
    *,
    config: ConvertConfig,
    data: Data | None = None,
    device_file: str | Path | None = None,
    periphery_file: str | Path | None = None,
    force: bool = False,
) -> dict[str, str]:
    """Options with which the provider programs a model as ``convert`` would.

    The nodes that go to crossbars are those of a conversion; ``rank`` has no meaning here. An
    option's value that begins with ``@`` names a file, which is read when a session is made. A
    program without this package needs ``device_file``: the library reads compiled devices alone.

    Args:
        model: an ordinary model, an .onnx file; its nodes need names.
        config: of the conversion.
        data: samples that set the ranges of converters and word lines, as for ``convert``.
        device_file: write the device there, compiled. Without it the options ``device`` and
            ``time_s`` are texts, which ``provider_session`` compiles.
        periphery_file: write the option ``periphery`` there. Without it the option holds the text.
        force: replace existing files.

    Raises:
        ConfigError: wires have a resistance: that changes weights, so the model has to be
            converted.
        UsageError: an option is longer than ONNX Runtime takes.
        RimcError: as of ``convert``.
    """
    source = Path(model)
    if config.periphery.wire_ohm is not None:
        raise ConfigError("wire_ohm changes weights, which the provider can't. Convert the model.")
    graph = load_model(source)
    outputs = [Path(file) for file in (device_file, periphery_file) if file is not None]
    check_outputs(outputs, force=force, reads=[*files_of(source), *files_of_data(data)])
    with blame_model(source):
        passes.prepare_pipeline(keep_digital=config.keep_digital)(graph)
        decisions = passes.select_rram_nodes(graph, config)
    passes.require_mapped(decisions)
    for decision in decisions:
        is_transposed = decision.unit and passes.is_transposed_product(decision.unit.node)
        if is_transposed and device_file is not None:
            raise UsageError(
                f"node '{decision.name}' (ConvTranspose): without this package the provider leaves "
                f"it to ONNX Runtime, a conversion doesn't. Convert the model, or use "
                f"`keep_digital` '{decision.name}'."
            )
    units = [d.unit for d in decisions if d.unit]
    feeds = inputs_of(graph, source, data, config)
    config = with_mapping(config, graph, units, feeds)
    options = {**_mapping(config, units), "seed": str(config.seed)}
    if not config.reads_of_device:
        options["device_reads"] = "0"
    if device_file is not None:
        path = write_device_file(
            DeviceConfig.from_json(options["device"]),
            device_file,
            time_s=config.time_s,
            device_reads=config.reads_of_device,
            force=force,
        )
        options["device"] = f"@{path}"
    elif config.device.time_law is not None:
        options["time_s"] = repr(config.device.resolve_time(config.time_s))
    digital = [d.name for d in decisions if not d.accepted]
    if bad := next((name for name in digital if ";" in name), None):
        raise UsageError(
            f"node {bad!r} stays digital, and keep_digital can't name it: it has a ';'."
        )
    if digital:
        options["keep_digital"] = ";".join(digital)
    ideal = PeripheryConfig(
        range_percentile=config.reads.range_percentile, device_reads=config.reads.device_reads
    )
    if config.reads != ideal or config.iv_polynomial is not None:
        options["periphery"] = _periphery(graph, units, config, feeds)
    if periphery_file is not None:
        target = Path(periphery_file)
        with Outputs(force=force) as out:
            file = out.folder(target) / target.name
            file.write_text(options.get("periphery", '{"*": {}}'), "utf-8")
        options["periphery"] = f"@{target.resolve()}"
    for name, text in options.items():
        if len(text.encode()) > _MOST_CHARACTERS:
            how = " Give periphery_file." if name == "periphery" else ""
            raise UsageError(
                f"{source}: the provider option {name} has {len(text)} characters, ONNX Runtime "
                f"takes {_MOST_CHARACTERS}.{how}"
            )
    return options


def _mapping(config: ConvertConfig, units: Sequence[passes.RramUnit]) -> dict[str, str]:
    """``device`` with the scaling and clipping of most nodes, ``mapping`` with those of others."""
    devices = {unit.name: config.device_of(unit.name) for unit in units}
    texts = {name: device.to_json() for name, device in devices.items()}
    most, _ = Counter(texts.values()).most_common(1)[0]
    others = {
        name: {
            "scaling": (device.scaling or Scaling.NODE).value,
            "clip_sigma": device.clip_sigma if device.clips else None,
        }
        for name, device in devices.items()
        if texts[name] != most
    }
    if not others:
        return {"device": most}
    return {
        "device": most,
        "mapping": json.dumps(others, ensure_ascii=False, separators=(",", ":")),
    }


def _periphery(
    graph: ir.Model,
    units: list[passes.RramUnit],
    config: ConvertConfig,
    feeds: Sequence[Feed],
) -> str:
    """The attributes of every node's crossbar but its weight and device, as JSON."""
    ranges = {}
    if config.needs_ranges:
        ranges = measure_ranges(
            graph,
            units,
            feeds,
            digital_session,
            config=config,
            input_ranges=recorded_ranges(graph),
        )
    # A law of noise is the device's, which the library has too; without one none is stated.
    own = {"read_noise_curve"}
    if config.has_read_noise_curve:
        own |= {"read_noise", "read_noise_relative"}
    attributes = {
        unit.name: {
            name: value
            for name, value in unit_periphery(unit, config, ranges.get(unit.name)).values().items()
            if name not in own
        }
        for unit in units
    }
    return json.dumps(attributes, ensure_ascii=False, separators=(",", ":"))
