// SPDX-License-Identifier: Apache-2.0
//
// A crossbar and what follows it in the graph and can be done while its outputs are at hand:
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

// Operators of the domain that stand in a chain.
struct ChainKind {
  const char* crossbar;
  const char* adapter;
};

struct Chain {
  std::vector<const abi::Node*> nodes;
  const abi::Node* crossbar = nullptr;
  const abi::Node* adapter = nullptr;  // of constants
  bool is_conv = false;
  std::string x;
  std::string residual;  // empty where nothing is added
  std::string y;
  Tail tail;  // its inputs are not set
};

// The chain that starts at the node `crossbar`, without nodes that have no reader. Nodes in `taken`
// are others'.
Chain FindChain(const abi::Api* api, const abi::Node* crossbar,
                const std::vector<const abi::Node*>& taken);

}  // namespace rimc
