// SPDX-License-Identifier: Apache-2.0
//
// Runs an ordinary float32 model on simulated RRAM crossbars from C++: librimc_ops.so is registered
// as an execution provider of ONNX Runtime (1.24 or newer), which programs the weights of Conv,
// Gemm and MatMul when the session is made. Without options it runs a converted model.
//
// Usage: provider libonnxruntime.so librimc_ops.so MODEL.onnx images.f32 labels.u8
// [OPTION=VALUE]... such as preset=gaussian-relative seed=7
#include "digits_app.h"

namespace {

using namespace app;

// Adds the devices of the library, with the options, to the session's.
void UseProvider(const abi::Api* api, Env* env, const char* library, char** first, char** last,
                 abi::SessionOptions* session_options) {
  const std::vector<const EpDevice*> own = AddProvider(api, env, library);
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
  UseProvider(api, env, argv[2], argv + 6, argv + argc, options);
  Check(api, CreateSession::Call(api, env, argv[3], options, &session));
  Score(api, session, argv[4], argv[5]);
  ReleaseSession::Call(api, session);
  ReleaseSessionOptions::Call(api, options);
  ReleaseEnv::Call(api, env);
  return 0;
}
