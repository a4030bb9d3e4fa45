// SPDX-License-Identifier: Apache-2.0
#include "provider/compiled_node.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "device/programming.h"
#include "dispatch.h"

namespace rimc {
namespace {

// The weight as the crossbar holds it: [K, N], or as it is for a Conv.
std::vector<float> CrossbarWeight(const MappedNode& node) {
  const float* const from = node.weight.Floats();
  std::vector<float> w(from, from + node.weight.dims.Count());
  if (node.transposed) {
    const Index columns = static_cast<Index>(node.weight.dims[0]);
    const Index depth = static_cast<Index>(node.weight.dims[1]);
    for (Index k = 0; k < depth; ++k) {
      for (Index n = 0; n < columns; ++n) {
        w[static_cast<std::size_t>(k * columns + n)] = from[n * depth + k];
      }
    }
  }
  if (node.alpha != 1.0f) {
    for (float& value : w) value *= node.alpha;
  }
  return w;
}

// Gives W_max: [1], or [columns].
std::vector<float> Program(const MappedNode& node, const DeviceOptions& device, const Dims& dims,
                           std::vector<float>* w) {
  const auto count = static_cast<std::int64_t>(w->size());
  const std::size_t axis = node.is_conv ? 0 : 1;
  CellRun cells;
  cells.run = count;
  if (device.by_column) {
    cells.num_columns = dims[axis];
    cells.run = node.is_conv ? count / dims[0] : 1;
  }
  std::vector<float> w_max =
      LargestWeights(w->data(), count, cells.num_columns, cells.run, device.clip_sigma);
  if (!std::all_of(w_max.begin(), w_max.end(), [](float m) { return std::isfinite(m); })) {
    Refuse(
        "the weight has NaN or infinite values, no conductance can hold them. Repair the model "
        "or name the node in the option keep_digital");
  }
  const kernels::CellLaw& law = device.timed.law;
  if (!device.has_error && law.level_bits == 0 && law.clips == 0) return w_max;
  cells.w_max = w_max.data();
  cells.seed = device.seed;
  cells.name = NameWords(node.name);
  cells.law = law;
  ProgramWeights(ActiveKernels(), cells, w->data(), w->data(), count, 0);
  return w_max;
}

Periphery PeripheryOf(const MappedNode& node, const DeviceOptions& device, const Dims& w,
                      std::vector<float> w_max) {
  ArrayShape shape{static_cast<Index>(w[1]), static_cast<Index>(w[0]), 1};
  if (node.is_conv) {
    shape = {static_cast<Index>(w[0]), static_cast<Index>(w[1]), node.WindowSize()};
  }
  return PeripheryOf(device.periphery, device.reads, device.seed, node.name, shape,
                     std::move(w_max));
}

std::vector<float> BiasOf(const MappedNode& node, std::size_t columns) {
  std::vector<float> bias;
  if (!node.bias) return bias;
  const bool one = node.bias->dims.Count() == 1;
  for (std::size_t m = 0; m < columns; ++m) {
    const float value = node.bias->Floats()[one ? 0 : m];
    bias.push_back(node.beta == 1.0f ? value : value * node.beta);
  }
  return bias;
}

}  // namespace

CompiledNode::CompiledNode(const abi::Api* api, std::string label)
    : abi::NodeComputeInfo{}, api_(api), label_(std::move(label)) {
  version = abi::kEpApiVersion;
  CreateState = [](abi::NodeComputeInfo* self, abi::NodeComputeContext*,
                   void** state) -> abi::Status* {
    *state = self;
    return nullptr;
  };
  Compute = [](abi::NodeComputeInfo* self, void*, abi::KernelContext* context) -> abi::Status* {
    const auto& compiled = *static_cast<const CompiledNode*>(self);
    return Guard(compiled.api_, [&] { compiled.Run(context); });
  };
  ReleaseState = [](abi::NodeComputeInfo*, void*) {};

  Check(api_, abi::CreateCpuMemoryInfo::Call(api_, 0, 0, &memory_));
}

CompiledNode::CompiledNode(const abi::Api* api, std::string label, const MappedNode& node,
                           const DeviceOptions& device, const Tail& tail)
    : CompiledNode(api, std::move(label)) {
  Tensor w = node.weight;
  if (node.transposed) std::swap(w.dims.size[0], w.dims.size[1]);
  std::vector<float> realised = CrossbarWeight(node);
  const std::vector<float> w_max = Program(node, device, w.dims, &realised);
  Periphery periphery = PeripheryOf(node, device, w.dims, w_max);
  if (periphery.is_coded) {
    const auto count = static_cast<Index>(realised.size());
    const bool by_column = w_max.size() > 1;
    const Index column_run = node.is_conv ? count / static_cast<Index>(w.dims[0]) : 1;
    RoundCells(w_max, by_column ? column_run : count, &realised);
  }
  w.data = realised.data();
  std::vector<float> bias = BiasOf(node, static_cast<std::size_t>(w.dims[node.is_conv ? 0 : 1]));
  if (node.is_conv) {
    crossbar_.emplace<ConvChain>(node.conv, w, std::move(periphery), std::move(bias), tail);
  } else {
    crossbar_.emplace<MatMulChain>(w, std::move(periphery), bias, tail);
  }
}

CompiledNode::CompiledNode(const abi::Api* api, std::string label, const Chain& chain)
    : CompiledNode(api, std::move(label)) {
  const NodeInfo crossbar(api, chain.crossbar);
  const NodeInfo adapter(api, chain.adapter);
  const NodeInfo* const beside = chain.adapter == nullptr ? nullptr : &adapter;
  if (OperatorOf(api, chain.crossbar) == RramMatMul::kName) {
    crossbar_.emplace<MatMulChain>(crossbar, beside, chain.tail);
  } else {
    crossbar_.emplace<ConvChain>(crossbar, beside, chain.tail);
  }
}

CompiledNode::~CompiledNode() {
  if (memory_ != nullptr) abi::ReleaseMemoryInfo::Call(api_, memory_);
}

void CompiledNode::Run(abi::KernelContext* kernel_context) const {
  try {
    const Context context(api_, kernel_context, memory_);
    if (const auto* matmul = std::get_if<MatMulChain>(&crossbar_)) {
      matmul->Compute(context);
    } else if (const auto* conv = std::get_if<ConvChain>(&crossbar_)) {
      conv->Compute(context);
    }
  } catch (const Error& error) {
    throw Error(error.code(), label_ + ": " + error.what());
  }
}

}  // namespace rimc
