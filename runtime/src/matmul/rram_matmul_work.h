// SPDX-License-Identifier: Apache-2.0
//
// A run of an RramMatMul, as its tasks see it.
#pragma once

#include "matmul/rram_matmul.h"

namespace rimc {

// A task of fewer rows reads a panel too often for what it computes.
inline constexpr Index kTaskRows = 48;

// One run: rows of x are cut into row_tasks parts, panels into panel_tasks parts.
struct RramMatMul::Work {
  const float* x;
  float* x_line;   // [planes, rows, K] what is on the word lines; null where that is x
  float* squares;  // of it; null without relative read noise
  float* terms;    // [2, planes, rows, K] inputs of the cells of the I-V curve; null without
  float* sigma;    // [reads, rows] of Chunk; null without read noise, or where sums are stored
  float* y;
  Index rows;
  Index row_tasks;
  Index panel_tasks;
  std::uint64_t run;
  const MatMulPostOps* post_ops;
  bool task_lines;    // tasks drive word lines for themselves
  Index chunk_rows;   // rows that a task takes at a time
  Index line_floats;  // of a task's memory: word lines of a chunk,
  Index z_floats;     // and draws for a group of rows and a panel
  float* memory;
  std::atomic<bool>* has_nan;  // among word lines of int16 pairs

  Index TaskFloats() const { return line_floats + z_floats; }

  const float* Line(Index plane, Index depth) const {
    return x_line == nullptr ? x : x_line + plane * rows * depth;
  }
  float* Term(Index term, Index plane, Index depth, Index planes) const {
    return terms + (term * planes + plane) * rows * depth;
  }
};

// Rows that a task takes at a time, and the word lines and draws that it has made for them.
struct RramMatMul::Chunk {
  Range rows;
  const float* line;  // word lines of the pass, rows K apart
  float* made_lines;
  std::uint32_t* z;    // draws [kDrawRows, columns of a panel]
  const float* sigma;  // [rows] root of the sum of squares of a tile's word lines
};

}  // namespace rimc
