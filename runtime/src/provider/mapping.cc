// SPDX-License-Identifier: Apache-2.0
#include "provider/mapping.h"

#include <algorithm>

#include "ort/graph.h"
#include "provider/fusion/group.h"

namespace rimc {
namespace {

// ONNX Runtime makes a Gemm of a MatMul and an Add before it asks the provider; the node's weight
// is still the MatMul's.
constexpr const char* kFusedSuffix = "/MatMulAddFusion";

// A node stays digital; not an error.
struct Digital {
  std::string reason;
};

template <class... Parts>
[[noreturn]] void StayDigital(const Parts&... parts) {
  throw Digital{Join({MessagePart(parts)...})};
}

class NodeView {
 public:
  NodeView(const abi::Api* api, const abi::Node* node) : api_(api), node_(node) {
    std::size_t count = 0;
    Check(api_, abi::NodeNumInputs::Call(api_, node_, &count));
    inputs_.resize(count, nullptr);
    Check(api_, abi::NodeInputs::Call(api_, node_, inputs_.data(), count));
  }

  bool HasInput(std::size_t i) const { return i < inputs_.size() && inputs_[i] != nullptr; }

  // The value of an input that no one can change.
  std::optional<Tensor> Constant(std::size_t i) const {
    bool constant = false;
    Check(api_, abi::IsConstantInitializer::Call(api_, inputs_[i], &constant));
    if (!constant) return std::nullopt;
    const abi::Value* value = nullptr;
    Check(api_, abi::GetInitializerValue::Call(api_, inputs_[i], &value));
    if (value == nullptr) return std::nullopt;
    return ReadTensor(api_, value);
  }

  std::int64_t Int(const char* name, std::int64_t otherwise) const {
    std::int64_t value = otherwise;
    Read(name, abi::kAttrInt, &value, sizeof value);
    return value;
  }
  float Float(const char* name, float otherwise) const {
    float value = otherwise;
    Read(name, abi::kAttrFloat, &value, sizeof value);
    return value;
  }
  std::vector<Index> Ints(const char* name, std::vector<Index> otherwise) const {
    std::array<std::int64_t, 2 * Dims::kMaxRank> values{};
    const auto bytes = Read(name, abi::kAttrInts, values.data(), sizeof values);
    if (!bytes) return otherwise;
    const auto count = static_cast<std::ptrdiff_t>(*bytes / sizeof(std::int64_t));
    return {values.begin(), values.begin() + count};
  }
  std::string String(const char* name, const char* otherwise) const {
    std::array<char, 64> text{};
    const auto bytes = Read(name, abi::kAttrString, text.data(), text.size());
    if (!bytes) return otherwise;
    return {text.data(), std::find(text.data(), text.data() + *bytes, '\0')};
  }

 private:
  // Bytes read, or nothing where the node has no such attribute.
  std::optional<std::size_t> Read(const char* name, int type, void* data, std::size_t size) const {
    const abi::OpAttr* attribute = nullptr;
    abi::Status* status = abi::NodeAttribute::Call(api_, node_, name, &attribute);
    if (status != nullptr) abi::ReleaseStatus::Call(api_, status);
    if (status != nullptr || attribute == nullptr) return std::nullopt;
    int found = 0;
    Check(api_, abi::OpAttrType::Call(api_, attribute, &found));
    if (found != type) StayDigital("attribute ", name, " is of an unexpected type");
    std::size_t bytes = 0;
    Check(api_, abi::ReadOpAttr::Call(api_, attribute, type, data, size, &bytes));
    return bytes;
  }

