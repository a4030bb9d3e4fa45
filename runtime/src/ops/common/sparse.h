// SPDX-License-Identifier: Apache-2.0
//
// The sparse part of an adapter: cells S that are corrected one by one. Few of them are kept as
// lists, one per column; where they are a good part of the matrix, the operator packs them like
// weights and uses the kernels of a full matrix.
#pragma once

#include <cstdint>

#include "ops/common/dora.h"
#include "ops/common/ort.h"

namespace rimc {

// The matrix that sparse_index points into: a column has `steps` cells, and cell (column, step) has
// the index column * column_stride + step * step_stride.
struct CellGrid {
  Index columns;
  Index steps;
  Index column_stride;
  Index step_stride;

  Index Count() const { return columns * steps; }
  Index Column(std::int64_t index) const {
    return static_cast<Index>(index) / column_stride % columns;
  }
  Index Step(std::int64_t index) const { return static_cast<Index>(index) / step_stride % steps; }
};

// Checks sparse_values [E], sparse_index [E] and sparse_scale: one scale or one per column, indices
// in the grid and none twice, integer sums exact in fp32. Gives E.
Index CheckSparse(const DoraTensors& adapter, const CellGrid& grid);

// True where `count` cells of a grid are so many that the kernels of a full matrix are faster.
bool IsDense(Index count, const CellGrid& grid);

// Cells by column: those of column m are number starts[m] .. starts[m + 1] - 1.
struct SparseColumns {
  const std::int32_t* starts;  // [columns + 1]
  const std::int32_t* steps;   // [E]; in DoraMatMul multiplied, see PackSparse
  const float* values;         // [E]
};
// Floats of memory that the lists take.
Index SparseFloats(Index columns, Index count);
SparseColumns SparseIn(const float* memory, Index columns, Index count);
// Sorts the cells by column into `memory` (SparseFloats). Steps are multiplied by `step_factor`.
void PackSparse(const DoraTensors& adapter, const CellGrid& grid, Index step_factor, float* memory);

}  // namespace rimc
