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
  static Int Dot(Int sum, Int b, Int a) { return _mm256_dpbusd_avx_epi32(sum, b, a); }
  static Sums DotPairs(Sums sums, Int a, Int b) { return _mm256_dpwssd_avx_epi32(sums, a, b); }
};

}  // namespace

const QuadTable rimc_kernels_i8_avx2vnni = MakeQuadTable<Avx2Vnni>();

}  // namespace rimc::kernels
