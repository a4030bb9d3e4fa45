// SPDX-License-Identifier: Apache-2.0
#include "kernels/quads.h"
#include "kernels/simd_avx2.h"

namespace rimc::kernels {
namespace {

struct Avx2Vnni : Avx2Int8 {
  static constexpr int kMaxQuadSums = kMaxAccumulators;
  static constexpr bool kPairsNeedRegister = false;
  static Int LoadCodes(const uint32_t* p) { return LoadInt(p); }
  static int32_t StartOf(int32_t start) { return start; }
  // The intrinsics make GCC copy and spill the sums of a block. Without {vex} the assembler takes
  // the form of AVX-512.
  static Int Dot(Int sum, Int b, Int a) {
#if defined(__GNUC__)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(b), "xm"(a));
    return sum;
#else
    return _mm256_dpbusd_avx_epi32(sum, b, a);
#endif
  }
  static Sums DotPairs(Sums sums, Int a, Int b) {
#if defined(__GNUC__)
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(a), "xm"(b));
    return sums;
#else
    return _mm256_dpwssd_avx_epi32(sums, a, b);
#endif
  }
};

}  // namespace

const QuadTable rimc_kernels_i8_avx2vnni = MakeQuadTable<Avx2Vnni>();

}  // namespace rimc::kernels
