// SPDX-License-Identifier: Apache-2.0
//
// The kernels of kernels.h, written once over the SIMD type S of simd.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/program_cells.h"
#include "kernels/reading.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"
#include "kernels/word_lines.h"

namespace rimc::kernels {

// Whether a SIMD type has the integer operations of codes.h.
template <class S, class = void>
struct HasWords {
  static constexpr bool value = false;
};
template <class S>
struct HasWords<S, decltype(static_cast<void>(sizeof(typename S::Words)))> {
  static constexpr bool value = true;
};

// The converter behind the sums of a block. Each step is done for all of them, which stay in
// registers.
template <class S, int kRows, int kVecs, bool kConv>
inline void ReadSums(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
  using Vec = typename S::Vec;
  const auto each = [&](const auto& step) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) step(i, v);
    }
  };
  const auto of_column = [](const float* values, int i, int v) {
    return kConv ? S::Set1(values[i]) : S::Load(values + v * S::kLanes);
  };
  each([&](int i, int v) { acc[i][v] = S::Mul(acc[i][v], of_column(args.gain, i, v)); });
  if (args.offset != nullptr) {
    each([&](int i, int v) { acc[i][v] = S::Add(acc[i][v], of_column(args.offset, i, v)); });
  }
  const Vec top = S::Set1(args.top);
  const Vec bottom = S::Set1(-args.top);
  each([&](int i, int v) { acc[i][v] = S::Clip(S::Rint(acc[i][v]), bottom, top); });
  if (!args.first) {
    each([&](int i, int v) {
      acc[i][v] = S::Add(LoadLanes<S>(args.c[v] + i * args.c_row, args.lanes[v]), acc[i][v]);
    });
  }
  if (args.last) {
    each([&](int i, int v) { acc[i][v] = S::Mul(acc[i][v], of_column(args.back, i, v)); });
  }
}

// What follows the sums of a block of a convolution, in the same way.
template <class S, int kRows, int kVecs>
inline void FinishSums(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
  using Vec = typename S::Vec;
  const FinishArgs& finish = *args.finish;
  const auto each = [&](const auto& step) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) step(i, v);
    }
  };
  const auto add = [&](const float* values, const float* scale) {
    each([&](int i, int v) {
      const Vec value = S::Load(values + (i * kVecs + v) * S::kLanes);
      acc[i][v] = S::Add(acc[i][v], S::Mul(value, S::Set1(scale[i])));
    });
  };
  if constexpr (HasWords<S>::value) {
    if (finish.b != nullptr) {
      typename S::Words u[kVecs];
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) u[v] = S::LoadWords(finish.u + v * S::kLanes);
      each([&](int i, int v) {
        const auto start = S::Set1Words(finish.b_start[i]);
        const Vec value = S::ToFloat(S::Dot(start, u[v], S::Set1Words(finish.b[i])));
        acc[i][v] = S::Add(acc[i][v], S::Mul(value, S::Set1(finish.scale[i])));
      });
    }
  }
  if (finish.v != nullptr) add(finish.v, finish.scale);
  if (finish.sums != nullptr) add(finish.sums, finish.sums_scale);
  if (finish.magnitude != nullptr) {
    each([&](int i, int v) { acc[i][v] = S::Mul(acc[i][v], S::Set1(finish.magnitude[i])); });
  }
  if (finish.bias != nullptr) {
    each([&](int i, int v) { acc[i][v] = S::Add(acc[i][v], S::Set1(finish.bias[i])); });
  }
  if (finish.has_residual) {
    each([&](int i, int v) {
      const float* const residual = finish.residual[v] + i * args.c_row;
      acc[i][v] = S::Add(acc[i][v], LoadLanes<S>(residual, args.lanes[v]));
    });
  }
  if (finish.activates) {
    const Vec low = S::Set1(finish.low);
    const Vec high = S::Set1(finish.high);
    each([&](int i, int v) { acc[i][v] = S::Clip(acc[i][v], low, high); });
  }
}

template <class S, int kRows, int kVecs>
inline void FinishPanel(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
  using Vec = typename S::Vec;
  const PanelFinishArgs& finish = *args.panel_finish;
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const int at = v * S::kLanes;
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      Vec total = acc[i][v];
      if (finish.scale != nullptr) {
        Vec branch = S::Set1(0.0f);
        for (ptrdiff_t r = 0; r < finish.rank; ++r) {
          const Vec basis = S::Load(finish.basis + r * finish.basis_row + at);
          branch = S::Fma(S::Set1(finish.u[i * finish.rank + r]), basis, branch);
        }
        total = S::Add(total, S::Mul(branch, S::Load(finish.scale + at)));
      }
      if (finish.magnitude != nullptr) total = S::Mul(total, S::Load(finish.magnitude + at));
      if (finish.bias != nullptr) total = S::Add(total, S::Load(finish.bias + at));
      if (finish.residual != nullptr) {
        total = S::Add(total, LoadLanes<S>(finish.residual + i * finish.row + at, args.lanes[v]));
      }
      if (finish.activates) total = S::Clip(total, S::Set1(finish.low), S::Set1(finish.high));
      acc[i][v] = total;
    }
  }
}

