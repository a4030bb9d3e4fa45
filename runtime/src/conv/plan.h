// SPDX-License-Identifier: Apache-2.0
//
// Shapes of a convolution and the plan of one run of it: what a task does, how its input lies in
// scratch memory, where each kernel position reads.
//
// Layout of the scratch memory of a task (one convolution group at a time):
//   [phase, channel, image, d, h, w]
// An input position i along an axis with stride s belongs to phase i mod s at index i / s, so for
// every kernel position the inputs of consecutive output positions are consecutive. Padding is
// part of it. Only phases that a kernel position reads are there.
//
// A woven plan has a copy for every kernel position along w instead, as wide as the output: rows
// then follow each other without a gap, a vector may hold several narrow ones, and those of rows
// that are whole vectors are aligned.
#pragma once

#include <array>
#include <vector>

#include "kernels/kernels.h"
#include "ort/ort.h"

namespace rimc {

constexpr std::size_t kAxes = 3;  // convolutions of fewer dimensions get leading axes of size 1
using Axes = std::array<Index, kAxes>;

// Most cells of a column: places are 32 bits wide.
constexpr Index kMaxSteps = Index{1} << 30;

// Attributes of a convolution as the node has them.
struct ConvNode {
  std::vector<Index> strides;
  std::vector<Index> pads;
  std::vector<Index> dilations;
  Index group = 1;
};
ConvNode ReadConvNode(const NodeInfo& node);

// A convolution: attributes and the shape of its weights.
struct ConvAttributes {
  std::size_t rank = 0;  // spatial axes of the model
  Index group = 1;
  Index columns = 0;  // M
  Index depth = 0;    // C / group
  Axes kernel{1, 1, 1};
  Axes strides{1, 1, 1};
  Axes dilations{1, 1, 1};
  Axes pads_begin{0, 0, 0};
  Axes pads_end{0, 0, 0};

  Index Window() const { return kernel[0] * kernel[1] * kernel[2]; }
  Index GroupColumns() const { return columns / group; }
};

// Checks the attributes of a convolution by the input `w_name` of shape `w` [M, C / group,
// *kernel]. M is `least_columns` or more.
ConvAttributes ResolveConv(const ConvNode& node, const char* w_name, const Dims& w,
                           Index least_columns);

// Shape of one run.
struct ConvShape {
  Index batch = 0;
  Axes in{1, 1, 1};
  Axes out{1, 1, 1};
  Index OutVolume() const { return out[0] * out[1] * out[2]; }
};

// Checks x [N, C, *S] and gives the shapes, and the dimensions of the output.
ConvShape ShapeOf(const ConvAttributes& conv, const Tensor& x, Dims* y_dims);

// A task: images x a band of output positions x groups, or blocks of columns of the groups.
struct ConvItem {
  Range images;
  Range band;  // along plan.band_axis
  Range groups;
  Range blocks;  // of columns within a group
};

// The tasks of a run and the layout of their input; depends on shapes and the kernel table alone.
class ConvPlan {
 public:
  // `split_columns`: the columns of a group may go to different items. `other_columns`: as many as
  // cost as much as the adapter's part of the tasks. `align`: most time goes into reading vectors.
  // `panels`: a pointwise convolution may be one of panels. `strips`: sums may be taken in strips.
  ConvPlan(const ConvAttributes& conv, const ConvShape& shape, bool split_columns,
           const kernels::KernelTable& kernels, Index other_columns = 0, bool align = false,
           bool panels = false, bool strips = false);
  // The plan of the same tasks with `depth` channels in a group.
  ConvPlan WithDepth(Index depth) const;

