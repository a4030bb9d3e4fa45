// SPDX-License-Identifier: Apache-2.0
//
// Blocks of outputs (BlockArgs of kernels.h), written once over the SIMD type S of simd.h. Every
// shape, rows x vectors, is a function that takes its sums. The epilogue is unrolled for the shapes
// that most outputs are in, where sums stay in registers; others leave their sums in memory, and
// one epilogue for all shapes takes them from there.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/kernels.h"
#include "kernels/reading.h"
#include "kernels/simd.h"
#include "kernels/sums.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// A block whose sums go through memory.
template <class S, bool kConv, bool kPairs>
RIMC_NOINLINE void BlockInMemory(const BlockArgs& args, BlockShape shape, SumFunction sum) {
  alignas(64) float sums[S::kMaxAccumulators * S::kLanes];
  const auto for_each = [&](const auto& body) {
    for (int i = 0; i < shape.rows; ++i) {
      for (int v = 0; v < shape.vecs; ++v) body(i, v, sums + (i * shape.vecs + v) * S::kLanes);
    }
  };
  const bool from_partial_vector = kConv && shape.vecs == 1 && args.partial_vector_sums != nullptr;
  if (args.resume || from_partial_vector) {
    for_each([&](int i, int v, float* at) {
      const float* const from = from_partial_vector
                                    ? args.partial_vector_sums + i * args.partial_vector_row
                                    : args.c[v] + i * args.c_row;
      S::Store(at, LoadLanes<S>(from, args.lanes[v]));
    });
  }
  sum(args, shape, args.resume || from_partial_vector, sums);
  if (kPairs && args.gain == nullptr) {
    for_each([&](int i, int v, const float* at) {
      StoreLanes<S>(args.c[v] + i * args.c_row, args.lanes[v], S::Load(at));
    });
    return;
  }
  for_each([&](int i, int v, const float* at) {
    typename S::Vec one[1][1] = {{kPairs ? S::ToFloat(S::LoadInt(PairsAt(at))) : S::Load(at)}};
    Epilogue<S, 1, 1, kConv>{args, {i, v, shape.vecs}}.Run(one);
  });
}

// Noise of a block whose sums are in memory, one vector after the other.
template <class S, bool kConv>
RIMC_NOINLINE void AddNoiseInMemory(const BlockArgs& args, BlockShape shape, float* sums) {
  for (int i = 0; i < shape.rows; ++i) {
    for (int v = 0; v < shape.vecs; ++v, sums += S::kLanes) {
      typename S::Vec one[1][1] = {{S::Load(sums)}};
      Epilogue<S, 1, 1, kConv>{args, {i, v, shape.vecs}}.AddNoise(one);
      S::Store(sums, one[0][0]);
    }
  }
}

// A block whose sums stay in registers; only the last vectors of rows may be partial.
template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
RIMC_INLINE void BlockInRegisters(const BlockArgs& args) {
  using Products = typename ProductsOf<S, kPairs>::Type;
  const auto lanes = [&](int v) { return v + 1 < kVecs ? S::kLanes : args.lanes[v]; };
  typename Products::Sum sums[kRows][kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) sums[i][v] = Products::Zero();
  }
  if (args.resume) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        sums[i][v] = Products::Load(args.c[v] + i * args.c_row, lanes(v));
      }
    }
  }
  AddProducts<S, Products, kRows, kVecs, kConv>(args, sums);
  if (kPairs && args.gain == nullptr) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        Products::Store(args.c[v] + i * args.c_row, lanes(v), sums[i][v]);
      }
    }
    return;
  }
  typename S::Vec values[kRows][kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) values[i][v] = Products::ToFloat(sums[i][v]);
  }
  const Epilogue<S, kRows, kVecs, kConv> epilogue{args, {0, 0, kVecs}};
  if constexpr (!S::kHasFewRegisters) {
    epilogue.Run(values);
  } else {
    if (args.z != nullptr) {
      alignas(64) float in_memory[kRows * kVecs * S::kLanes];
      epilogue.ForEach(
          [&](int i, int v) { S::Store(in_memory + (i * kVecs + v) * S::kLanes, values[i][v]); });
      AddNoiseInMemory<S, kConv>(args, {kRows, kVecs}, in_memory);
      epilogue.ForEach(
          [&](int i, int v) { values[i][v] = S::Load(in_memory + (i * kVecs + v) * S::kLanes); });
    }
    epilogue.Finish(values);
  }
}

// Shapes whose epilogue is unrolled: of a convolution all rows and several vectors; of a product
// whole panels and as many rows as they have, or one less, since rows are cut into even parts, or
// as many as one counter of draws has.
template <class S>
constexpr bool IsUnrolled(int rows, int vecs, bool is_conv) {
  if (!S::kUnrolls) return false;
  if (is_conv) return rows == S::kMaxRows && vecs > 1;
  const int most = S::kMaxAccumulators / vecs;
  if (vecs == S::kPanelVecs) return rows + 1 >= (most < S::kMaxRows ? most : S::kMaxRows);
  return rows == kDrawRows && most == kDrawRows;
}

// Whether all vectors of rows are whole but the last ones.
template <class S>
inline bool IsWhole(const BlockArgs& args, int vecs) {
  for (int v = 0; v + 1 < vecs; ++v) {
    if (args.lanes[v] != S::kLanes) return false;
  }
  return true;
}

