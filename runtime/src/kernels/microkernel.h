// SPDX-License-Identifier: Apache-2.0
//
// The kernels of kernels.h, written once over the SIMD type S of simd.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/last_positions.h"
#include "kernels/merging.h"
#include "kernels/pairs.h"
#include "kernels/program_cells.h"
#include "kernels/reading.h"
#include "kernels/simd.h"
#include "kernels/strips.h"
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
RIMC_INLINE void FinishSums(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
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

// The sums of a block, as floats.
template <class S, int kRows, int kVecs, bool kConv>
inline void SumProducts(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
  using Vec = typename S::Vec;
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      acc[i][v] = S::Set1(0.0f);
      if (args.resume) acc[i][v] = LoadLanes<S>(args.c[v] + i * args.c_row, args.lanes[v]);
    }
    if (kConv && kVecs == 1 && args.tail_sums != nullptr) {
      acc[i][0] = LoadLanes<S>(args.tail_sums + i * args.tail_row, args.lanes[0]);
    }
  }

  const float* a[kRows];
  const float* b[kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) a[i] = args.a + (kConv ? i : i * args.a_row);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) b[v] = kConv ? args.b[v] : args.b[0] + v * S::kLanes;
  const float* const ahead = kConv && args.ahead != nullptr ? args.ahead : args.a;
  const float* const next_b = args.next_b == nullptr ? b[0] : args.next_b;
  const int32_t* const next_offset = args.next_b == nullptr ? args.b_offset : args.next_offset;
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    if (kConv) {
      RIMC_PREFETCH(ahead + k * kRows);
      RIMC_PREFETCH(next_b + next_offset[k]);
    }
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
}

inline const uint32_t* WordsOf(const float* words) {
  return reinterpret_cast<const uint32_t*>(words);
}
inline uint32_t* WordsOf(float* words) { return reinterpret_cast<uint32_t*>(words); }

// The sums of a block of pairs; false where they went to c.
template <class S, int kRows, int kVecs, bool kConv>
inline bool SumPairs(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
  typename S::Sums sums[kRows][kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      sums[i][v] = S::NoSums();
      if (args.resume) {
        sums[i][v] = S::LoadSums(WordsOf(args.c[v] + i * args.c_row), args.lanes[v]);
      }
    }
    if (kConv && kVecs == 1 && args.tail_sums != nullptr) {
      sums[i][0] = S::LoadSums(WordsOf(args.tail_sums + i * args.tail_row), args.lanes[0]);
    }
  }

  const uint32_t* a[kRows];
  const uint32_t* b[kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) a[i] = WordsOf(args.a) + (kConv ? i : i * args.a_row);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    b[v] = kConv ? WordsOf(args.b[v]) : WordsOf(args.b[0]) + v * S::kLanes;
  }
  const float* const ahead = kConv && args.ahead != nullptr ? args.ahead : args.a;
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    if (kConv) RIMC_PREFETCH(ahead + k * kRows);
    const ptrdiff_t a_at = kConv ? k * kRows : k;
    const ptrdiff_t b_at = kConv ? args.b_offset[k] : k * (kVecs * S::kLanes);
    typename S::Int b_k[kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) b_k[v] = S::LoadInt(b[v] + b_at);
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto a_k = S::SetInt(a[i][a_at]);
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) sums[i][v] = S::DotPairs(sums[i][v], a_k, b_k[v]);
    }
  }

  if (args.gain == nullptr) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        S::StoreSums(WordsOf(args.c[v] + i * args.c_row), args.lanes[v], sums[i][v]);
      }
    }
    return false;
  }
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) acc[i][v] = S::SumsToFloat(sums[i][v]);
  }
  return true;
}

template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
inline void OneBlock(const BlockArgs& args) {
  typename S::Vec acc[kRows][kVecs];
  if constexpr (kPairs) {
    if (!SumPairs<S, kRows, kVecs, kConv>(args, acc)) return;
  } else {
    SumProducts<S, kRows, kVecs, kConv>(args, acc);
  }
  if (args.z != nullptr) AddNoise<S, kRows, kVecs, kConv>(args, acc);
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

// Asks for outputs from row `row` on and for what is added to them, which come from afar.
template <int kRows, int kVecs>
inline void PrefetchRows(const BlockArgs& args, int row) {
  const auto ask = [&](const float* const* values) {
    for (ptrdiff_t i = row; i < row + kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) RIMC_PREFETCH(values[v] + i * args.c_row);
      RIMC_PREFETCH(values[kVecs - 1] + i * args.c_row + args.lanes[kVecs - 1] - 1);
    }
  };
  ask(args.c);
  if (args.finish != nullptr && args.finish->has_residual) ask(args.finish->residual);
}

