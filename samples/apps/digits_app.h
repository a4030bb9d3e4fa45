// SPDX-License-Identifier: Apache-2.0
//
// What the C++ programs of this folder share: ONNX Runtime's C functions, called by their places in
// the function table, so that no header of ONNX Runtime is needed, and the digits.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "rimc/ort_abi.h"

namespace app {

namespace abi = rimc::abi;

struct Env;
struct EpDevice;
struct RunOptions;
struct Session;

using CreateEnv = abi::Slot<3, abi::Status*, int, const char*, Env**>;
using CreateSession =
    abi::Slot<7, abi::Status*, const Env*, const char*, const abi::SessionOptions*, Session**>;
using Run =
    abi::Slot<9, abi::Status*, Session*, const RunOptions*, const char* const*,
              const abi::Value* const*, std::size_t, const char* const*, std::size_t, abi::Value**>;
using CreateSessionOptions = abi::Slot<10, abi::Status*, abi::SessionOptions**>;
using CreateTensor = abi::Slot<49, abi::Status*, const abi::MemoryInfo*, void*, std::size_t,
                               const std::int64_t*, std::size_t, int, abi::Value**>;
using ReleaseEnv = abi::Slot<92, void, Env*>;
using ReleaseSession = abi::Slot<95, void, Session*>;
using ReleaseValue = abi::Slot<96, void, abi::Value*>;
using ReleaseSessionOptions = abi::Slot<100, void, abi::SessionOptions*>;
using RegisterLibrary = abi::Slot<228, abi::Status*, abi::SessionOptions*, const char*>;

// From ONNX Runtime 1.24 on.
using RegisterProviderLibrary = abi::Slot<301, abi::Status*, Env*, const char*, const char*>;
using GetDevices = abi::Slot<303, abi::Status*, const Env*, const EpDevice* const**, std::size_t*>;
using AppendProvider =
    abi::Slot<304, abi::Status*, abi::SessionOptions*, Env*, const EpDevice* const*, std::size_t,
              const char* const*, const char* const*, std::size_t>;
using DeviceProviderName = abi::Slot<312, const char*, const EpDevice*>;

constexpr const char* kProvider = "RimcExecutionProvider";
constexpr std::uint32_t kProviderApi = 24;
constexpr int kErrorsOnly = 3;
constexpr std::size_t kPixels = 8 * 8;
constexpr std::size_t kClasses = 10;

[[noreturn]] inline void Fail(const std::string& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(1);
}

inline void Check(const abi::Api* api, abi::Status* status) {
  if (status != nullptr) Fail(abi::GetErrorMessage::Call(api, status));
}

inline std::vector<char> ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail(std::string(path) + ": can't be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The function table of the shared library at `path`; `oldest` names the version that has it.
inline const abi::Api* LoadRuntime(const char* path, std::uint32_t version, const char* oldest) {
  void* runtime = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (runtime == nullptr) Fail(dlerror());
  using GetApiBase = const abi::ApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(runtime, "OrtGetApiBase"));
  if (get_base == nullptr) Fail(std::string(path) + ": is not ONNX Runtime");
  const abi::Api* api = get_base()->GetApi(version);
  if (api == nullptr) Fail(std::string("needs ONNX Runtime ") + oldest + " or newer");
  return api;
}

// Registers the native library as an execution provider; its devices.
inline std::vector<const EpDevice*> AddProvider(const abi::Api* api, Env* env,
                                                const char* library) {
  Check(api, RegisterProviderLibrary::Call(api, env, kProvider, library));
  const EpDevice* const* devices = nullptr;
  std::size_t count = 0;
  Check(api, GetDevices::Call(api, env, &devices, &count));
  std::vector<const EpDevice*> own;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::strcmp(DeviceProviderName::Call(api, devices[i]), kProvider) == 0) {
      own.push_back(devices[i]);
    }
  }
  if (own.empty()) Fail("the provider has no device");
  return own;
}

// What a session answers to `count` images, [count, kClasses].
inline std::vector<float> Logits(const abi::Api* api, Session* session, std::vector<char> images,
                                 std::size_t count) {
  if (images.size() < count * kPixels * sizeof(float)) Fail("too few images");
  const std::int64_t shape[] = {static_cast<std::int64_t>(count), 1, 8, 8};
  abi::MemoryInfo* memory = nullptr;
  abi::Value* input = nullptr;
  abi::Value* output = nullptr;
  Check(api, abi::CreateCpuMemoryInfo::Call(api, 0, 0, &memory));
  Check(api, CreateTensor::Call(api, memory, images.data(), count * kPixels * sizeof(float), shape,
                                4, abi::kFloat, &input));
  const char* const input_name = "input";
  const char* const output_name = "logits";
  Check(api, Run::Call(api, session, nullptr, &input_name, &input, 1, &output_name, 1, &output));

  void* data = nullptr;
  Check(api, abi::GetTensorMutableData::Call(api, output, &data));
  const float* const logits = static_cast<const float*>(data);
  std::vector<float> found(logits, logits + count * kClasses);
  ReleaseValue::Call(api, output);
  ReleaseValue::Call(api, input);
  abi::ReleaseMemoryInfo::Call(api, memory);
  return found;
}

// Runs a session on the images of a file and prints how many it gets right.
inline void Score(const abi::Api* api, Session* session, const char* images_path,
                  const char* labels_path) {
  const std::vector<char> images = ReadFile(images_path);
  const std::vector<char> labels = ReadFile(labels_path);
  if (images.size() != labels.size() * kPixels * sizeof(float)) Fail("images and labels differ");
  const std::vector<float> logits = Logits(api, session, images, labels.size());
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const float* row = logits.data() + i * kClasses;
    right += std::max_element(row, row + kClasses) - row == labels[i];
  }
  std::printf("%zu of %zu right, accuracy %.1f %%\n", right, labels.size(),
              100.0 * static_cast<double>(right) / static_cast<double>(labels.size()));
}

}  // namespace app
