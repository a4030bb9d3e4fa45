// SPDX-License-Identifier: Apache-2.0
//
// The part of ONNX Runtime's C ABI that this library uses, as slot numbers of its function table.
//
// The table is append-only, so a slot number never changes its meaning; every slot below exists
// since ONNX Runtime 1.17 (API 17) at the latest. One binary therefore runs in 1.17 and anything
// newer, and needs no ONNX Runtime header to build.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define RIMC_ORT_CALL __stdcall
#define RIMC_EXPORT extern "C" __declspec(dllexport)
#else
#define RIMC_ORT_CALL
#define RIMC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace rimc::abi {

struct Allocator;
struct Api;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct OpAttr;
struct SessionOptions;
struct Shape;  // element type and dimensions of a tensor
struct ShapeInferContext;
struct Status;  // null is success; anything else has to be released
struct Value;

constexpr std::uint32_t kApiVersion = 17;

enum ErrorCode : int {
  kFail = 1,
  kInvalidArgument = 2,
  kRuntimeException = 6,
  kNotImplemented = 9
};
enum ElementType : int { kFloat = 1, kInt8 = 3, kInt64 = 7 };
enum AttrType : int { kAttrInt = 1, kAttrInts = 2, kAttrFloat = 3 };

struct ApiBase {
  // Null (and a line on stderr) where the runtime is older than `version`.
  const Api*(RIMC_ORT_CALL* GetApi)(std::uint32_t version);
  const char*(RIMC_ORT_CALL* GetVersionString)();
};

// One function of the table: slot number, result, arguments.
template <std::size_t kIndex, class Result, class... Args>
struct Slot {
  static Result Call(const Api* api, Args... args) {
    using AnyFunction = void (*)();
    using Function = Result(RIMC_ORT_CALL*)(Args...);
    return reinterpret_cast<Function>(reinterpret_cast<const AnyFunction*>(api)[kIndex])(args...);
  }
};

using CreateStatus = Slot<0, Status*, int, const char*>;
using GetErrorCode = Slot<1, int, const Status*>;
using GetErrorMessage = Slot<2, const char*, const Status*>;
using ReleaseStatus = Slot<93, void, Status*>;

using CreateCustomOpDomain = Slot<26, Status*, const char*, CustomOpDomain**>;
using CustomOpDomainAdd = Slot<27, Status*, CustomOpDomain*, const struct CustomOp*>;
using AddCustomOpDomain = Slot<28, Status*, SessionOptions*, CustomOpDomain*>;

using GetTensorMutableData = Slot<51, Status*, Value*, void**>;
using CreateShape = Slot<57, Status*, Shape**>;
using SetElementType = Slot<58, Status*, Shape*, int>;
using SetDimensions = Slot<59, Status*, Shape*, const std::int64_t*, std::size_t>;
using GetElementType = Slot<60, Status*, const Shape*, int*>;
using GetDimensionsCount = Slot<61, Status*, const Shape*, std::size_t*>;
using GetDimensions = Slot<62, Status*, const Shape*, std::int64_t*, std::size_t>;
using GetSymbolicDimensions = Slot<63, Status*, const Shape*, const char**, std::size_t>;
using GetTensorShape = Slot<65, Status*, const Value*, Shape**>;
using SetSymbolicDimensions = Slot<271, Status*, Shape*, const char**, std::size_t>;
using ReleaseShape = Slot<99, void, Shape*>;

using CreateCpuMemoryInfo = Slot<69, Status*, int, int, MemoryInfo**>;
using ReleaseMemoryInfo = Slot<94, void, MemoryInfo*>;
using AllocatorAlloc = Slot<75, Status*, Allocator*, std::size_t, void**>;
using AllocatorFree = Slot<76, Status*, Allocator*, void*>;
using ReleaseAllocator = Slot<132, void, Allocator*>;

using KernelInfoFloat = Slot<85, Status*, const KernelInfo*, const char*, float*>;
using KernelInfoInt = Slot<86, Status*, const KernelInfo*, const char*, std::int64_t*>;
using KernelInfoFloats = Slot<162, Status*, const KernelInfo*, const char*, float*, std::size_t*>;
using KernelInfoInts =
    Slot<163, Status*, const KernelInfo*, const char*, std::int64_t*, std::size_t*>;
using KernelInfoInputCount = Slot<230, Status*, const KernelInfo*, std::size_t*>;
using KernelInfoNodeName = Slot<244, Status*, const KernelInfo*, char*, std::size_t*>;
using KernelInfoConstantInput =
    Slot<249, Status*, const KernelInfo*, std::size_t, int*, const Value**>;

using ContextInput = Slot<90, Status*, const KernelContext*, std::size_t, const Value**>;
using ContextOutput =
    Slot<91, Status*, KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**>;
using ContextAllocator = Slot<253, Status*, const KernelContext*, const MemoryInfo*, Allocator**>;
using ContextParallelFor = Slot<274, Status*, const KernelContext*, void (*)(void*, std::size_t),
                                std::size_t, std::size_t, void*>;

using InferInputShape = Slot<268, Status*, const ShapeInferContext*, std::size_t, Shape**>;
using InferAttribute = Slot<269, Status*, const ShapeInferContext*, const char*, const OpAttr**>;
using InferSetOutputShape = Slot<270, Status*, const ShapeInferContext*, std::size_t, const Shape*>;
using ReadOpAttr = Slot<272, Status*, const OpAttr*, int, void*, std::size_t, std::size_t*>;

// What ONNX Runtime calls to make and run the kernels of one op. `version` tells it which members
// it may read and which API level to hand to CreateKernelV2, so it stays at the oldest one that
// has shape inference; later members are here for the size only.
struct CustomOp {
  std::uint32_t version;
  void*(RIMC_ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(RIMC_ORT_CALL* GetName)(const CustomOp*);
  const char*(RIMC_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  int(RIMC_ORT_CALL* GetInputType)(const CustomOp*, std::size_t);
  std::size_t(RIMC_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  int(RIMC_ORT_CALL* GetOutputType)(const CustomOp*, std::size_t);
  std::size_t(RIMC_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(RIMC_ORT_CALL* KernelCompute)(void*, KernelContext*);
  void(RIMC_ORT_CALL* KernelDestroy)(void*);
  int(RIMC_ORT_CALL* GetInputCharacteristic)(const CustomOp*, std::size_t);
  int(RIMC_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, std::size_t);
  int(RIMC_ORT_CALL* GetInputMemoryType)(const CustomOp*, std::size_t);
  int(RIMC_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(RIMC_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(RIMC_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(RIMC_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(RIMC_ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status*(RIMC_ORT_CALL* KernelComputeV2)(void*, KernelContext*);
  Status*(RIMC_ORT_CALL* InferOutputShape)(const CustomOp*, ShapeInferContext*);
  int(RIMC_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(RIMC_ORT_CALL* GetEndVersion)(const CustomOp*);
  void* since_api_18[4];
};
static_assert(sizeof(void*) != 8 || sizeof(CustomOp) == 208, "layout of OrtCustomOp");
static_assert(sizeof(void*) != 8 || offsetof(CustomOp, CreateKernelV2) == 136,
              "layout of OrtCustomOp");
static_assert(sizeof(void*) != 8 || offsetof(CustomOp, InferOutputShape) == 152,
              "layout of OrtCustomOp");

}  // namespace rimc::abi
