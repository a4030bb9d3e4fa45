// SPDX-License-Identifier: Apache-2.0
#include "provider/fusion/fused_node.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "ort/graph.h"

namespace rimc {
namespace {

using Names = std::set<std::string>;

// The fused node that is being made, and what it makes of other nodes' values.
struct Growing {
  FusedNode groups;
  Names values;  // that its groups read or write
  Names after;   // that other nodes make of its values: a group that reads one can't join

  bool IsAfter(const std::string& value) const { return after.count(value) > 0; }

  bool CanJoin(const FusionGroup& group) const {
    const bool reads_own = values.count(group.x) > 0 || values.count(group.residual) > 0;
    return group.is_conv && !groups.empty() && groups.back().is_conv && reads_own &&
           !IsAfter(group.x) && !IsAfter(group.residual);
  }

  void Join(FusionGroup group) {
    values.insert({group.x, group.y});
    if (!group.residual.empty()) values.insert(group.residual);
    written.insert(group.y);
    groups.push_back(std::move(group));
  }

  // Another node that reads `read` and writes `made`.
  void Pass(const std::vector<const abi::ValueInfo*>& read,
            const std::vector<const abi::ValueInfo*>& made, const abi::Api* api) {
    const bool follows = std::any_of(read.begin(), read.end(), [&](const abi::ValueInfo* value) {
      const std::string name = NameOf(api, value);
      return written.count(name) > 0 || IsAfter(name);
    });
    if (!follows) return;
    for (const abi::ValueInfo* value : made) {
      if (value != nullptr) after.insert(NameOf(api, value));
    }
  }

 private:
  Names written;
};

}  // namespace

std::vector<FusedNode> FindFusedNodes(const abi::Api* api,
                                      const std::vector<const abi::Node*>& nodes,
                                      const std::set<const abi::Node*>& starts,
                                      std::size_t least_nodes) {
  std::vector<const abi::Node*> taken;
  std::map<const abi::Node*, FusionGroup> ends;  // by the last node of each
  for (const abi::Node* node : nodes) {
    if (starts.count(node) == 0) continue;
    FusionGroup group = FindGroup(api, node, taken);
    if (group.nodes.size() < least_nodes) continue;
    taken.insert(taken.end(), group.nodes.begin(), group.nodes.end());
    const abi::Node* const last = group.nodes.back();
    ends.emplace(last, std::move(group));
  }
  // A group comes where its last node is: all that it reads is there.
  const std::set<const abi::Node*> inside(taken.begin(), taken.end());
  std::vector<FusedNode> fused_nodes;
  Growing growing;
  for (const abi::Node* node : nodes) {
    const auto end = ends.find(node);
    if (end != ends.end()) {
      if (!growing.CanJoin(end->second)) {
        if (!growing.groups.empty()) fused_nodes.push_back(std::move(growing.groups));
        growing = {};
      }
      growing.Join(std::move(end->second));
    } else if (inside.count(node) == 0) {
      std::vector<const abi::ValueInfo*> read = InputsOf(api, node);
      const std::vector<const abi::ValueInfo*> implicit = ImplicitInputsOf(api, node);
      read.insert(read.end(), implicit.begin(), implicit.end());
      growing.Pass(read, OutputsOf(api, node), api);
    }
  }
  if (!growing.groups.empty()) fused_nodes.push_back(std::move(growing.groups));
  return fused_nodes;
}

}  // namespace rimc
