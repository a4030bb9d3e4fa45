// SPDX-License-Identifier: Apache-2.0
//
// int8 quads of an adapter for the integer kernels: words of four channels each
// (kernels::QuadBlockArgs).
#pragma once

#include <cstdint>
#include <vector>

#include "adapter/dora.h"
#include "adapter/sparse.h"
#include "crossbar/column_blocks.h"

namespace rimc {

// Channels of a word.
constexpr Index kQuadChannels = 4;

// Cells of a group as words of four channels (QuadBlockArgs), and where the sum of each column
// starts.
struct QuadCells {
  const std::int32_t* packed;
  const std::int32_t* start;
  Index columns;
  Index num_blocks;
};

// Words by column, as in SparseColumns; `start` as above.
struct QuadLists {
  const std::int32_t* starts;
  const std::int32_t* steps;
  const std::int32_t* words;
  const std::int32_t* start;
};

// int8 cells [groups * columns, depth, window] as quads, packed in blocks or, where
// most words are 0, in lists.
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

  // Words of a column.
  Index steps() const { return steps_; }
  bool is_lists() const { return is_lists_; }
  QuadCells Blocks(Index group) const;
  QuadLists Lists() const;
  // Most words of the lists of a group.
  Index max_group_words() const { return max_group_words_; }

 private:
  void AddByte(std::int32_t step, std::int32_t byte, std::size_t begin);
  std::vector<std::int32_t> FullWords() const;
  void PackBlocks(const std::vector<std::int32_t>& words);

  Shape shape_{};
  Index steps_ = 0;
  bool is_lists_ = false;
  Index max_group_words_ = 0;
  std::vector<std::int32_t> packed_;
  std::vector<std::int32_t> start_;
  std::vector<std::int32_t> list_starts_;
  std::vector<std::int32_t> list_steps_;
};

}  // namespace rimc
