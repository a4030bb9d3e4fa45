// SPDX-License-Identifier: Apache-2.0
//
// ONNX Runtime's C functions in C++ clothes: errors are exceptions here, resources release
// themselves. Nothing of this leaves the library: op.h turns exceptions into statuses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_floats.h"
#include "base/dims.h"
#include "base/errors.h"
#include "base/ranges.h"
#include "rimc/ort_abi.h"

namespace rimc::abi {
struct Node;
}

namespace rimc {

// The domain of the operators.
constexpr const char* kDomain = "ai.rimc";

// Throws the Error that a status stands for, and releases it.
void Check(const abi::Api* api, abi::Status* status);

// Runs `body` and gives its exception, if any, as a status.
template <class Body>
abi::Status* Guard(const abi::Api* api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return abi::CreateStatus::Call(api, error.code(), error.what());
  } catch (const std::exception& error) {
    return abi::CreateStatus::Call(api, abi::kRuntimeException, error.what());
  } catch (...) {
    return abi::CreateStatus::Call(api, abi::kFail, "unknown error");
  }
}

// A tensor that ONNX Runtime owns.
struct Tensor {
  int type = 0;
  Dims dims;
  const void* data = nullptr;

  const float* Floats() const { return static_cast<const float*>(data); }
  const std::int8_t* Int8s() const { return static_cast<const std::int8_t*>(data); }
  const std::int64_t* Int64s() const { return static_cast<const std::int64_t*>(data); }
};

// The tensor in a value.
Tensor ReadTensor(const abi::Api* api, const abi::Value* value);

// Throws unless every value of a crossbar can be a conductance.
void CheckWeights(const Tensor& w);

// Throws unless `tensor` has the dimensions `want`.
void CheckDims(const char* name, const Tensor& tensor, const Dims& want);

// The node of a kernel when it is made: one that becomes a custom op, or one that a
// provider compiles.
class NodeInfo {
 public:
  NodeInfo(const abi::Api* api, const abi::KernelInfo* info) : api_(api), info_(info) {}
  NodeInfo(const abi::Api* api, const abi::Node* node) : api_(api), node_(node) {}

  std::string Name() const;  // name of the node, may be empty
  // Attributes; a missing one throws, since kernels don't see the defaults of a function.
  Index Int(const char* name) const;
  float Float(const char* name) const;
  std::vector<Index> Ints(const char* name) const;
  std::vector<float> Floats(const char* name) const;
  // The value of an input, where it is a constant of the model.
  std::optional<Tensor> Constant(std::size_t input) const;

 private:
  template <class T>
  std::vector<T> NodeAttribute(const char* name, int type, const char* type_name) const;

  const abi::Api* api_;
  const abi::KernelInfo* info_ = nullptr;
  const abi::Node* node_ = nullptr;
};

// The output that a kernel has written.
struct Output {
  float* data;
  Dims dims;
};

// The run of a kernel: inputs, output, threads and memory.
class Context {
 public:
  Context(const abi::Api* api, abi::KernelContext* context, const abi::MemoryInfo* memory)
      : api_(api), context_(context), memory_(memory) {}
  // The same run as `other`, for a kernel that is a part of a node: its inputs are `inputs`, its
  // output goes to `output`.
  Context(const Context& other, const std::vector<Tensor>& inputs, float* output)
      : api_(other.api_),
        context_(other.context_),
        memory_(other.memory_),
        inputs_(&inputs),
        output_(output) {}

  Tensor Input(std::size_t index) const;
  float* Output(std::size_t index, const Dims& dims) const;

  // Runs body(i) for every i < count on the threads of the session. `body` must not throw.
  template <class Body>
  void ParallelFor(Index count, const Body& body) const {
    if (count == 1) return body(Index{0});
    if (count < 1) return;
    const auto call = [](void* user, std::size_t i) {
      (*static_cast<const Body*>(user))(static_cast<Index>(i));
    };
    Check(api_, abi::ContextParallelFor::Call(api_, context_, call, static_cast<std::size_t>(count),
                                              0, const_cast<Body*>(&body)));
  }

 private:
  friend class Scratch;
  const abi::Api* api_;
  abi::KernelContext* context_;
  const abi::MemoryInfo* memory_;
  const std::vector<Tensor>* inputs_ = nullptr;
  float* output_ = nullptr;
};

// Working memory from the allocator of the session, aligned to 64 bytes, uninitialised.
class Scratch {
 public:
  Scratch(const Context& context, Index num_floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }

 private:
  const abi::Api* api_;
  abi::Allocator* allocator_ = nullptr;
  void* raw_ = nullptr;
  float* data_ = nullptr;
};

}  // namespace rimc
