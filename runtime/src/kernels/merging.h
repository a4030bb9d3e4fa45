// SPDX-License-Identifier: Apache-2.0
//
// Kernels of an adapter, over the SIMD type S of simd.h: codes of the ranks, transposed sums, and
// the merge with the output of the crossbar.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"
#include "kernels/word_lines.h"

namespace rimc::kernels {

template <class S, int kRank, bool kQuantize>
void RankCodesOf(const RankArgs& args, ptrdiff_t rank0) {
  using Vec = typename S::Vec;
  const Vec x_scale = S::Set1(args.x_scale);
  const Vec high = S::Set1(127.0f);
  const Vec low = S::Set1(-127.0f);
  const float* a = args.a + rank0 * args.a_row;
  for (ptrdiff_t i = 0; i < args.rows; ++i) {
    const float* x = args.x + i * args.depth;
    Vec acc[kRank];
    RIMC_UNROLL
    for (int r = 0; r < kRank; ++r) acc[r] = S::Set1(0.0f);
    for (ptrdiff_t k = 0; k < args.depth; k += S::kLanes) {
      const int lanes = args.depth - k < S::kLanes ? static_cast<int>(args.depth - k) : S::kLanes;
      Vec code = LoadLanes<S>(x + k, lanes);
      if (kQuantize) code = S::Clip(S::Rint(S::Div(code, x_scale)), low, high);
      RIMC_UNROLL
      for (int r = 0; r < kRank; ++r) {
        acc[r] = S::Fma(code, S::Load(a + r * args.a_row + k), acc[r]);
      }
    }
    RIMC_UNROLL
    for (int r = 0; r < kRank; ++r) args.u[i * args.rank + rank0 + r] = S::Sum(acc[r]);
  }
}

template <class S, bool kQuantize>
void RankSums(const RankArgs& args) {
  ptrdiff_t rank0 = 0;
  for (; rank0 + 4 <= args.rank; rank0 += 4) RankCodesOf<S, 4, kQuantize>(args, rank0);
  switch (args.rank - rank0) {
    case 3:
      return RankCodesOf<S, 3, kQuantize>(args, rank0);
    case 2:
      return RankCodesOf<S, 2, kQuantize>(args, rank0);
    case 1:
      return RankCodesOf<S, 1, kQuantize>(args, rank0);
    default:
      return;
  }
}

template <class S>
void RankCodes(const RankArgs& args) {
  if (args.x_is_codes) {
    RankSums<S, false>(args);
  } else {
    RankSums<S, true>(args);
  }
  for (ptrdiff_t i = 0; i < args.rows; ++i) {
    float* u = args.u + i * args.rank;
    for (ptrdiff_t r = 0; r < args.rank; ++r) {
      const Quantizer quantizer{args.rank_step[r], -127.0f, 127.0f, 1.0f};
      Quantize<S>(u + r, u + r, 1, quantizer);
    }
  }
}

template <class S>
void Transpose(const TransposeArgs& args) {
  using Vec = typename S::Vec;
  for (ptrdiff_t r = 0; r < args.rows; r += S::kLanes) {
    const int rows = args.rows - r < S::kLanes ? static_cast<int>(args.rows - r) : S::kLanes;
    for (ptrdiff_t c = 0; c < args.columns; c += S::kLanes) {
      const int columns =
          args.columns - c < S::kLanes ? static_cast<int>(args.columns - c) : S::kLanes;
      Vec tile[S::kLanes];
      RIMC_UNROLL
      for (int i = 0; i < S::kLanes; ++i) {
        tile[i] = S::Set1(0.0f);
        if (i < rows) tile[i] = LoadLanes<S>(args.from + (r + i) * args.from_row + c, columns);
      }
      S::Transpose(tile);
      RIMC_UNROLL
      for (int i = 0; i < S::kLanes; ++i) {
        if (i < columns) StoreLanes<S>(args.to + (c + i) * args.to_row + r, rows, tile[i]);
      }
    }
  }
}

// Rows [row, row + kRows). A rank below 0 is any rank; others keep the coefficients in registers.
template <class S, int kRank, int kRows, bool kColumns>
void MergeRows(const MergeArgs& args, ptrdiff_t row) {
  using Vec = typename S::Vec;
  const float* coef = args.coef + row * args.coef_row;
  const float* h = args.h + row * args.y_row;
  float* y = args.y + row * args.y_row;
  const bool has_scale = kRank != 0 || args.scale != nullptr;
  const bool has_sums = args.sums_scale != nullptr;
  const float* sums = has_sums ? args.sums + row * args.y_row : nullptr;
  Vec coef_vecs[kRows][AtLeastOne(kRank)];
  Vec scale[kRows];
  Vec sums_scale[kRows];
  Vec magnitude[kRows];
  Vec bias[kRows];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int r = 0; r < kRank; ++r) coef_vecs[i][r] = S::Set1(coef[i * args.coef_row + r]);
    if (!kColumns) {
      if (has_scale) scale[i] = S::Set1(args.scale[row + i]);
      if (has_sums) sums_scale[i] = S::Set1(args.sums_scale[row + i]);
      magnitude[i] = S::Set1(args.magnitude[row + i]);
      bias[i] = S::Set1(args.bias[row + i]);
    }
  }
  for (ptrdiff_t n = 0; n < args.columns; n += S::kLanes) {
    const int lanes = args.columns - n < S::kLanes ? static_cast<int>(args.columns - n) : S::kLanes;
    Vec v[kRows];
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) v[i] = S::Set1(0.0f);
    if constexpr (kRank < 0) {
      for (ptrdiff_t r = 0; r < args.rank; ++r) {
        const Vec basis = S::Load(args.basis + r * args.basis_row + n);
        RIMC_UNROLL
        for (int i = 0; i < kRows; ++i) {
          v[i] = S::Fma(S::Set1(coef[i * args.coef_row + r]), basis, v[i]);
        }
      }
    } else {
      RIMC_UNROLL
      for (int r = 0; r < kRank; ++r) {
        const Vec basis = S::Load(args.basis + r * args.basis_row + n);
        RIMC_UNROLL
        for (int i = 0; i < kRows; ++i) v[i] = S::Fma(coef_vecs[i][r], basis, v[i]);
      }
    }
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      Vec total = LoadLanes<S>(h + i * args.y_row + n, lanes);
      if (has_scale) {
        total = S::Add(total, S::Mul(v[i], kColumns ? S::Load(args.scale + n) : scale[i]));
      }
      if (has_sums) {
        const Vec sum = LoadLanes<S>(sums + i * args.y_row + n, lanes);
        total = S::Add(total, S::Mul(sum, kColumns ? S::Load(args.sums_scale + n) : sums_scale[i]));
      }
      total = S::Mul(total, kColumns ? S::Load(args.magnitude + n) : magnitude[i]);
      total = S::Add(total, kColumns ? S::Load(args.bias + n) : bias[i]);
      StoreLanes<S>(y + i * args.y_row + n, lanes, total);
    }
  }
}

template <class S, int kRank, bool kColumns>
void MergeOf(const MergeArgs& args) {
  ptrdiff_t row = 0;
  for (; row + 2 <= args.rows; row += 2) MergeRows<S, kRank, 2, kColumns>(args, row);
  if (row < args.rows) MergeRows<S, kRank, 1, kColumns>(args, row);
}

template <class S, bool kColumns>
void Merge(const MergeArgs& args) {
  switch (args.rank) {
    case 0:
      return MergeOf<S, 0, kColumns>(args);
    case 1:
      return MergeOf<S, 1, kColumns>(args);
    case 2:
      return MergeOf<S, 2, kColumns>(args);
    case 3:
      return MergeOf<S, 3, kColumns>(args);
    case 4:
      return MergeOf<S, 4, kColumns>(args);
    default:
      return MergeOf<S, -1, kColumns>(args);
  }
}

}  // namespace rimc::kernels