  const abi::Api* api_;
  const abi::Node* node_;
  std::vector<const abi::ValueInfo*> inputs_;
};

Tensor WeightOf(const NodeView& node) {
  if (!node.HasInput(0) || !node.HasInput(1)) StayDigital("an operand is missing");
  const auto w = node.Constant(1);
  if (!w) StayDigital("the weight is no constant initializer");
  if (node.Constant(0)) StayDigital("both operands are constants");
  if (w->type != abi::kFloat) StayDigital("the weight is not float32");
  if (w->dims.Count() == 0) StayDigital("the weight of shape ", w->dims, " is empty");
  return *w;
}

// Input 2, where there is one: a constant that has one value, or one per column in its last axis.
std::optional<Tensor> BiasOf(const NodeView& node, std::int64_t columns) {
  if (!node.HasInput(2)) return std::nullopt;
  const auto bias = node.Constant(2);
  if (!bias) StayDigital("the bias is no constant initializer");
  const Dims& dims = bias->dims;
  const bool is_row = dims.rank > 0 && dims[dims.rank - 1] == columns && dims.Count() == columns;
  // More axes than the output has are not ONNX.
  if (dims.rank > 2 || (!is_row && dims.Count() != 1))
    StayDigital("the bias of shape ", dims, " is no row");
  return bias;
}

// Pads of SAME, begins and ends: passes/make_pads_explicit.py has the same lines. `sizes` are those
// of the input's spatial axes, below 0 where they are not known.
std::vector<Index> SamePads(const ConvNode& conv, const std::vector<Index>& kernel,
                            const std::vector<std::int64_t>& sizes, bool upper) {
  const std::size_t rank = kernel.size();
  std::vector<Index> pads(2 * rank);
  for (std::size_t i = 0; i < rank; ++i) {
    const Index extent = conv.dilations.at(i) * (kernel[i] - 1) + 1;
    const Index stride = conv.strides.at(i);
    Index total = extent - 1;
    if (stride != 1) {
      const auto size = sizes.size() == 2 + rank ? static_cast<Index>(sizes[2 + i]) : -1;
      if (size < 0 || stride < 1) {
        StayDigital("auto_pad with a stride pads as the input's size says, which is not known");
      }
      total = std::max<Index>((CeilDiv(size, stride) - 1) * stride + extent - size, 0);
    }
    const Index small = total / 2;
    pads[i] = upper ? small : total - small;
    pads[rank + i] = upper ? total - small : small;
  }
  return pads;
}

void ReadConv(const NodeView& node, const std::vector<std::int64_t>& sizes, MappedNode* mapped) {
  const Dims& w = mapped->weight.dims;
  if (w.rank < 3 || w.rank > 2 + kAxes) StayDigital("the weight has the shape ", w);
  const std::size_t rank = w.rank - 2;
  const std::string auto_pad = node.String("auto_pad", "NOTSET");
  const bool is_same = auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER";
  if (auto_pad != "NOTSET" && auto_pad != "VALID" && !is_same) {
    StayDigital("auto_pad ", auto_pad, " is not known");
  }
  const std::vector<Index> kernel(w.size.begin() + 2, w.size.begin() + w.rank);
  if (node.Ints("kernel_shape", kernel) != kernel) StayDigital("kernel_shape is not the weight's");
  const std::vector<Index> none(2 * rank, 0);
  mapped->is_conv = true;
  mapped->conv.strides = node.Ints("strides", std::vector<Index>(rank, 1));
  mapped->conv.dilations = node.Ints("dilations", std::vector<Index>(rank, 1));
  mapped->conv.pads = auto_pad == "NOTSET" ? node.Ints("pads", none) : none;
  mapped->conv.group = static_cast<Index>(node.Int("group", 1));
  try {
    if (is_same) {
      ResolveConv(mapped->conv, "w", w, 1);  // numbers of strides and dilations, and their limits
      mapped->conv.pads = SamePads(mapped->conv, kernel, sizes, auto_pad == "SAME_UPPER");
    }
    ResolveConv(mapped->conv, "w", w, 1);
  } catch (const Error& error) {
    StayDigital(error.what());
  }
  mapped->bias = BiasOf(node, w[0]);
  if (mapped->bias && mapped->bias->dims.Count() != w[0]) StayDigital("the bias has one value");
}

void ReadMatMul(const NodeView& node, bool is_gemm, bool adds_activation, MappedNode* mapped) {
  const Dims& w = mapped->weight.dims;
  if (w.rank != 2) StayDigital("the weight has rank ", w.rank, ": one array holds one matrix");
  if (!is_gemm) return;
  if (node.Int("transA", 0) != 0) StayDigital("transA is set");
  mapped->transposed = node.Int("transB", 0) != 0;
  mapped->alpha = node.Float("alpha", 1.0f);
  mapped->beta = node.Float("beta", 1.0f);
  if (mapped->beta != 0.0f && !adds_activation) {
    mapped->bias = BiasOf(node, mapped->transposed ? w[0] : w[1]);
  }
}

}  // namespace

Index MappedNode::WindowSize() const {
  Index window = 1;
  for (std::size_t i = 2; is_conv && i < weight.dims.rank; ++i) {
    window *= static_cast<Index>(weight.dims[i]);
  }
  return window;
}

std::optional<Decision> Decide(const abi::Api* api, const abi::Node* node,
                               const DeviceOptions& device) {
  Decision decision;
  decision.op_type = OperatorOf(api, node);
  const bool is_conv = decision.op_type == "Conv";
  const bool is_gemm = decision.op_type == "Gemm";
  if (!DomainOf(api, node).empty() || !(is_conv || is_gemm || decision.op_type == "MatMul")) {
    return std::nullopt;
  }
  decision.name = NameOf(api, node);
  if (is_gemm) {
    const std::size_t suffix = decision.name.rfind(kFusedSuffix);
    if (suffix != std::string::npos) decision.name.resize(suffix);
  }
  try {
    if (decision.name.empty()) {
      StayDigital("the node has no name, which its draws need as a key: name it");
    }
    for (const std::string& pattern : device.keep_digital) {
      if (pattern == decision.name || MatchesPattern(pattern, decision.name)) {
        StayDigital("kept digital by the pattern '", pattern, "'");
      }
    }
    if (!HasReader(api, node)) StayDigital("nothing reads its output");
    MappedNode mapped;
    mapped.name = decision.name;
    const NodeView view(api, node);
    mapped.weight = WeightOf(view);
    if (is_conv) {
      ReadConv(view, ShapeOf(api, InputsOf(api, node).at(0)).size, &mapped);
    } else {
      ReadMatMul(view, is_gemm, is_gemm && !AddedActivation(api, node).empty(), &mapped);
    }
    if (!device.periphery.FitsTiles(mapped.name, mapped.WindowSize())) {
      StayDigital(mapped.WindowSize(), " word lines of its kernel do not fit in a tile");
    }
    decision.mapped = std::move(mapped);
  } catch (const Digital& digital) {
    decision.reason = digital.reason;
  }
  return decision;
}

}  // namespace rimc
