// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "rimc/ort_abi.h"

namespace rimc {

// The operators of the library as ONNX Runtime takes them; lives as long as the process.
abi::CustomOpDomain* Domain(const abi::Api* api);

// True where the version string is one of 1.0 .. 1.(minor - 1). ONNX Runtime prints a line of its
// own when asked for an API that it does not have, so the string is asked first.
bool IsOlderThan(const char* version, unsigned minor);

}  // namespace rimc
