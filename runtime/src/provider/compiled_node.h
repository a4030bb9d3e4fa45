// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "ops/rram_conv.h"
#include "ops/rram_matmul.h"
#include "provider/mapping.h"
#include "provider/options.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

// A node of an ordinary model that runs on crossbars: programmed when it is made.
class CompiledNode : public abi::NodeComputeInfo {
 public:
  // Throws Error where the weight can't be programmed.
  CompiledNode(const abi::Api* api, const MappedNode& node, const DeviceOptions& device);
  ~CompiledNode();
  CompiledNode(const CompiledNode&) = delete;
  CompiledNode& operator=(const CompiledNode&) = delete;

 private:
  void Run(abi::KernelContext* context) const;

  const abi::Api* api_;
  abi::MemoryInfo* memory_ = nullptr;
  std::variant<std::monostate, RramMatMul, RramConv> crossbar_;
  std::vector<float> bias_;  // [M], or empty
};

}  // namespace rimc
