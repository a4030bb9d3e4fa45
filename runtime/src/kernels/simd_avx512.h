// SPDX-License-Identifier: Apache-2.0
//
// AVX-512F and BW as a SIMD type (simd.h): for files that are compiled for it.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/unroll.h"

namespace rimc::kernels {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMaxRows = 8;
  static constexpr int kMaxAccumulators = 24;
  static constexpr int kPanelVecs = 4;
  static constexpr bool kHasFewRegisters = false;
  static constexpr bool kPairsNeedRegister = false;
  static constexpr bool kUnrolls = true;
  static constexpr int kStripPositions = 14;
  static constexpr int kStripVecs = 2;
  static constexpr bool kHasLookup = true;

  static __mmask16 Mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec LoadN(const float* p, int n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static Vec LoadHalves(const float* low, const float* high) {
    const __m256d upper = _mm256_castps_pd(_mm256_loadu_ps(high));
    const __m512d half = _mm512_castps_pd(_mm512_castps256_ps512(_mm256_loadu_ps(low)));
    return _mm512_castpd_ps(_mm512_insertf64x4(half, upper, 1));
  }
  static Vec LoadEven(const float* p, int n) {
    const int span = 2 * n - 1;
    const __m512 first = LoadN(p, span < 16 ? span : 16);
    const __m512 second = span > 16 ? LoadN(p + 16, span - 16) : _mm512_setzero_ps();
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(first, even, second);
  }
  static void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static void StoreN(float* p, int n, Vec v) { _mm512_mask_storeu_ps(p, Mask(n), v); }
  static Vec Set1(float x) { return _mm512_set1_ps(x); }
  static Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec Rint(Vec v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // min and max give their second operand where one is NaN.
  static Vec Clip(Vec v, Vec low, Vec high) { return _mm512_min_ps(high, _mm512_max_ps(low, v)); }
  static float Sum(Vec v) { return _mm512_reduce_add_ps(v); }
  static float SumHalves(Vec v) {
    const __m512 half = _mm512_shuffle_f32x4(v, v, _MM_SHUFFLE(1, 0, 3, 2));
    const __m256 eight = _mm512_castps512_ps256(_mm512_add_ps(v, half));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec Sqrt(Vec v) { return _mm512_sqrt_ps(v); }
  static Vec Floor(Vec v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static Vec Abs(Vec v) { return BitsFloat(And(FloatBits(v), SetInt(0x7fffffffu))); }
  static Vec CopySign(Vec magnitude, Vec sign) {
    const Int bit = SetInt(0x80000000u);
    return BitsFloat(_mm512_or_si512(_mm512_andnot_si512(bit, FloatBits(magnitude)),
                                     _mm512_and_si512(bit, FloatBits(sign))));
  }
  static Vec FlipSign(Vec v, Vec sign) {
    constexpr int kXorAnd = 0x78;
    return BitsFloat(
        _mm512_ternarylogic_epi32(FloatBits(v), FloatBits(sign), SetInt(0x80000000u), kXorAnd));
  }

  using Int = __m512i;
  static constexpr int kXor3 = 0x96;
  static Int SetInt(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Int LoadInt(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void StoreInt(uint32_t* p, Int a) { _mm512_storeu_si512(p, a); }
  static Int Count(uint32_t first) {
    return _mm512_add_epi32(
        SetInt(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static Int And(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int Xor(Int a, Int b, uint32_t scalar) {
    return _mm512_ternarylogic_epi32(a, b, SetInt(scalar), kXor3);
  }
  static Int AndOr(Int a, uint32_t b, uint32_t c) {
    constexpr int kAndOr = 0xea;
    return _mm512_ternarylogic_epi32(a, SetInt(b), SetInt(c), kAndOr);
  }
  template <int kBits>
  static Int ShiftLeft(Int a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Int ShiftRight(Int a) {
    return _mm512_srli_epi32(a, kBits);
  }
  static Vec ToFloat(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int FloatBits(Vec v) { return _mm512_castps_si512(v); }
  static Vec BitsFloat(Int a) { return _mm512_castsi512_ps(a); }

  static Int ToInt(Vec v) { return _mm512_cvtps_epi32(v); }
  static Int LoadInts(const uint32_t* p, int n) { return _mm512_maskz_loadu_epi32(Mask(n), p); }
  static void StoreInts(uint32_t* p, int n, Int a) { _mm512_mask_storeu_epi32(p, Mask(n), a); }
  static Int PackHalves(Int low, Int high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
  }
  using Sums = __m512i;
  static Sums ZeroSums() { return _mm512_setzero_si512(); }
  static Sums LoadSums(const uint32_t* p, int n) { return LoadInts(p, n); }
  static void StoreSums(uint32_t* p, int n, Sums sums) { StoreInts(p, n, sums); }
  static Vec SumsToFloat(Sums sums) { return ToFloat(sums); }
  static Sums DotPairs(Sums sums, Int a, Int b) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
  }

  template <int kSize>
  struct Lookup {
    Vec table[kSize / 16];
    explicit Lookup(const float* from) {
      RIMC_UNROLL
      for (int i = 0; i < kSize / 16; ++i) table[i] = Load(from + i * 16);
    }
    Vec operator()(Vec magnitude) const {
      const Int index = _mm512_cvtps_epi32(magnitude);
      Vec found[kSize / 32];
      RIMC_UNROLL
      for (int i = 0; i < kSize / 32; ++i) {
        found[i] = _mm512_permutex2var_ps(table[2 * i], index, table[2 * i + 1]);
      }
      int bit = 32;
      RIMC_UNROLL
      for (int half = kSize / 64; half > 0; half /= 2) {
        const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(bit));
        RIMC_UNROLL
        for (int i = 0; i < half; ++i) {
          found[i] = _mm512_mask_mov_ps(found[2 * i], upper, found[2 * i + 1]);
        }
        bit *= 2;
      }
      const __mmask16 nan = _mm512_cmp_ps_mask(magnitude, magnitude, _CMP_UNORD_Q);
      return _mm512_mask_mov_ps(found[0], nan, magnitude);
    }
  };

  using Column = __m256;
  static constexpr int kColumnPositions = 4;
  static Column LoadColumn(const float* p) { return _mm256_loadu_ps(p); }
  static void StoreColumn(float* p, Column v) { _mm256_storeu_ps(p, v); }
  static Column SetColumn(float x) { return _mm256_set1_ps(x); }
  static Column FmaColumn(Column a, Column b, Column c) { return _mm256_fmadd_ps(a, b, c); }
  static Column DotColumn(Column a, Column b, Column sums) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(sums),
                         _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b))));
  }

  struct Lookup16 {
    Vec table;
    explicit Lookup16(const float* from) : table(Load(from)) {}
    Vec operator()(Int index) const { return _mm512_permutexvar_ps(index, table); }
  };

  // Lanes 0, 2, .. and 1, 3, ..
  struct Wide {
    __m512i even, odd;
  };
  static Wide Widen(Int a) { return {a, _mm512_srli_epi64(a, 32)}; }
  static Wide MulWide(Wide a, uint32_t scalar) {
    const Int factor = SetInt(scalar);
    return {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
  }
  static Wide UpperWide(Wide a) {
    return {_mm512_srli_epi64(a.even, 32), _mm512_srli_epi64(a.odd, 32)};
  }
  static Wide XorWide(Wide a, uint32_t scalar) {
    const Int second = SetInt(scalar);
    return {_mm512_xor_si512(a.even, second), _mm512_xor_si512(a.odd, second)};
  }
  static Wide XorWide(Wide a, Wide b, uint32_t scalar) {
    return {Xor(a.even, b.even, scalar), Xor(a.odd, b.odd, scalar)};
  }
  static Int Narrow(Wide a) {
    return FloatBits(_mm512_mask_moveldup_ps(BitsFloat(a.even), 0xaaaa, BitsFloat(a.odd)));
  }
  static Int NarrowUpper(Wide a) {
    return FloatBits(_mm512_mask_movehdup_ps(BitsFloat(a.odd), 0x5555, BitsFloat(a.even)));
  }

  static void Transpose(Vec* v) {
    // Within 4 x 4 blocks of the tile first, then the blocks among themselves.
    Vec quad[16];
    RIMC_UNROLL
    for (int i = 0; i < 16; i += 4) {
      const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(v[i], v[i + 1]));
      const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(v[i], v[i + 1]));
      const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(v[i + 2], v[i + 3]));
      const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(v[i + 2], v[i + 3]));
      quad[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
      quad[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
      quad[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
      quad[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    }
    // Column c of block column b is in lane b of quad[4 * block row + c].
    RIMC_UNROLL
    for (int c = 0; c < 4; ++c) {
      const Vec even_top = _mm512_shuffle_f32x4(quad[c], quad[4 + c], 0x88);
      const Vec odd_top = _mm512_shuffle_f32x4(quad[c], quad[4 + c], 0xdd);
      const Vec even_bottom = _mm512_shuffle_f32x4(quad[8 + c], quad[12 + c], 0x88);
      const Vec odd_bottom = _mm512_shuffle_f32x4(quad[8 + c], quad[12 + c], 0xdd);
      v[c] = _mm512_shuffle_f32x4(even_top, even_bottom, 0x88);
      v[4 + c] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0x88);
      v[8 + c] = _mm512_shuffle_f32x4(even_top, even_bottom, 0xdd);
      v[12 + c] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0xdd);
    }
  }
};

}  // namespace
}  // namespace rimc::kernels
