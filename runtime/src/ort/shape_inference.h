// SPDX-License-Identifier: Apache-2.0
//
// Output shapes at load time, names of symbolic dimensions carried through.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ort/ort.h"

namespace rimc {

// A dimension known by size, by name, or not at all (size -1, name empty).
struct InferDim {
  std::int64_t size = -1;
  std::string symbol;
  bool known() const { return size >= 0; }
};
using InferDims = std::vector<InferDim>;

class InferContext {
 public:
  InferContext(const abi::Api* api, abi::ShapeInferContext* context)
      : api_(api), context_(context) {}

  // Empty where the rank is unknown.
  InferDims Input(std::size_t index) const;
  std::optional<std::vector<std::int64_t>> Ints(const char* name) const;
  void SetOutput(const InferDims& dims) const;

 private:
  const abi::Api* api_;
  abi::ShapeInferContext* context_;
};

// Shape of a convolution of x [N, C, *S] by w [M, C / group, *kernel]; nothing is set where the
// node is malformed.
void InferConv(const InferContext& context);
// x [..., K] times w [K, N].
void InferMatMul(const InferContext& context);
// The shape of input `index`.
void InferSameAs(const InferContext& context, std::size_t index);

}  // namespace rimc
