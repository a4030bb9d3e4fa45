// SPDX-License-Identifier: Apache-2.0
//
// Sums of a convolution whose vectors hold columns, not positions (StripArgs of kernels.h), written
// once over the SIMD type S of simd.h, which then has kStripVecs (vectors of a strip),
// kStripPositions and LoadHalves(low, high).
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// Whether a SIMD type has strips: where a vector is as long as a line of the cache.
template <class S, class = void>
struct HasStrips {
  static constexpr bool value = false;
};
template <class S>
struct HasStrips<S, decltype(static_cast<void>(S::kStripVecs))> {
  static constexpr bool value = true;
};

// Outputs of a strip: `tiles` holds vectors of columns [kStripVecs, lanes, lanes] of its positions.
template <class S>
RIMC_NOINLINE void StoreStrip(const StripArgs& args, int positions, float* tiles) {
  using Vec = typename S::Vec;
  for (ptrdiff_t v = 0; v < S::kStripVecs; ++v) {
    Vec tile[S::kLanes];
    RIMC_UNROLL
    for (int i = 0; i < S::kLanes; ++i) tile[i] = S::Load(tiles + (v * S::kLanes + i) * S::kLanes);
    S::Transpose(tile);
    RIMC_UNROLL
    for (int i = 0; i < S::kLanes; ++i) {
      const ptrdiff_t column = v * S::kLanes + i;
      if (column < args.begin || column >= args.end) continue;
      StoreLanes<S>(args.c + (column - args.begin) * args.c_row, positions, tile[i]);
    }
  }
}

// kStep 0: any step.
template <class S, int kPositions, int kStep>
void Strip(const StripArgs& args) {
  using Vec = typename S::Vec;
  constexpr int kVecs = S::kStripVecs;
  static_assert(S::kLanes == 2 * S::kMaxRows, "two blocks make a vector");
  static_assert(kPositions <= S::kLanes, "positions of a vector of columns make one tile");
  Vec acc[kPositions][kVecs];
  RIMC_UNROLL
  for (int p = 0; p < kPositions; ++p) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) acc[p][v] = S::Set1(0.0f);
  }
  const ptrdiff_t step = kStep == 0 ? args.step : kStep;
  const float* a = args.a;
  for (ptrdiff_t k = 0; k < args.depth; ++k, a += S::kMaxRows) {
    const float* const b = args.b + args.b_offset[k];
    Vec a_k[kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const float* const block = a + 2 * v * args.a_block;
      a_k[v] = S::LoadHalves(block, block + args.a_block);
    }
    RIMC_UNROLL
    for (int p = 0; p < kPositions; ++p) {
      const Vec b_k = S::Set1(b[p * step]);
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[p][v] = S::Fma(a_k[v], b_k, acc[p][v]);
    }
  }
  // Rows of a tile beyond the positions are turned to lanes that nothing stores.
  alignas(64) float tiles[kVecs * S::kLanes * S::kLanes];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    RIMC_UNROLL
    for (int p = 0; p < kPositions; ++p)
      S::Store(tiles + (v * S::kLanes + p) * S::kLanes, acc[p][v]);
  }
  StoreStrip<S>(args, kPositions, tiles);
}

template <class S, int kPositions>
constexpr StripFunctions PickStrip() {
  return {&Strip<S, kPositions, 0>, &Strip<S, kPositions, 1>, &Strip<S, kPositions, 2>};
}

template <class S>
constexpr StripTable MakeStripTable() {
  if constexpr (HasStrips<S>::value) {
    return {S::kStripVecs * S::kLanes,
            S::kStripPositions,
            {PickStrip<S, 1>(), PickStrip<S, 2>(), PickStrip<S, 3>(), PickStrip<S, 4>(),
             PickStrip<S, 5>(), PickStrip<S, 6>(), PickStrip<S, 7>(), PickStrip<S, 8>(),
             PickStrip<S, 9>(), PickStrip<S, 10>(), PickStrip<S, 11>(), PickStrip<S, 12>(),
             PickStrip<S, 13>(), PickStrip<S, 14>()}};
  } else {
    return {};
  }
}

}  // namespace rimc::kernels
