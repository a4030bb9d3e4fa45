// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace rimc {

// The kernels of this process: the newest ISA that processor and operating system support, or the
// one that the environment variable RIMC_ISA (scalar, avx2, avx512, neon) named when this was first
// called. Throws Error where RIMC_ISA is unknown or names what the machine does not have.
const kernels::KernelTable& ActiveKernels();

// The tables of all ISAs that run here, slowest first.
const std::vector<const kernels::KernelTable*>& AvailableKernels();

// Names of the ISAs that run here, slowest first, as a JSON list.
std::string AvailableIsasJson();

}  // namespace rimc
