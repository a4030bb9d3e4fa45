# SPDX-License-Identifier: Apache-2.0
"""Graph passes: from a trained model to one on crossbars, one pass per file.

``prepare_pipeline`` gives the form that is mapped, ``select_rram_nodes`` decides,
``convert_pipeline`` maps; ``convert_model`` is all three. ``find_units`` (teacher) and
``rram_branches`` (converted model) are what calibration needs.
"""

from __future__ import annotations

from rimc_onnx.passes.age_rram import AgeRramPass
from rimc_onnx.passes.attach_adapters import AttachAdaptersPass
from rimc_onnx.passes.canonicalize_conv_transpose import (
    CanonicalizeConvTransposePass,
    is_transposed_product,
)
from rimc_onnx.passes.canonicalize_matmul import CanonicalizeMatMulPass
from rimc_onnx.passes.cast_half_products import CastHalfProductsPass
from rimc_onnx.passes.check_operators import CheckOperatorsPass
from rimc_onnx.passes.check_rimc_model import check_rimc_model
from rimc_onnx.passes.constants import Constant, explain_variable, find_constant
from rimc_onnx.passes.drop_initializer_inputs import DropInitializerInputsPass
from rimc_onnx.passes.equalize_word_lines import (
    UNEQUAL_SHARE,
    EqualizeWordLinesPass,
    equalized_share,
    word_line_scale,
    word_line_scales,
)
from rimc_onnx.passes.fold_adapters import FoldAdaptersPass, folded_weight
from rimc_onnx.passes.fold_batch_norm import FoldBatchNormPass
from rimc_onnx.passes.inline_functions import InlineFunctionsPass
from rimc_onnx.passes.insert_dora_branch import InsertDoraBranchPass
from rimc_onnx.passes.make_adapters_swappable import (
    MakeAdaptersSwappablePass,
    adapter_values,
    is_swappable,
)
from rimc_onnx.passes.make_pads_explicit import MakePadsExplicitPass
from rimc_onnx.passes.mapped_devices import with_mapping
from rimc_onnx.passes.name_nodes import NameNodesPass
from rimc_onnx.passes.pipelines import (
    Pipeline,
    convert_model,
    convert_pipeline,
    equalize_model,
    prepare_pipeline,
    structure_pipeline,
)
from rimc_onnx.passes.raise_opset import RaiseOpsetPass
from rimc_onnx.passes.read_periphery import node_ranges, read_periphery
from rimc_onnx.passes.replace_with_rram import ReplaceWithRramPass
from rimc_onnx.passes.rram_branch import RramBranch, is_converted, rram_branches
from rimc_onnx.passes.rram_unit import RramUnit
from rimc_onnx.passes.select_rram_nodes import (
    MappingDecision,
    find_units,
    is_kept_digital,
    require_mapped,
    select_rram_nodes,
)
from rimc_onnx.passes.set_ir_version import SetIrVersionPass

__all__ = [
    "UNEQUAL_SHARE",
    "AgeRramPass",
    "AttachAdaptersPass",
    "CanonicalizeConvTransposePass",
    "CanonicalizeMatMulPass",
    "CastHalfProductsPass",
    "CheckOperatorsPass",
    "Constant",
    "DropInitializerInputsPass",
    "EqualizeWordLinesPass",
    "FoldAdaptersPass",
    "FoldBatchNormPass",
    "InlineFunctionsPass",
    "InsertDoraBranchPass",
    "MakeAdaptersSwappablePass",
    "MakePadsExplicitPass",
    "MappingDecision",
    "NameNodesPass",
    "Pipeline",
    "RaiseOpsetPass",
    "ReplaceWithRramPass",
    "RramBranch",
    "RramUnit",
    "SetIrVersionPass",
    "adapter_values",
    "check_rimc_model",
    "convert_model",
    "convert_pipeline",
    "equalize_model",
    "equalized_share",
    "explain_variable",
    "find_constant",
    "find_units",
    "folded_weight",
    "is_converted",
    "is_kept_digital",
    "is_swappable",
    "is_transposed_product",
    "node_ranges",
    "prepare_pipeline",
    "read_periphery",
    "require_mapped",
    "rram_branches",
    "select_rram_nodes",
    "structure_pipeline",
    "with_mapping",
    "word_line_scale",
    "word_line_scales",
]
