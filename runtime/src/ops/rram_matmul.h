// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "ops/common/ort.h"
#include "ops/common/periphery.h"
#include "ops/common/shape_inference.h"

namespace rimc {

// RramMatMul: x [..., K] times the crossbar w [K, N] gives [..., N]. w has to be a constant.
class RramMatMul {
 public:
  static constexpr const char* kName = "RramMatMul";
  static constexpr std::size_t kNumInputs = 2;
  static int InputType(std::size_t) { return abi::kFloat; }
  static void InferShape(const InferContext& context) { InferMatMul(context); }

  explicit RramMatMul(const NodeInfo& node);
  // One array of any height with ideal converters.
  explicit RramMatMul(const Tensor& w);
  Output Compute(const Context& context) const;

 private:
  // Word lines [begin, end) that one pass over a panel takes, and what happens to the sums.
  struct Pass {
    Range k;
    bool resume;  // sums continue those of the pass before
    bool adc;     // sums are whole: read them out
    bool first;
    bool last;
  };
  struct Work;

  void TakeShape(const Tensor& w);
  void PackPanels(const float* w);
  void PlanPasses();
  void RunTask(const Work& work, Index task) const;
  Range PanelVecs(Index panel) const { return Part(num_vecs_, num_panels_, panel); }

  const kernels::KernelTable& kernels_;
  Index depth_ = 0;       // K
  Index columns_ = 0;     // N
  Index num_vecs_ = 0;    // vectors that hold the columns
  Index num_panels_ = 0;  // groups of at most panel_vecs vectors
  Periphery periphery_;
  std::vector<Pass> passes_;
  AlignedFloats panels_;  // panel after panel, each [K, vecs * lanes], zero beyond N
  AlignedFloats gain_;    // [num_vecs * lanes]
  AlignedFloats back_;
};

}  // namespace rimc
