// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "ops/conv_chain.h"
#include "ops/matmul_chain.h"
#include "provider/chain.h"
#include "provider/mapping.h"
#include "provider/options.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

// A node of an ordinary model that runs on crossbars, programmed when it is made, or a crossbar of
// a converted model; and what follows it.
class CompiledNode : public abi::NodeComputeInfo {
 public:
  // Errors of a run begin with `label`, as ONNX Runtime knows the node by a name of its own. Throws
  // Error where the weight can't be programmed.
  CompiledNode(const abi::Api* api, std::string label, const MappedNode& node,
               const DeviceOptions& device, const Tail& tail);
  // Of a converted model. Throws Error where a node is not as its operator asks.
  CompiledNode(const abi::Api* api, std::string label, const Chain& chain);
  ~CompiledNode();
  CompiledNode(const CompiledNode&) = delete;
  CompiledNode& operator=(const CompiledNode&) = delete;

 private:
  CompiledNode(const abi::Api* api, std::string label);
  void Run(abi::KernelContext* context) const;

  const abi::Api* api_;
  std::string label_;
  abi::MemoryInfo* memory_ = nullptr;
  std::variant<std::monostate, MatMulChain, ConvChain> crossbar_;
};

}  // namespace rimc
