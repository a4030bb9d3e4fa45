// SPDX-License-Identifier: Apache-2.0
//
// The kernels of kernels.h are written once over a SIMD type S that a file per ISA defines in its
// unnamed namespace (so that no instance is shared between files of different flags):
//   Vec, kLanes, kMaxRows, kMaxAccumulators, kPanelVecs,
//   Load, LoadN(p, n) (zero beyond n), Store, StoreN, Set1, Fma(a, b, c) = a * b + c, Add, Mul,
//   LoadEven(p, n) (p[0], p[2], .. n values, zero beyond), Div, Rint, Clip(v, low, high) (NaN stays
//   NaN), Sum (any order), Transpose(Vec[kLanes]), Sub, Sqrt, Floor, Abs, CopySign(magnitude,
//   sign), AnyAtLeast(v, bound), SelectLess(a, b, x, y) = a < b ? x : y, kHasLookup and, where
//   true, Lookup<n>(p), a function of p[i] for whole numbers i < n (NaN stays NaN),
// and over words of 32 bits:
//   Int, SetInt, AddInt, SubInt, Xor, And, ShiftRight<n> (arithmetic), ToFloat (of a signed word),
//   FloatBits, BitsFloat,
// and over kLanes words in the lower halves of 64 bits, with anything in the upper ones:
//   Wide, SetWide, CountWide(first) (first, first + 1, ..), MulWide(a, word) (all 64 bits of the
//   products), UpperWide (upper halves to the lower), XorWide(a, b, word), Narrow (to an Int).
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
