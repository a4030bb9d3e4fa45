// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/microkernel.h"

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
};

}  // namespace

const KernelTable rimc_kernels_f32_avx512 = MakeTable<Avx512>("avx512");

}  // namespace rimc::kernels
