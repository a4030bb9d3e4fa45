// SPDX-License-Identifier: Apache-2.0
//
// What surrounds the arrays of an ordinary model's nodes: the attributes that crossbars of a
// converted model have, by the name of the node.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ops/common/attributes.h"
#include "ops/common/periphery.h"

namespace rimc {

// Of each node; "*" is every node that is not named. Empty: everything is ideal.
using PeripheryOption = std::map<std::string, Attributes>;

// The JSON object {node: {attribute: value}}. Throws Error where it is something else.
PeripheryOption ReadPeripheryOption(const std::string& where, const std::string& text);

// A node's array: its bit lines, and `depth` steps of `rows_per_step` word lines each.
struct ArrayShape {
  Index columns;
  Index depth;
  Index rows_per_step;
};

// The periphery of a node whose W_max is `w_max`. Throws Error as ReadPeriphery, and where the node
// has no entry.
Periphery PeripheryOf(const PeripheryOption& option, const std::string& node,
                      const ArrayShape& shape, std::vector<float> w_max);

// False where the node's window has more word lines than a tile: it then stays digital.
bool FitsTiles(const PeripheryOption& option, const std::string& node, Index rows_per_step);

}  // namespace rimc