template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
void OneBlock(const BlockArgs& args) {
  constexpr BlockShape shape{kRows, kVecs};
  if constexpr (!S::kUnrolls) {
    BlockInMemory<S, kConv, kPairs>(args, shape, &SumOneByOne<S, kConv, kPairs>);
  } else {
    if constexpr (IsUnrolled<S>(kRows, kVecs, kConv)) {
      if (args.partial_vector_sums == nullptr && IsWhole<S>(args, kVecs)) {
        return BlockInRegisters<S, kRows, kVecs, kConv, kPairs>(args);
      }
    }
    BlockInMemory<S, kConv, kPairs>(args, shape, &SumBlock<S, kRows, kVecs, kConv, kPairs>);
  }
}

// Prefetches outputs from row `row` of a block on, and what is added to them.
template <class S>
inline void PrefetchRows(const BlockArgs& args, BlockShape shape, int row) {
  const auto prefetch = [&](const float* const* values) {
    for (ptrdiff_t i = row; i < row + shape.rows; ++i) {
      for (int v = 0; v < shape.vecs; ++v) RIMC_PREFETCH(values[v] + i * args.c_row);
      const int last = shape.vecs - 1;
      RIMC_PREFETCH(values[last] + i * args.c_row + args.lanes[last] - 1);
    }
  };
  prefetch(args.c);
  if (args.post_ops != nullptr && args.post_ops->has_residual) prefetch(args.post_ops->residual);
}

// Goes on to the next block of the same call.
template <class S>
inline void NextBlock(BlockShape shape, BlockArgs* args, PostOpArgs* post_ops) {
  const ptrdiff_t rows = shape.rows;
  const auto move = [rows](auto** values) {
    if (*values != nullptr) *values += rows;
  };
  args->a += args->a_block;
  for (int v = 0; v < shape.vecs; ++v) args->c[v] += rows * args->c_row;
  move(&args->gain);
  move(&args->offset);
  move(&args->back);
  move(&args->deviation);
  if (args->z != nullptr && args->draws == nullptr) args->z += rows * args->z_row;
  if (args->partial_vector_sums != nullptr)
    args->partial_vector_sums += rows * args->partial_vector_row;
  if (args->post_ops == nullptr) return;
  move(&post_ops->b);
  move(&post_ops->b_start);
  move(&post_ops->scale);
  move(&post_ops->sums_scale);
  if (post_ops->sums != nullptr) post_ops->sums += rows * shape.vecs * S::kLanes;
  move(&post_ops->magnitude);
  move(&post_ops->bias);
  if (!post_ops->has_residual) return;
  for (int v = 0; v < shape.vecs; ++v) post_ops->residual[v] += rows * args->c_row;
}

// The blocks of one call for a convolution, each by `one_block`.
template <class S>
RIMC_NOINLINE void ConvBlocks(const BlockArgs& args, BlockShape shape, BlockFunction one_block) {
  BlockArgs block = args;
  PostOpArgs post_ops;
  if (args.post_ops != nullptr) {
    post_ops = *args.post_ops;
    block.post_ops = &post_ops;
  }
  DrawArgs draws{};
  if (args.draws != nullptr) draws = *args.draws;
  if (!args.resume) {
    for (int n = 0; n < 2 && n <= args.more_blocks; ++n) {
      PrefetchRows<S>(block, shape, n * shape.rows);
    }
  }
  constexpr ptrdiff_t kLine = 16;
  for (ptrdiff_t n = 0;; ++n) {
    if (n * kLine < shape.vecs * S::kLanes + kLine && args.next_b != nullptr) {
      block.next_b = args.next_b + n * kLine;
    } else {
      block.next_b = nullptr;
    }
    const bool is_last = block.more_blocks-- == 0;
    if (!is_last) {
      block.next_a = block.a + block.a_block;
    } else {
      block.next_a = args.next_a;
    }
    if (block.more_blocks > 0) PrefetchRows<S>(block, shape, 2 * shape.rows);
    if (args.draws != nullptr) {
      Draw<S>(draws);
      draws.row += static_cast<uint64_t>(shape.rows);
    }
    one_block(block);
    if (is_last) return;
    NextBlock<S>(shape, &block, &post_ops);
  }
}

template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
void Block(const BlockArgs& args) {
  if constexpr (kConv) {
    ConvBlocks<S>(args, {kRows, kVecs}, &OneBlock<S, kRows, kVecs, kConv, kPairs>);
  } else {
    OneBlock<S, kRows, kVecs, kConv, kPairs>(args);
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

#define RIMC_BLOCK_ROW(S, rows, conv, pairs)                                        \
  {                                                                                 \
    PickBlock<S, rows, 1, conv, pairs>(), PickBlock<S, rows, 2, conv, pairs>(),     \
        PickBlock<S, rows, 3, conv, pairs>(), PickBlock<S, rows, 4, conv, pairs>(), \
        PickBlock<S, rows, 5, conv, pairs>(), PickBlock<S, rows, 6, conv, pairs>(), \
        PickBlock<S, rows, 7, conv, pairs>(), PickBlock<S, rows, 8, conv, pairs>(), \
  }
#define RIMC_BLOCK_TABLE(S, conv, pairs)                                      \
  {                                                                           \
    RIMC_BLOCK_ROW(S, 1, conv, pairs), RIMC_BLOCK_ROW(S, 2, conv, pairs),     \
        RIMC_BLOCK_ROW(S, 3, conv, pairs), RIMC_BLOCK_ROW(S, 4, conv, pairs), \
        RIMC_BLOCK_ROW(S, 5, conv, pairs), RIMC_BLOCK_ROW(S, 6, conv, pairs), \
        RIMC_BLOCK_ROW(S, 7, conv, pairs), RIMC_BLOCK_ROW(S, 8, conv, pairs), \
  }

}  // namespace rimc::kernels
