// SPDX-License-Identifier: Apache-2.0
//
// A fused node is one or more fusion groups that are run as one node: convolutions that read one
// another's outputs or the same input, where nothing else lies between them; or a single group.
#pragma once

#include <set>
#include <vector>

#include "provider/fusion/group.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

using FusedNode = std::vector<FusionGroup>;  // in an order in which each group finds what it reads

// The groups of `nodes`, a graph's in its order, that start at `starts` and have at least
// `least_nodes`.
std::vector<FusedNode> FindFusedNodes(const abi::Api* api,
                                      const std::vector<const abi::Node*>& nodes,
                                      const std::set<const abi::Node*>& starts,
                                      std::size_t least_nodes);

}  // namespace rimc
