// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "provider/fusion/conv_network.h"
#include "provider/fusion/fused_matmul.h"
#include "provider/fusion/group.h"
#include "provider/mapping.h"
#include "provider/options.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

// A group of a compiled node.
struct CompiledGroup {
  FusionGroup group;
  std::string label;                 // errors of it begin with it
  std::optional<MappedNode> mapped;  // of an ordinary model: programmed when the node is made
};

// A fused node of a converted model or of an ordinary one that runs on crossbars.
class CompiledNode : public abi::NodeComputeInfo {
 public:
  // `graph`: of the groups alone. `device`: of those that are mapped. Throws Error where a node is
  // not as its operator asks, or a weight can't be programmed.
  CompiledNode(const abi::Api* api, const abi::Graph* graph, std::vector<CompiledGroup> groups,
               const DeviceOptions* device);
  ~CompiledNode();
  CompiledNode(const CompiledNode&) = delete;
  CompiledNode& operator=(const CompiledNode&) = delete;

 private:
  void Run(abi::KernelContext* context) const;

  const abi::Api* api_;
  abi::MemoryInfo* memory_ = nullptr;
  std::unique_ptr<FusedMatMul> matmul_;
  std::string matmul_label_;
  std::unique_ptr<ConvNetwork> convs_;
};

}  // namespace rimc
