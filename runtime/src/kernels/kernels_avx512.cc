// SPDX-License-Identifier: Apache-2.0
#include "kernels/microkernel.h"
#include "kernels/simd_avx512.h"

namespace rimc::kernels {

const KernelTable rimc_kernels_f32_avx512 = MakeTable<Avx512>("avx512");

}  // namespace rimc::kernels
