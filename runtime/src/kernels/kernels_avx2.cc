// SPDX-License-Identifier: Apache-2.0
#include "kernels/microkernel.h"
#include "kernels/quads.h"
#include "kernels/simd_avx2.h"

namespace rimc::kernels {
namespace {

// Without an instruction for four products of bytes: two products of bytes add up to int16, two of
// those to int32. The first factor of a byte product is unsigned, which is |a|; b has its sign.
struct Avx2Quads : Avx2Words {
  static constexpr int kMaxQuadSums = 8;
  // Signed codes, whose sums start from 0: two products, of |a| up to 128 and |b| up to 127, are no
  // more than an int16.
  static Words LoadCodes(const uint32_t* p) {
    return _mm256_xor_si256(LoadWords(p), Set1Words(kBias));
  }
  static int32_t StartOf(int32_t) { return 0; }
  static Words Dot(Words sum, Words b, Words a) {
    const __m256i twos = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
  }
};

}  // namespace

const KernelTable rimc_kernels_f32_avx2 = MakeTable<Avx2Quads>("avx2");
const QuadTable rimc_kernels_i8_avx2 = MakeQuadTable<Avx2Quads>();

}  // namespace rimc::kernels
