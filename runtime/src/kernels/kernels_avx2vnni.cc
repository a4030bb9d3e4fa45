// SPDX-License-Identifier: Apache-2.0
#include "kernels/quads.h"
#include "kernels/simd_avx2.h"

namespace rimc::kernels {
namespace {

struct Avx2Vnni : Avx2 {
  using Words = __m256i;
  static constexpr int32_t kBias = static_cast<int32_t>(0x80808080u);

  static Words LoadWords(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void StoreWords(uint32_t* p, int n, Words v) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), Mask(n), v);
  }
  static Words Set1Words(int32_t x) { return _mm256_set1_epi32(x); }
  static Words AddWords(Words a, Words b) { return _mm256_add_epi32(a, b); }
  static Words Dot(Words sum, Words b, Words a) { return _mm256_dpbusd_avx_epi32(sum, b, a); }
  static Sums DotPairs(Sums sums, Int a, Int b) { return _mm256_dpwssd_avx_epi32(sums, a, b); }
  static Words ToWords(Vec v) { return _mm256_cvtps_epi32(Rint(v)); }
  static int32_t SumQuads(Words v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  static Words Saturate(const Words* v, bool* is_beyond) {
    const Words low = _mm256_packs_epi32(v[0], v[1]);
    const Words high = _mm256_packs_epi32(v[2], v[3]);
    const Words least = _mm256_min_epi16(low, high);
    *is_beyond = _mm256_movemask_epi8(_mm256_cmpeq_epi16(least, _mm256_set1_epi16(-32768))) != 0;
    return _mm256_max_epi8(_mm256_packs_epi16(low, high), _mm256_set1_epi8(-127));
  }
  static Words BytesInOrder(Words v) {
    // Within 128 bits, four bytes of each of the four vectors.
    const Words order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm256_xor_si256(_mm256_shuffle_epi8(v, order), Set1Words(kBias));
  }
  static Vec CutAbove(Vec v, Vec high) { return _mm256_min_ps(high, v); }
  static void StoreBytes(uint8_t* p, Words v) {
    const __m256i lowest = _mm256_and_si256(v, _mm256_set1_epi32(255));
    const __m256i halves = _mm256_packus_epi32(lowest, lowest);
    const __m256i bytes = _mm256_packus_epi16(halves, halves);
    _mm_storel_epi64(
        reinterpret_cast<__m128i*>(p),
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  }
  static unsigned Nans(Vec v) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  }
};

}  // namespace

const QuadTable rimc_kernels_i8_avx2vnni = MakeQuadTable<Avx2Vnni>();

}  // namespace rimc::kernels
