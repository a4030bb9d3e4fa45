// SPDX-License-Identifier: Apache-2.0
//
// Runs a deployed model on test images from C++. All it needs is the shared library of ONNX
// Runtime (1.17 or newer): its C functions are called by their places in the function table, so no
// header of ONNX Runtime is needed to build it.
//
// Usage: app libonnxruntime.so MODEL.onnx images.f32 labels.u8 [librimc_ops.so]
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "rimc/ort_abi.h"

namespace abi = rimc::abi;

namespace {

struct Env;
struct RunOptions;
struct Session;

using CreateEnv = abi::Slot<3, abi::Status*, int, const char*, Env**>;
using CreateSession =
    abi::Slot<7, abi::Status*, const Env*, const char*, const abi::SessionOptions*, Session**>;
using Run = abi::Slot<9, abi::Status*, Session*, const RunOptions*, const char* const*,
                      const abi::Value* const*, std::size_t, const char* const*, std::size_t,
                      abi::Value**>;
using CreateSessionOptions = abi::Slot<10, abi::Status*, abi::SessionOptions**>;
using CreateTensor = abi::Slot<49, abi::Status*, const abi::MemoryInfo*, void*, std::size_t,
                               const std::int64_t*, std::size_t, int, abi::Value**>;
using ReleaseEnv = abi::Slot<92, void, Env*>;
using ReleaseSession = abi::Slot<95, void, Session*>;
using ReleaseValue = abi::Slot<96, void, abi::Value*>;
using ReleaseSessionOptions = abi::Slot<100, void, abi::SessionOptions*>;
using RegisterLibrary = abi::Slot<228, abi::Status*, abi::SessionOptions*, const char*>;

constexpr std::size_t kPixels = 8 * 8;
constexpr std::size_t kClasses = 10;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(1);
}

void Check(const abi::Api* api, abi::Status* status) {
  if (status != nullptr) Fail(abi::GetErrorMessage::Call(api, status));
}

std::vector<char> ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail(std::string(path) + ": can't be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) Fail("usage: app libonnxruntime.so MODEL images.f32 labels.u8 [librimc_ops.so]");
  void* runtime = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (runtime == nullptr) Fail(dlerror());
  using GetApiBase = const abi::ApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(runtime, "OrtGetApiBase"));
  if (get_base == nullptr) Fail(std::string(argv[1]) + ": is not ONNX Runtime");
  const abi::Api* api = get_base()->GetApi(abi::kApiVersion);
  if (api == nullptr) Fail("needs ONNX Runtime 1.17 or newer");

  Env* env = nullptr;
  abi::SessionOptions* options = nullptr;
  Session* session = nullptr;
  Check(api, CreateEnv::Call(api, 3, "app", &env));
  Check(api, CreateSessionOptions::Call(api, &options));
  if (argc > 5) Check(api, RegisterLibrary::Call(api, options, argv[5]));
  Check(api, CreateSession::Call(api, env, argv[2], options, &session));

  std::vector<char> images = ReadFile(argv[3]);
  const std::vector<char> labels = ReadFile(argv[4]);
  if (images.size() != labels.size() * kPixels * sizeof(float)) Fail("images and labels differ");
  const std::int64_t shape[] = {static_cast<std::int64_t>(labels.size()), 1, 8, 8};
  abi::MemoryInfo* memory = nullptr;
  abi::Value* input = nullptr;
  abi::Value* output = nullptr;
  Check(api, abi::CreateCpuMemoryInfo::Call(api, 0, 0, &memory));
  Check(api, CreateTensor::Call(api, memory, images.data(), images.size(), shape, 4, abi::kFloat,
                                &input));
  const char* const input_name = "input";
  const char* const output_name = "logits";
  Check(api, Run::Call(api, session, nullptr, &input_name, &input, 1, &output_name, 1, &output));

  void* data = nullptr;
  Check(api, abi::GetTensorMutableData::Call(api, output, &data));
  const float* logits = static_cast<const float*>(data);
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const float* row = logits + i * kClasses;
    right += std::max_element(row, row + kClasses) - row == labels[i];
  }
  std::printf("%zu of %zu right, accuracy %.1f %%\n", right, labels.size(),
              100.0 * static_cast<double>(right) / static_cast<double>(labels.size()));

  ReleaseValue::Call(api, output);
  ReleaseValue::Call(api, input);
  abi::ReleaseMemoryInfo::Call(api, memory);
  ReleaseSession::Call(api, session);
  ReleaseSessionOptions::Call(api, options);
  ReleaseEnv::Call(api, env);
  return 0;
}