// Goes on to the next block of the same call.
template <class S, int kRows, int kVecs>
inline void NextBlock(BlockArgs* args, FinishArgs* finish) {
  const auto move = [](auto** values) {
    if (*values != nullptr) *values += kRows;
  };
  args->a += args->a_block;
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) args->c[v] += kRows * args->c_row;
  move(&args->gain);
  move(&args->offset);
  move(&args->back);
  move(&args->deviation);
  if (args->tail_sums != nullptr) args->tail_sums += kRows * args->tail_row;
  if (args->finish == nullptr) return;
  move(&finish->b);
  move(&finish->b_start);
  move(&finish->scale);
  move(&finish->sums_scale);
  if (finish->sums != nullptr) finish->sums += kRows * kVecs * S::kLanes;
  move(&finish->magnitude);
  move(&finish->bias);
  if (!finish->has_residual) return;
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) finish->residual[v] += kRows * args->c_row;
}

template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
void Block(const BlockArgs& args) {
  if constexpr (!kConv) {
    OneBlock<S, kRows, kVecs, kConv, kPairs>(args);
  } else {
    BlockArgs block = args;
    FinishArgs finish;
    if (args.finish != nullptr) {
      finish = *args.finish;
      block.finish = &finish;
    }
    DrawArgs draws{};
    if (args.draws != nullptr) draws = *args.draws;
    if (!args.resume) {
      for (int n = 0; n < 2 && n <= args.more_blocks; ++n) {
        PrefetchRows<kRows, kVecs>(block, n * kRows);
      }
    }
    constexpr ptrdiff_t kLine = 16;
    for (ptrdiff_t n = 0;; ++n) {
      if (n * kLine < kVecs * S::kLanes + kLine && args.next_b != nullptr) {
        block.next_b = args.next_b + n * kLine;
      } else {
        block.next_b = nullptr;
      }
      const bool is_last = block.more_blocks-- == 0;
      if (!is_last) {
        block.ahead = block.a + block.a_block;
      } else {
        block.ahead = args.ahead;
      }
      if (block.more_blocks > 0) PrefetchRows<kRows, kVecs>(block, 2 * kRows);
      if (args.draws != nullptr) {
        Draw<S>(draws);
        draws.row += kRows;
      }
      OneBlock<S, kRows, kVecs, kConv, kPairs>(block);
      if (is_last) return;
      NextBlock<S, kRows, kVecs>(&block, &finish);
    }
  }
}

template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
constexpr BlockFunction PickBlock() {
  constexpr bool fits = kRows <= S::kMaxRows && kRows * kVecs <= S::kMaxAccumulators &&
                        (kConv || kVecs <= S::kPanelVecs);
  if constexpr (fits) {
    return &Block<S, kRows, kVecs, kConv, kPairs>;
  } else {
    return nullptr;
  }
}

#define RIMC_BLOCK_ROW(S, rows, conv, pairs)                                      \
  {                                                                               \
      PickBlock<S, rows, 1, conv, pairs>(), PickBlock<S, rows, 2, conv, pairs>(), \
      PickBlock<S, rows, 3, conv, pairs>(), PickBlock<S, rows, 4, conv, pairs>(), \
      PickBlock<S, rows, 5, conv, pairs>(), PickBlock<S, rows, 6, conv, pairs>(), \
      PickBlock<S, rows, 7, conv, pairs>(), PickBlock<S, rows, 8, conv, pairs>(), \
  }
#define RIMC_BLOCK_TABLE(S, conv, pairs)                                    \
  {                                                                         \
      RIMC_BLOCK_ROW(S, 1, conv, pairs), RIMC_BLOCK_ROW(S, 2, conv, pairs), \
      RIMC_BLOCK_ROW(S, 3, conv, pairs), RIMC_BLOCK_ROW(S, 4, conv, pairs), \
      RIMC_BLOCK_ROW(S, 5, conv, pairs), RIMC_BLOCK_ROW(S, 6, conv, pairs), \
      RIMC_BLOCK_ROW(S, 7, conv, pairs), RIMC_BLOCK_ROW(S, 8, conv, pairs), \
  }

template <class S>
constexpr KernelTable MakeTable(const char* isa) {
  return {isa,
          S::kLanes,
          S::kMaxRows,
          S::kMaxAccumulators,
          S::kPanelVecs,
          RIMC_BLOCK_TABLE(S, false, false),
          RIMC_BLOCK_TABLE(S, true, false),
          RIMC_BLOCK_TABLE(S, false, true),
          RIMC_BLOCK_TABLE(S, true, true),
          PickTail<S, false>(),
          PickTail<S, true>(),
          HasColumn<S>::kPositions,
          MakeStripTable<S>(),
          &Quantize<S>,
          &CopyRows<S>,
          &PackPairs<S>,
          &RankCodes<S>,
          &Transpose<S>,
          &Merge<S, true>,
          &Merge<S, false>,
          &ProgramCells<S>,
          &Draw<S>,
          &Read<S, true>,
          &Read<S, false>,
          &Square<S>,
          &Root<S>,
          &ColumnSquares<S>,
          &RowSquares<S>,
          &PairColumnSquares<S>,
          &PairRowSquares<S>,
          nullptr};
}

}  // namespace rimc::kernels
