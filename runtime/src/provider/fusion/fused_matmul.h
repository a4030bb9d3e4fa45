// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "matmul/dora_matmul.h"
#include "matmul/rram_matmul.h"
#include "provider/fusion/post_ops.h"

namespace rimc {

// A crossbar, its adapter or bias, and its post-ops as one node: the bits are those of the nodes
// one by one, bit for bit. With a low-rank adapter and no sparse cells, the post-ops work on sums
// in registers.
class FusedMatMul {
 public:
  // `adapter`: a DoraMatMul of constants beside the crossbar, or null.
  FusedMatMul(const NodeInfo& crossbar, const NodeInfo* adapter, const PostOps& post_ops);
  // `bias` [N] or empty.
  FusedMatMul(const Tensor& w, Periphery periphery, const std::vector<float>& bias,
              const PostOps& post_ops);
  void Compute(const Context& context) const;

 private:
  // Whether crossbar and adapter make their results one after the other.
  bool IsApart() const;
  // u: of the adapter; residual may be null.
  MatMulPostOps PostOpsFor(const float* u, const float* residual) const;
  void ApplyPostOps(const Context& context, const float* residual, Index rows, float* y) const;

  RramMatMul crossbar_;
  std::optional<DoraMatMul> adapter_;
  AlignedFloats bias_;  // whole vectors, or empty
  PostOps post_ops_;
};

}  // namespace rimc
