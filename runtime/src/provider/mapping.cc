// SPDX-License-Identifier: Apache-2.0
#include "provider/mapping.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <map>
#include <utility>

#include "ort/graph.h"
#include "provider/fusion/group.h"
#include "provider/refusals.h"

namespace rimc {
namespace {

// ONNX Runtime makes a Gemm of a MatMul and an Add before it asks the provider; the node's weight
// is still the MatMul's.
constexpr const char* kFusedSuffix = "/MatMulAddFusion";

// A node stays digital; not an error.
struct Digital {
  std::string reason;
};

// `refusal` with what was found in place of "{}".
template <class... Found>
[[noreturn]] void StayDigital(const char* refusal, const Found&... found) {
  std::string reason = refusal;
  std::size_t from = 0;
  for (const MessagePart& part : std::initializer_list<MessagePart>{MessagePart(found)...}) {
    from = reason.find("{}", from);
    reason.replace(from, 2, part.text());
    from += part.text().size();
  }
  throw Digital{std::move(reason)};
}

class NodeView {
 public:
  NodeView(const abi::Api* api, const abi::Node* node)
      : api_(api), node_(node), inputs_(InputsOf(api, node)) {}

  bool HasInput(std::size_t i) const { return i < inputs_.size() && inputs_[i] != nullptr; }
  const abi::Api* api() const { return api_; }
  const abi::ValueInfo* Input(std::size_t i) const { return inputs_.at(i); }

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
    if (found != type) {
      StayDigital(refusal::kContradiction, Join({"attribute ", name, " is of an unexpected type"}));
    }
    std::size_t bytes = 0;
    Check(api_, abi::ReadOpAttr::Call(api_, attribute, type, data, size, &bytes));
    return bytes;
  }

  const abi::Api* api_;
  const abi::Node* node_;
  std::vector<const abi::ValueInfo*> inputs_;
};

// What stands where a constant is needed.
std::string Explain(const abi::Api* api, const abi::ValueInfo* value) {
  if (IsOverridable(api, value)) return "an overridable initializer (it is a graph input too)";
  const abi::Node* producer = ProducerOf(api, value);
  if (producer == nullptr) return "an input";
  return "computed by node '" + NameOf(api, producer) + "' (" + OperatorOf(api, producer) + ")";
}

// Whether a value is made of constants alone; `known` is what was found before, by name.
bool IsFixed(const abi::Api* api, const abi::ValueInfo* value, std::map<std::string, bool>* known,
             int most_steps = 64) {
  if (IsConstant(api, value)) return true;
  const abi::Node* producer = IsOverridable(api, value) ? nullptr : ProducerOf(api, value);
  if (producer == nullptr || most_steps == 0) return false;
  const std::string name = NameOf(api, value);
  const auto found = known->find(name);
  if (found != known->end()) return found->second;
  const std::string op_type = OperatorOf(api, producer);
  bool is_fixed = op_type.rfind("Random", 0) != 0 && op_type != "If" && op_type != "Loop" &&
                  op_type != "Scan" && op_type != "SequenceMap";
  for (const abi::ValueInfo* input : InputsOf(api, producer)) {
    if (!is_fixed) break;
    is_fixed = input == nullptr || IsFixed(api, input, known, most_steps - 1);
  }
  return (*known)[name] = is_fixed;
}

const char* TypeName(int type) {
  switch (type) {
    case 6: return "int32";
    case abi::kInt64: return "int64";
    case 10: return "float16";
    case 11: return "double";
    case 12: return "uint32";
    case 13: return "uint64";
    case 16: return "bfloat16";
    default: return "unknown";
  }
}

Tensor WeightOf(const NodeView& node) {
  if (!node.HasInput(0) || !node.HasInput(1)) StayDigital(refusal::kOperandMissing);
  const abi::Api* const api = node.api();
  const std::string name = NameOf(api, node.Input(1));
  if (IsOverridable(api, node.Input(1))) StayDigital(refusal::kOverridable, name);
  std::map<std::string, bool> known;
  const bool x_fixed = IsFixed(api, node.Input(0), &known);
  const bool w_fixed = IsFixed(api, node.Input(1), &known);
  if (x_fixed && w_fixed) StayDigital(refusal::kBothConstants);
  if (!w_fixed) StayDigital(x_fixed ? refusal::kLeftConstant : refusal::kBothActivations);
  const abi::Node* const producer = ProducerOf(api, node.Input(1));
  if (producer != nullptr && OperatorOf(api, producer) == "DequantizeLinear") {
    StayDigital(refusal::kQuantized);
  }
  const auto w = node.Constant(1);
  if (!w) StayDigital(refusal::kNotStored, name, Explain(api, node.Input(1)));
  if (w->type != abi::kFloat) StayDigital(refusal::kDtype, TypeName(w->type));
  if (w->dims.Count() == 0) StayDigital(refusal::kEmpty, w->dims);
  return *w;
}

// Input 2, where there is one: a constant that has one value, or one per column in its last axis.
std::optional<Tensor> BiasOf(const NodeView& node, std::int64_t columns) {
  if (!node.HasInput(2)) return std::nullopt;
  const auto bias = node.Constant(2);
  if (!bias) {
    const abi::ValueInfo* const value = node.Input(2);
    StayDigital(refusal::kBiasNotStored, NameOf(node.api(), value), Explain(node.api(), value));
  }
  const Dims& dims = bias->dims;
  const bool is_row = dims.rank > 0 && dims[dims.rank - 1] == columns && dims.Count() == columns;
  // More axes than the output has are not ONNX.
  if (dims.rank > 2 || (!is_row && dims.Count() != 1)) StayDigital(refusal::kBiasNotARow, dims);
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
        StayDigital(refusal::kAutoPad, upper ? "SAME_UPPER" : "SAME_LOWER");
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
  if (w.rank < 3 || w.rank > 2 + kAxes) {
    StayDigital(refusal::kContradiction, Join({"weight of shape ", w, " is no kernel"}));
  }
  const std::size_t rank = w.rank - 2;
  const std::string auto_pad = node.String("auto_pad", "NOTSET");
  const bool is_same = auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER";
  if (auto_pad != "NOTSET" && auto_pad != "VALID" && !is_same) {
    StayDigital(refusal::kAutoPad, auto_pad);
  }
  const std::vector<Index> kernel(w.size.begin() + 2, w.size.begin() + w.rank);
  if (node.Ints("kernel_shape", kernel) != kernel) {
    StayDigital(refusal::kContradiction, "kernel_shape is not the weight's");
  }
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
    StayDigital(refusal::kContradiction, error.what());
  }
  mapped->bias = BiasOf(node, w[0]);
  if (mapped->bias && mapped->bias->dims.Count() != w[0]) {
    StayDigital(refusal::kBiasNotARow, mapped->bias->dims);
  }
}

