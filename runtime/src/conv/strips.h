// SPDX-License-Identifier: Apache-2.0
//
// A convolution whose sums are taken in strips: a few positions of a row for a block of columns,
// which vectors hold (StripArgs). Inputs are read one by one, so that no vector is out of line with
// the cache, whatever the width of a row, the stride and the pads. The input is copied once, as it
// is, with its padding: [channel, d, h, w].
#pragma once

#include <cstdint>
#include <vector>

#include "conv/plan.h"

namespace rimc {

// The layout of a task's input, and the strips of its positions.
class StripPlan {
 public:
  // Of the tasks of a plan that is for strips.
  explicit StripPlan(const ConvPlan& plan);

  // Extents of a channel in scratch memory, from one channel to the next, and of all of a group.
  const Axes& extent() const { return extent_; }
  Index plane() const { return plane_; }
  Index scratch_floats() const { return scratch_floats_; }
  // [depth * window]: what to add to the place of a strip.
  const std::int32_t* offsets() const { return offsets_.data(); }

  // The rows of an item: the last axis with more than one position, or the last one.
  struct Rows {
    Index count;
    Index positions;
    Index step;  // between the inputs of two positions
  };
  Rows RowsOf(const ConvItem& item) const;
  // Offset of the first input of a row.
  Index RowAt(const ConvItem& item, Index row) const;

 private:
  Axes OutOf(const ConvItem& item) const;

  const ConvAttributes conv_;
  const ConvShape shape_;
  std::size_t band_axis_;
  std::size_t row_axis_ = kAxes - 1;
  Axes extent_{1, 1, 1};
  Axes pitch_{1, 1, 1};  // between inputs of neighbouring positions, per axis
  Index plane_ = 1;
  Index scratch_floats_ = 0;
  std::vector<std::int32_t> offsets_;
};

}  // namespace rimc
