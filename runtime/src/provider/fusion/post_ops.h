// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <limits>
#include <optional>

#include "ort/ort.h"

namespace rimc {

// Post-ops of a fusion group, behind its crossbar and adapter:
//   y = activation(y + residual)
struct PostOps {
  std::size_t x = 0;                    // input of the node that the crossbar reads
  std::optional<std::size_t> residual;  // input of the same shape as the output
  bool activates = false;               // y = min(max(y, low), high); a NaN stays
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
};

// What is added to an output of `y_dims`, or null. Throws where the shapes differ.
inline const float* ResidualOf(const PostOps& post_ops, const Context& context,
                               const Dims& y_dims) {
  if (!post_ops.residual) return nullptr;
  const Tensor added = context.Input(*post_ops.residual);
  CheckDims("residual", added, y_dims);
  return added.Floats();
}

inline float Activate(const PostOps& post_ops, float y) {
  const float raised = y < post_ops.low ? post_ops.low : y;
  return raised > post_ops.high ? post_ops.high : raised;
}

}  // namespace rimc
