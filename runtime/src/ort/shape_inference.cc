// SPDX-License-Identifier: Apache-2.0
#include "ort/shape_inference.h"

#include <algorithm>
#include <atomic>
#include <string>

namespace rimc {
namespace {

// Far beyond any use, and far from overflowing a product: what is not within is left to the kernel.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 40;
constexpr std::int64_t kMaxAttribute = std::int64_t{1} << 20;

bool AreWithin(const std::vector<std::int64_t>& values, std::int64_t least) {
  return std::all_of(values.begin(), values.end(), [least](std::int64_t value) {
    return value >= least && value <= kMaxAttribute;
  });
}

}  // namespace

InferDims InferContext::Input(std::size_t index) const {
  abi::Shape* shape = nullptr;  // belongs to the context
  Check(api_, abi::InferInputShape::Call(api_, context_, index, &shape));
  if (shape == nullptr) return {};
  std::size_t rank = 0;
  Check(api_, abi::GetDimensionsCount::Call(api_, shape, &rank));
  std::vector<std::int64_t> sizes(rank);
  std::vector<const char*> symbols(rank, nullptr);
  Check(api_, abi::GetDimensions::Call(api_, shape, sizes.data(), rank));
  Check(api_, abi::GetSymbolicDimensions::Call(api_, shape, symbols.data(), rank));
  InferDims dims(rank);
  for (std::size_t i = 0; i < rank; ++i) {
    dims[i].size = sizes[i];
    if (symbols[i] != nullptr) dims[i].symbol = symbols[i];
  }
  return dims;
}

std::optional<std::vector<std::int64_t>> InferContext::Ints(const char* name) const {
  const abi::OpAttr* attribute = nullptr;
  abi::Status* status = abi::InferAttribute::Call(api_, context_, name, &attribute);
  if (status != nullptr) {
    abi::ReleaseStatus::Call(api_, status);
    return std::nullopt;
  }
  constexpr std::size_t kMost = 2 * Dims::kMaxRank;
  std::vector<std::int64_t> values(kMost);
  std::size_t bytes = 0;
  status = abi::ReadOpAttr::Call(api_, attribute, abi::kAttrInts, values.data(),
                                 kMost * sizeof(std::int64_t), &bytes);
  if (status != nullptr) {
    abi::ReleaseStatus::Call(api_, status);
    return std::nullopt;
  }
  values.resize(bytes / sizeof(std::int64_t));
  return values;
}

void InferContext::SetOutput(const InferDims& dims) const {
  struct Handle {
    const abi::Api* api;
    abi::Shape* shape = nullptr;
    ~Handle() {
      if (shape != nullptr) abi::ReleaseShape::Call(api, shape);
    }
  } handle{api_};
  // ONNX Runtime takes an unknown size without a name for the size -1, which breaks a Reshape
  // further on: an unnamed one gets a name of its own, equal to no other.
  static std::atomic<std::uint64_t> next_name{0};
  std::vector<std::int64_t> sizes;
  std::vector<std::string> names;
  std::vector<const char*> symbols;
  sizes.reserve(dims.size());
  names.reserve(dims.size());
  symbols.reserve(dims.size());
  for (const InferDim& dim : dims) {
    sizes.push_back(dim.size);
    names.push_back(dim.known() || !dim.symbol.empty() ? dim.symbol
                                                       : "rimc_" + std::to_string(next_name++));
  }
  for (const std::string& name : names) symbols.push_back(name.c_str());
  Check(api_, abi::CreateShape::Call(api_, &handle.shape));
  Check(api_, abi::SetElementType::Call(api_, handle.shape, abi::kFloat));
  Check(api_, abi::SetDimensions::Call(api_, handle.shape, sizes.data(), sizes.size()));
  Check(api_, abi::SetSymbolicDimensions::Call(api_, handle.shape, symbols.data(), symbols.size()));
  Check(api_, abi::InferSetOutputShape::Call(api_, context_, 0, handle.shape));
}

void InferConv(const InferContext& context) {
  const InferDims x = context.Input(0);
  const InferDims w = context.Input(1);
  if (x.size() < 3 || w.size() != x.size()) return;
  const std::size_t rank = x.size() - 2;
  const auto strides = context.Ints("strides");
  const auto pads = context.Ints("pads");
  const auto dilations = context.Ints("dilations");
  if (!strides || !pads || !dilations || strides->size() != rank || pads->size() != 2 * rank ||
      dilations->size() != rank || !AreWithin(*strides, 1) || !AreWithin(*pads, 0) ||
      !AreWithin(*dilations, 1)) {
    return;
  }
  InferDims y{x[0], w[0]};
  for (std::size_t i = 0; i < rank; ++i) {
    InferDim dim;
    if (x[2 + i].size > kMaxSize || w[2 + i].size > kMaxSize) return;
    if (x[2 + i].known() && w[2 + i].known()) {
      const std::int64_t extent = (*dilations)[i] * (w[2 + i].size - 1) + 1;
      const std::int64_t padded = x[2 + i].size + (*pads)[i] + (*pads)[rank + i];
      if (padded < extent) return;
      dim.size = (padded - extent) / (*strides)[i] + 1;
    }
    y.push_back(dim);
  }
  context.SetOutput(y);
}

void InferMatMul(const InferContext& context) {
  InferDims y = context.Input(0);
  const InferDims w = context.Input(1);
  if (y.empty() || w.size() != 2) return;
  y.back() = w[1];
  context.SetOutput(y);
}

void InferSameAs(const InferContext& context, std::size_t index) {
  const InferDims y = context.Input(index);
  if (!y.empty()) context.SetOutput(y);
}

}  // namespace rimc
