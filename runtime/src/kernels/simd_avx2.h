// SPDX-License-Identifier: Apache-2.0
//
// AVX2 and FMA as a SIMD type (simd.h): for files that are compiled for it.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/unroll.h"

namespace rimc::kernels {
namespace {

// A window of eight starting at 8 - n has n ones first.
const int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct Avx2 {
  using Vec = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxAccumulators = 12;
  static constexpr int kPanelVecs = 3;
  static constexpr bool kHasFewRegisters = true;
  static constexpr bool kUnrolls = true;
  static constexpr bool kHasLookup = true;
#if defined(__GNUC__) && !defined(__clang__)
  static constexpr bool kPairsNeedRegister = true;  // GCC's order of them; others are as they are
#else
  static constexpr bool kPairsNeedRegister = false;
#endif

  static __m256i Mask(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + 8 - n));
  }
  static Vec Load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec LoadN(const float* p, int n) { return _mm256_maskload_ps(p, Mask(n)); }
  static Vec LoadEven(const float* p, int n) {
    const int span = 2 * n - 1;
    const __m256 first = LoadN(p, span < 8 ? span : 8);
    const __m256 second = span > 8 ? LoadN(p + 8, span - 8) : _mm256_setzero_ps();
    const __m256 mixed = _mm256_shuffle_ps(first, second, _MM_SHUFFLE(2, 0, 2, 0));
    return _mm256_castpd_ps(
        _mm256_permute4x64_pd(_mm256_castps_pd(mixed), _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static void Store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static void StoreN(float* p, int n, Vec v) { _mm256_maskstore_ps(p, Mask(n), v); }
  static Vec Set1(float x) { return _mm256_set1_ps(x); }
  static Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec Div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static Vec Rint(Vec v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // min and max give their second operand where one is NaN.
  static Vec Clip(Vec v, Vec low, Vec high) { return _mm256_min_ps(high, _mm256_max_ps(low, v)); }
  static float Sum(Vec v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float SumHalves(Vec v) { return Sum(v); }
  static Vec Sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec Sqrt(Vec v) { return _mm256_sqrt_ps(v); }
  static Vec Floor(Vec v) { return _mm256_floor_ps(v); }
  static Vec Abs(Vec v) { return _mm256_andnot_ps(Set1(-0.0f), v); }
  static Vec CopySign(Vec magnitude, Vec sign) {
    const Vec bit = Set1(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
  }
  static Vec FlipSign(Vec v, Vec sign) {
    return _mm256_xor_ps(v, _mm256_and_ps(sign, Set1(-0.0f)));
  }

  using Int = __m256i;
  static Int SetInt(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Int LoadInt(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void StoreInt(uint32_t* p, Int a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
  }
  static Int Count(uint32_t first) {
    return _mm256_add_epi32(SetInt(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Int Xor(Int a, Int b, uint32_t scalar) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), SetInt(scalar));
  }
  static Int AndOr(Int a, uint32_t b, uint32_t c) {
    return _mm256_or_si256(_mm256_and_si256(a, SetInt(b)), SetInt(c));
  }
  template <int kBits>
  static Int ShiftLeft(Int a) {
    return _mm256_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Int ShiftRight(Int a) {
    return _mm256_srli_epi32(a, kBits);
  }
  static Vec ToFloat(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int FloatBits(Vec v) { return _mm256_castps_si256(v); }
  static bool AreAtLeast(Vec v, float least) {
    return _mm256_movemask_ps(_mm256_cmp_ps(v, Set1(least), _CMP_LT_OQ)) == 0;
  }

  static Int ToInt(Vec v) { return _mm256_cvtps_epi32(v); }
  static Int LoadInts(const uint32_t* p, int n) {
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(p), Mask(n));
  }
  static void StoreInts(uint32_t* p, int n, Int a) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), Mask(n), a);
  }
  static Int PackHalves(Int low, Int high) {
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
  }
  using Sums = __m256i;
  static Sums ZeroSums() { return _mm256_setzero_si256(); }
  static Sums LoadSums(const uint32_t* p, int n) { return LoadInts(p, n); }
  static void StoreSums(uint32_t* p, int n, Sums sums) { StoreInts(p, n, sums); }
  static Vec SumsToFloat(Sums sums) { return ToFloat(sums); }
  static Sums DotPairs(Sums sums, Int a, Int b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
  }
  // GCC would compute the products of a whole block before it adds one: more than registers hold.
  static Sums DotPairsAtOnce(Sums sums, Int a, Int b) {
#if defined(__GNUC__) && !defined(__clang__)
    Int products;
    __asm__("vpmaddwd %[b], %[a], %[products]\n\tvpaddd %[products], %[sums], %[sums]"
            : [sums] "+x"(sums), [products] "=&x"(products)
            : [a] "x"(a), [b] "xm"(b));
    return sums;
#else
    return DotPairs(sums, a, b);
#endif
  }

  // One value after the other: a gather takes as long, or longer by far on processors whose
  // microcode repairs it.
  template <int kSize>
  struct Lookup {
    const float* table;
    explicit Lookup(const float* from) : table(from) {}
    Vec operator()(Vec magnitude) const {
      uint32_t at[kLanes];
      StoreInt(at, _mm256_min_epu32(ToInt(magnitude), SetInt(kSize - 1)));
      const Vec found = _mm256_setr_ps(table[at[0]], table[at[1]], table[at[2]], table[at[3]],
                                       table[at[4]], table[at[5]], table[at[6]], table[at[7]]);
      return _mm256_blendv_ps(found, magnitude, _mm256_cmp_ps(magnitude, magnitude, _CMP_UNORD_Q));
    }
  };

  // Of as many columns as a block has.
  using Column = __m128;
  static constexpr int kColumnPositions = 2;
  static Column LoadColumn(const float* p) { return _mm_loadu_ps(p); }
  static void StoreColumn(float* p, Column v) { _mm_storeu_ps(p, v); }
  static Column SetColumn(float x) { return _mm_set1_ps(x); }
  static Column FmaColumn(Column a, Column b, Column c) { return _mm_fmadd_ps(a, b, c); }
  static Column DotColumn(Column a, Column b, Column sums) {
    const __m128i products = _mm_madd_epi16(_mm_castps_si128(a), _mm_castps_si128(b));
    return _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(sums), products));
  }

  struct Lookup16 {
    Vec low, high;
    explicit Lookup16(const float* from) : low(Load(from)), high(Load(from + 8)) {}
    // Of indices 6 .. 13 alone.
    struct Middle {
      Vec table;
      explicit Middle(const float* from)
          : table(_mm256_blend_ps(Load(from + 8), Load(from), 0xc0)) {}
      Vec operator()(Int index) const { return _mm256_permutevar8x32_ps(table, index); }
    };
    Vec operator()(Int index) const {
      // A permutation looks at three bits, a blend at the sign.
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                              _mm256_permutevar8x32_ps(high, index),
                              _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    }
  };

  // Lanes 0, 2, 4, 6 and 1, 3, 5, 7.
  struct Wide {
    __m256i even, odd;
  };
  static Wide Widen(Int a) { return {a, _mm256_srli_epi64(a, 32)}; }
  static Wide MulWide(Wide a, uint32_t scalar) {
    const Int factor = SetInt(scalar);
    return {_mm256_mul_epu32(a.even, factor), _mm256_mul_epu32(a.odd, factor)};
  }
  static Wide UpperWide(Wide a) {
    return {_mm256_srli_epi64(a.even, 32), _mm256_srli_epi64(a.odd, 32)};
  }
  static Wide XorWide(Wide a, uint32_t scalar) {
    const Int second = SetInt(scalar);
    return {_mm256_xor_si256(a.even, second), _mm256_xor_si256(a.odd, second)};
  }
  static Wide XorWide(Wide a, Wide b, uint32_t scalar) {
    return {Xor(a.even, b.even, scalar), Xor(a.odd, b.odd, scalar)};
  }
  static Int Narrow(Wide a) {
    return _mm256_blend_epi32(a.even, _mm256_slli_epi64(a.odd, 32), 0xaa);
  }
  static Int NarrowUpper(Wide a) {
    return _mm256_blend_epi32(_mm256_srli_epi64(a.even, 32), a.odd, 0xaa);
  }

  static void Transpose(Vec* v) {
    // Within quarters of the tile first, then the quarters among themselves.
    Vec quad[8];
    RIMC_UNROLL
    for (int i = 0; i < 8; i += 4) {
      const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(v[i], v[i + 1]));
      const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(v[i], v[i + 1]));
      const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(v[i + 2], v[i + 3]));
      const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(v[i + 2], v[i + 3]));
      quad[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
      quad[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
      quad[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
      quad[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
    }
    RIMC_UNROLL
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
      v[i + 4] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
    }
  }
};

// The integer operations of quads.h, but for Dot and its codes.
struct Avx2Int8 : Avx2 {
  static constexpr uint32_t kBias = 0x80808080u;

  static Int AddInt(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int ToInt32(Vec v) { return _mm256_cvtps_epi32(Rint(v)); }
  static int32_t Sum32(Int v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  static Int PackInt8(const Int* v, bool* is_beyond) {
    const Int low = _mm256_packs_epi32(v[0], v[1]);
    const Int high = _mm256_packs_epi32(v[2], v[3]);
    const Int least = _mm256_min_epi16(low, high);
    *is_beyond = _mm256_movemask_epi8(_mm256_cmpeq_epi16(least, _mm256_set1_epi16(-32768))) != 0;
    return _mm256_max_epi8(_mm256_packs_epi16(low, high), _mm256_set1_epi8(-127));
  }
  static Int InterleaveBytes(Int v) {
    // Within 128 bits, four bytes of each of the four vectors.
    const Int order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm256_xor_si256(_mm256_shuffle_epi8(v, order), SetInt(kBias));
  }
  static Vec Min(Vec v, Vec high) { return _mm256_min_ps(high, v); }
  static void StoreBytes(uint8_t* p, Int v) {
    const __m256i lowest = _mm256_and_si256(v, _mm256_set1_epi32(255));
    const __m256i halves = _mm256_packus_epi32(lowest, lowest);
    const __m256i bytes = _mm256_packus_epi16(halves, halves);
    _mm_storel_epi64(
        reinterpret_cast<__m128i*>(p),
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  }
  static unsigned NanMask(Vec v) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  }
};

}  // namespace
}  // namespace rimc::kernels
