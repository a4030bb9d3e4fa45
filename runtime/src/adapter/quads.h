// SPDX-License-Identifier: Apache-2.0
//
// The matrices of an adapter as int8 quads, four channels each (kernels::QuadBlockArgs).
#pragma once

#include <cstdint>
#include <vector>

#include "adapter/dora.h"
#include "adapter/sparse.h"
#include "crossbar/column_blocks.h"

namespace rimc {

// Channels of a quad.
constexpr Index kQuadChannels = 4;

// Cells of a group in blocks of columns, and the initial sum of each column.
struct QuadCells {
  const std::int32_t* packed;
  const std::int32_t* start;
  Index columns;
  Index num_blocks;
};

// Lists of quads by column, as in SparseColumns; `start` as above.
struct QuadLists {
  const std::int32_t* starts;
  const std::int32_t* steps;
  const std::int32_t* quads;
  const std::int32_t* start;
};

// int8 cells [groups * columns, depth, window] as quads, in blocks or, where most quads are 0, in
// lists.
class QuadMatrix {
 public:
  QuadMatrix() = default;
  struct Shape {
    Index groups;
    Index columns;  // of a group
    Index depth;
    Index window;
    Index max_rows;  // of a block
  };
  QuadMatrix(const std::int8_t* cells, const Shape& shape);
  // Of the sparse part of an adapter; lists where that is faster.
  QuadMatrix(const DoraTensors& adapter, const CellGrid& grid, const Shape& shape);

  // Quads of a column.
  Index steps() const { return steps_; }
  bool is_lists() const { return is_lists_; }
  QuadCells Blocks(Index group) const;
  QuadLists Lists() const;
  // Most quads of the lists of a group.
  Index max_group_quads() const { return max_group_quads_; }

 private:
  void AddByte(std::int32_t step, std::int32_t byte, std::size_t begin);
  std::vector<std::int32_t> FullQuads() const;
  void PackBlocks(const std::vector<std::int32_t>& quads);

  Shape shape_{};
  Index steps_ = 0;
  bool is_lists_ = false;
  Index max_group_quads_ = 0;
  std::vector<std::int32_t> packed_;
  std::vector<std::int32_t> start_;
  std::vector<std::int32_t> list_starts_;
  std::vector<std::int32_t> list_steps_;
};

}  // namespace rimc
