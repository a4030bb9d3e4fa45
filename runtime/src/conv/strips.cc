// SPDX-License-Identifier: Apache-2.0
#include "conv/strips.h"

#include <algorithm>
#include <limits>

#include "conv/engine.h"

namespace rimc {
namespace {

// Channels that are a multiple of so many floats apart would share few sets of the L1 cache.
constexpr Index kSetFloats = 256;
constexpr Index kLineFloats = 16;

}  // namespace

StripPlan::StripPlan(const ConvPlan& plan)
    : conv_(plan.conv()),
      shape_(plan.shape()),
      band_axis_(static_cast<std::size_t>(plan.band_axis())) {
  for (std::size_t axis = 0; axis < kAxes; ++axis) {
    const Index out = axis == band_axis_ ? plan.max_band() : shape_.out[axis];
    extent_[axis] =
        (out - 1) * conv_.strides[axis] + conv_.dilations[axis] * (conv_.kernel[axis] - 1) + 1;
  }
  while (row_axis_ > 0 && shape_.out[row_axis_] == 1) --row_axis_;
  if (shape_.out[row_axis_] == 1) row_axis_ = kAxes - 1;
  pitch_ = {conv_.strides[0] * extent_[1] * extent_[2], conv_.strides[1] * extent_[2],
            conv_.strides[2]};
  plane_ = RoundUp(extent_[0] * extent_[1] * extent_[2], kLineFloats);
  if (plane_ % kSetFloats == 0) plane_ += kLineFloats;
  scratch_floats_ = conv_.depth * plane_;
  if (scratch_floats_ > std::numeric_limits<std::int32_t>::max()) {
    Refuse("a part of the input takes ", scratch_floats_, " values, more than 2^31");
  }
  const auto& dilations = conv_.dilations;
  offsets_.reserve(static_cast<std::size_t>(conv_.depth * conv_.Window()));
  for (Index c = 0; c < conv_.depth; ++c) {
    for (Index d = 0; d < conv_.kernel[0]; ++d) {
      for (Index h = 0; h < conv_.kernel[1]; ++h) {
        for (Index w = 0; w < conv_.kernel[2]; ++w) {
          const Index row = d * dilations[0] * extent_[1] + h * dilations[1];
          offsets_.push_back(
              static_cast<std::int32_t>(c * plane_ + row * extent_[2] + w * dilations[2]));
        }
      }
    }
  }
}

Axes StripPlan::OutOf(const ConvItem& item) const {
  Axes out = shape_.out;
  out[band_axis_] = item.band.size();
  return out;
}

StripPlan::Rows StripPlan::RowsOf(const ConvItem& item) const {
  const Axes out = OutOf(item);
  Index count = 1;
  for (std::size_t axis = 0; axis < row_axis_; ++axis) count *= out[axis];
  return {count, out[row_axis_], pitch_[row_axis_]};
}

Index StripPlan::RowAt(const ConvItem& item, Index row) const {
  const Axes out = OutOf(item);
  Index at = 0;
  for (std::size_t axis = row_axis_; axis-- > 0;) {
    at += row % out[axis] * pitch_[axis];
    row /= out[axis];
  }
  return at;
}

// The sums of an item's columns, without their epilogue.
void ConvEngine::SumStrips(const ConvPlace& place, const ConvCells& cells,
                           const ConvOutput& output) const noexcept {
  const kernels::StripTable& table = kernels_.strips;
  const Range blocks = place.item.blocks;
  const Range columns{Part(cells.columns, cells.num_blocks, blocks.begin).begin,
                      Part(cells.columns, cells.num_blocks, blocks.end - 1).end};
  const StripPlan::Rows rows = strips_->RowsOf(place.item);
  const Index parts = CeilDiv(rows.positions, table.positions);
  kernels::StripArgs args{};
  args.b_offset = strips_->offsets();
  args.step = rows.step;
  args.depth = plan_.num_offsets();
  args.a_block = kernels_.max_rows * args.depth;
  args.c_row = output.column;
  for (Index block = columns.begin / table.columns; block * table.columns < columns.end; ++block) {
    const Index first = block * table.columns;
    args.a = cells.packed + first * args.depth;
    args.begin = std::max<Index>(columns.begin - first, 0);
    args.end = std::min<Index>(columns.end - first, table.columns);
    float* const c = output.data + (first + args.begin) * output.column;
    for (Index row = 0; row < rows.count; ++row) {
      const float* const b = place.input + strips_->RowAt(place.item, row);
      for (Index part = 0; part < parts; ++part) {
        const Range positions = Part(rows.positions, parts, part);
        args.b = b + positions.begin * rows.step;
        args.c = c + row * rows.positions + positions.begin;
        table.Of(positions.size(), rows.step)(args);
      }
    }
  }
}

}  // namespace rimc
