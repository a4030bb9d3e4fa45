// SPDX-License-Identifier: Apache-2.0
#include <arm_neon.h>

#include "kernels/microkernel.h"

namespace rimc::kernels {
namespace {

struct Neon {
  using Vec = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kMaxRows = 8;
  static constexpr int kMaxAccumulators = 24;
  static constexpr int kPanelVecs = 3;

  static Vec Load(const float* p) { return vld1q_f32(p); }
  static Vec LoadN(const float* p, int n) {
    float lanes[kLanes] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
  }
  static Vec LoadEven(const float* p, int n) {
    if (n == kLanes) {
      // p[0] .. p[6] and nothing beyond.
      const Vec first = vld1q_f32(p);
      const Vec second = vld1q_f32(p + 3);
      return vcombine_f32(vget_low_f32(vuzp1q_f32(first, first)),
                          vget_low_f32(vuzp2q_f32(second, second)));
    }
    float lanes[kLanes] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; ++i) lanes[i] = p[2 * i];
    return vld1q_f32(lanes);
  }
  static void Store(float* p, Vec v) { vst1q_f32(p, v); }
  static void StoreN(float* p, int n, Vec v) {
    float lanes[kLanes];
    vst1q_f32(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static Vec Set1(float x) { return vdupq_n_f32(x); }
  static Vec Fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static Vec Add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec Mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec Div(Vec a, Vec b) { return vdivq_f32(a, b); }
  static Vec Rint(Vec v) { return vrndnq_f32(v); }
  // Not vmaxq and vminq: they order the two zeros, which the other ISAs do not.
  static Vec Clip(Vec v, Vec low, Vec high) {
    v = vbslq_f32(vcltq_f32(v, low), low, v);
    return vbslq_f32(vcgtq_f32(v, high), high, v);
  }
  static float Sum(Vec v) { return vaddvq_f32(v); }
  static void Transpose(Vec* v) {
    const Vec even01 = vtrn1q_f32(v[0], v[1]);
    const Vec odd01 = vtrn2q_f32(v[0], v[1]);
    const Vec even23 = vtrn1q_f32(v[2], v[3]);
    const Vec odd23 = vtrn2q_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(even01), vget_low_f32(even23));
    v[1] = vcombine_f32(vget_low_f32(odd01), vget_low_f32(odd23));
    v[2] = vcombine_f32(vget_high_f32(even01), vget_high_f32(even23));
    v[3] = vcombine_f32(vget_high_f32(odd01), vget_high_f32(odd23));
  }
};

}  // namespace

const KernelTable rimc_kernels_f32_neon = MakeTable<Neon>("neon");

}  // namespace rimc::kernels
