// SPDX-License-Identifier: Apache-2.0
//
// The adapter inputs of a Dora node, checked and packed. Where all are constants this happens once,
// when the kernel is made; otherwise (adapters swapped into a live session) in every run.
#pragma once

#include <array>
#include <optional>

#include "kernels/kernels.h"
#include "ort/ort.h"

namespace rimc {

// Inputs of a Dora node in their order.
enum DoraInput : std::size_t {
  kDoraX,
  kDoraH,
  kLoraA,
  kLoraB,
  kMagnitude,
  kXScale,
  kRankStep,
  kLoraBScale,
  kMagnitudeScale,
  kBias,
  kSparseValues,
  kSparseIndex,
  kSparseScale,
  kNumDoraInputs,
};

using DoraTensors = std::array<Tensor, kNumDoraInputs>;  // x and h stay empty

// Codes are at most 127, so a sum of code * cell stays below 2^24 where the sum of |cell| is at
// most this (opset.py).
constexpr Index kMaxCodeSum = (Index{1} << 24) / 127;

int DoraInputType(std::size_t index);

// The adapter inputs, if all of them are constants.
std::optional<DoraTensors> ConstantAdapter(const NodeInfo& node);
// The adapter inputs of a run.
DoraTensors CurrentAdapter(const Context& context);

// Members that an operator fills once from constant adapter inputs, by its Check, Pack and
// PackQuads.
struct ConstantAdapterOf {
  template <class Operator>
  static void Pack(const NodeInfo& node, Operator* op) {
    const auto adapter = ConstantAdapter(node);
    if (!adapter) return;
    op->is_constant_ = true;
    op->layout_ = op->Check(*adapter);
    op->packed_ = AlignedFloats(op->layout_.size());
    op->Pack(*adapter, op->layout_, op->packed_.data());
    op->quads_ = op->PackQuads(*adapter, op->layout_);
    op->x_scale_ = (*adapter)[kXScale].Floats()[0];
  }
};

// Throws unless the input has `size` values, or one where `or_one`.
void CheckVector(const DoraTensors& adapter, DoraInput input, Index size, bool or_one);

// Checks the inputs of the low-rank part and of the merge: columns [N], ranks [R] of all groups
// together, `fan_in` cells of lora_a per rank; that x_scale and rank_step are positive; that the
// integer sums of the low-rank part are exact in fp32. `a_stride`: distance of the cells of a rank
// in lora_a, `a_rank` distance of the ranks; `branch_rank`: ranks that an output column sums over.
struct AdapterShape {
  Index columns;
  Index ranks;
  Index branch_rank;
  Index fan_in;
  Index a_stride;
  Index a_rank;
};
void CheckAdapter(const DoraTensors& adapter, const AdapterShape& shape);

// Values per output column (or bit line) that the merge needs.
struct MergeVectors {
  float* scale;         // lora_b_scale
  float* sparse_scale;  // sparse_scale
  float* magnitude;     // magnitude * magnitude_scale
  float* bias;
};
void FillMergeVectors(const DoraTensors& adapter, Index columns, const MergeVectors& vectors);

// How codes of `step`, which is positive, are computed without a division; `rest` is negative where
// some value would get another code.
kernels::Divisor DivisorOf(float step);

// True where the low-rank part adds nothing because lora_b is zero, or empty. (By the formula a
// zero adds NaN for an x of NaN or a lora_b_scale of infinity; this is left out.)
bool IsZero(const Tensor& lora_b);

}  // namespace rimc