void ReadMatMul(const NodeView& node, bool is_gemm, bool adds_activation, MappedNode* mapped) {
  const Dims& w = mapped->weight.dims;
  if (w.rank == 1) StayDigital(refusal::kVector);
  if (w.rank != 2) StayDigital(refusal::kBatched, w.rank);
  if (!is_gemm) return;
  if (node.Int("transA", 0) != 0) StayDigital(refusal::kTransposed);
  mapped->transposed = node.Int("transB", 0) != 0;
  mapped->alpha = node.Float("alpha", 1.0f);
  mapped->beta = node.Float("beta", 1.0f);
  if (mapped->beta != 0.0f && !adds_activation) {
    mapped->bias = BiasOf(node, mapped->transposed ? w[0] : w[1]);
  }
}

const char* const kIntegers[] = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"};
const std::map<std::string, const char*> kWithoutOperator = {
    {"Attention", refusal::kAttention}, {"DeformConv", refusal::kDeformable},
    {"Einsum", refusal::kEinsum},       {"GRU", refusal::kRecurrent},
    {"LSTM", refusal::kRecurrent},      {"RNN", refusal::kRecurrent},
};
// Operators of com.microsoft that ONNX Runtime's optimizer makes of ONNX's.
const char* const kOptimizer[] = {"FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation",
                                  "NhwcFusedConv"};
// Operators of com.microsoft with codes for weights.
const char* const kQuantized[] = {"DynamicQuantizeMatMul", "MatMulBnb4",  "MatMulIntegerToFloat",
                                  "MatMulNBits",           "QAttention",  "QGemm",
                                  "QLinearConv"};

