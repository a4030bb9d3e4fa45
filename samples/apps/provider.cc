// SPDX-License-Identifier: Apache-2.0
//
// Runs an ordinary float32 model on simulated RRAM crossbars from C++: librimc_ops.so is registered
// as an execution provider of ONNX Runtime (1.24 or newer), which programs the weights of Conv,
// Gemm and MatMul when the session is made. Without options it runs a converted model.
//
// Usage: provider libonnxruntime.so librimc_ops.so MODEL.onnx images.f32 labels.u8
// [OPTION=VALUE]... such as preset=gaussian-relative drift_frac=0.1 seed=7
#include <cstring>

#include "digits_app.h"

namespace abi = rimc::abi;

namespace {

using namespace app;

struct EpDevice;

using RegisterProviderLibrary = abi::Slot<301, abi::Status*, Env*, const char*, const char*>;
using GetDevices = abi::Slot<303, abi::Status*, const Env*, const EpDevice* const**, std::size_t*>;
using AppendProvider =
    abi::Slot<304, abi::Status*, abi::SessionOptions*, Env*, const EpDevice* const*, std::size_t,
              const char* const*, const char* const*, std::size_t>;
using DeviceProviderName = abi::Slot<312, const char*, const EpDevice*>;

constexpr const char* kProvider = "RimcExecutionProvider";
constexpr std::uint32_t kProviderApi = 24;

// Registers the library and adds its devices, with the options, to the session's.
void AddProvider(const abi::Api* api, Env* env, const char* library, char** first, char** last,
                 abi::SessionOptions* session_options) {
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
  std::vector<std::string> names;
  std::vector<const char*> keys, values;
  for (char** option = first; option != last; ++option) {
    const char* equals = std::strchr(*option, '=');
    if (equals == nullptr) Fail(std::string(*option) + ": is not OPTION=VALUE");
    names.emplace_back(const_cast<const char*>(*option), equals);
    values.push_back(equals + 1);
  }
  for (const std::string& name : names) keys.push_back(name.c_str());
  Check(api, AppendProvider::Call(api, session_options, env, own.data(), own.size(), keys.data(),
                                  values.data(), keys.size()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    Fail(
        "usage: provider libonnxruntime.so librimc_ops.so MODEL images.f32 labels.u8 "
        "[OPTION=VALUE]...");
  }
  const abi::Api* api = LoadRuntime(argv[1], kProviderApi, "1.24");
  Env* env = nullptr;
  abi::SessionOptions* options = nullptr;
  Session* session = nullptr;
  Check(api, CreateEnv::Call(api, kErrorsOnly, "provider", &env));
  Check(api, CreateSessionOptions::Call(api, &options));
  AddProvider(api, env, argv[2], argv + 6, argv + argc, options);
  Check(api, CreateSession::Call(api, env, argv[3], options, &session));
  Score(api, session, argv[4], argv[5]);
  ReleaseSession::Call(api, session);
  ReleaseSessionOptions::Call(api, options);
  ReleaseEnv::Call(api, env);
  return 0;
}
