// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <limits>
#include <optional>

#include "ort/ort.h"

namespace rimc {

// What a node that a provider made of several does after its crossbar and adapter:
//   y = activation(y + residual)
struct Tail {
  std::size_t x = 0;                    // input of the node that the crossbar reads
  std::optional<std::size_t> residual;  // input of the same shape as the output
  bool activates = false;               // y = min(max(y, low), high); a NaN stays
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
};

// What is added to an output of `y_dims`, or null. Throws where the shapes differ.
inline const float* ResidualOf(const Tail& tail, const Context& context, const Dims& y_dims) {
  if (!tail.residual) return nullptr;
  const Tensor added = context.Input(*tail.residual);
  CheckDims("residual", added, y_dims);
  return added.Floats();
}

inline float Activate(const Tail& tail, float y) {
  const float raised = y < tail.low ? tail.low : y;
  return raised > tail.high ? tail.high : raised;
}

}  // namespace rimc
