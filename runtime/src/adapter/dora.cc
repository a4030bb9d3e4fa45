// SPDX-License-Identifier: Apache-2.0
#include "adapter/dora.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace rimc {
namespace {

constexpr const char* kNames[kNumDoraInputs] = {"x",
                                                "h",
                                                "lora_a",
                                                "lora_b",
                                                "magnitude",
                                                "x_scale",
                                                "rank_step",
                                                "lora_b_scale",
                                                "magnitude_scale",
                                                "bias",
                                                "sparse_values",
                                                "sparse_index",
                                                "sparse_scale"};

// Like kMaxCodeSum, for the sum over ranks of |code| * |lora_b|.
constexpr Index kMaxBranchRank = (Index{1} << 24) / (127 * 128);

void CheckPositive(const DoraTensors& adapter, DoraInput input) {
  const Tensor& tensor = adapter[input];
  for (Index i = 0; i < tensor.dims.Count(); ++i) {
    const float value = tensor.Floats()[i];
    if (!(value > 0.0f) || !std::isfinite(value)) {
      Refuse("input ", kNames[input], " must be positive and finite, got ", value);
    }
  }
}

void CheckFinite(const DoraTensors& adapter, DoraInput input) {
  const Tensor& tensor = adapter[input];
  for (Index i = 0; i < tensor.dims.Count(); ++i) {
    const float value = tensor.Floats()[i];
    if (!std::isfinite(value)) Refuse("input ", kNames[input], " must be finite, got ", value);
  }
}

}  // namespace

int DoraInputType(std::size_t index) {
  switch (index) {
    case kLoraA:
    case kLoraB:
    case kMagnitude:
    case kSparseValues:
      return abi::kInt8;
    case kSparseIndex:
      return abi::kInt64;
    default:
      return abi::kFloat;
  }
}

std::optional<DoraTensors> ConstantAdapter(const NodeInfo& node) {
  DoraTensors adapter;
  for (std::size_t i = kLoraA; i < kNumDoraInputs; ++i) {
    const auto tensor = node.Constant(i);
    if (!tensor) return std::nullopt;
    adapter[i] = *tensor;
  }
  return adapter;
}

DoraTensors CurrentAdapter(const Context& context) {
  DoraTensors adapter;
  for (std::size_t i = kLoraA; i < kNumDoraInputs; ++i) adapter[i] = context.Input(i);
  return adapter;
}

void CheckVector(const DoraTensors& adapter, DoraInput input, Index size, bool or_one) {
  const Tensor& tensor = adapter[input];
  if (tensor.dims.rank == 1 && (tensor.dims[0] == size || (or_one && tensor.dims[0] == 1))) return;
  Refuse("input ", kNames[input], " must have ", size, or_one ? " or 1" : "", " values, got shape ",
         tensor.dims);
}

void CheckAdapter(const DoraTensors& adapter, const AdapterShape& shape) {
  CheckVector(adapter, kMagnitude, shape.columns, false);
  CheckVector(adapter, kXScale, 1, false);
  CheckVector(adapter, kRankStep, shape.ranks, false);
  CheckVector(adapter, kLoraBScale, shape.columns, true);
  CheckVector(adapter, kMagnitudeScale, 1, false);
  CheckVector(adapter, kBias, shape.columns, false);
  CheckPositive(adapter, kXScale);
  CheckPositive(adapter, kRankStep);
  for (const DoraInput scale : {kLoraBScale, kMagnitudeScale, kSparseScale}) {
    CheckFinite(adapter, scale);
  }
  if (shape.branch_rank > kMaxBranchRank) {
    Refuse("the rank must be ", kMaxBranchRank, " at most, got ", shape.branch_rank);
  }
  for (Index r = 0; r < shape.ranks; ++r) {
    const std::int8_t* a = adapter[kLoraA].Int8s() + r * shape.a_rank;
    Index sum = 0;
    for (Index k = 0; k < shape.fan_in; ++k) sum += std::abs(int{a[k * shape.a_stride]});
    if (sum > kMaxCodeSum) {
      Refuse("the sum of |lora_a| of rank ", r, " must be ", kMaxCodeSum, " at most, got ", sum,
             ": beyond it the branch is not exact in fp32");
    }
  }
}

void FillMergeVectors(const DoraTensors& adapter, Index columns, const MergeVectors& vectors) {
  const auto scale_of = [&](DoraInput input, Index m) {
    const Tensor& scale = adapter[input];
    return scale.Floats()[scale.dims.Count() == 1 ? 0 : m];
  };
  const float magnitude_scale = adapter[kMagnitudeScale].Floats()[0];
  for (Index m = 0; m < columns; ++m) {
    vectors.scale[m] = scale_of(kLoraBScale, m);
    vectors.sparse_scale[m] = scale_of(kSparseScale, m);
    vectors.magnitude[m] = static_cast<float>(adapter[kMagnitude].Int8s()[m]) * magnitude_scale;
    vectors.bias[m] = adapter[kBias].Floats()[m];
  }
}

kernels::Divisor DivisorOf(float step) {
  kernels::Divisor divisor{step, 0.0f, -1.0f};
  // Beyond, the parts of the reciprocal or what they are multiplied by leave the normal numbers.
  if (!(step > 1e-30f && step < 1e30f)) return divisor;
  const double reciprocal = 1.0 / static_cast<double>(step);
  float inverse = static_cast<float>(reciprocal);
  if (static_cast<double>(inverse) > reciprocal) inverse = std::nextafter(inverse, 0.0f);
  const float rest = static_cast<float>(reciprocal - static_cast<double>(inverse));
  const auto quotient = [&](float x) { return std::nearbyint(x / step); };
  const auto product = [&](float x) {
    const float low = x * rest;
    return std::nearbyint(std::fma(x, inverse, low));
  };
  // Both rise with x, as each rounding does, and are odd: they give the same codes where they rise
  // from one to the next at the same value.
  for (int code = 0; code < 127; ++code) {
    const auto top = static_cast<float>(code);
    float last = static_cast<float>((code + 0.5) * static_cast<double>(step));
    while (quotient(last) > top) last = std::nextafter(last, 0.0f);
    float next = std::nextafter(last, HUGE_VALF);
    while (quotient(next) <= top) {
      last = next;
      next = std::nextafter(last, HUGE_VALF);
    }
    if (product(last) > top || product(next) <= top) return divisor;
  }
  divisor.inverse = inverse;
  divisor.rest = rest;
  return divisor;
}

bool IsZero(const Tensor& lora_b) {
  return std::all_of(lora_b.Int8s(), lora_b.Int8s() + lora_b.dims.Count(),
                     [](std::int8_t b) { return b == 0; });
}

}  // namespace rimc
