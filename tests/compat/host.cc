// SPDX-License-Identifier: Apache-2.0
//
// A small host in place of ONNX Runtime, so that a checker sees every instruction and every
// synchronisation there is: the functions of the C ABI that a kernel calls, and threads that share
// nothing but a counter. See run_sanitizers.sh.
//
// Usage: host librimc_ops.so CASES     runs nodes, registration and programming from many threads
//        host librimc_ops.so race      a race of its own, which a thread checker has to find
//
// CASES (written by host_cases.py): per node OP NAME NUM_ATTRIBUTES {NAME TYPE COUNT VALUES...}...
// NUM_INPUTS {TYPE IS_CONSTANT RANK SIZE... BYTES}... NUM_RUNS RANK SIZE... {BYTES}...; numbers are
// int64, texts are a length and bytes. Run i of a session gives output i; threads may take the runs
// in any order.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "rimc/ort_abi.h"

namespace abi = rimc::abi;

namespace {

constexpr int kThreads = 4;  // sessions and runs at once
constexpr int kWorkers = 2;  // threads of a run beside its own

struct HostStatus {
  int code;
  std::string message;
};
struct HostShape {
  int type = 0;
  std::vector<std::int64_t> sizes;
};
struct HostValue {
  HostShape shape;
  std::vector<char> data;
  bool is_constant = false;
};
struct Attribute {
  std::int64_t type = 0;
  std::vector<std::int64_t> ints;
  std::vector<float> floats;
};
struct HostInfo {
  std::string op;
  std::string name;
  std::map<std::string, Attribute> attributes;
  std::vector<HostValue> inputs;
  std::vector<std::int64_t> y_sizes;
  std::vector<std::vector<char>> outputs;
};
struct HostContext {
  const HostInfo* info;
  HostValue output;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "host: %s\n", message.c_str());
  std::exit(1);
}

template <class To, class From>
To* As(From* from) {
  return reinterpret_cast<To*>(const_cast<std::remove_const_t<From>*>(from));
}

abi::Status* Status(int code, const char* message) {
  return As<abi::Status>(new HostStatus{code, message});
}
abi::Status* Ok() { return nullptr; }

// --- the functions of the ABI

const Attribute* Find(const abi::KernelInfo* info, const char* name, std::int64_t type) {
  const auto& attributes = As<HostInfo>(info)->attributes;
  const auto found = attributes.find(name);
  return found == attributes.end() || found->second.type != type ? nullptr : &found->second;
}

template <class T>
abi::Status* CopyAll(const std::vector<T>& from, T* out, std::size_t* count) {
  if (out != nullptr) std::copy(from.begin(), from.end(), out);
  *count = from.size();
  return Ok();
}

abi::Status* InfoFloat(const abi::KernelInfo* info, const char* name, float* out) {
  const Attribute* found = Find(info, name, 1);
  if (found == nullptr) return Status(abi::kFail, name);
  *out = found->floats[0];
  return Ok();
}
abi::Status* InfoInt(const abi::KernelInfo* info, const char* name, std::int64_t* out) {
  const Attribute* found = Find(info, name, 2);
  if (found == nullptr) return Status(abi::kFail, name);
  *out = found->ints[0];
  return Ok();
}
abi::Status* InfoFloats(const abi::KernelInfo* info, const char* name, float* out,
                        std::size_t* count) {
  const Attribute* found = Find(info, name, 6);
  return found == nullptr ? Status(abi::kFail, name) : CopyAll(found->floats, out, count);
}
abi::Status* InfoInts(const abi::KernelInfo* info, const char* name, std::int64_t* out,
                      std::size_t* count) {
  const Attribute* found = Find(info, name, 7);
  return found == nullptr ? Status(abi::kFail, name) : CopyAll(found->ints, out, count);
}
abi::Status* InfoName(const abi::KernelInfo* info, char* out, std::size_t* size) {
  const std::string& name = As<HostInfo>(info)->name;
  *size = name.size() + 1;
  if (out != nullptr) std::memcpy(out, name.c_str(), *size);
  return Ok();
}
abi::Status* InfoConstant(const abi::KernelInfo* info, std::size_t i, int* is_constant,
                          const abi::Value** out) {
  HostValue& value = As<HostInfo>(info)->inputs[i];
  *is_constant = value.is_constant ? 1 : 0;
  *out = value.is_constant ? As<abi::Value>(&value) : nullptr;
  return Ok();
}

