// SPDX-License-Identifier: Apache-2.0
//
// Nodes and values of a graph as a provider sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ort/ort.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {

// Inputs and outputs of a node, null where one is left out.
std::vector<const abi::ValueInfo*> InputsOf(const abi::Api* api, const abi::Node* node);
std::vector<const abi::ValueInfo*> OutputsOf(const abi::Api* api, const abi::Node* node);
// The outer values that the bodies of a node's control flow read.
std::vector<const abi::ValueInfo*> ImplicitInputsOf(const abi::Api* api, const abi::Node* node);
// Inputs and outputs of a graph; constants are among the inputs.
std::vector<const abi::ValueInfo*> InputsOf(const abi::Api* api, const abi::Graph* graph);
std::vector<const abi::ValueInfo*> OutputsOf(const abi::Api* api, const abi::Graph* graph);

// Empty where there is no value.
std::string NameOf(const abi::Api* api, const abi::ValueInfo* value);
bool IsConstant(const abi::Api* api, const abi::ValueInfo* value);

// Whether a caller may feed another value in place of an initializer.
bool IsOverridable(const abi::Api* api, const abi::ValueInfo* value);

// The node that a value is an output of, null where it is none of a node's.
const abi::Node* ProducerOf(const abi::Api* api, const abi::ValueInfo* value);

// Name of an input of a node, empty where it has none.
std::string InputName(const abi::Api* api, const abi::Node* node, std::size_t index);

// Whether a value is an output of the graph, and by how many inputs of nodes it is read.
bool IsGraphOutput(const abi::Api* api, const abi::ValueInfo* value);
std::size_t NumReaders(const abi::Api* api, const abi::ValueInfo* value);

// Whether another node or the graph's caller gets an output of the node: ONNX Runtime keeps nodes
// whose outputs nobody reads, and a fused node of such ones would have no output.
bool HasReader(const abi::Api* api, const abi::Node* node);

// Nodes of a graph, in its order.
std::vector<const abi::Node*> NodesOf(const abi::Api* api, const abi::Graph* graph);

// Name, domain ("" is ONNX's own) and operator of a node.
std::string NameOf(const abi::Api* api, const abi::Node* node);
std::string DomainOf(const abi::Api* api, const abi::Node* node);
std::string OperatorOf(const abi::Api* api, const abi::Node* node);

// Type and dimensions of a value; a dimension without a number is its symbol.
struct ValueShape {
  int type = 0;
  std::vector<std::int64_t> size;
  std::vector<std::string> symbol;

  // Whether both surely have one shape.
  bool IsSame(const ValueShape& other) const {
    if (type != other.type || size != other.size || symbol != other.symbol) return false;
    for (std::size_t i = 0; i < size.size(); ++i) {
      if (size[i] < 0 && symbol[i].empty()) return false;
    }
    return !size.empty();
  }
};
ValueShape ShapeOf(const abi::Api* api, const abi::ValueInfo* value);

}  // namespace rimc
