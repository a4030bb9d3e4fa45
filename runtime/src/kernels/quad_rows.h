// SPDX-License-Identifier: Apache-2.0
//
// Integer kernels of matrices whose rows are inputs, over the SIMD type of quads.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

template <class S>
bool PackQuadRows(const QuadRowsArgs& args) {
  using Vec = typename S::Vec;
  using Int = typename S::Int;
  const Vec step = S::Set1(args.step);
  const Vec high = S::Set1(127.0f);
  const Vec low = S::Set1(-127.0f);
  const Int zero = S::SetInt(128);
  unsigned nans = 0;
  for (ptrdiff_t r = 0; r < args.rows; ++r) {
    const float* const from = args.from + r * args.width;
    uint8_t* const to = args.to + r * args.to_row;
    ptrdiff_t i = 0;
    for (; i < args.width; i += S::kLanes) {
      const int lanes = args.width - i < S::kLanes ? static_cast<int>(args.width - i) : S::kLanes;
      const Vec x = LoadLanes<S>(from + i, lanes);
      nans |= S::NanMask(x);
      S::StoreBytes(to + i, S::AddInt(S::ToInt32(S::Clip(S::Div(x, step), low, high)), zero));
    }
    for (; i < args.to_row; i += S::kLanes) S::StoreBytes(to + i, zero);
  }
  return nans == 0;
}

template <class S, int kRank>
void QuadRanksOf(const QuadRanksArgs& args, ptrdiff_t rank0) {
  using Int = typename S::Int;
  const uint32_t* const a = args.a + rank0 * args.row_quads;
  for (ptrdiff_t i = 0; i < args.rows; ++i) {
    const uint32_t* const x = args.x + i * args.row_quads;
    Int sums[kRank];
    RIMC_UNROLL
    for (int r = 0; r < kRank; ++r) sums[r] = S::SetInt(0);
    for (ptrdiff_t k = 0; k < args.row_quads; k += S::kLanes) {
      const Int codes = S::LoadCodes(x + k);
      RIMC_UNROLL
      for (int r = 0; r < kRank; ++r) {
        sums[r] = S::Dot(sums[r], codes, S::LoadInt(a + r * args.row_quads + k));
      }
    }
    RIMC_UNROLL
    for (int r = 0; r < kRank; ++r) {
      const int32_t sum = S::Sum32(sums[r]) + S::StartOf(args.start[rank0 + r]);
      const typename S::Vec ratio =
          S::Div(S::Set1(static_cast<float>(sum)), S::Set1(args.rank_step[rank0 + r]));
      S::StoreN(args.u + i * args.rank + rank0 + r, 1,
                S::Clip(S::Rint(ratio), S::Set1(-127.0f), S::Set1(127.0f)));
    }
  }
}

template <class S>
void QuadRanks(const QuadRanksArgs& args) {
  ptrdiff_t rank0 = 0;
  for (; rank0 + 4 <= args.rank; rank0 += 4) QuadRanksOf<S, 4>(args, rank0);
  switch (args.rank - rank0) {
    case 3:
      return QuadRanksOf<S, 3>(args, rank0);
    case 2:
      return QuadRanksOf<S, 2>(args, rank0);
    case 1:
      return QuadRanksOf<S, 1>(args, rank0);
    default:
      return;
  }
}

}  // namespace rimc::kernels
