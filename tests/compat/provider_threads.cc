// SPDX-License-Identifier: Apache-2.0
//
// Opens, runs and closes sessions of the execution provider from many threads, for a checker of
// threads: see run_sanitizers.sh. Sessions have one thread each, as the pool of ONNX Runtime orders
// its tasks by means that the checker doesn't see.
//
// Usage: provider_threads libonnxruntime.so librimc_ops.so MODEL.onnx CONVERTED.onnx images.f32
#include <functional>
#include <thread>

#include "../../samples/apps/digits_app.h"

namespace abi = rimc::abi;

namespace {

using namespace app;

using SetIntraOpThreads = abi::Slot<24, abi::Status*, abi::SessionOptions*, int>;

constexpr int kThreads = 4;
constexpr int kRounds = 3;
constexpr int kImages = 4;

using Options = std::vector<std::pair<const char*, const char*>>;
using Output = std::vector<float>;

struct Machine {
  const abi::Api* api = nullptr;
  Env* env = nullptr;
  const EpDevice* device = nullptr;
  const char* (*last_mapping)() = nullptr;
  std::vector<char> images;
};

// The error, or null and a session.
abi::Status* Open(const Machine& machine, const char* model, const Options& options,
                  Session** session) {
  const abi::Api* const api = machine.api;
  abi::SessionOptions* session_options = nullptr;
  Check(api, CreateSessionOptions::Call(api, &session_options));
  Check(api, SetIntraOpThreads::Call(api, session_options, 1));
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : options) {
    keys.push_back(key);
    values.push_back(value);
  }
  Check(api, AppendProvider::Call(api, session_options, machine.env, &machine.device, 1,
                                  keys.data(), values.data(), keys.size()));
  abi::Status* const status =
      CreateSession::Call(api, machine.env, model, session_options, session);
  ReleaseSessionOptions::Call(api, session_options);
  return status;
}

Session* MustOpen(const Machine& machine, const char* model, const Options& options) {
  Session* session = nullptr;
  Check(machine.api, Open(machine, model, options, &session));
  return session;
}

Output RunOnce(const Machine& machine, Session* session) {
  return Logits(machine.api, session, machine.images, kImages);
}

void InThreads(const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

// Sessions of their own, of both kinds, and one that is refused.
void OwnSessions(const Machine& machine, const char* model, const char* converted) {
  const Options quiet = {{"preset", "milo2021"}, {"device_reads", "0"}, {"seed", "5"}};
  std::vector<std::vector<Output>> found(kThreads);
  InThreads([&](int thread) {
    for (int round = 0; round < kRounds; ++round) {
      for (const bool own : {true, false}) {
        Session* const session =
            MustOpen(machine, own ? model : converted, own ? quiet : Options{});
        if (own && std::strstr(machine.last_mapping(), "\"reason\": null") == nullptr) {
          Fail("another session's mapping");
        }
        found[static_cast<std::size_t>(thread)].push_back(RunOnce(machine, session));
        ReleaseSession::Call(machine.api, session);
      }
      Session* refused = nullptr;
      abi::Status* const status =
          Open(machine, model, {{"preset", "milo2021"}, {"seed", "x"}}, &refused);
      if (status == nullptr) Fail("a seed of 'x' was not refused");
      abi::ReleaseStatus::Call(machine.api, status);
    }
  });
  for (const auto& outputs : found) {
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i] != found[0][i % 2]) Fail("two threads got different outputs");
    }
  }
}

// One session that all threads run. Overlapping runs take their numbers of each node in some order,
// so all that is known of the outputs is that each has noise of its own.
void SharedSession(const Machine& machine, const char* model) {
  const Options noisy = {{"preset", "wan2022-aihwkit"}, {"seed", "7"}};
  Session* const shared = MustOpen(machine, model, noisy);
  std::vector<std::vector<Output>> found(kThreads);
  InThreads([&](int thread) {
    for (int run = 0; run < kRounds; ++run) {
      found[static_cast<std::size_t>(thread)].push_back(RunOnce(machine, shared));
    }
  });
  ReleaseSession::Call(machine.api, shared);
  std::vector<Output> all;
  for (const auto& outputs : found) all.insert(all.end(), outputs.begin(), outputs.end());
  std::sort(all.begin(), all.end());
  if (std::adjacent_find(all.begin(), all.end()) != all.end()) Fail("two runs had one noise");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) Fail("usage: provider_threads RUNTIME LIBRARY MODEL CONVERTED images.f32");
  Machine machine;
  machine.api = LoadRuntime(argv[1], 24, "1.24");
  machine.images = ReadFile(argv[5]);
  void* const library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Fail(dlerror());
  machine.last_mapping = reinterpret_cast<const char* (*)()>(dlsym(library, "RimcLastMapping"));
  const abi::Api* const api = machine.api;
  Check(api, CreateEnv::Call(api, kErrorsOnly, "threads", &machine.env));
  machine.device = AddProvider(api, machine.env, argv[2]).back();
  OwnSessions(machine, argv[3], argv[4]);
  SharedSession(machine, argv[3]);
  ReleaseEnv::Call(api, machine.env);
  std::printf("sessions of %d threads\n", kThreads);
  return 0;
}
