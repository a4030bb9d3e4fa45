// SPDX-License-Identifier: Apache-2.0
//
// Runs a deployed model on test images from C++. All it needs is the shared library of ONNX
// Runtime (1.17 or newer).
//
// Usage: app libonnxruntime.so MODEL.onnx images.f32 labels.u8 [librimc_ops.so]
#include "digits_app.h"

int main(int argc, char** argv) {
  using namespace app;
  if (argc < 5) Fail("usage: app libonnxruntime.so MODEL images.f32 labels.u8 [librimc_ops.so]");
  const abi::Api* api = LoadRuntime(argv[1], abi::kApiVersion, "1.17");
  Env* env = nullptr;
  abi::SessionOptions* options = nullptr;
  Session* session = nullptr;
  Check(api, CreateEnv::Call(api, kErrorsOnly, "app", &env));
  Check(api, CreateSessionOptions::Call(api, &options));
  if (argc > 5) Check(api, RegisterLibrary::Call(api, options, argv[5]));
  Check(api, CreateSession::Call(api, env, argv[2], options, &session));
  Score(api, session, argv[3], argv[4]);
  ReleaseSession::Call(api, session);
  ReleaseSessionOptions::Call(api, options);
  ReleaseEnv::Call(api, env);
  return 0;
}
