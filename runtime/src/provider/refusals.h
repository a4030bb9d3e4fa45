// SPDX-License-Identifier: Apache-2.0
//
// Why a node stays digital, in the words of rimc_onnx/ops/refusals.py (a test compares). "{}" is
// what was found.
#pragma once

namespace rimc::refusal {

constexpr char kKeptDigital[] =
    "kept digital by the pattern '{}': leave the pattern out to map the node";
constexpr char kInBody[] =
    "inside the body of {} node '{}': export the model unrolled, or with the branch that is "
    "taken";
constexpr char kOptimized[] =
    "an operator of ONNX Runtime's optimizer: give the model before ONNX Runtime's "
    "optimizations";
constexpr char kForeign[] = "domain {} is not ours: export the model with operators of ONNX";
constexpr char kInteger[] = "integer operator: convert the float model";
constexpr char kAttention[] =
    "attention has no weight of its own: leave it digital, its projections are nodes of "
    "their own";
constexpr char kDeformable[] =
    "a deformable convolution has no RRAM operator: leave it digital, or train a Conv in its "
    "place";
constexpr char kEinsum[] = "Einsum has no RRAM operator: write it as MatMul";
constexpr char kRecurrent[] =
    "a recurrent operator holds its matrices inside: export its cell as MatMul";
constexpr char kOperandMissing[] = "an operand is missing: repair the model";
constexpr char kBothActivations[] =
    "both operands are activations: leave it digital, it has no weight";
constexpr char kBothConstants[] =
    "both operands are constants: export the model with its constants folded";
constexpr char kLeftConstant[] =
    "the constant is the left operand: transpose the product, so that it is the right one";
constexpr char kOverridable[] =
    "weight '{}' is an overridable initializer: take it off the graph's inputs";
constexpr char kQuantized[] = "its weight is quantized (DequantizeLinear): convert the float model";
constexpr char kNotStored[] = "weight '{}' is {}: store it in the file as a constant";
constexpr char kBiasNotStored[] = "bias '{}' is {}: store it in the file as a constant";
constexpr char kDtype[] = "dtype {}: RRAM operators compute in float32, export it so";
constexpr char kEmpty[] = "weight of shape {} is empty: take the node out of the model";
constexpr char kVector[] = "weight has rank 1: a vector is no matrix, write it as [K, 1]";
constexpr char kBatched[] = "weight has rank {}: one array holds one matrix, so give each a MatMul";
constexpr char kAutoPad[] = "auto_pad {} is not written as pads: export with a fixed input size";
constexpr char kWindow[] =
    "a kernel window of {} word lines does not fit in a tile of {}: take taller tiles";
constexpr char kUnnamed[] = "the node has no name, which its draws need as a key: name it";
constexpr char kUnread[] = "nothing reads its output: take the node out of the model";
constexpr char kConvTranspose[] = "ConvTranspose: convert the model, which makes a Conv of it";
constexpr char kTransposed[] =
    "transA is set: convert the model, which transposes the input beforehand";
constexpr char kBiasNotARow[] =
    "bias of shape {} is no row: convert the model, which adds it behind the node";
constexpr char kContradiction[] = "{}: repair the model";

}  // namespace rimc::refusal
