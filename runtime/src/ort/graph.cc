// SPDX-License-Identifier: Apache-2.0
#include "ort/graph.h"

namespace rimc {
namespace {

using Values = std::vector<const abi::ValueInfo*>;

template <class CountSlot, class ListSlot, class Owner>
Values ListOf(const abi::Api* api, const Owner* owner) {
  std::size_t count = 0;
  Check(api, CountSlot::Call(api, owner, &count));
  Values values(count, nullptr);
  if (count > 0) Check(api, ListSlot::Call(api, owner, values.data(), count));
  return values;
}

std::string Text(const abi::Api* api, abi::Status* status, const char* const& text) {
  Check(api, status);
  return text == nullptr ? "" : text;
}

}  // namespace

Values InputsOf(const abi::Api* api, const abi::Node* node) {
  return ListOf<abi::NodeNumInputs, abi::NodeInputs>(api, node);
}

Values OutputsOf(const abi::Api* api, const abi::Node* node) {
  return ListOf<abi::NodeNumOutputs, abi::NodeOutputs>(api, node);
}

Values ImplicitInputsOf(const abi::Api* api, const abi::Node* node) {
  return ListOf<abi::NodeNumImplicitInputs, abi::NodeImplicitInputs>(api, node);
}

Values InputsOf(const abi::Api* api, const abi::Graph* graph) {
  return ListOf<abi::GraphNumInputs, abi::GraphInputs>(api, graph);
}

Values OutputsOf(const abi::Api* api, const abi::Graph* graph) {
  return ListOf<abi::GraphNumOutputs, abi::GraphOutputs>(api, graph);
}

std::string NameOf(const abi::Api* api, const abi::ValueInfo* value) {
  if (value == nullptr) return "";
  const char* name = nullptr;
  Check(api, abi::ValueName::Call(api, value, &name));
  return name == nullptr ? "" : name;
}

bool IsConstant(const abi::Api* api, const abi::ValueInfo* value) {
  bool constant = false;
  if (value != nullptr) Check(api, abi::IsConstantInitializer::Call(api, value, &constant));
  return constant;
}

bool IsOverridable(const abi::Api* api, const abi::ValueInfo* value) {
  bool is_optional = false;
  Check(api, abi::IsOptionalGraphInput::Call(api, value, &is_optional));
  return is_optional;
}

const abi::Node* ProducerOf(const abi::Api* api, const abi::ValueInfo* value) {
  const abi::Node* producer = nullptr;
  std::size_t index = 0;
  Check(api, abi::ValueProducer::Call(api, value, &producer, &index));
  return producer;
}

std::string InputName(const abi::Api* api, const abi::Node* node, std::size_t index) {
  const Values inputs = InputsOf(api, node);
  return index < inputs.size() ? NameOf(api, inputs[index]) : "";
}

bool IsGraphOutput(const abi::Api* api, const abi::ValueInfo* value) {
  bool is_output = false;
  Check(api, abi::IsGraphOutput::Call(api, value, &is_output));
  return is_output;
}

std::size_t NumReaders(const abi::Api* api, const abi::ValueInfo* value) {
  std::size_t count = 0;
  Check(api, abi::ValueNumConsumers::Call(api, value, &count));
  return count;
}

bool HasReader(const abi::Api* api, const abi::Node* node) {
  for (const abi::ValueInfo* value : OutputsOf(api, node)) {
    if (value != nullptr && (IsGraphOutput(api, value) || NumReaders(api, value) > 0)) return true;
  }
  return false;
}

std::vector<const abi::Node*> NodesOf(const abi::Api* api, const abi::Graph* graph) {
  std::size_t count = 0;
  Check(api, abi::GraphNumNodes::Call(api, graph, &count));
  std::vector<const abi::Node*> nodes(count, nullptr);
  Check(api, abi::GraphNodes::Call(api, graph, nodes.data(), count));
  return nodes;
}

std::string NameOf(const abi::Api* api, const abi::Node* node) {
  const char* text = nullptr;
  return Text(api, abi::NodeName::Call(api, node, &text), text);
}

std::string DomainOf(const abi::Api* api, const abi::Node* node) {
  const char* text = nullptr;
  const std::string domain = Text(api, abi::NodeDomain::Call(api, node, &text), text);
  return domain == "ai.onnx" ? "" : domain;
}

std::string OperatorOf(const abi::Api* api, const abi::Node* node) {
  const char* text = nullptr;
  return Text(api, abi::NodeOperatorType::Call(api, node, &text), text);
}

ValueShape ShapeOf(const abi::Api* api, const abi::ValueInfo* value) {
  ValueShape found;
  const abi::TypeInfo* type = nullptr;
  Check(api, abi::ValueTypeInfo::Call(api, value, &type));
  const abi::Shape* shape = nullptr;
  if (type != nullptr) Check(api, abi::TensorTypeOf::Call(api, type, &shape));
  if (shape == nullptr) return found;
  std::size_t rank = 0;
  Check(api, abi::GetElementType::Call(api, shape, &found.type));
  Check(api, abi::GetDimensionsCount::Call(api, shape, &rank));
  found.size.resize(rank);
  std::vector<const char*> symbols(rank, nullptr);
  if (rank > 0) {
    Check(api, abi::GetDimensions::Call(api, shape, found.size.data(), rank));
    Check(api, abi::GetSymbolicDimensions::Call(api, shape, symbols.data(), rank));
  }
  for (const char* symbol : symbols) found.symbol.emplace_back(symbol == nullptr ? "" : symbol);
  return found;
}

}  // namespace rimc
