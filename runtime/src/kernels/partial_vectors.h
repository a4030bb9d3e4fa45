// SPDX-License-Identifier: Apache-2.0
//
// Sums of a partial vector of few positions (PartialVectorArgs of kernels.h), written once over the
// SIMD type S of simd.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// Whether a SIMD type has vectors of as many lanes as a block has rows.
template <class S, class = void>
struct HasColumn {
  static constexpr bool value = false;
  static constexpr int kPositions = 0;
};
template <class S>
struct HasColumn<S, decltype(static_cast<void>(sizeof(typename S::Column)))> {
  static constexpr bool value = true;
  static constexpr int kPositions = S::kColumnPositions;
};

// Sums of blocks at once, [positions, max_rows] of each, from or to where outputs are.
template <class S>
RIMC_NOINLINE void LoadPartialVector(const float* c, ptrdiff_t c_row, int blocks, int positions,
                                     float* sums) {
  for (int row = 0; row < blocks * S::kMaxRows; ++row) {
    float* const of_block = sums + row / S::kMaxRows * positions * S::kMaxRows;
    for (int j = 0; j < positions; ++j) {
      of_block[j * S::kMaxRows + row % S::kMaxRows] = c[row * c_row + j];
    }
  }
}
template <class S>
RIMC_NOINLINE void StorePartialVector(const float* sums, int blocks, int positions, float* c,
                                      ptrdiff_t c_row) {
  for (int row = 0; row < blocks * S::kMaxRows; ++row) {
    const float* const of_block = sums + row / S::kMaxRows * positions * S::kMaxRows;
    for (int j = 0; j < positions; ++j) {
      c[row * c_row + j] = of_block[j * S::kMaxRows + row % S::kMaxRows];
    }
  }
}

// Of kBlocks blocks at once, a vector of rows for each position.
template <class S, int kPositions, int kBlocks, bool kPairs>
void PartialVectorBlocks(const PartialVectorArgs& args, ptrdiff_t block) {
  using Column = typename S::Column;
  constexpr int kRows = S::kMaxRows;
  const float* const a = args.a + block * args.a_block;
  float* const c = args.c + block * kRows * args.c_row;
  Column sums[kBlocks][kPositions];
  alignas(64) float in_memory[kBlocks * kPositions * kRows];
  if (args.resume) LoadPartialVector<S>(c, args.c_row, kBlocks, kPositions, in_memory);
  RIMC_UNROLL
  for (int n = 0; n < kBlocks; ++n) {
    RIMC_UNROLL
    for (int j = 0; j < kPositions; ++j) {
      sums[n][j] = S::SetColumn(0.0f);
      if (args.resume) sums[n][j] = S::LoadColumn(in_memory + (n * kPositions + j) * kRows);
    }
  }
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    const float* const b = args.b + args.b_offset[k];
    Column b_k[kPositions];
    RIMC_UNROLL
    for (int j = 0; j < kPositions; ++j) b_k[j] = S::SetColumn(b[j]);
    RIMC_UNROLL
    for (int n = 0; n < kBlocks; ++n) {
      const Column a_k = S::LoadColumn(a + n * args.a_block + k * kRows);
      RIMC_UNROLL
      for (int j = 0; j < kPositions; ++j) {
        sums[n][j] =
            kPairs ? S::DotColumn(a_k, b_k[j], sums[n][j]) : S::FmaColumn(a_k, b_k[j], sums[n][j]);
      }
    }
  }
  RIMC_UNROLL
  for (int n = 0; n < kBlocks; ++n) {
    RIMC_UNROLL
    for (int j = 0; j < kPositions; ++j) {
      S::StoreColumn(in_memory + (n * kPositions + j) * kRows, sums[n][j]);
    }
  }
  StorePartialVector<S>(in_memory, kBlocks, kPositions, c, args.c_row);
}

template <class S, int kPositions, int kBlocks, bool kPairs>
ptrdiff_t PartialVectorOf(const PartialVectorArgs& args, ptrdiff_t block) {
  for (; block + kBlocks <= args.blocks; block += kBlocks) {
    PartialVectorBlocks<S, kPositions, kBlocks, kPairs>(args, block);
  }
  return block;
}

// As many blocks at once as make enough sums for the latency of an fma.
template <class S, int kPositions, bool kPairs>
void PartialVectorOf(const PartialVectorArgs& args) {
  ptrdiff_t block = 0;
  if constexpr (kPositions < 3 && kPositions * 8 <= S::kMaxAccumulators)
    block = PartialVectorOf<S, kPositions, 8, kPairs>(args, block);
  block = PartialVectorOf<S, kPositions, 4, kPairs>(args, block);
  block = PartialVectorOf<S, kPositions, 2, kPairs>(args, block);
  PartialVectorOf<S, kPositions, 1, kPairs>(args, block);
}

template <class S, bool kPairs>
void PartialVector(const PartialVectorArgs& args) {
  switch (args.positions) {
    case 1:
      return PartialVectorOf<S, 1, kPairs>(args);
    case 2:
      return PartialVectorOf<S, 2, kPairs>(args);
    default:
      if constexpr (S::kColumnPositions == 4) {
        if (args.positions == 3) return PartialVectorOf<S, 3, kPairs>(args);
        PartialVectorOf<S, 4, kPairs>(args);
      }
  }
}

template <class S, bool kPairs>
constexpr auto PickPartialVector() -> void (*)(const PartialVectorArgs&) {
  if constexpr (HasColumn<S>::value) {
    return &PartialVector<S, kPairs>;
  } else {
    return nullptr;
  }
}

}  // namespace rimc::kernels
