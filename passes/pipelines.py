# SPDX-License-Identifier: Apache-2.0
"""The orders in which passes run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges
from rimc_onnx.device import CellProgrammer
from rimc_onnx.errors import RimcError
from rimc_onnx.passes.canonicalize_conv_transpose import CanonicalizeConvTransposePass
from rimc_onnx.passes.canonicalize_matmul import CanonicalizeMatMulPass
from rimc_onnx.passes.check_operators import CheckOperatorsPass
from rimc_onnx.passes.check_rimc_model import check_rimc_model
from rimc_onnx.passes.drop_initializer_inputs import DropInitializerInputsPass
from rimc_onnx.passes.equalize_word_lines import EqualizedNode, EqualizeWordLinesPass
from rimc_onnx.passes.fold_batch_norm import FoldBatchNormPass
from rimc_onnx.passes.inline_functions import InlineFunctionsPass
from rimc_onnx.passes.insert_dora_branch import InsertDoraBranchPass
from rimc_onnx.passes.make_pads_explicit import MakePadsExplicitPass
from rimc_onnx.passes.name_nodes import NameNodesPass
from rimc_onnx.passes.raise_opset import RaiseOpsetPass
from rimc_onnx.passes.replace_with_rram import ReplaceWithRramPass
from rimc_onnx.passes.select_rram_nodes import (
    MappingDecision,
    is_kept_digital,
    require_mapped,
    select_rram_nodes,
)
from rimc_onnx.passes.set_ir_version import SetIrVersionPass

__all__ = [
    "Pipeline",
    "convert_model",
    "convert_pipeline",
    "equalize_model",
    "prepare_pipeline",
    "structure_pipeline",
]


class Pipeline(ir.passes.Sequential):
    """Passes in order; an error that a user can mend comes through as it is, not as PassError."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run all passes."""
        try:
            return super().call(model)
        except ir.passes.PassError as error:
            if isinstance(error.__cause__, RimcError):
                raise error.__cause__ from None
            raise


def prepare_pipeline(*, keep_digital: Sequence[str] = ()) -> Pipeline:
    """The same function in the form that is mapped; for the model and for the teacher alike.

    Nodes and values that are mapped have the same names however often and wherever it runs.
    ``keep_digital`` are patterns of nodes whose form is left alone.
    """
    return Pipeline(
        structure_pipeline(keep_digital=keep_digital),
        FoldBatchNormPass(),
        CanonicalizeConvTransposePass(_skip(keep_digital)),
        CanonicalizeMatMulPass(_skip(keep_digital)),
    )


def structure_pipeline(*, keep_digital: Sequence[str] = ()) -> Pipeline:
    """The part of :func:`prepare_pipeline` that changes no weight: the file's own initializers.

    What it gives is the graph that is trained.
    """
    return Pipeline(
        InlineFunctionsPass(),
        DropInitializerInputsPass(),
        NameNodesPass(),
        CheckOperatorsPass(),
        RaiseOpsetPass(),
        NameNodesPass(),  # the nodes that raising the opset brought
        MakePadsExplicitPass(_skip(keep_digital)),
    )


def equalize_model(model: ir.Model, *, keep_digital: Sequence[str] = ()) -> list[EqualizedNode]:
    """The form that is mapped, with equal word lines, in place; gives the nodes scaled.

    Batch normalisations are folded and matrix products canonical before, so what is scaled are the
    word lines that :func:`equalized_share` measures on a prepared model. A ConvTranspose stays one.
    Results are the same bits in fp32 where nothing is folded and no product is rewritten.
    """
    step = EqualizeWordLinesPass(_skip(keep_digital))
    Pipeline(
        structure_pipeline(keep_digital=keep_digital),
        FoldBatchNormPass(),
        CanonicalizeMatMulPass(_skip(keep_digital)),
        step,
    )(model)
    return step.equalized


def _skip(keep_digital: Sequence[str]) -> Callable[[str], bool]:
    """Whether a node of that name matches one of the patterns."""
    return lambda name: is_kept_digital(name, keep_digital) is not None


def convert_pipeline(
    decisions: Sequence[MappingDecision],
    config: ConvertConfig,
    ranges: Mapping[str, NodeRanges] | None = None,
    *,
    programmer: CellProgrammer | None = None,
) -> Pipeline:
    """From a prepared model to a converted one, adapters at identity.

    ``programmer`` programs the cells instead of numpy, with the same bits.
    """
    return Pipeline(
        ReplaceWithRramPass(decisions, config, ranges, programmer=programmer),
        InsertDoraBranchPass(config.rank),
        SetIrVersionPass(),
    )


def convert_model(
    model: ir.Model, config: ConvertConfig, ranges: Mapping[str, NodeRanges] | None = None
) -> list[MappingDecision]:
    """Convert ``model`` in place, prepared or not; gives the decision on every node.

    Weights are programmed when the model is written or serialised, one at a time.

    Raises:
        ModelError: the model can't be converted (NodeMappingError: no node of it).
        UsageError: ``config`` does not fit the model.
    """
    prepare_pipeline(keep_digital=config.keep_digital)(model)
    decisions = select_rram_nodes(model, config)
    require_mapped(decisions)
    convert_pipeline(decisions, config, ranges)(model)
    check_rimc_model(model)
    return decisions
