// SPDX-License-Identifier: Apache-2.0
//
// The reference: one value per "vector", so every operation is the one that C++ names. Built
// without auto-vectorisation.
#include <math.h>

#include "kernels/microkernel.h"

namespace rimc::kernels {
namespace {

struct Scalar {
  using Vec = float;
  static constexpr int kLanes = 1;
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxAccumulators = 16;
  static constexpr int kPanelVecs = 4;

  static Vec Load(const float* p) { return *p; }
  static Vec LoadN(const float* p, int n) { return n > 0 ? *p : 0.0f; }
  static Vec LoadEven(const float* p, int n) { return LoadN(p, n); }
  static void Store(float* p, Vec v) { *p = v; }
  static void StoreN(float* p, int n, Vec v) {
    if (n > 0) *p = v;
  }
  static Vec Set1(float x) { return x; }
  static Vec Fma(Vec a, Vec b, Vec c) { return ::fmaf(a, b, c); }
  static Vec Add(Vec a, Vec b) { return a + b; }
  static Vec Mul(Vec a, Vec b) { return a * b; }
  static Vec Div(Vec a, Vec b) { return a / b; }
  static Vec Rint(Vec v) { return ::rintf(v); }
  static Vec Clip(Vec v, Vec low, Vec high) {
    v = v < low ? low : v;
    return v > high ? high : v;
  }
  static float Sum(Vec v) { return v; }
  static void Transpose(Vec*) {}
};

}  // namespace

extern const KernelTable rimc_kernels_f32_scalar;
const KernelTable rimc_kernels_f32_scalar = MakeTable<Scalar>("scalar");

}  // namespace rimc::kernels
