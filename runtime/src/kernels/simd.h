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
//   for whole numbers i < n (NaN stays NaN), Lookup16(p), a function of p[i & 15] for an Int i,
// over 32-bit integers:
//   Int, SetInt, LoadInt, StoreInt, Count(first) (first, first + 1, ..), Xor(a, b, scalar),
//   ShiftLeft<n>, ShiftRight<n>, AndOr(a, b, c) = (a & b) | c for scalars b and c, ToFloat (of int32),
//   FloatBits, ToInt (of a whole number), LoadInts(p, n) (zero beyond n), StoreInts(p, n, a),
//   PackHalves(low, high) (two uint16 as the halves of each lane),
// over kLanes int32 sums of int16 pairs:
//   Sums, ZeroSums, LoadSums and StoreSums (as LoadInts), SumsToFloat, DotPairs(sums, a, b) (plus
//   both products of the int16 pairs a and b), kPairsNeedRegister (the products of a whole block of
//   sums leave no register for all its inputs) and, where true, DotPairsAtOnce(sums, a, b), which is
//   DotPairs in one asm statement, which a compiler does not reorder,
// and over kLanes uint32 in the lower halves of 64-bit lanes, whose upper halves may hold anything:
//   Wide, Widen (an Int), MulWide(a, scalar) (all 64 bits of the products), UpperWide (upper halves
//   to the lower), XorWide(a, scalar), XorWide(a, b, scalar), Narrow (to an Int), NarrowUpper (of
//   the upper halves).
#pragma once

#include "kernels/kernels.h"

namespace rimc::kernels {

template <class S>
inline typename S::Int SetInt32(int32_t x) {
  return S::SetInt(static_cast<uint32_t>(x));
}

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
