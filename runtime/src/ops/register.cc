// SPDX-License-Identifier: Apache-2.0
//
// What the library exports.
#include "ops/register.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

#include "conv/dora_conv.h"
#include "conv/rram_conv.h"
#include "kernels/dispatch.h"
#include "matmul/dora_matmul.h"
#include "matmul/rram_matmul.h"
#include "ops/op.h"

namespace rimc {
namespace {}  // namespace

// Sessions keep pointers to ops and domain.
abi::CustomOpDomain* Domain(const abi::Api* api) {
  static const Op<RramMatMul> rram_matmul;
  static const Op<RramConv> rram_conv;
  static const Op<DoraMatMul> dora_matmul;
  static const Op<DoraConv> dora_conv;
  static abi::CustomOpDomain* domain = nullptr;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (domain == nullptr) {
    inference_api = api;
    abi::CustomOpDomain* made = nullptr;
    Check(api, abi::CreateCustomOpDomain::Call(api, kDomain, &made));
    for (const abi::CustomOp* op : std::initializer_list<const abi::CustomOp*>{
             &rram_matmul, &rram_conv, &dora_matmul, &dora_conv}) {
      Check(api, abi::CustomOpDomainAdd::Call(api, made, op));
    }
    domain = made;
  }
  return domain;
}

bool IsOlderThan(const char* version, unsigned minor) {
  if (version == nullptr) return false;
  unsigned found_major = 0;
  unsigned found_minor = 0;
  if (std::sscanf(version, "%u.%u", &found_major, &found_minor) != 2) return false;
  return found_major < 1 || (found_major == 1 && found_minor < minor);
}

}  // namespace rimc

// Entry point that ONNX Runtime calls for session options.
RIMC_EXPORT rimc::abi::Status* RIMC_ORT_CALL RegisterCustomOps(rimc::abi::SessionOptions* options,
                                                               const rimc::abi::ApiBase* base) {
  using namespace rimc;
  const char* version = base->GetVersionString();
  const abi::Api* api =
      IsOlderThan(version, abi::kApiVersion) ? nullptr : base->GetApi(abi::kApiVersion);
  if (api == nullptr) {
    const abi::Api* oldest = base->GetApi(1);
    if (oldest == nullptr) std::abort();  // no status can be made: not an ONNX Runtime at all
    return Guard(oldest, [&] {
      Refuse("rimc_ops needs ONNX Runtime 1.17 or newer, got ", version ? version : "unknown",
             ". Update onnxruntime, or don't register the library to run the function bodies");
    });
  }
  return Guard(api, [&] {
    ActiveKernels();  // a wrong RIMC_ISA is refused here, not in the middle of a session
    Check(api, abi::AddCustomOpDomain::Call(api, options, Domain(api)));
  });
}

// JSON about the library: version, the ISA of its kernels ("" if RIMC_ISA is wrong), all that run
// here. Never null; owned by the library.
RIMC_EXPORT const char* RimcBuildInfo() {
  static const std::string json = [] {
    std::string isa;
    try {
      isa = rimc::ActiveKernels().isa;
    } catch (const std::exception&) {
      isa = "";
    }
    return std::string("{\"version\": \"") + RIMC_VERSION + "\", \"isa\": \"" + isa +
           "\", \"available_isas\": " + rimc::AvailableIsasJson() + "}";
  }();
  return json.c_str();
}

// Kernels made by the calling thread so far.
RIMC_EXPORT std::int64_t RimcKernelsCreated() { return rimc::kernels_created; }
