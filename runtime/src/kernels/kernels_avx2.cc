// SPDX-License-Identifier: Apache-2.0
#include "kernels/microkernel.h"
#include "kernels/quads.h"
#include "kernels/simd_avx2.h"

namespace rimc::kernels {
namespace {

// AVX2 has no instruction for the four products of a quad: vpmaddubsw adds two products to an
// int16, vpmaddwd two int16 to an int32. Its first factor is unsigned: |a|, and b takes the sign of
// a.
struct Avx2Quads : Avx2Int8 {
  static constexpr int kMaxQuadSums = 8;
  // Signed codes, whose sums start from 0: two products, of |a| up to 128 and |b| up to 127, are no
  // more than an int16.
  static Int LoadCodes(const uint32_t* p) { return _mm256_xor_si256(LoadInt(p), SetInt(kBias)); }
  static int32_t StartOf(int32_t) { return 0; }
  static Int Dot(Int sum, Int b, Int a) {
    const __m256i twos = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
  }
};

}  // namespace

const KernelTable rimc_kernels_f32_avx2 = MakeTable<Avx2Quads>("avx2");
const QuadTable rimc_kernels_i8_avx2 = MakeQuadTable<Avx2Quads>();

}  // namespace rimc::kernels