template <std::size_t kCount>
bool IsOneOf(const char* const (&names)[kCount], const std::string& name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// Whether a conversion decides on such a node, too: passes/select_rram_nodes.py has the same lists.
bool Multiplies(const std::string& domain, const std::string& op_type) {
  if (domain.empty()) {
    return op_type == "Conv" || op_type == "ConvTranspose" || op_type == "Gemm" ||
           op_type == "MatMul" || IsOneOf(kIntegers, op_type) || kWithoutOperator.count(op_type) > 0;
  }
  for (std::size_t at = op_type.find("Conv"); at != std::string::npos;
       at = op_type.find("Conv", at + 1)) {
    if (op_type.compare(at, 7, "Convert") != 0) return true;
  }
  const auto has = [&](const char* part) { return op_type.find(part) != std::string::npos; };
  return has("MatMul") || has("Gemm") || has("Attention");
}

// Whether a ConvTranspose only adds up taps, as what a conversion leaves of one does: its weight
// [G * taps, 1, *kernel] is a unit matrix for each group.
bool IsOverlapAdd(const NodeView& node) {
  const auto w = node.HasInput(1) ? node.Constant(1) : std::nullopt;
  if (!w || w->type != abi::kFloat || w->dims.rank < 3 || w->dims[1] != 1) return false;
  const std::int64_t group = node.Int("group", 1);
  const std::int64_t rows = w->dims[0];
  const std::int64_t taps = rows > 0 ? w->dims.Count() / rows : 0;
  if (taps < 1 || rows != group * taps) return false;
  for (std::int64_t i = 0; i < rows * taps; ++i) {
    if (w->Floats()[i] != (i / taps % taps == i % taps ? 1.0f : 0.0f)) return false;
  }
  return true;
}

// Refuses what no crossbar has.
void RefuseOperator(const std::string& domain, const std::string& op_type) {
  if (domain == "com.microsoft" && IsOneOf(kOptimizer, op_type)) {
    StayDigital(refusal::kOptimized);
  }
  if (domain == "com.microsoft" && IsOneOf(kQuantized, op_type)) StayDigital(refusal::kInteger);
  if (!domain.empty()) StayDigital(refusal::kForeign, domain);
  if (IsOneOf(kIntegers, op_type)) StayDigital(refusal::kInteger);
  const auto found = kWithoutOperator.find(op_type);
  if (found != kWithoutOperator.end()) StayDigital(found->second);
}

}  // namespace

Index MappedNode::WindowSize() const {
  Index window = 1;
  for (std::size_t i = 2; is_conv && i < weight.dims.rank; ++i) {
    window *= static_cast<Index>(weight.dims[i]);
  }
  return window;
}

std::optional<Decision> Decide(const abi::Api* api, const abi::Node* node, const abi::Node* parent,
                               const DeviceOptions& device) {
  Decision decision;
  const std::string domain = DomainOf(api, node);
  const std::string op_type = OperatorOf(api, node);
  if (!Multiplies(domain, op_type)) return std::nullopt;
  const NodeView view(api, node);
  decision.op_type = domain.empty() ? op_type : domain + ":" + op_type;
  const bool is_conv = op_type == "Conv";
  const bool is_gemm = op_type == "Gemm";
  decision.name = NameOf(api, node);
  if (is_gemm) {
    const std::size_t suffix = decision.name.rfind(kFusedSuffix);
    if (suffix != std::string::npos) decision.name.resize(suffix);
  }
  try {
    if (op_type == "ConvTranspose" && IsOverlapAdd(view)) return std::nullopt;
    if (decision.name.empty()) StayDigital(refusal::kUnnamed);
    for (const std::string& pattern : device.keep_digital) {
      if (pattern == decision.name || MatchesPattern(pattern, decision.name)) {
        StayDigital(refusal::kKeptDigital, pattern);
      }
    }
    if (parent != nullptr) {
      StayDigital(refusal::kInBody, OperatorOf(api, parent), NameOf(api, parent));
    }
    if (!HasReader(api, node)) StayDigital(refusal::kUnread);
    RefuseOperator(domain, op_type);
    MappedNode mapped;
    mapped.name = decision.name;
    mapped.weight = WeightOf(view);
    if (op_type == "ConvTranspose") StayDigital(refusal::kConvTranspose);
    if (is_conv) {
      ReadConv(view, ShapeOf(api, InputsOf(api, node).at(0)).size, &mapped);
    } else {
      ReadMatMul(view, is_gemm, is_gemm && !AddedActivation(api, node).empty(), &mapped);
    }
    const Index tile_rows = device.periphery.TileRows(mapped.name);
    if (tile_rows > 0 && mapped.WindowSize() > tile_rows) {
      StayDigital(refusal::kWindow, mapped.WindowSize(), tile_rows);
    }
    decision.mapped = std::move(mapped);
  } catch (const Digital& digital) {
    decision.reason = digital.reason;
  }
  return decision;
}

}  // namespace rimc
