// SPDX-License-Identifier: Apache-2.0
//
// RramMatMul where sums are stored before they are read: planes of a bit-serial DAC, cells with a
// curve, and noise that is relative to each device.
#include <algorithm>

#include "matmul/rram_matmul_work.h"

namespace rimc {
namespace {

// Sums that a task stores: they should stay in the L2 cache.
constexpr Index kStoredFloats = Index{1} << 14;

}  // namespace

// The part of the output that a task stores sums of, and where.
struct RramMatMul::Stored {
  Range rows;
  Range panels;
  Range columns;
  float* partial;    // [rows, columns]
  float* variance;   // the same; null unless each sum has one
  std::uint32_t* z;  // draws [rows, whole vectors of columns]; null without read noise
};

// Rows that a task stores the sums of at a time.
Index RramMatMul::StoredRows() const {
  const Index rows = std::clamp(kStoredFloats / columns_, Index{1}, kTaskRows);
  return RoundUp(rows, kernels::kDrawRows);
}

Index RramMatMul::StoredFloats() const {
  const Index sums = (squares_.size() > 0 ? 2 : 1) * RoundUp(StoredRows() * columns_, 16);
  return sums + (periphery_.noise.on ? StoredRows() * RoundUp(columns_, 16) : Index{0});
}

void RramMatMul::RunStoredTask(const Work& work, Index task) const {
  const Range rows = RowsOf(work.rows, work.row_tasks, task % work.row_tasks);
  Stored part{};
  part.panels = Part(num_panels_, work.panel_tasks, task / work.row_tasks);
  part.columns = TaskColumns(part.panels);
  const Index floats = RoundUp(StoredRows() * columns_, 16);
  part.partial = work.memory + task * StoredFloats();
  part.variance = work.squares != nullptr ? part.partial + floats : nullptr;
  if (periphery_.noise.on) {
    float* const z = part.partial + (work.squares != nullptr ? 2 : 1) * floats;
    part.z = reinterpret_cast<std::uint32_t*>(z);
  }
  for (Index row = rows.begin; row < rows.end; row += StoredRows()) {
    part.rows = {row, std::min(row + StoredRows(), rows.end)};
    for (Index plane = 0; plane < periphery_.num_planes(); ++plane) {
      for (const Pass& pass : passes_) {
        Multiply(work.Line(plane, depth_), panels_, part, pass, part.partial);
        for (int term = 0; term < (periphery_.iv.on ? 2 : 0); ++term) {
          Pass more = pass;
          more.resume = true;
          Multiply(work.Term(term, plane, depth_, periphery_.num_planes()), terms_[term], part,
                   more, part.partial);
        }
        if (part.variance != nullptr) {
          Multiply(work.squares + plane * work.rows * depth_, squares_, part, pass, part.variance);
        }
        if (pass.whole) ReadSums(work, part, plane, pass);
      }
    }
  }
}

// sums [rows, columns] of a part, for the word lines of a pass.
void RramMatMul::Multiply(const float* x, const AlignedFloats& packed, const Stored& part,
                          const Pass& pass, float* sums) const {
  const Index width = part.columns.size();
  kernels::BlockArgs args{};
  args.a_row = depth_;
  args.c_row = width;
  args.depth = pass.k.size();
  args.resume = pass.resume;
  for (Index panel = part.panels.begin; panel < part.panels.end; ++panel) {
    const Range vecs = PanelVecs(panel);
    const Index n0 = vecs.begin * kernels_.lanes;
    const Index num_blocks = CeilDiv(part.rows.size(), kernels_.PanelRows(vecs.size()));
    args.b[0] = packed.data() + n0 * depth_ + pass.k.begin * vecs.size() * kernels_.lanes;
    for (Index v = 0; v < vecs.size(); ++v) {
      args.lanes[v] =
          static_cast<int>(std::min<Index>(kernels_.lanes, columns_ - n0 - v * kernels_.lanes));
    }
    for (Index block = 0; block < num_blocks; ++block) {
      const Range rows = Part(part.rows.size(), num_blocks, block);
      args.a = x + (part.rows.begin + rows.begin) * depth_ + pass.k.begin;
      for (Index v = 0; v < vecs.size(); ++v) {
        args.c[v] = sums + rows.begin * width + n0 - part.columns.begin + v * kernels_.lanes;
      }
      kernels_.matmul_block[rows.size() - 1][vecs.size() - 1](args);
    }
  }
}

// Reads the sums of a tile: noise, ADC, and the digital sum of what was read.
void RramMatMul::ReadSums(const Work& work, const Stored& part, Index plane,
                          const Pass& pass) const {
  const Index width = part.columns.size();
  const Index z_row = RoundUp(width, kernels_.lanes);
  const Index n0 = part.columns.begin;
  const bool first_plane = plane == 0;
  const bool last_plane = plane + 1 == periphery_.num_planes();
  const auto of_columns = [&](const float* values) {
    return values == nullptr ? nullptr : values + n0;
  };
  kernels::ReadArgs args{};
  args.gain = of_columns(periphery_.Gain(pass.tile));
  args.offset = of_columns(periphery_.Offset(pass.tile));
  args.back = periphery_.has_adc ? periphery_.adc_back.data() + n0 : nullptr;
  args.top = periphery_.adc_top;
  args.weight = periphery_.PlaneWeight(plane);
  args.first = first_plane && pass.first;
  args.last = last_plane && pass.last;
  args.count = width;
  if (part.z != nullptr) {
    args.deviation = periphery_.noise.deviation.data() + n0;
    args.variance_each = part.variance != nullptr;
    const kernels::DrawKey key = periphery_.Draws(work.run, plane, pass.tile);
    kernels_.draw({key, static_cast<std::uint64_t>(part.rows.begin), part.rows.size(),
                   static_cast<std::uint32_t>(n0), nullptr, width, part.z, z_row});
  }
  // All rows of the tile: passes of a tile follow each other.
  const Index k0 = tiled_ ? pass.k.begin : 0;
  for (Index i = 0; i < part.rows.size(); ++i) {
    const Index row = part.rows.begin + i;
    float sum_squares = 0.0f;
    args.partial = part.partial + i * width;
    args.y = work.y + row * columns_ + n0;
    if (part.z != nullptr) {
      args.z = part.z + i * z_row;
      args.variance = args.variance_each ? part.variance + i * width : &sum_squares;
      if (!args.variance_each) {
        kernels_.row_squares(work.Line(plane, depth_) + row * depth_ + k0, depth_, 1, &sum_squares,
                             pass.k.end - k0);
      }
    }
    kernels_.read_columns(args);
  }
}

}  // namespace rimc