abi::Status* Input(const abi::KernelContext* context, std::size_t i, const abi::Value** out) {
  *out = As<const abi::Value>(&As<HostContext>(context)->info->inputs[i]);
  return Ok();
}
abi::Status* Output(abi::KernelContext* context, std::size_t, const std::int64_t* sizes,
                    std::size_t rank, abi::Value** out) {
  HostValue& value = As<HostContext>(context)->output;
  value.shape = {abi::kFloat, {sizes, sizes + rank}};
  std::size_t count = 1;
  for (const std::int64_t size : value.shape.sizes) count *= static_cast<std::size_t>(size);
  value.data.assign(count * sizeof(float), '\x7f');
  *out = As<abi::Value>(&value);
  return Ok();
}
abi::Status* DataOf(abi::Value* value, void** out) {
  *out = As<HostValue>(value)->data.data();
  return Ok();
}
abi::Status* ShapeOf(const abi::Value* value, abi::Shape** out) {
  *out = As<abi::Shape>(new HostShape(As<HostValue>(value)->shape));
  return Ok();
}
abi::Status* TypeOf(const abi::Shape* shape, int* out) {
  *out = As<HostShape>(shape)->type;
  return Ok();
}
abi::Status* RankOf(const abi::Shape* shape, std::size_t* out) {
  *out = As<HostShape>(shape)->sizes.size();
  return Ok();
}
abi::Status* SizesOf(const abi::Shape* shape, std::int64_t* out, std::size_t count) {
  std::copy_n(As<HostShape>(shape)->sizes.begin(), count, out);
  return Ok();
}
void ReleaseShape(abi::Shape* shape) { delete As<HostShape>(shape); }

// What the library needs to be told apart from nothing.
int something = 0;
abi::Status* MemoryInfo(int, int, abi::MemoryInfo** out) {
  *out = As<abi::MemoryInfo>(&something);
  return Ok();
}
void ReleaseMemoryInfo(abi::MemoryInfo*) {}
// Valgrind takes all lanes of AVX2's sums of products of integers as undefined where one is, such as
// the lanes after the last position. Nodes that have them (crossbars behind a DAC, adapters) get
// memory that is cleared; the same nodes run with the scalar kernels, where what is read is told
// apart.
bool ClearsMemory(const HostInfo& info) {
  const char* const isa = std::getenv("RIMC_ISA");
  if (isa == nullptr || std::string(isa) != "avx2") return false;
  if (info.op.compare(0, 4, "Dora") == 0) return true;
  const auto bits = info.attributes.find("dac_bits");
  return bits != info.attributes.end() && bits->second.ints.at(0) > 0;
}
abi::Status* Allocator(const abi::KernelContext* context, const abi::MemoryInfo*,
                       abi::Allocator** out) {
  *out = As<abi::Allocator>(As<HostContext>(context)->info);
  return Ok();
}
void ReleaseAllocator(abi::Allocator*) {}
abi::Status* Alloc(abi::Allocator* allocator, std::size_t size, void** out) {
  *out = ClearsMemory(*As<HostInfo>(allocator)) ? std::calloc(size, 1) : std::malloc(size);
  return Ok();
}
abi::Status* Free(abi::Allocator*, void* memory) {
  std::free(memory);
  return Ok();
}

// Tasks are taken off a counter that orders nothing: what one task writes, no other may touch.
abi::Status* ParallelFor(const abi::KernelContext*, void (*call)(void*, std::size_t),
                         std::size_t count, std::size_t, void* user) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (;;) {
      const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      call(user, i);
      std::this_thread::yield();
    }
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < kWorkers; ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  return Ok();
}

int CodeOf(const abi::Status* status) { return As<HostStatus>(status)->code; }
const char* MessageOf(const abi::Status* status) { return As<HostStatus>(status)->message.c_str(); }
void ReleaseStatus(abi::Status* status) { delete As<HostStatus>(status); }

std::mutex ops_mutex;
std::map<std::string, const abi::CustomOp*> ops;
abi::Status* CreateDomain(const char*, abi::CustomOpDomain** out) {
  *out = As<abi::CustomOpDomain>(&something);
  return Ok();
}
abi::Status* DomainAdd(abi::CustomOpDomain*, const abi::CustomOp* op) {
  const std::lock_guard<std::mutex> lock(ops_mutex);
  ops[op->GetName(op)] = op;
  return Ok();
}
abi::Status* AddDomain(abi::SessionOptions*, abi::CustomOpDomain*) { return Ok(); }

using AnyFunction = void (*)();
AnyFunction table[400];

[[noreturn]] void Missing() { Fail("the library calls a function that this host lacks"); }

template <class Slot>
struct Fill;
template <std::size_t kIndex, class Result, class... Args>
struct Fill<abi::Slot<kIndex, Result, Args...>> {
  // The type of the function is that of the slot, so a mistake does not compile.
  static void With(Result (*function)(Args...)) {
    table[kIndex] = reinterpret_cast<AnyFunction>(function);
  }
};

