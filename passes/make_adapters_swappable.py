# SPDX-License-Identifier: Apache-2.0
"""Adapters that a live session can exchange: their initializers become graph inputs as well."""

from __future__ import annotations

import onnx_ir as ir

from rimc_onnx.ops import schema
from rimc_onnx.passes._bodies import write_bodies
from rimc_onnx.passes.rram_branch import RramBranch, rram_branches

__all__ = ["MakeAdaptersSwappablePass", "adapter_values", "is_swappable"]


def adapter_values(branch: RramBranch) -> dict[str, ir.Value]:
    """The adapter's initializers by the names of the operator's inputs, in their order."""
    names = schema.OPS[branch.dora.op_type].inputs
    pairs = zip(names[2:], branch.dora.inputs[2:], strict=True)
    return {name: value for name, value in pairs if value is not None}


def is_swappable(model: ir.Model) -> bool:
    """True if every adapter of a converted model may be overridden."""
    return all(
        value.is_graph_input()
        for branch in rram_branches(model)
        for value in adapter_values(branch).values()
    )


class MakeAdaptersSwappablePass(ir.passes.InPlacePass):
    """Make every adapter's initializer overridable: it is listed as a graph input, too.

    1. Initializer of a Dora node that is no graph input: becomes one, behind the model's own. What
       it holds stays the adapter that is used where a run gives no other.
    2. Its type says what another adapter may differ in: rank and number of sparse cells are
       symbols named ``<node>/dora/ranks`` (of all groups), ``<node>/dora/rank`` and
       ``<node>/dora/cells``, and a scale may be one value or one per bit line. The other
       dimensions are fixed.
    3. Initializer that is a graph input already, of that type: left alone.
    4. Weights of crossbars and everything else: left alone, they stay constants.

    ONNX calls an initializer that is an input overridable from IR version 4 on; a file with
    functions has 8 or more. ONNX Runtime computes with such values at every run, where it
    precomputes constants when it loads a file, and warns of each of them.
    """

    def __str__(self) -> str:
        return "MakeAdaptersSwappablePass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the inputs in place."""
        modified = False
        for branch in rram_branches(model):
            shapes = _shapes(branch)
            for name, value in adapter_values(branch).items():
                if value.shape != shapes[name]:
                    value.shape = shapes[name]
                    modified = True
                if not value.is_graph_input():
                    model.graph.inputs.append(value)
                    modified = True
        if modified:
            write_bodies(model)
        return ir.passes.PassResult(model, modified)


def _shapes(branch: RramBranch) -> dict[str, ir.Shape]:
    """Input name -> the shapes that adapters of this branch may have."""
    geometry, base = branch.geometry, branch.dora.name
    rank, cells = f"{base}/rank", f"{base}/cells"
    ranks = rank if geometry.group == 1 else f"{base}/ranks"
    lora_a: list[int | str | None]
    lora_b: list[int | str | None]
    if geometry.is_conv:
        lora_a = [ranks, *geometry.weight_shape[1:]]
        lora_b = [geometry.columns, rank, *[1] * len(geometry.kernel)]
    else:
        lora_a, lora_b = [geometry.depth, ranks], [rank, geometry.columns]
    dims: dict[str, list[int | str | None]] = {
        "lora_a": lora_a,
        "lora_b": lora_b,
        "magnitude": [geometry.columns],
        "x_scale": [1],
        "rank_step": [ranks],
        "lora_b_scale": [None],
        "magnitude_scale": [1],
        "bias": [geometry.columns],
        "sparse_values": [cells],
        "sparse_index": [cells],
        "sparse_scale": [None],
    }
    return {name: ir.Shape(shape) for name, shape in dims.items()}
