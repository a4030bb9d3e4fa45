// SPDX-License-Identifier: Apache-2.0
//
// The kernels of kernels.h are written once over a SIMD type S that a file per ISA defines in its
// unnamed namespace (so that no instance is shared between files of different flags):
//   Vec, kLanes, kMaxRows, kMaxAccumulators, kPanelVecs,
//   Load, LoadN(p, n) (zero beyond n), Store, StoreN, Set1, Fma(a, b, c) = a * b + c, Add, Mul,
//   LoadEven(p, n) (p[0], p[2], .. n values, zero beyond), Div, Rint, Clip(v, low, high) (NaN stays
//   NaN), Sum (any order), Transpose(Vec[kLanes]), Sub, Sqrt, Floor, Abs, CopySign(magnitude,
//   sign), AnyAtLeast(v, bound), SelectLess(a, b, x, y) = a < b ? x : y,
// and over words of 32 bits:
//   Int, SetInt, Lanes() (0, 1, ..), AddInt, SubInt, Xor, And, ShiftLeft<n>, ShiftRight<n>
//   (arithmetic), Mul64(a, b, &high) (low half returned), ToFloat (of a signed word), FloatBits,
//   BitsFloat.
#pragma once

#include "kernels/kernels.h"

namespace rimc::kernels {

template <class S>
inline typename S::Vec LoadLanes(const float* p, int lanes) {
  return lanes == S::kLanes ? S::Load(p) : S::LoadN(p, lanes);
}

template <class S>
inline void StoreLanes(float* p, int lanes, typename S::Vec v) {
  if (lanes == S::kLanes) {
    S::Store(p, v);
  } else {
    S::StoreN(p, lanes, v);
  }
}

}  // namespace rimc::kernels
