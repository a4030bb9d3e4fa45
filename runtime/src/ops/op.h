// SPDX-License-Identifier: Apache-2.0
//
// Makes an ONNX Runtime custom op of a kernel class. The class has
//   static constexpr const char* kName; static constexpr std::size_t kNumInputs;
//   static int InputType(std::size_t index);
//   static void InferShape(const InferContext&);
//   Kernel(const NodeInfo&)   reads and checks attributes, packs constants; throws Error
//   void Compute(const Context&) const   safe to call from several threads at once
#pragma once

#include <memory>

#include "ort/ort.h"
#include "ort/shape_inference.h"

namespace rimc {

// Kernels made by the calling thread since the library was loaded.
inline thread_local std::int64_t kernels_created = 0;

template <class Kernel>
class Op : public abi::CustomOp {
 public:
  Op() : abi::CustomOp{} {
    version = abi::kApiVersion;
    GetName = [](const abi::CustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return nullptr; };
    GetInputType = [](const abi::CustomOp*, std::size_t i) { return Kernel::InputType(i); };
    GetInputTypeCount = [](const abi::CustomOp*) { return Kernel::kNumInputs; };
    GetOutputType = [](const abi::CustomOp*, std::size_t) -> int { return abi::kFloat; };
    GetOutputTypeCount = [](const abi::CustomOp*) -> std::size_t { return 1; };
    GetInputCharacteristic = [](const abi::CustomOp*, std::size_t) { return kRequired; };
    GetOutputCharacteristic = [](const abi::CustomOp*, std::size_t) { return kRequired; };
    GetInputMemoryType = [](const abi::CustomOp*, std::size_t) { return kDefaultMemory; };
    GetVariadicInputMinArity = [](const abi::CustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const abi::CustomOp*) { return 1; };
    GetVariadicOutputMinArity = [](const abi::CustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const abi::CustomOp*) { return 1; };
    CreateKernelV2 = &Create;
    KernelComputeV2 = &Compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
    InferOutputShape = &Infer;
  }

 private:
  static constexpr int kRequired = 0;
  static constexpr int kDefaultMemory = 0;

  struct Instance {
    Instance(const abi::Api* api_, const abi::KernelInfo* info)
        : api(api_), kernel(NodeInfo(api_, info)) {
      Check(api, abi::CreateCpuMemoryInfo::Call(api, 0, 0, &memory));
    }
    ~Instance() { abi::ReleaseMemoryInfo::Call(api, memory); }
    Instance(const Instance&) = delete;
    Instance& operator=(const Instance&) = delete;

    const abi::Api* api;
    Kernel kernel;
    abi::MemoryInfo* memory = nullptr;
  };

  static abi::Status* RIMC_ORT_CALL Create(const abi::CustomOp*, const abi::Api* api,
                                           const abi::KernelInfo* info, void** kernel) {
    return Guard(api, [&] {
      try {
        *kernel = new Instance(api, info);
        ++kernels_created;
      } catch (const Error& error) {
        const std::string name = NodeInfo(api, info).Name();
        throw Error(error.code(), "node '" + name + "' (" + Kernel::kName + "): " + error.what());
      }
    });
  }

  // ONNX Runtime puts op type and node name before the message itself.
  static abi::Status* RIMC_ORT_CALL Compute(void* kernel, abi::KernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    return Guard(instance.api,
                 [&] { instance.kernel.Compute(Context(instance.api, context, instance.memory)); });
  }

  // A node that can't be inferred keeps an unknown shape: the kernel refuses it with a reason.
  static abi::Status* RIMC_ORT_CALL Infer(const abi::CustomOp* op, abi::ShapeInferContext* context);
};

// The table of functions; set once by RegisterCustomOps, before any op can be used.
inline const abi::Api* inference_api = nullptr;

template <class Kernel>
abi::Status* RIMC_ORT_CALL Op<Kernel>::Infer(const abi::CustomOp*,
                                             abi::ShapeInferContext* context) {
  return Guard(inference_api, [&] { Kernel::InferShape(InferContext(inference_api, context)); });
}

}  // namespace rimc
