// SPDX-License-Identifier: Apache-2.0
//
// Runs an ordinary float32 model on simulated RRAM crossbars from C++:
// librimc_ops.so is registered as an execution provider of ONNX Runtime (1.24
// or newer), which programs the weights of Conv, Gemm and MatMul when the
// session is made. Without options it runs a converted model. As in main.cc, no
// header of ONNX Runtime is needed.
//
// Usage: provider libonnxruntime.so librimc_ops.so MODEL.onnx images.f32
// labels.u8 [OPTION=VALUE]... such as preset=gaussian-relative drift_frac=0.1
// seed=7
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

namespace abi = rimc::abi;

namespace {

struct Env;
struct EpDevice;
struct RunOptions;
struct Session;

using CreateEnv = abi::Slot<3, abi::Status *, int, const char *, Env **>;
using CreateSession = abi::Slot<7, abi::Status *, const Env *, const char *,
                                const abi::SessionOptions *, Session **>;
using Run =
    abi::Slot<9, abi::Status *, Session *, const RunOptions *,
              const char *const *, const abi::Value *const *, std::size_t,
              const char *const *, std::size_t, abi::Value **>;
using CreateSessionOptions =
    abi::Slot<10, abi::Status *, abi::SessionOptions **>;
using CreateTensor =
    abi::Slot<49, abi::Status *, const abi::MemoryInfo *, void *, std::size_t,
              const std::int64_t *, std::size_t, int, abi::Value **>;
using ReleaseEnv = abi::Slot<92, void, Env *>;
using ReleaseSession = abi::Slot<95, void, Session *>;
using ReleaseValue = abi::Slot<96, void, abi::Value *>;
using ReleaseSessionOptions = abi::Slot<100, void, abi::SessionOptions *>;
using RegisterProviderLibrary =
    abi::Slot<301, abi::Status *, Env *, const char *, const char *>;
using GetDevices = abi::Slot<303, abi::Status *, const Env *,
                             const EpDevice *const **, std::size_t *>;
using AppendProvider =
    abi::Slot<304, abi::Status *, abi::SessionOptions *, Env *,
              const EpDevice *const *, std::size_t, const char *const *,
              const char *const *, std::size_t>;
using DeviceProviderName = abi::Slot<312, const char *, const EpDevice *>;

constexpr const char *kProvider = "RimcExecutionProvider";
constexpr int kErrorsOnly = 3;
constexpr std::uint32_t kProviderApi = 24;
constexpr std::size_t kPixels = 8 * 8;
constexpr std::size_t kClasses = 10;

[[noreturn]] void Fail(const std::string &what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(1);
}

void Check(const abi::Api *api, abi::Status *status) {
  if (status != nullptr)
    Fail(abi::GetErrorMessage::Call(api, status));
}

std::vector<char> ReadFile(const char *path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    Fail(std::string(path) + ": can't be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

const abi::Api *LoadRuntime(const char *path) {
  void *runtime = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (runtime == nullptr)
    Fail(dlerror());
  using GetApiBase = const abi::ApiBase *(*)();
  const auto get_base =
      reinterpret_cast<GetApiBase>(dlsym(runtime, "OrtGetApiBase"));
  if (get_base == nullptr)
    Fail(std::string(path) + ": is not ONNX Runtime");
  const abi::Api *api = get_base()->GetApi(kProviderApi);
  if (api == nullptr)
    Fail("needs ONNX Runtime 1.24 or newer");
  return api;
}

// Registers the library and adds its devices, with the options, to the
// session's.
void AddProvider(const abi::Api *api, Env *env, const char *library,
                 char **first, char **last,
                 abi::SessionOptions *session_options) {
  Check(api, RegisterProviderLibrary::Call(api, env, kProvider, library));
  const EpDevice *const *devices = nullptr;
  std::size_t count = 0;
  Check(api, GetDevices::Call(api, env, &devices, &count));
  std::vector<const EpDevice *> own;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::strcmp(DeviceProviderName::Call(api, devices[i]), kProvider) ==
        0) {
      own.push_back(devices[i]);
    }
  }
  std::vector<std::string> names;
  std::vector<const char *> keys, values;
  for (char **option = first; option != last; ++option) {
    const char *equals = std::strchr(*option, '=');
    if (equals == nullptr)
      Fail(std::string(*option) + ": is not OPTION=VALUE");
    names.emplace_back(const_cast<const char *>(*option), equals);
    values.push_back(equals + 1);
  }
  for (const std::string &name : names)
    keys.push_back(name.c_str());
  Check(api,
        AppendProvider::Call(api, session_options, env, own.data(), own.size(),
                             keys.data(), values.data(), keys.size()));
}

} // namespace

int main(int argc, char **argv) {
  if (argc < 6) {
    Fail("usage: provider libonnxruntime.so librimc_ops.so MODEL images.f32 "
         "labels.u8 "
         "[OPTION=VALUE]...");
  }
  const abi::Api *api = LoadRuntime(argv[1]);
  Env *env = nullptr;
  abi::SessionOptions *options = nullptr;
  Session *session = nullptr;
  Check(api, CreateEnv::Call(api, kErrorsOnly, "provider", &env));
  Check(api, CreateSessionOptions::Call(api, &options));
  AddProvider(api, env, argv[2], argv + 6, argv + argc, options);
  Check(api, CreateSession::Call(api, env, argv[3], options, &session));

  std::vector<char> images = ReadFile(argv[4]);
  const std::vector<char> labels = ReadFile(argv[5]);
  if (images.size() != labels.size() * kPixels * sizeof(float))
    Fail("images and labels differ");
  const std::int64_t shape[] = {static_cast<std::int64_t>(labels.size()), 1, 8,
                                8};
  abi::MemoryInfo *memory = nullptr;
  abi::Value *input = nullptr;
  abi::Value *output = nullptr;
  Check(api, abi::CreateCpuMemoryInfo::Call(api, 0, 0, &memory));
  Check(api, CreateTensor::Call(api, memory, images.data(), images.size(),
                                shape, 4, abi::kFloat, &input));
  const char *const input_name = "input";
  const char *const output_name = "logits";
  Check(api, Run::Call(api, session, nullptr, &input_name, &input, 1,
                       &output_name, 1, &output));

  void *data = nullptr;
  Check(api, abi::GetTensorMutableData::Call(api, output, &data));
  const float *logits = static_cast<const float *>(data);
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const float *row = logits + i * kClasses;
    right += std::max_element(row, row + kClasses) - row == labels[i];
  }
  std::printf("%zu of %zu right, accuracy %.1f %%\n", right, labels.size(),
              100.0 * static_cast<double>(right) /
                  static_cast<double>(labels.size()));

  ReleaseValue::Call(api, output);
  ReleaseValue::Call(api, input);
  abi::ReleaseMemoryInfo::Call(api, memory);
  ReleaseSession::Call(api, session);
  ReleaseSessionOptions::Call(api, options);
  ReleaseEnv::Call(api, env);
  return 0;
}
