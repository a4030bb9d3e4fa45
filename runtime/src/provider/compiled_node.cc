// SPDX-License-Identifier: Apache-2.0
#include "provider/compiled_node.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <type_traits>
#include <utility>

#include "kernels/dispatch.h"
#include "ort/graph.h"
#include "program/programming.h"

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
  const ArrayMapping& mapping = device.MappingOf(node.name);
  CellRun cells;
  cells.run = count;
  if (mapping.by_column) {
    cells.num_columns = dims[axis];
    cells.run = node.is_conv ? count / dims[0] : 1;
  }
  std::vector<float> w_max =
      LargestWeights(w->data(), count, cells.num_columns, cells.run, mapping.clip_sigma);
  if (!std::all_of(w_max.begin(), w_max.end(), [](float m) { return std::isfinite(m); })) {
    Refuse(
        "the weight has NaN or infinite values, no conductance can hold them. Repair the model "
        "or name the node in the option keep_digital");
  }
  kernels::CellLaw law = device.device.timed.law;
  law.clips = mapping.clip_sigma > 0.0 ? 1 : 0;
  if (!device.device.has_error && law.level_bits == 0 && law.clips == 0) return w_max;
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
  return device.periphery.Of(device.seed, node.name, shape, std::move(w_max));
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

// The crossbar of an ordinary model's node.
struct Programmed {
  Tensor w;
  std::vector<float> cells;  // data of w
  Periphery periphery;
  std::vector<float> bias;
};

Programmed ProgramNode(const MappedNode& node, const DeviceOptions& device) {
  Programmed made;
  made.w = node.weight;
  if (node.transposed) std::swap(made.w.dims.size[0], made.w.dims.size[1]);
  made.cells = CrossbarWeight(node);
  const std::vector<float> w_max = Program(node, device, made.w.dims, &made.cells);
  made.periphery = PeripheryOf(node, device, made.w.dims, w_max);
  if (made.periphery.is_coded) {
    const auto count = static_cast<Index>(made.cells.size());
    const bool by_column = w_max.size() > 1;
    const Index column_run = node.is_conv ? count / static_cast<Index>(made.w.dims[0]) : 1;
    RoundCells(w_max, by_column ? column_run : count, &made.cells);
  }
  made.w.data = made.cells.data();
  made.bias = BiasOf(node, static_cast<std::size_t>(made.w.dims[node.is_conv ? 0 : 1]));
  return made;
}

// A fusion group that reads the inputs of `post_ops`.
template <class Kernel>
std::unique_ptr<Kernel> MakeGroup(const abi::Api* api, const CompiledGroup& of,
                                  const DeviceOptions* device, const PostOps& post_ops) {
  try {
    if (!of.mapped) {
      const NodeInfo crossbar(api, of.group.crossbar);
      const NodeInfo adapter(api, of.group.adapter);
      return std::make_unique<Kernel>(crossbar, of.group.adapter == nullptr ? nullptr : &adapter,
                                      post_ops);
    }
    Programmed made = ProgramNode(*of.mapped, *device);
    if constexpr (std::is_same_v<Kernel, FusedConv>) {
      return std::make_unique<Kernel>(of.mapped->conv, made.w, std::move(made.periphery),
                                      std::move(made.bias), post_ops);
    } else {
      return std::make_unique<Kernel>(made.w, std::move(made.periphery), made.bias, post_ops);
    }
  } catch (const Error& error) {
    throw Error(error.code(), of.label + ": " + error.what());
  }
}

// Numbers of the values of a compiled graph: its inputs but for constants, its outputs, others.
class ValueNumbers {
 public:
  ValueNumbers(const abi::Api* api, const abi::Graph* graph) {
    for (const abi::ValueInfo* input : InputsOf(api, graph)) {
      if (!IsConstant(api, input)) Add(NameOf(api, input));
    }
    num_inputs = numbers_.size();
    for (const abi::ValueInfo* output : OutputsOf(api, graph)) Add(NameOf(api, output));
    num_outputs = numbers_.size() - num_inputs;
  }
  void Add(const std::string& name) { numbers_.emplace(name, numbers_.size()); }
  std::size_t Of(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found != numbers_.end()) return found->second;
    throw Error(abi::kFail, "ONNX Runtime does not pass the input '" + name + "'");
  }

  std::size_t num_inputs = 0;
  std::size_t num_outputs = 0;

 private:
  std::map<std::string, std::size_t> numbers_;
};

}  // namespace

CompiledNode::CompiledNode(const abi::Api* api, const abi::Graph* graph,
                           std::vector<CompiledGroup> groups, const DeviceOptions* device)
    : abi::NodeComputeInfo{}, api_(api) {
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

  ValueNumbers values(api, graph);
  if (!groups[0].group.is_conv) {
    const FusionGroup& group = groups[0].group;
    PostOps post_ops = group.post_ops;
    post_ops.x = values.Of(group.x);
    if (!group.residual.empty()) post_ops.residual = values.Of(group.residual);
    matmul_label_ = groups[0].label;
    matmul_ = MakeGroup<FusedMatMul>(api, groups[0], device, post_ops);
  } else {
    std::vector<ConvNetwork::Step> steps;
    for (CompiledGroup& of : groups) {
      const FusionGroup& group = of.group;
      values.Add(group.y);
      PostOps post_ops = group.post_ops;
      post_ops.x = 0;
      ConvNetwork::Step step{of.label, nullptr, values.Of(group.x), {}, values.Of(group.y)};
      if (!group.residual.empty()) {
        post_ops.residual = 1;
        step.residual = values.Of(group.residual);
      }
      step.group = MakeGroup<FusedConv>(api, of, device, post_ops);
      steps.push_back(std::move(step));
    }
    convs_ = std::make_unique<ConvNetwork>(std::move(steps), values.num_inputs, values.num_outputs);
  }
  Check(api_, abi::CreateCpuMemoryInfo::Call(api_, 0, 0, &memory_));
}

CompiledNode::~CompiledNode() {
  if (memory_ != nullptr) abi::ReleaseMemoryInfo::Call(api_, memory_);
}

void CompiledNode::Run(abi::KernelContext* kernel_context) const {
  const Context context(api_, kernel_context, memory_);
  if (convs_ != nullptr) return convs_->Compute(context);
  try {
    matmul_->Compute(context);
  } catch (const Error& error) {
    throw Error(error.code(), matmul_label_ + ": " + error.what());
  }
}

}  // namespace rimc
