// SPDX-License-Identifier: Apache-2.0
//
// Arguments of the epilogue of a block of columns: converter, noise, and post-ops with the sums of
// the adapter's branch that they add.
#pragma once

#include <cstdint>

#include "conv/plan.h"
#include "conv/tiling.h"
#include "conv/work.h"
#include "kernels/kernels.h"

namespace rimc {

class ConvEpilogue {
 public:
  // All arguments have to outlive the object.
  ConvEpilogue(const ConvPlan& plan, const kernels::KernelTable& kernels, const ConvTiling& tiling)
      : plan_(plan), kernels_(kernels), tiling_(tiling) {}

  // Sets the converter of the columns from `column` on, if the pass ends a tile.
  static void SetReadout(const ConvReadout& readout, const ConvPass& pass, Index column,
                         kernels::BlockArgs* args) noexcept;

  // Whether no two blocks of a group's columns share the counter of a draw.
  static bool DrawsByBlock(const ConvCells& cells) noexcept {
    return cells.num_blocks * kernels::kDrawRows == cells.columns;
  }
  // Draws of blocks that share them: z of the columns `drawn` for one block of vectors, made by the
  // first block, for which `is_new`.
  struct SharedDraws {
    std::uint32_t* z;
    Range drawn;
    bool is_new;
  };
  // Sets the noise of the columns from `column` on for the vectors `vecs`. Draws are made next to
  // their products: a processor overlaps the two. The kernel makes them, by `draws`, where blocks
  // don't share any; else `shared` is not null.
  void SetNoise(const ConvNoise& noise, Index tile, Index column, Range vecs,
                const SharedDraws* shared, kernels::DrawArgs* draws,
                kernels::BlockArgs* args) const noexcept;

  // Whether the post-ops need sums of the branch for each block of columns.
  static bool NeedsBranchByBlock(const ConvBranch& branch) noexcept;
  // Finds the codes of vectors `vecs` of an item's positions, which SetPostOps then reads.
  void FindCodes(const ConvPlace& place, Range vecs, const ConvBranch& branch,
                 const float** codes) const noexcept;
  // Computes the codes of the ranks for vectors `all` of an item's positions.
  void ComputeRanks(const ConvPlace& place, const ConvBranch& branch, Range all) const noexcept;
  // Sets `args` for a block whose outputs are at `c` [vecs]. `gathered`: memory for the residual
  // where vectors run on over rows.
  void SetPostOps(const ConvPlace& place, const ConvBlock& block, const float* const* codes,
                  const ConvPostOps& post_ops, const ConvOutput& output, float* const* c,
                  float* gathered, kernels::PostOpArgs* args) const noexcept;

 private:
  kernels::DrawArgs DrawsOf(const ConvNoise& noise, Index tile, Range columns, Range vecs,
                            std::uint32_t* z) const noexcept;
  void SetBranch(const ConvBlock& block, const float* const* codes, const ConvBranch& branch,
                 kernels::PostOpArgs* args) const noexcept;
  void SumBranch(const BranchCells& cells, Range columns, const float* const* b, Index num_vecs,
                 float* to, Index to_row) const noexcept;
  void ComputeQuadRanks(const ConvBranch& branch, const float* const* codes,
                        Range vecs) const noexcept;

  const ConvPlan& plan_;
  const kernels::KernelTable& kernels_;
  const ConvTiling& tiling_;
};

}  // namespace rimc