template <class S, int kRows, int kVecs, bool kConv>
void Block(const BlockArgs& args) {
  using Vec = typename S::Vec;
  Vec acc[kRows][kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      acc[i][v] = S::Set1(0.0f);
      if (args.resume) acc[i][v] = LoadLanes<S>(args.c[v] + i * args.c_row, args.lanes[v]);
    }
  }

  const float* a[kRows];
  const float* b[kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) a[i] = args.a + (kConv ? i : i * args.a_row);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) b[v] = kConv ? args.b[v] : args.b[0] + v * S::kLanes;
  const float* const ahead = kConv && args.ahead != nullptr ? args.ahead : args.a;
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    if (kConv) RIMC_PREFETCH(ahead + k * kRows);
    const ptrdiff_t a_at = kConv ? k * kRows : k;
    const ptrdiff_t b_at = kConv ? args.b_offset[k] : k * (kVecs * S::kLanes);
    Vec b_k[kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) b_k[v] = S::Load(b[v] + b_at);
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vec a_k = S::Set1(a[i][a_at]);
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[i][v] = S::Fma(a_k, b_k[v], acc[i][v]);
    }
  }

  if constexpr (kConv) {
    if (args.z != nullptr) {
      Vec sigma[kVecs];
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        sigma[v] = S::Sqrt(LoadLanes<S>(args.variance + args.z_at[v], args.lanes[v]));
      }
      RIMC_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const Vec deviation = S::Set1(args.deviation[i]);
        RIMC_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          const Vec z = LoadLanes<S>(args.z + i * args.z_row + args.z_at[v], args.lanes[v]);
          acc[i][v] = S::Add(acc[i][v], S::Mul(S::Mul(sigma[v], deviation), z));
        }
      }
    }
  } else {
    if (args.z != nullptr) {
      RIMC_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const Vec sigma = S::Set1(args.sigma[i]);
        RIMC_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          const Vec deviation = S::Mul(sigma, S::Load(args.deviation + v * S::kLanes));
          const Vec z = S::Load(args.z + i * args.z_row + v * S::kLanes);
          acc[i][v] = S::Add(acc[i][v], S::Mul(deviation, z));
        }
      }
    }
  }
  if (args.gain != nullptr) ReadSums<S, kRows, kVecs, kConv>(args, acc);
  if constexpr (kConv) {
    if (args.finish != nullptr) FinishSums<S, kRows, kVecs>(args, acc);
  } else {
    if (args.panel_finish != nullptr) FinishPanel<S, kRows, kVecs>(args, acc);
  }
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      StoreLanes<S>(args.c[v] + i * args.c_row, args.lanes[v], acc[i][v]);
    }
  }
}

template <class S, int kRows, int kVecs, bool kConv>
constexpr BlockFunction PickBlock() {
  constexpr bool fits = kRows <= S::kMaxRows && kRows * kVecs <= S::kMaxAccumulators &&
                        (kConv || kVecs <= S::kPanelVecs);
  if constexpr (fits) {
    return &Block<S, kRows, kVecs, kConv>;
  } else {
    return nullptr;
  }
}

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
  Vec kept[kRows][kRank > 0 ? kRank : 1];
  Vec scale[kRows];
  Vec sums_scale[kRows];
  Vec magnitude[kRows];
  Vec bias[kRows];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int r = 0; r < kRank; ++r) kept[i][r] = S::Set1(coef[i * args.coef_row + r]);
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
        for (int i = 0; i < kRows; ++i) v[i] = S::Fma(kept[i][r], basis, v[i]);
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

#define RIMC_BLOCK_ROW(S, rows, conv)                                                              \
  {                                                                                                \
      PickBlock<S, rows, 1, conv>(), PickBlock<S, rows, 2, conv>(), PickBlock<S, rows, 3, conv>(), \
      PickBlock<S, rows, 4, conv>(), PickBlock<S, rows, 5, conv>(), PickBlock<S, rows, 6, conv>(), \
      PickBlock<S, rows, 7, conv>(), PickBlock<S, rows, 8, conv>(),                                \
  }
#define RIMC_BLOCK_TABLE(S, conv)                                                         \
  {                                                                                       \
      RIMC_BLOCK_ROW(S, 1, conv), RIMC_BLOCK_ROW(S, 2, conv), RIMC_BLOCK_ROW(S, 3, conv), \
      RIMC_BLOCK_ROW(S, 4, conv), RIMC_BLOCK_ROW(S, 5, conv), RIMC_BLOCK_ROW(S, 6, conv), \
      RIMC_BLOCK_ROW(S, 7, conv), RIMC_BLOCK_ROW(S, 8, conv),                             \
  }

template <class S>
constexpr KernelTable MakeTable(const char* isa) {
  return {isa,
          S::kLanes,
          S::kMaxRows,
          S::kMaxAccumulators,
          S::kPanelVecs,
          RIMC_BLOCK_TABLE(S, false),
          RIMC_BLOCK_TABLE(S, true),
          &Quantize<S>,
          &CopyRows<S>,
          &RankCodes<S>,
          &Transpose<S>,
          &Merge<S, true>,
          &Merge<S, false>,
          &ProgramCells<S>,
          &Normals<S>,
          &Read<S, true>,
          &Read<S, false>,
          &Square<S>,
          &AddSquares<S>,
          &SumSquares<S>,
          nullptr};
}

}  // namespace rimc::kernels
