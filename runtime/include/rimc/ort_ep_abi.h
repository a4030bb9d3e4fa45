// SPDX-License-Identifier: Apache-2.0
//
// The part of ONNX Runtime's C ABI that an execution provider needs beyond ort_abi.h. Structures
// are those of ONNX Runtime 1.24 (API 24); `version` tells newer runtimes to read no further.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rimc/ort_abi.h"

namespace rimc::abi {

struct DataTransferImpl;
struct EpApi;
struct EpDevice;
struct EpGraphSupportInfo;
struct Graph;
struct HardwareDevice;
struct KeyValuePairs;
struct Logger;
struct Node;
struct NodeComputeContext;
struct TypeInfo;
struct ValueInfo;

constexpr std::uint32_t kEpApiVersion = 24;

enum HardwareDeviceType : int { kCpuDevice = 0 };
enum LogLevel : int { kLogInfo = 1 };
enum EpAttrType : int { kAttrFloats = 4, kAttrString = 5 };

using TensorTypeOf = Slot<55, Status*, const TypeInfo*, const Shape**>;  // belongs to it
using LoggerMessage =
#if defined(_WIN32)
    Slot<247, Status*, const Logger*, int, const char*, const wchar_t*, int, const char*>;
#else
    Slot<247, Status*, const Logger*, int, const char*, const char*, int, const char*>;
#endif
using GetKeyValuePairs =
    Slot<298, void, const KeyValuePairs*, const char* const**, const char* const**, std::size_t*>;
using ReleaseKeyValuePairs = Slot<300, void, KeyValuePairs*>;
using DeviceType = Slot<307, int, const HardwareDevice*>;
using GetEpApi = Slot<317, const EpApi*>;
using ValueName = Slot<289, Status*, const ValueInfo*, const char**>;
using ValueTypeInfo = Slot<290, Status*, const ValueInfo*, const TypeInfo**>;
using ValueProducer = Slot<323, Status*, const ValueInfo*, const Node**, std::size_t*>;
using ValueNumConsumers = Slot<324, Status*, const ValueInfo*, std::size_t*>;
using ValueConsumers =
    Slot<325, Status*, const ValueInfo*, const Node**, std::int64_t*, std::size_t>;
using GetInitializerValue = Slot<326, Status*, const ValueInfo*, const Value**>;
using IsOptionalGraphInput = Slot<329, Status*, const ValueInfo*, bool*>;
using IsGraphOutput = Slot<330, Status*, const ValueInfo*, bool*>;
using IsConstantInitializer = Slot<331, Status*, const ValueInfo*, bool*>;
using GraphNumInputs = Slot<338, Status*, const Graph*, std::size_t*>;
using GraphInputs = Slot<339, Status*, const Graph*, const ValueInfo**, std::size_t>;
using GraphNumOutputs = Slot<340, Status*, const Graph*, std::size_t*>;
using GraphOutputs = Slot<341, Status*, const Graph*, const ValueInfo**, std::size_t>;
using GraphNumNodes = Slot<344, Status*, const Graph*, std::size_t*>;
using GraphNodes = Slot<345, Status*, const Graph*, const Node**, std::size_t>;
using GraphParentNode = Slot<346, Status*, const Graph*, const Node**>;
using NodeName = Slot<349, Status*, const Node*, const char**>;
using NodeOperatorType = Slot<350, Status*, const Node*, const char**>;
using NodeDomain = Slot<351, Status*, const Node*, const char**>;
using NodeNumInputs = Slot<353, Status*, const Node*, std::size_t*>;
using NodeInputs = Slot<354, Status*, const Node*, const ValueInfo**, std::size_t>;
using NodeNumOutputs = Slot<355, Status*, const Node*, std::size_t*>;
using NodeOutputs = Slot<356, Status*, const Node*, const ValueInfo**, std::size_t>;
using NodeNumImplicitInputs = Slot<357, Status*, const Node*, std::size_t*>;
using NodeImplicitInputs = Slot<358, Status*, const Node*, const ValueInfo**, std::size_t>;
using NodeAttribute = Slot<361, Status*, const Node*, const char*, const OpAttr**>;
using OpAttrType = Slot<363, Status*, const OpAttr*, int*>;
using SessionConfigEntries = Slot<379, Status*, const SessionOptions*, KeyValuePairs**>;

struct NodeFusionOptions {
  std::uint32_t version;
  bool drop_constant_initializers;  // Compute gets the other inputs only
};

// How a compiled node is run.
struct NodeComputeInfo {
  std::uint32_t version;
  Status*(RIMC_ORT_CALL* CreateState)(NodeComputeInfo*, NodeComputeContext*, void** state);
  Status*(RIMC_ORT_CALL* Compute)(NodeComputeInfo*, void* state, KernelContext*);
  void(RIMC_ORT_CALL* ReleaseState)(NodeComputeInfo*, void* state);
};
static_assert(sizeof(void*) != 8 || sizeof(NodeComputeInfo) == 32, "layout of OrtNodeComputeInfo");

// The provider of one session.
struct Ep {
  std::uint32_t version;
  const char*(RIMC_ORT_CALL* GetName)(const Ep*);
  Status*(RIMC_ORT_CALL* GetCapability)(Ep*, const Graph*, EpGraphSupportInfo*);
  Status*(RIMC_ORT_CALL* Compile)(Ep*, const Graph**, const Node** fused, std::size_t count,
                                  NodeComputeInfo**, Node** ep_context);
  void(RIMC_ORT_CALL* ReleaseNodeComputeInfos)(Ep*, NodeComputeInfo**, std::size_t count);
  void* optional[10];
};
static_assert(sizeof(void*) != 8 || sizeof(Ep) == 120, "layout of OrtEp");

struct EpFactory {
  std::uint32_t version;
  const char*(RIMC_ORT_CALL* GetName)(const EpFactory*);
  const char*(RIMC_ORT_CALL* GetVendor)(const EpFactory*);
  Status*(RIMC_ORT_CALL* GetSupportedDevices)(EpFactory*, const HardwareDevice* const*,
                                              std::size_t count, EpDevice**, std::size_t most,
                                              std::size_t* made);
  Status*(RIMC_ORT_CALL* CreateEp)(EpFactory*, const HardwareDevice* const*,
                                   const KeyValuePairs* const*, std::size_t count,
                                   const SessionOptions*, const Logger*, Ep**);
  void(RIMC_ORT_CALL* ReleaseEp)(EpFactory*, Ep*);
  std::uint32_t(RIMC_ORT_CALL* GetVendorId)(const EpFactory*);
  const char*(RIMC_ORT_CALL* GetVersion)(const EpFactory*);
  void* optional_8_to_10[3];
  Status*(RIMC_ORT_CALL* CreateDataTransfer)(EpFactory*, DataTransferImpl**);
  void* optional_12_to_15[4];
  Status*(RIMC_ORT_CALL* GetNumCustomOpDomains)(EpFactory*, std::size_t*);
  Status*(RIMC_ORT_CALL* GetCustomOpDomains)(EpFactory*, CustomOpDomain**, std::size_t);
};
static_assert(sizeof(void*) != 8 || sizeof(EpFactory) == 144, "layout of OrtEpFactory");
static_assert(sizeof(void*) != 8 || offsetof(EpFactory, CreateDataTransfer) == 88,
              "layout of OrtEpFactory");

// Functions of the second table, by slot.
template <std::size_t kIndex, class Result, class... Args>
struct EpSlot {
  static Result Call(const EpApi* api, Args... args) {
    return Slot<kIndex, Result, Args...>::Call(reinterpret_cast<const Api*>(api), args...);
  }
};
using CreateEpDevice = EpSlot<0, Status*, EpFactory*, const HardwareDevice*, const KeyValuePairs*,
                              const KeyValuePairs*, EpDevice**>;
using AddNodesToFuse = EpSlot<2, Status*, EpGraphSupportInfo*, const Node* const*, std::size_t,
                              const NodeFusionOptions*>;

}  // namespace rimc::abi
