// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/kernels.h"
#include "ops/common/conv_engine.h"
#include "ops/common/ort.h"
#include "ops/common/periphery.h"
#include "ops/common/shape_inference.h"

namespace rimc {

// RramConv: x [N, C, *S] and the crossbar w [M, C / group, *kernel] give [N, M, *S_out], one to
// three spatial dimensions. w has to be a constant.
class RramConv {
 public:
  static constexpr const char* kName = "RramConv";
  static constexpr std::size_t kNumInputs = 2;
  static int InputType(std::size_t) { return abi::kFloat; }
  static void InferShape(const InferContext& context) { InferConv(context); }

  explicit RramConv(const NodeInfo& node);
  // One array of any height per group, with ideal converters.
  RramConv(const ConvNode& conv, const Tensor& w);
  Output Compute(const Context& context) const;

 private:
  void Pack(const float* w);

  const kernels::KernelTable& kernels_;
  ConvAttributes conv_;
  Periphery periphery_;
  ConvReadout readout_;
  AlignedFloats packed_;
};

}  // namespace rimc