const abi::Api* MakeApi() {
  for (AnyFunction& function : table) function = &Missing;
  Fill<abi::CreateStatus>::With(&Status);
  Fill<abi::GetErrorCode>::With(&CodeOf);
  Fill<abi::GetErrorMessage>::With(&MessageOf);
  Fill<abi::ReleaseStatus>::With(&ReleaseStatus);
  Fill<abi::CreateCustomOpDomain>::With(&CreateDomain);
  Fill<abi::CustomOpDomainAdd>::With(&DomainAdd);
  Fill<abi::AddCustomOpDomain>::With(&AddDomain);
  Fill<abi::GetTensorMutableData>::With(&DataOf);
  Fill<abi::GetTensorShape>::With(&ShapeOf);
  Fill<abi::GetElementType>::With(&TypeOf);
  Fill<abi::GetDimensionsCount>::With(&RankOf);
  Fill<abi::GetDimensions>::With(&SizesOf);
  Fill<abi::ReleaseShape>::With(&ReleaseShape);
  Fill<abi::CreateCpuMemoryInfo>::With(&MemoryInfo);
  Fill<abi::ReleaseMemoryInfo>::With(&ReleaseMemoryInfo);
  Fill<abi::ContextAllocator>::With(&Allocator);
  Fill<abi::ReleaseAllocator>::With(&ReleaseAllocator);
  Fill<abi::AllocatorAlloc>::With(&Alloc);
  Fill<abi::AllocatorFree>::With(&Free);
  Fill<abi::KernelInfoFloat>::With(&InfoFloat);
  Fill<abi::KernelInfoInt>::With(&InfoInt);
  Fill<abi::KernelInfoFloats>::With(&InfoFloats);
  Fill<abi::KernelInfoInts>::With(&InfoInts);
  Fill<abi::KernelInfoNodeName>::With(&InfoName);
  Fill<abi::KernelInfoConstantInput>::With(&InfoConstant);
  Fill<abi::ContextInput>::With(&Input);
  Fill<abi::ContextOutput>::With(&Output);
  Fill<abi::ContextParallelFor>::With(&ParallelFor);
  return As<const abi::Api>(table);
}

const abi::Api* GetApi(std::uint32_t) { return As<const abi::Api>(table); }
const char* Version() { return "1.99.0"; }

void Check(abi::Status* status, const std::string& where) {
  if (status != nullptr) Fail(where + ": " + MessageOf(status));
}

// --- the file of cases

class Reader {
 public:
  explicit Reader(const char* path) : in_(path, std::ios::binary) {
    if (!in_) Fail(std::string("can't read ") + path);
  }
  bool AtEnd() { return in_.peek() == std::ifstream::traits_type::eof(); }
  std::int64_t Number() {
    std::int64_t value = 0;
    in_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::vector<std::int64_t> Numbers() {
    std::vector<std::int64_t> values(static_cast<std::size_t>(Number()));
    for (std::int64_t& value : values) value = Number();
    return values;
  }
  std::vector<char> Bytes() {
    std::vector<char> bytes(static_cast<std::size_t>(Number()));
    in_.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!in_) Fail("the file of cases ends too early");
    return bytes;
  }
  std::string Text() {
    const std::vector<char> bytes = Bytes();
    return {bytes.begin(), bytes.end()};
  }
  Attribute OneAttribute() {
    Attribute attribute;
    attribute.type = Number();
    const std::vector<char> bytes = Bytes();
    if (attribute.type == 1 || attribute.type == 6) {
      attribute.floats.resize(bytes.size() / sizeof(float));
      if (!bytes.empty()) std::memcpy(attribute.floats.data(), bytes.data(), bytes.size());
    } else {
      attribute.ints.resize(bytes.size() / sizeof(std::int64_t));
      if (!bytes.empty()) std::memcpy(attribute.ints.data(), bytes.data(), bytes.size());
    }
    return attribute;
  }
  HostInfo Node() {
    HostInfo info;
    info.op = Text();
    info.name = Text();
    for (std::int64_t left = Number(); left > 0; --left) {
      const std::string name = Text();
      info.attributes[name] = OneAttribute();
    }
    for (std::int64_t left = Number(); left > 0; --left) {
      HostValue value;
      value.shape.type = static_cast<int>(Number());
      value.is_constant = Number() != 0;
      value.shape.sizes = Numbers();
      value.data = Bytes();
      info.inputs.push_back(std::move(value));
    }
    const std::int64_t runs = Number();
    info.y_sizes = Numbers();
    for (std::int64_t run = 0; run < runs; ++run) info.outputs.push_back(Bytes());
    return info;
  }

