// SPDX-License-Identifier: Apache-2.0
//
// Which nodes of an ordinary model go to crossbars, and what is read of them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "conv/plan.h"
#include "ort/graph.h"
#include "ort/ort.h"
#include "provider/options.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

// A Conv, Gemm or MatMul as a crossbar and its digital bias. Tensors belong to ONNX Runtime.
struct MappedNode {
  std::string name;  // key of the draws
  bool is_conv = false;
  ConvNode conv;  // of a Conv; pads written out
  Tensor weight;  // [M, C / group, *kernel], or [K, N] ([N, K] if transposed)
  bool transposed = false;
  float alpha = 1.0f;          // factor of the weight
  std::optional<Tensor> bias;  // 1 or M values
  float beta = 1.0f;

  // Word lines of one channel of a Conv's kernel; 1 of a matrix.
  Index WindowSize() const;
};

// Whether a node that multiplies matrices goes to a crossbar, and how.
struct Decision {
  std::string name;
  std::string op_type;
  std::string reason;  // empty where it goes to a crossbar
  std::optional<MappedNode> mapped;
};

// Nothing where the node multiplies no matrices. `parent`: the node whose body it is in, or null.
std::optional<Decision> Decide(const abi::Api* api, const abi::Node* node, const abi::Node* parent,
                               const DeviceOptions& device);

}  // namespace rimc
