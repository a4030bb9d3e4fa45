// SPDX-License-Identifier: Apache-2.0
#include "kernels/quads.h"
#include "kernels/simd_avx512.h"

namespace rimc::kernels {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr int kMaxQuadSums = kMaxAccumulators;
  static constexpr uint32_t kBias = 0x80808080u;

  static Int LoadCodes(const uint32_t* p) { return LoadInt(p); }
  static int32_t StartOf(int32_t start) { return start; }
  static Int AddInt(Int a, Int b) { return _mm512_add_epi32(a, b); }
  // The intrinsics make GCC copy and spill the sums of a block.
  static Int Dot(Int sum, Int b, Int a) {
#if defined(__GNUC__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, b, a);
#endif
  }
  static Sums DotPairs(Sums sums, Int a, Int b) {
#if defined(__GNUC__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
#else
    return _mm512_dpwssd_epi32(sums, a, b);
#endif
  }
  static Int ToInt32(Vec v) {
    return _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static int32_t Sum32(Int v) { return _mm512_reduce_add_epi32(v); }
  static Int PackInt8(const Int* v, bool* is_beyond) {
    const Int low = _mm512_packs_epi32(v[0], v[1]);
    const Int high = _mm512_packs_epi32(v[2], v[3]);
    const Int least = _mm512_min_epi16(low, high);
    *is_beyond = _mm512_cmpeq_epi16_mask(least, _mm512_set1_epi16(-32768)) != 0;
    return _mm512_max_epi8(_mm512_packs_epi16(low, high), _mm512_set1_epi8(-127));
  }
  static Int InterleaveBytes(Int v) {
    // Within 128 bits, four bytes of each of the four vectors.
    const Int order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_xor_si512(_mm512_shuffle_epi8(v, order), SetInt(kBias));
  }
  static Vec Min(Vec v, Vec high) { return _mm512_min_ps(high, v); }
  static void StoreBytes(uint8_t* p, Int v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  static unsigned NanMask(Vec v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
};

}  // namespace

const QuadTable rimc_kernels_i8_avx512vnni = MakeQuadTable<Avx512Vnni>();

}  // namespace rimc::kernels
