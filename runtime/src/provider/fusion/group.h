// SPDX-License-Identifier: Apache-2.0
//
// A fusion group: a crossbar and the nodes behind it that become its post-ops:
//   crossbar -> Dora node -> Add of a residual -> Relu or Clip
// each but the first where there is one. The values in between have no other reader.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ort/ort.h"
#include "provider/fusion/post_ops.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

// Operators of the domain that a fusion group begins with.
struct GroupKind {
  const char* crossbar;
  const char* adapter;
};

struct FusionGroup {
  std::vector<const abi::Node*> nodes;
  const abi::Node* crossbar = nullptr;
  const abi::Node* adapter = nullptr;  // of constants
  bool is_conv = false;
  std::string x;
  std::string residual;  // empty where nothing is added
  std::string y;
  PostOps post_ops;  // its inputs are not set
};

// What a Gemm adds to its product, where it is an activation that surely has the output's shape (so
// ONNX Runtime writes a MatMul and the Add of a residual); else empty.
std::string AddedActivation(const abi::Api* api, const abi::Node* gemm);

// The group that starts at the node `crossbar`, without nodes that have no reader. Nodes in `taken`
// are others'.
FusionGroup FindGroup(const abi::Api* api, const abi::Node* crossbar,
                      const std::vector<const abi::Node*>& taken);

}  // namespace rimc
