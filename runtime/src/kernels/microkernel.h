// SPDX-License-Identifier: Apache-2.0
//
// The kernels of kernels.h, written once over the SIMD type S of simd.h.
#pragma once

#include "kernels/blocks.h"
#include "kernels/kernels.h"
#include "kernels/merging.h"
#include "kernels/pairs.h"
#include "kernels/partial_vectors.h"
#include "kernels/program_cells.h"
#include "kernels/reading.h"
#include "kernels/strips.h"
#include "kernels/word_lines.h"

namespace rimc::kernels {

template <class S>
constexpr PairBlocks MakePairBlocks() {
  return {RIMC_BLOCK_TABLE(S, false, true), RIMC_BLOCK_TABLE(S, true, true),
          PickPartialVector<S, true>()};
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
          PickPartialVector<S, false>(),
          HasColumn<S>::kPositions,
          MakePairBlocks<S>(),
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