 private:
  std::ifstream in_;
};

// --- what threads do

template <class Body>
void InThreads(int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

// One session of a node: as many runs at once as the file has outputs.
void RunNode(const abi::Api* api, const HostInfo& info) {
  const abi::CustomOp* const op = ops.at(info.op);
  void* kernel = nullptr;
  Check(op->CreateKernelV2(op, api, As<const abi::KernelInfo>(&info), &kernel), info.name);
  std::vector<HostContext> contexts(info.outputs.size(), HostContext{&info, {}});
  InThreads(static_cast<int>(contexts.size()), [&](int i) {
    auto* const context = As<abi::KernelContext>(&contexts[static_cast<std::size_t>(i)]);
    Check(op->KernelComputeV2(kernel, context), info.name);
  });
  op->KernelDestroy(kernel);
  std::vector<std::vector<char>> left = info.outputs;
  for (const HostContext& context : contexts) {
    if (context.output.shape.sizes != info.y_sizes) Fail(info.name + " has another shape");
    const auto found = std::find(left.begin(), left.end(), context.output.data);
    if (found == left.end()) Fail(info.name + " (" + info.op + ") has other bits");
    left.erase(found);
  }
}

struct ProgramJob {
  std::uint32_t size;
  std::int32_t max_threads;
  const float* w;
  float* w_realised;
  std::int64_t first_cell;
  std::int64_t count;
  const float* w_max;
  std::int64_t num_columns;
  std::int64_t run;
  std::uint64_t seed;
  const char* node;
  const char* law;
  std::uint64_t law_size;
};

// Two arrays at once, each by several threads.
void Program(void* library, const std::vector<char>& law) {
  using Function = const char* (*)(const ProgramJob*);
  const auto program = reinterpret_cast<Function>(dlsym(library, "RimcProgramCells"));
  const std::vector<float> w(1 << 19, 0.5f);
  const float w_max = 1.0f;
  std::vector<std::vector<float>> realised(2, std::vector<float>(w.size()));
  InThreads(2, [&](int i) {
    ProgramJob job{};
    job.size = sizeof job;
    job.max_threads = kThreads;
    job.w = w.data();
    job.w_realised = realised[static_cast<std::size_t>(i)].data();
    job.count = static_cast<std::int64_t>(w.size());
    job.w_max = &w_max;
    job.num_columns = 1;
    job.run = job.count;
    job.node = "n";
    job.law = law.data();
    job.law_size = law.size();
    const char* const failure = program(&job);
    if (failure != nullptr) Fail(failure);
  });
  if (realised[0] != realised[1]) Fail("two threads programmed different arrays");
}

int Race() {
  // Both are there when the other writes; nothing else orders them. The checker may miss two writes
  // of the very same moment, and says nothing of a thread that is gone.
  struct Shared {
    std::atomic<int> there{0}, done{0};
    float sum = 0.0f;
  } shared;
  const auto add = [](void* user, std::size_t) {
    auto& both = *static_cast<Shared*>(user);
    const auto meet = [](std::atomic<int>& count) {
      count.fetch_add(1, std::memory_order_relaxed);
      while (count.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
    };
    meet(both.there);
    for (int i = 0; i < 1000; ++i) {
      both.sum += 1.0f;
      std::this_thread::yield();
    }
    meet(both.done);
  };
  ParallelFor(nullptr, add, 2, 0, &shared);
  return shared.sum > 0.0f ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) Fail("usage: host LIBRARY CASES|race");
  if (std::string(argv[2]) == "race") return Race();
  void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Fail(dlerror());
  using Register = abi::Status* (*)(abi::SessionOptions*, const abi::ApiBase*);
  const auto register_ops = reinterpret_cast<Register>(dlsym(library, "RegisterCustomOps"));
  const abi::Api* const api = MakeApi();
  const abi::ApiBase base{&GetApi, &Version};
  InThreads(kThreads, [&](int) { Check(register_ops(nullptr, &base), "registration"); });

  Reader reader(argv[2]);
  const std::vector<char> law = reader.Bytes();
  std::vector<HostInfo> nodes;
  while (!reader.AtEnd()) nodes.push_back(reader.Node());
  InThreads(kThreads, [&](int first) {
    for (std::size_t i = static_cast<std::size_t>(first); i < nodes.size(); i += kThreads) {
      RunNode(api, nodes[i]);
    }
  });
  Program(library, law);
  std::printf("%zu nodes\n", nodes.size());
  return 0;
}
