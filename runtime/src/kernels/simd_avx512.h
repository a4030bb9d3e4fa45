// SPDX-License-Identifier: Apache-2.0
//
// AVX-512F as a SIMD type (microkernel.h): for files that are compiled for it.
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
  static constexpr int kPanelVecs = 3;

  static __mmask16 Mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec LoadN(const float* p, int n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
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
