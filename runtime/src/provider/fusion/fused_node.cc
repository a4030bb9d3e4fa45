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

// The segment that is being made, and what it makes of other nodes' values.
struct Growing {
  Segment chains;
  Names values;  // that its chains read or write
  Names after;   // that other nodes make of its values: a chain that reads one can't join

  bool IsAfter(const std::string& value) const { return after.count(value) > 0; }

  bool CanJoin(const Chain& chain) const {
    const bool reads_own = values.count(chain.x) > 0 || values.count(chain.residual) > 0;
    return chain.is_conv && !chains.empty() && chains.back().is_conv && reads_own &&
           !IsAfter(chain.x) && !IsAfter(chain.residual);
  }

  void Join(Chain chain) {
    values.insert({chain.x, chain.y});
    if (!chain.residual.empty()) values.insert(chain.residual);
    written.insert(chain.y);
    chains.push_back(std::move(chain));
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

std::vector<Segment> FindSegments(const abi::Api* api, const std::vector<const abi::Node*>& nodes,
                                  const std::set<const abi::Node*>& starts,
                                  std::size_t least_nodes) {
  std::vector<const abi::Node*> taken;
  std::map<const abi::Node*, Chain> ends;  // by the last node of each
  for (const abi::Node* node : nodes) {
    if (starts.count(node) == 0) continue;
    Chain chain = FindChain(api, node, taken);
    if (chain.nodes.size() < least_nodes) continue;
    taken.insert(taken.end(), chain.nodes.begin(), chain.nodes.end());
    const abi::Node* const last = chain.nodes.back();
    ends.emplace(last, std::move(chain));
  }
  // A chain comes where its last node is: all that it reads is there.
  const std::set<const abi::Node*> inside(taken.begin(), taken.end());
  std::vector<Segment> segments;
  Growing growing;
  for (const abi::Node* node : nodes) {
    const auto end = ends.find(node);
    if (end != ends.end()) {
      if (!growing.CanJoin(end->second)) {
        if (!growing.chains.empty()) segments.push_back(std::move(growing.chains));
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
  if (!growing.chains.empty()) segments.push_back(std::move(growing.chains));
  return segments;
}

}  // namespace rimc
