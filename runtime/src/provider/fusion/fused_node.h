// SPDX-License-Identifier: Apache-2.0
//
// Chains that are run as one node: convolutions that read one another's outputs or the same input,
// where nothing else lies between them; or a single chain.
#pragma once

#include <set>
#include <vector>

#include "provider/fusion/group.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

using Segment = std::vector<Chain>;  // in an order in which each chain finds what it reads

// The chains of `nodes`, a graph's in its order, that start at `starts` and have at least
// `least_nodes`.
std::vector<Segment> FindSegments(const abi::Api* api, const std::vector<const abi::Node*>& nodes,
                                  const std::set<const abi::Node*>& starts,
                                  std::size_t least_nodes);

}  // namespace rimc
