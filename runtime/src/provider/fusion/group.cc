// SPDX-License-Identifier: Apache-2.0
#include "provider/fusion/group.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "adapter/dora.h"
#include "ort/graph.h"

namespace rimc {
namespace {

constexpr GroupKind kKinds[] = {{"RramConv", "DoraConv"}, {"RramMatMul", "DoraMatMul"}};

const abi::ValueInfo* OutputOf(const abi::Api* api, const abi::Node* node) {
  const auto values = OutputsOf(api, node);
  return values.size() == 1 ? values[0] : nullptr;
}

struct Reader {
  const abi::Node* node;
  std::size_t input;
};

// The only reader of a node's output, which reads it once; nothing otherwise.
std::optional<Reader> OnlyReader(const abi::Api* api, const abi::Node* node) {
  const abi::ValueInfo* const value = OutputOf(api, node);
  if (value == nullptr) return std::nullopt;
  if (IsGraphOutput(api, value) || NumReaders(api, value) != 1) return std::nullopt;
  const abi::Node* reader = nullptr;
  std::int64_t input = -1;
  Check(api, abi::ValueConsumers::Call(api, value, &reader, &input, 1));
  if (reader == nullptr || input < 0) return std::nullopt;
  return Reader{reader, static_cast<std::size_t>(input)};
}

bool IsOp(const abi::Api* api, const abi::Node* node, const char* domain, const char* op_type) {
  return DomainOf(api, node) == domain && OperatorOf(api, node) == op_type;
}

// Both nodes of a branch read the same input, in the same way, and the adapter is constant.
bool IsBranch(const abi::Api* api, const abi::Node* crossbar, const abi::Node* adapter) {
  if (InputName(api, crossbar, 0) != InputName(api, adapter, kDoraX)) return false;
  const NodeInfo of_crossbar(api, crossbar);
  const NodeInfo of_adapter(api, adapter);
  const auto tensors = ConstantAdapter(of_adapter);
  const auto w = of_crossbar.Constant(1);
  if (!tensors || !w) return false;
  if (OperatorOf(api, crossbar) != kKinds[0].crossbar) {
    const Dims& b = (*tensors)[kLoraB].dims;
    const Dims& a_dims = (*tensors)[kLoraA].dims;
    return w->dims.rank == 2 && a_dims.rank == 2 && b.rank == 2 && a_dims[0] == w->dims[0] &&
           b[1] == w->dims[1];
  }
  for (const char* name : {"strides", "pads", "dilations"}) {
    if (of_crossbar.Ints(name) != of_adapter.Ints(name)) return false;
  }
  const Dims& a = (*tensors)[kLoraA].dims;
  return of_crossbar.Int("group") == of_adapter.Int("group") && a.rank == w->dims.rank &&
         std::equal(a.size.begin() + 1, a.size.begin() + a.rank, w->dims.size.begin() + 1) &&
         (*tensors)[kLoraB].dims[0] == w->dims[0];
}

// The bound of a Clip: nothing where it is no constant number.
std::optional<float> Bound(const abi::Api* api, const abi::Node* node, std::size_t input,
                           float otherwise) {
  if (InputName(api, node, input).empty()) return otherwise;
  const auto value = NodeInfo(api, node).Constant(input);
  if (!value || value->type != abi::kFloat || value->dims.Count() != 1) return std::nullopt;
  return value->Floats()[0];
}

// 1 where a Gemm has no such attribute.
float BetaOf(const abi::Api* api, const abi::Node* gemm) {
  const abi::OpAttr* attribute = nullptr;
  abi::Status* status = abi::NodeAttribute::Call(api, gemm, "beta", &attribute);
  float beta = 1.0f;
  std::size_t bytes = 0;
  if (status == nullptr && attribute != nullptr) {
    status = abi::ReadOpAttr::Call(api, attribute, abi::kAttrFloat, &beta, sizeof beta, &bytes);
    if (status != nullptr) beta = 0.0f;  // of another type: mapping.cc refuses the node
  }
  if (status != nullptr) abi::ReleaseStatus::Call(api, status);
  return beta;
}

// Whether the node is an activation of its first input; sets that of `post_ops`.
bool TakeActivation(const abi::Api* api, const Reader& reader, PostOps* post_ops) {
  if (reader.input != 0) return false;
  if (IsOp(api, reader.node, "", "Relu")) {
    post_ops->low = 0.0f;
    post_ops->activates = true;
    return true;
  }
  // Before opset 11 the bounds of a Clip were attributes.
  if (!IsOp(api, reader.node, "", "Clip") || InputsOf(api, reader.node).size() < 2) return false;
  // Without a bound a Clip takes the largest finite number.
  constexpr float kMost = std::numeric_limits<float>::max();
  const auto low = Bound(api, reader.node, 1, -kMost);
  const auto high = Bound(api, reader.node, 2, kMost);
  if (!low || !high || !(*low <= *high)) return false;
  post_ops->low = *low;
  post_ops->high = *high;
  post_ops->activates = true;
  return true;
}

}  // namespace

std::string AddedActivation(const abi::Api* api, const abi::Node* gemm) {
  const auto inputs = InputsOf(api, gemm);
  const auto outputs = OutputsOf(api, gemm);
  if (inputs.size() < 3 || inputs[2] == nullptr || outputs.empty() || outputs[0] == nullptr ||
      IsConstant(api, inputs[2]) || BetaOf(api, gemm) != 1.0f ||
      !ShapeOf(api, outputs[0]).IsSame(ShapeOf(api, inputs[2]))) {
    return "";
  }
  return NameOf(api, inputs[2]);
}

FusionGroup FindGroup(const abi::Api* api, const abi::Node* crossbar,
                      const std::vector<const abi::Node*>& taken) {
  FusionGroup group;
  group.crossbar = crossbar;
  const std::string op_type = OperatorOf(api, crossbar);
  group.is_conv = op_type == "Conv" || op_type == kKinds[0].crossbar;
  group.x = InputName(api, crossbar, 0);
  group.nodes.push_back(crossbar);
  const auto next = [&]() -> std::optional<Reader> {
    auto reader = OnlyReader(api, group.nodes.back());
    if (!reader || !HasReader(api, reader->node)) return std::nullopt;
    const bool is_taken = std::find(taken.begin(), taken.end(), reader->node) != taken.end();
    return is_taken ? std::nullopt : reader;
  };

  auto reader = next();
  for (const GroupKind& kind : kKinds) {
    if (reader && IsOp(api, crossbar, kDomain, kind.crossbar) &&
        IsOp(api, reader->node, kDomain, kind.adapter) && reader->input == kDoraH &&
        IsBranch(api, crossbar, reader->node)) {
      group.adapter = reader->node;
      group.nodes.push_back(reader->node);
      reader = next();
      break;
    }
  }
  if (op_type == "Gemm") group.residual = AddedActivation(api, crossbar);
  if (group.residual.empty() && reader && IsOp(api, reader->node, "", "Add")) {
    const auto inputs = InputsOf(api, reader->node);
    const abi::ValueInfo* const other = inputs.size() == 2 ? inputs[1 - reader->input] : nullptr;
    const abi::ValueInfo* const own = OutputOf(api, group.nodes.back());
    if (other != nullptr && !IsConstant(api, other) &&
        ShapeOf(api, own).IsSame(ShapeOf(api, other))) {
      group.residual = NameOf(api, other);
      group.nodes.push_back(reader->node);
      reader = next();
    }
  }
  if (reader && TakeActivation(api, *reader, &group.post_ops)) group.nodes.push_back(reader->node);
  group.y = NameOf(api, OutputOf(api, group.nodes.back()));
  return group;
}

}  // namespace rimc
