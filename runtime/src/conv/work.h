// SPDX-License-Identifier: Apache-2.0
//
// What a ConvEngine computes with: cells, converters, the adapter's branch, post-ops and passes.
#pragma once

#include <cstdint>
#include <vector>

#include "conv/inputs.h"
#include "conv/plan.h"
#include "kernels/kernels.h"

namespace rimc {

// Blocks of vectors that a block of columns of a large matrix is computed for at a time; a partial
// vector of few positions goes with the last of them.
constexpr Index kPartsTogether = 2;
// Blocks of columns that are computed for one part of the positions after the other: their cells
// stay in the L2 cache. Also the blocks whose sums of listed cells are in memory at a time.
constexpr Index kBlocksTogether = 8;

// A tile: word lines [k.begin, k.end), k = (channel, kernel position).
struct ConvTile {
  Range k;
  bool first;
  bool last;
};

// Converter of the sums of a group's columns. Without ADC (gain null) there is one tile.
struct ConvReadout {
  std::vector<ConvTile> tiles;
  float top = 0.0f;
  const float* gain = nullptr;    // [M], or [tiles, M]
  const float* offset = nullptr;  // the same; null where all are 0
  const float* back = nullptr;    // [M]
  Index tile_columns = 0;         // M where every tile has a gain and offset of its own, else 0
};

// The output of one group: column m, image n of the item and position p are at
// data + m * column + n * image + p.
struct ConvOutput {
  float* data;
  Index column;
  Index image;
};

// The cells of a group, as PackColumnBlocks leaves them.
struct ConvCells {
  const float* packed;
  Index columns;
  Index num_blocks;
};

// int8 quads of a matrix of an adapter for one group, in blocks of columns or in lists.
struct BranchCells {
  Index columns = 0;
  Index num_blocks = 0;
  Index depth = 0;  // quads of a column; of a list, its own
  const std::int32_t* quads = nullptr;
  const std::int32_t* start = nullptr;    // [columns]
  const std::int32_t* lists = nullptr;    // [columns + 1] where each starts, null: blocks
  const std::int32_t* offsets = nullptr;  // [depth], or of every quad of the lists

  bool is_lists() const { return lists != nullptr; }
};

// The adapter's part of one group of an item (DoraConv): its matrices, and memory.
struct ConvBranch {
  const ConvInputs* inputs = nullptr;  // packs the codes; its plan is of the same tasks
  float* codes = nullptr;              // of the input
  BranchCells a;                       // of `columns` ranks, 0 for none
  BranchCells b;                       // over the codes of the ranks
  const kernels::Divisor* rank_step = nullptr;
  BranchCells cells;      // S, of 0 columns for none
  float* u = nullptr;     // codes of the ranks, or quads of them, of all positions of the item
  Index u_row = 0;        // from one to the next, ConvPlan::MaxPositions()
  float* v = nullptr;     // one block of outputs
  float* sums = nullptr;  // the same, of kBlocksTogether blocks where the cells are lists of quads
};

// Noise of the reads of a group's sums. Values per position are in the order of the vectors' lanes.
struct ConvNoise {
  const float* sigma;           // [tiles, sigma_row] over a deviation of 1
  Index sigma_row;              // MaxPositions() of the plan
  const std::uint32_t* places;  // [sigma_row] of draws
  const float* deviation;       // [columns of the group]
  Index column0;                // number of its first column
  kernels::DrawKey key;         // of tile 0
  std::uint32_t* z;             // ZFloats(): of the columns whose draws are of one counter
  static Index ZFloats(const ConvPlan& plan) {
    return kPartsTogether * kernels::kDrawRows * plan.panel_row();
  }
};

// Post-ops of the sums of a group's columns: PostOpArgs, whose pointers are those of the group's
// first column. The residual lies as the output does.
struct ConvPostOps {
  ConvBranch branch;
  kernels::PostOpArgs args{};
  const float* residual = nullptr;
};

// Word lines that one pass over a group's columns takes.
struct ConvPass {
  Range k;
  Index tile;
  bool resume;  // continues the sums of the pass before
  bool reads;   // ends a tile: its sums are converted
  bool first;   // tile
  bool last;
};
Index PartsTogether(const ConvPlan& plan, const kernels::KernelTable& kernels);

}  // namespace rimc
