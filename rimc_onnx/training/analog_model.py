# SPDX-License-Identifier: Apache-2.0
"""A graph whose nodes that go to RRAM are analog layers: what training for the device runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from rimc_onnx.crossbar import ConvertConfig, NodeRanges
from rimc_onnx.device import CellProgrammer
from rimc_onnx.errors import ModelError
from rimc_onnx.passes import (
    RramUnit,
    find_constant,
    prepare_pipeline,
    require_mapped,
    select_rram_nodes,
    structure_pipeline,
    with_mapping,
    word_line_scales,
)
from rimc_onnx.training.adapter_branch import AdapterBranch
from rimc_onnx.training.analog_layer import AnalogLayer, Cells, Draw
from rimc_onnx.training.graph_module import GraphModule, node_spec
from rimc_onnx.training.mapped_weight import mapped_weight
from rimc_onnx.training.operators import OPERATORS

__all__ = ["AnalogModel", "mapped_units"]


def mapped_units(model: ir.Model, config: ConvertConfig) -> tuple[ir.Model, list[RramUnit]]:
    """The prepared copy of ``model`` that a conversion maps, and its units.

    Raises:
        ModelError: as a conversion (NodeMappingError: nothing goes to RRAM).
    """
    prepared = model.clone()
    prepare_pipeline(keep_digital=config.keep_digital)(prepared)
    decisions = select_rram_nodes(prepared, config)
    require_mapped(decisions)
    return prepared, [d.unit for d in decisions if d.unit is not None]


class AnalogModel:
    """A :class:`GraphModule` and its analog layers."""

    def __init__(
        self,
        model: ir.Model,
        config: ConvertConfig,
        ranges: Mapping[str, NodeRanges],
        *,
        times_s: Sequence[float | None] = (),
        outputs: Sequence[str] | None = None,
    ) -> None:
        """``model`` as read from a file; it is changed. ``ranges`` by node.

        Raises:
            ModelError: the model can't be converted, imported or trained.
        """
        prepared, units = mapped_units(model, config)
        structure_pipeline(keep_digital=config.keep_digital)(model)
        self._fixed = word_line_scales(model)
        self.module = GraphModule(model, outputs)
        self.config = config
        """As given: scaling and clipping that it leaves open are chosen as a conversion does."""
        self._mapped_config = with_mapping(config, units)
        self.layers: dict[str, AnalogLayer] = {}
        self.weights: dict[str, str] = {}
        """Node -> name of its weight's parameter."""
        self.branches: dict[str, AdapterBranch] = {}
        """Adapters, where these are trained."""
        nodes = {node.name: node for node in model.graph}
        overlaps = {node.name: node for node in prepared.graph}
        for unit in units:
            node = nodes.get(unit.name)
            if node is None:
                raise ModelError(f"node '{unit.name}': is not in the file, so it can't be trained.")
            self._replace(node, unit, overlaps, ranges.get(unit.name), times_s)

    def _replace(
        self,
        node: ir.Node,
        unit: RramUnit,
        prepared: Mapping[str | None, ir.Node],
        ranges: NodeRanges | None,
        times_s: Sequence[float | None],
    ) -> None:
        weight, x = mapped_weight(node, unit)
        is_gemm = node.op_type == "Gemm"
        layer = AnalogLayer(
            unit,
            weight,
            self._mapped_config,
            ranges,
            times_s=times_s,
            alpha_beta=(
                node.attributes.get_float("alpha", 1.0) if is_gemm else 1.0,
                node.attributes.get_float("beta", 1.0) if is_gemm else 1.0,
            ),
            trans_a=is_gemm and bool(node.attributes.get_int("transA", 0)),
            overlap=_Overlap(prepared[f"{unit.name}/overlap"])
            if node.op_type == "ConvTranspose"
            else None,
        )
        if not self.module.has_node(unit.name):
            return  # no output that is asked for needs it
        source = find_constant(node.inputs[1])
        name = str(source.source.name) if source is not None else ""
        if self.module.parameter(name) is None:
            raise ModelError(
                f"node '{node.name}' ({node.op_type}): its weight '{name}' can't be trained: "
                f"another node reads it as a bound or table. Keep the node digital."
            )
        with torch.no_grad():
            layer.fix_limit(torch.from_numpy(unit.weight.float32().copy()))
        self.module.replace(unit.name, layer, first_input=x)
        self.layers[unit.name], self.weights[unit.name] = layer, name

    def file_weight(self, node: str) -> Tensor:
        """The weight that the node of the file has: the parameter through the graph's views."""
        name = self.module.inputs_of(node)[1]
        if name is None:
            raise ValueError(f"node '{node}' has no weight")
        return self.module.value_of(name)

    @property
    def num_times(self) -> int:
        """Ages that deviations are drawn for."""
        return len(next(iter(self.layers.values())).means) if self.layers else 1

    def trained(self) -> dict[str, nn.Parameter]:
        """Weights of mapped nodes, and vectors: biases and scales of normalisations, by name.

        Folded batch normalisations stay as they are; so do embeddings, and powers of two that
        equalize word lines. With branches these alone, by ``<node>/<part>``.
        """
        module = self.module
        found: dict[str, nn.Parameter] = {}
        if self.branches:
            module.requires_grad_(False)
            for node, branch in self.branches.items():
                parts = {n: p for n, p in branch.named_parameters() if n in branch.trained}
                found.update({f"{node}/{n}": p for n, p in parts.items()})
            for parameter in found.values():
                parameter.requires_grad_(True)
            return found
        fixed = self._fixed | module.names_at("BatchNormalization", 1)
        if any(layer.weight.shift is not None for layer in self.layers.values()):
            fixed |= module.names_at("BatchNormalization", 2)
        mapped = set(self.weights.values())
        for name, parameter in module.own_parameters().items():
            is_vector = parameter.ndim == 1 and name not in fixed
            parameter.requires_grad_(name in mapped or is_vector)
            if parameter.requires_grad:
                found[name] = parameter
        for node, layer in self.layers.items():
            if layer.log_range is not None:
                found[f"{node}/input range"] = layer.log_range
        return found

    def put_branch(self, node: str, branch: AdapterBranch) -> None:
        """An adapter beside the arrays of ``node``, whose bias comes on top of the node's own."""
        self.branches[node] = branch
        self.layers[node].branch = branch

    def correct_gains(self) -> None:
        """Every node has a digital scale for what its device is expected to lose in common.

        A calibration has that back; weights that make up for it are wrong afterwards.
        """
        for layer in self.layers.values():
            layer.corrects_gain = True

    def learn_ranges(self) -> None:
        """Input ranges are trained, too, of nodes whose word lines have one."""
        for layer in self.layers.values():
            if layer.reads.dac_bits or layer.reads.bends:
                layer.log_range = nn.Parameter(torch.zeros(()))

    def input_ranges(self) -> dict[str, float]:
        """Trained input ranges by node."""
        found = {node: layer.input_range for node, layer in self.layers.items()}
        return {node: r for node, r in found.items() if r is not None}

    def start_slopes(self) -> None:
        """Until :meth:`end_slopes` slopes of the weights are seen."""
        for layer in self.layers.values():
            layer.sees_slopes = True

    def take_slopes(self, rows: int) -> None:
        """Those of the last backward pass, of the mean of ``rows`` likelihoods."""
        for layer in self.layers.values():
            layer.take_slopes(rows)

    def end_slopes(self, num_batches: int) -> None:
        """Their squares are the penalty's weights."""
        for layer in self.layers.values():
            layer.end_slopes(num_batches)

    def start_measuring(self) -> None:
        """Until :meth:`end_measuring` the power of every word line is seen."""
        for layer in self.layers.values():
            layer.is_measuring = True

    def end_measuring(self) -> None:
        """Keep what was seen, with today's weights."""
        for name, layer in self.layers.items():
            layer.end_measuring(self.file_weight(name))

    # --- what the arrays hold -----------------------------------------------------------------

    def set_cells(self, cells: Cells) -> None:
        """For all layers."""
        for layer in self.layers.values():
            layer.cells = cells

    def set_draw(self, draw: Draw) -> None:
        """Deviations of all layers, from now on."""
        for layer in self.layers.values():
            layer.draw = draw
            layer.cells = Cells.DRAWN

    @contextmanager
    def on_device(
        self,
        seed: int,
        time_s: float | None,
        programmer: CellProgrammer | None,
        run: int | None = None,
    ) -> Iterator[None]:
        """All layers programmed as one device; ``run`` numbers the draws of read noise."""
        units = [layer.unit_of(self.file_weight(name)) for name, layer in self.layers.items()]
        config = with_mapping(replace(self.config, seed=seed, time_s=time_s), units)
        before = {name: layer.cells for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                layer.program(self.file_weight(name), config, programmer)
                layer.run = run
            yield
        finally:
            for name, layer in self.layers.items():
                layer.forget()
                layer.cells, layer.run = before[name], None

    # --- weights ------------------------------------------------------------------------------

    def penalty(self, index: int = 0) -> Tensor:
        """Sum over the nodes of their penalties."""
        found = [layer.penalty(self.file_weight(n), index) for n, layer in self.layers.items()]
        return torch.stack(found).sum()

    def clip_limits(self, clip_sigma: float | None) -> dict[str, Tensor]:
        """Largest |W| of every node, as it goes with the file's weight, from today's weights.

        What the mapping clips is not left in the file: the network is trained without it.
        """
        limits: dict[str, Tensor] = {}
        for node, layer in self.layers.items():
            with torch.no_grad():
                w = layer.weight.to_arrays(self.file_weight(node))
                axes = layer.shared_axes(w)
                limit = w.abs().amax(axes, keepdim=True)
                if clip_sigma is not None:
                    sigma = w.var(axes, correction=0, keepdim=True).sqrt()
                    limit = torch.minimum(limit, clip_sigma * sigma)
                elif layer.limit is None:
                    continue
                if layer.limit is not None:
                    limit = torch.minimum(limit, layer.limit)
                limits[node] = layer.weight.limits_of_file(limit)
        return limits

    def clip(self, limits: Mapping[str, Tensor]) -> None:
        """Cut the weights at ``limits``, in place: a node's weight is a view of its parameter."""
        with torch.no_grad():
            for node, limit in limits.items():
                self.file_weight(node).clamp_(-limit, limit)


class _Overlap:
    """The digital overlap-add behind the product of a ConvTranspose, without its bias."""

    def __init__(self, node: ir.Node) -> None:
        constant = find_constant(node.inputs[1])
        if constant is None:
            raise ModelError(f"node '{node.name}': its kernel is no constant.")
        self._kernel = torch.from_numpy(np.array(constant.float32()))
        self._operator = OPERATORS["ConvTranspose"](node_spec(node, 13))

    def __call__(self, taps: Tensor) -> Tensor:
        self._kernel = self._kernel.to(taps.device)
        y = self._operator(taps, self._kernel, None)
        assert isinstance(y, Tensor)
        return y
