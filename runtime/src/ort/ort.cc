// SPDX-License-Identifier: Apache-2.0
#include "ort/ort.h"

#include <algorithm>
#include <cmath>

#include "rimc/ort_ep_abi.h"

namespace rimc {

static_assert(int{kFail} == abi::kFail && int{kInvalidArgument} == abi::kInvalidArgument &&
              int{kRuntimeException} == abi::kRuntimeException);
namespace {

struct ShapeHandle {
  const abi::Api* api;
  abi::Shape* shape = nullptr;
  ~ShapeHandle() {
    if (shape != nullptr) abi::ReleaseShape::Call(api, shape);
  }
};

// Reads an attribute with `Function`; a missing or mistyped one throws.
template <class Function, class... Out>
void ReadAttribute(const abi::Api* api, const abi::KernelInfo* info, const char* name,
                   const char* type, Out... out) {
  abi::Status* status = Function::Call(api, info, name, out...);
  if (status == nullptr) return;
  abi::ReleaseStatus::Call(api, status);
  Refuse("attribute ", name, " is missing or is not of type ", type);
}

}  // namespace

Tensor ReadTensor(const abi::Api* api, const abi::Value* value) {
  Tensor tensor;
  ShapeHandle handle{api};
  Check(api, abi::GetTensorShape::Call(api, value, &handle.shape));
  Check(api, abi::GetElementType::Call(api, handle.shape, &tensor.type));
  Check(api, abi::GetDimensionsCount::Call(api, handle.shape, &tensor.dims.rank));
  if (tensor.dims.rank > Dims::kMaxRank) {
    Refuse("tensors have at most ", Dims::kMaxRank, " dimensions, got ", tensor.dims.rank);
  }
  Check(api,
        abi::GetDimensions::Call(api, handle.shape, tensor.dims.size.data(), tensor.dims.rank));
  void* data = nullptr;
  Check(api, abi::GetTensorMutableData::Call(api, const_cast<abi::Value*>(value), &data));
  tensor.data = data;
  return tensor;
}

void Check(const abi::Api* api, abi::Status* status) {
  if (status == nullptr) return;
  Error error(abi::GetErrorCode::Call(api, status), abi::GetErrorMessage::Call(api, status));
  abi::ReleaseStatus::Call(api, status);
  throw error;
}

void CheckWeights(const Tensor& w) {
  const float* const end = w.Floats() + w.dims.Count();
  const float* const found =
      std::find_if_not(w.Floats(), end, [](float value) { return std::isfinite(value); });
  if (found != end) Refuse("input w must be finite, got ", *found);
}

void CheckDims(const char* name, const Tensor& tensor, const Dims& want) {
  if (!(tensor.dims == want)) {
    Refuse("input ", name, " must have the shape ", want, ", got ", tensor.dims);
  }
}

// The values of an attribute of a node that a provider compiles.
template <class T>
std::vector<T> NodeInfo::NodeAttribute(const char* name, int type, const char* type_name) const {
  const abi::OpAttr* attribute = nullptr;
  abi::Status* status = abi::NodeAttribute::Call(api_, node_, name, &attribute);
  if (status != nullptr) abi::ReleaseStatus::Call(api_, status);
  int found = 0;
  if (status == nullptr && attribute != nullptr) {
    Check(api_, abi::OpAttrType::Call(api_, attribute, &found));
  }
  if (found != type) Refuse("attribute ", name, " is missing or is not of type ", type_name);
  // Asked with no room it gives the size, and an error with it.
  std::size_t bytes = 0;
  T none{};
  status = abi::ReadOpAttr::Call(api_, attribute, type, &none, 0, &bytes);
  if (status != nullptr) abi::ReleaseStatus::Call(api_, status);
  std::vector<T> values(bytes / sizeof(T));
  if (!values.empty()) {
    Check(api_, abi::ReadOpAttr::Call(api_, attribute, type, values.data(), bytes, &bytes));
  }
  return values;
}

std::string NodeInfo::Name() const {
  if (node_ != nullptr) {
    const char* name = nullptr;
    Check(api_, abi::NodeName::Call(api_, node_, &name));
    return name == nullptr ? "" : name;
  }
  std::size_t size = 0;
  abi::Status* status = abi::KernelInfoNodeName::Call(api_, info_, nullptr, &size);
  if (status != nullptr) abi::ReleaseStatus::Call(api_, status);
  if (size == 0) return "";
  std::string name(size, '\0');
  Check(api_, abi::KernelInfoNodeName::Call(api_, info_, name.data(), &size));
  name.resize(size - 1);
  return name;
}

Index NodeInfo::Int(const char* name) const {
  if (node_ != nullptr) {
    return static_cast<Index>(NodeAttribute<std::int64_t>(name, abi::kAttrInt, "int").at(0));
  }
  std::int64_t value = 0;
  ReadAttribute<abi::KernelInfoInt>(api_, info_, name, "int", &value);
  return static_cast<Index>(value);
}

float NodeInfo::Float(const char* name) const {
  if (node_ != nullptr) return NodeAttribute<float>(name, abi::kAttrFloat, "float").at(0);
  float value = 0.0f;
  ReadAttribute<abi::KernelInfoFloat>(api_, info_, name, "float", &value);
  return value;
}

std::vector<Index> NodeInfo::Ints(const char* name) const {
  if (node_ != nullptr) {
    const auto values = NodeAttribute<std::int64_t>(name, abi::kAttrInts, "ints");
    return {values.begin(), values.end()};
  }
  std::size_t count = 0;
  ReadAttribute<abi::KernelInfoInts>(api_, info_, name, "ints", nullptr, &count);
  std::vector<std::int64_t> values(count);
  ReadAttribute<abi::KernelInfoInts>(api_, info_, name, "ints", values.data(), &count);
  return {values.begin(), values.end()};
}

std::vector<float> NodeInfo::Floats(const char* name) const {
  if (node_ != nullptr) return NodeAttribute<float>(name, abi::kAttrFloats, "floats");
  std::size_t count = 0;
  ReadAttribute<abi::KernelInfoFloats>(api_, info_, name, "floats", nullptr, &count);
  std::vector<float> values(count);
  ReadAttribute<abi::KernelInfoFloats>(api_, info_, name, "floats", values.data(), &count);
  return values;
}

std::optional<Tensor> NodeInfo::Constant(std::size_t input) const {
  if (node_ != nullptr) {
    std::size_t count = 0;
    Check(api_, abi::NodeNumInputs::Call(api_, node_, &count));
    std::vector<const abi::ValueInfo*> inputs(count, nullptr);
    Check(api_, abi::NodeInputs::Call(api_, node_, inputs.data(), count));
    bool constant = false;
    if (input >= count || inputs[input] == nullptr) return std::nullopt;
    Check(api_, abi::IsConstantInitializer::Call(api_, inputs[input], &constant));
    if (!constant) return std::nullopt;
    const abi::Value* value = nullptr;
    Check(api_, abi::GetInitializerValue::Call(api_, inputs[input], &value));
    if (value == nullptr) return std::nullopt;
    return ReadTensor(api_, value);
  }
  int is_constant = 0;
  const abi::Value* value = nullptr;
  Check(api_, abi::KernelInfoConstantInput::Call(api_, info_, input, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return ReadTensor(api_, value);
}

Tensor Context::Input(std::size_t index) const {
  if (inputs_ != nullptr) return inputs_->at(index);
  const abi::Value* value = nullptr;
  Check(api_, abi::ContextInput::Call(api_, context_, index, &value));
  if (value == nullptr) Refuse("input ", index, " is missing");
  return ReadTensor(api_, value);
}

float* Context::Output(std::size_t index, const Dims& dims) const {
  if (output_ != nullptr) return output_;
  abi::Value* value = nullptr;
  Check(api_, abi::ContextOutput::Call(api_, context_, index, dims.size.data(), dims.rank, &value));
  void* data = nullptr;
  Check(api_, abi::GetTensorMutableData::Call(api_, value, &data));
  return static_cast<float*>(data);
}

Scratch::Scratch(const Context& context, Index num_floats) : api_(context.api_) {
  if (num_floats == 0) return;
  Check(api_, abi::ContextAllocator::Call(api_, context.context_, context.memory_, &allocator_));
  const std::size_t bytes = static_cast<std::size_t>(num_floats) * sizeof(float) + kAlignment;
  abi::Status* status = abi::AllocatorAlloc::Call(api_, allocator_, bytes, &raw_);
  if (status != nullptr || raw_ == nullptr) {
    abi::ReleaseAllocator::Call(api_, allocator_);
    Check(api_, status);
    throw Error(abi::kFail, "out of memory for " + std::to_string(bytes) + " bytes of scratch");
  }
  data_ = AlignUp(raw_);
}

Scratch::~Scratch() {
  if (allocator_ == nullptr) return;
  abi::Status* status = abi::AllocatorFree::Call(api_, allocator_, raw_);
  if (status != nullptr) abi::ReleaseStatus::Call(api_, status);
  abi::ReleaseAllocator::Call(api_, allocator_);
}

}  // namespace rimc
