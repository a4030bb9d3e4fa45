// SPDX-License-Identifier: Apache-2.0
//
// The kernels of kernels.h are written once over a SIMD type S that a file per ISA defines in its
// unnamed namespace (so that no instance is shared between files of different flags):
//   Vec, kLanes, kMaxRows, kMaxAccumulators, kPanelVecs, kUnrolls (blocks of each shape are code),
//   kHasFewRegisters (a block of sums leaves none for the tables of noise), where it multiplies by a
//   lane of a vector kHasLanes and FmaLane<n>(a, b, c) = a * b[n] + c,
//   Load, LoadN(p, n) (zero beyond n), Store, StoreN, Set1, Fma(a, b, c) = a * b + c, Add, Mul,
//   LoadEven(p, n) (p[0], p[2], .. n values, zero beyond), Div, Rint, Clip(v, low, high) (NaN stays
//   NaN), Sum (any order), SumHalves (the upper half is added to the lower one, and so on),
//   Transpose(Vec[kLanes]), Sub, Sqrt, Floor, Abs, CopySign(magnitude, sign), FlipSign(v, sign)
//   (-v where sign has its bit set), kHasLookup and, where true, Lookup<n>(p), a function of p[i]
//   for whole numbers i < n (NaN stays NaN), Lookup16(p), a function of p[i & 15] for words i,
// and over words of 32 bits:
//   Int, LoadInt, StoreInt, Count(first) (first, first + 1, ..), Xor(a, b, word), ShiftLeft<n>,
//   ShiftRight<n>, AndOr(a, b, c) = (a & b) | c for words b and c, ToFloat (of a signed word),
//   FloatBits, ToInt (of a whole number), LoadInts(p, n) (zero beyond n), StoreInts(p, n, a),
//   Halves(low, high) (of words of 16 bits each, as unsigned ones),
// and over kLanes sums of words in Sums:
//   NoSums (zeros), LoadSums and StoreSums (as LoadInts), SumsToFloat, DotPairs(sums, a, b) (plus
//   the products of both halves of a and b, which are signed), kPairsNeedRegister (products of a
//   whole block of sums leave no register for all its inputs) and, where true,
//   DotPairsAtOnce(sums, a, b), the same, which a compiler can't take apart,
// and over kLanes words in the lower halves of 64 bits, with anything in the upper ones:
//   Wide, Widen (an Int), MulWide(a, word) (all 64 bits of the products), UpperWide (upper halves
//   to the lower), XorWide(a, word), XorWide(a, b, word), Narrow (to an Int), NarrowUpper (of the
//   upper halves).
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
