// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ort/ort.h"

namespace rimc {

// Post-ops of the complete sums of a RramMatMul in one node with it:
//   y = activation((h + v * scale) * magnitude + bias + residual)
// v [rows, N] = u [rows, rank] times basis [rank, basis_row]; residual is [rows, N]; scale,
// magnitude and bias are [N], readable as whole vectors. Null is left out.
struct MatMulPostOps {
  const float* u = nullptr;
  Index rank = 0;
  const float* basis = nullptr;
  Index basis_row = 0;
  const float* scale = nullptr;
  const float* magnitude = nullptr;
  const float* bias = nullptr;
  const float* residual = nullptr;
  bool activates = false;
  float low = 0.0f;
  float high = 0.0f;
};

}  // namespace rimc
