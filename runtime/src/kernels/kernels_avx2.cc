// SPDX-License-Identifier: Apache-2.0
#include "kernels/microkernel.h"
#include "kernels/simd_avx2.h"

namespace rimc::kernels {

const KernelTable rimc_kernels_f32_avx2 = MakeTable<Avx2>("avx2");

}  // namespace rimc::kernels
