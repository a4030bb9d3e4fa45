// SPDX-License-Identifier: Apache-2.0
//
// The sparse part of an adapter: corrections S of single cells. Few cells are stored as lists, one
// per column; where they are a good part of the matrix, the operator packs them like weights and
// uses the kernels of a full matrix.
#pragma once

#include <cstdint>

#include "adapter/dora.h"
#include "ort/ort.h"

namespace rimc {

// The matrix that sparse_index points into: a column has `steps` cells, and cell (column, step) has
// the index column * column_stride + step * step_stride. One stride is 1, the other the number of
// cells of the inner dimension.
struct CellGrid {
  Index columns;
  Index steps;
  Index column_stride;
  Index step_stride;

  Index Count() const { return columns * steps; }
};

// Columns and steps of indices in turn: most are found from the index before without a division.
class CellPlaces {
 public:
  explicit CellPlaces(const CellGrid& grid)
      : by_columns_(grid.column_stride > 1 || grid.step_stride != grid.columns),
        inner_(by_columns_ ? grid.column_stride : grid.step_stride) {}

  struct Place {
    Index column;
    Index step;
  };
  Place Find(std::int64_t index) {
    const auto at = static_cast<Index>(index);
    if (at < base_ || at >= base_ + inner_) {
      outer_ = at / inner_;
      base_ = outer_ * inner_;
    }
    return by_columns_ ? Place{outer_, at - base_} : Place{at - base_, outer_};
  }

 private:
  bool by_columns_;  // the cells of a column lie side by side
  Index inner_;
  Index outer_ = 0;
  Index base_ = 0;
};

// Checks sparse_values [E], sparse_index [E] and sparse_scale: one scale or one per column, indices
// in the grid and none twice, integer sums exact in fp32. Gives E.
Index CheckSparse(const DoraTensors& adapter, const CellGrid& grid);

// True where `count` cells of a grid are so many that the kernels of a full matrix are faster.
bool IsDense(Index count, const CellGrid& grid);

// Cells by column: column m has cells starts[m] .. starts[m + 1] - 1.
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
