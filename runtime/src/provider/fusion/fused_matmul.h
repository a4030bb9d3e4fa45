// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "matmul/dora_matmul.h"
#include "matmul/rram_matmul.h"
#include "provider/fusion/post_ops.h"

namespace rimc {

// A crossbar, its adapter or bias, and its tail as one node: what the nodes give one by one, bit
// for bit. With ranks alone, sums are finished in the registers that they were added in.
class MatMulChain {
 public:
  // `adapter`: a DoraMatMul of constants beside the crossbar, or null.
  MatMulChain(const NodeInfo& crossbar, const NodeInfo* adapter, const Tail& tail);
  // `bias` [N] or empty.
  MatMulChain(const Tensor& w, Periphery periphery, const std::vector<float>& bias,
              const Tail& tail);
  void Compute(const Context& context) const;

 private:
  // Whether crossbar and adapter make their results one after the other.
  bool IsApart() const;
  // u: of the adapter; residual may be null.
  MatMulFinish FinishOf(const float* u, const float* residual) const;
  void FinishRows(const Context& context, const float* residual, Index rows, float* y) const;

  RramMatMul crossbar_;
  std::optional<DoraMatMul> adapter_;
  AlignedFloats bias_;  // whole vectors, or empty
  Tail tail_;
};

}  // namespace rimc