  Index num_items() const { return images_parts_ * band_parts_ * group_parts_ * block_parts_; }
  ConvItem Item(Index i) const;
  // Consecutive items that read the same input, which is then of one group.
  Index sharers() const { return block_parts_; }
  // Floats of scratch memory for the input of a group.
  Index scratch_floats() const { return scratch_floats_; }
  // Entries of the table of offsets: depth * window.
  Index num_offsets() const { return conv_.depth * conv_.Window(); }
  // offsets()[k] is what to add to the place of an output position, k = (channel, kernel position).
  const std::int32_t* offsets() const { return offsets_.data(); }
  // The same in the input itself, [depth], of a pointwise plan whose channels are that near.
  const std::int32_t* direct_offsets() const { return direct_offsets_.data(); }

  // Output positions of `item` per image and column; they are consecutive in the output.
  Index BandSize(const ConvItem& item) const { return item.band.size() * band_inner_; }
  Index MaxBandSize() const { return max_band_ * band_inner_; }
  Index BandOffset(const ConvItem& item) const { return item.band.begin * band_inner_; }

  const ConvAttributes& conv() const { return conv_; }
  const ConvShape& shape() const { return shape_; }
  int band_axis() const { return band_axis_; }
  Index images_per_item() const { return images_per_item_; }
  Index max_band() const { return max_band_; }
  Index columns() const { return columns_; }  // of one group
  Index num_blocks() const { return num_blocks_; }
  // Extents of a channel in scratch memory, and its size.
  const Axes& extent() const { return extent_; }
  Index plane() const { return extent_[0] * extent_[1] * extent_[2]; }
  // Phases of an axis that are read, in the order they lie in scratch memory; of the last axis of a
  // woven plan, the kernel positions times the dilation.
  const std::vector<Index>& phases(std::size_t axis) const { return phases_[axis]; }
  // True where a vector holds positions of one output row, false where vectors run on over rows
  // (and images) and what lies between is dropped. The h and w of a woven plan are one row.
  bool by_rows() const { return by_rows_; }
  bool is_woven() const { return is_woven_; }
  // True where sums are best taken in strips (StripPlan). Their epilogue and the branch use this
  // plan, which is woven then.
  bool is_strips() const { return is_strips_; }
  // Positions are one row, and their inputs lie in panels [depth, panel_row] of a block of vectors.
  bool is_panels() const { return is_panels_; }
  Index panel_row() const { return block_vecs_ * lanes_; }
  // Positions that the vectors of an item hold, at most.
  Index MaxPositions() const;
  // Vectors of a block of columns, at most.
  Index block_vecs() const { return block_vecs_; }

 private:
  void FindPhases();
  void ChooseStrips(const kernels::KernelTable& kernels);
  void ChooseWeave(bool align);
  Index NumPhases() const;
  Index RowPositions(const Axes& out) const;    // that vectors of one row each take
  Index RunOnPositions(const Axes& out) const;  // that vectors take which run on
  void ChooseImages();
  void ChooseParts(bool split_columns, Index other_columns);
  void ChooseLanes();
  void MeasureScratch();
  void FillOffsets();
  Axes BandOut() const;  // output positions of the largest band

  ConvAttributes conv_;
  ConvShape shape_;
  Index columns_;
  Index lanes_;
  Index num_blocks_;
  Index block_vecs_;
  int band_axis_ = 2;
  Index band_inner_ = 1;  // output positions of one step along the band axis
  Index images_per_item_ = 1;
  Index max_band_ = 1;
  Index band_step_ = 1;  // bands are cut at multiples of it
  Index images_parts_ = 1;
  Index band_parts_ = 1;
  Index group_parts_ = 1;
  Index block_parts_ = 1;
  std::array<std::vector<Index>, kAxes> phases_;
  Axes reach_{0, 0, 0};  // largest index that a kernel position adds, per axis
  Axes extent_{1, 1, 1};
  bool by_rows_ = false;
  bool is_woven_ = false;
  bool is_panels_ = false;
  bool is_strips_ = false;
  Index scratch_floats_ = 0;
  std::vector<std::int32_t> offsets_;
  std::vector<std::int32_t> direct_offsets_;
};

}  // namespace rimc
