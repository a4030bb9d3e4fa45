// SPDX-License-Identifier: Apache-2.0
#include "conv/plan.h"

#include <algorithm>
#include <limits>

namespace rimc {
namespace {

// Multiplications of a task: several microseconds of one core.
constexpr Index kTaskWork = Index{1} << 20;
// Multiplications worth a second thread: handing a task over takes far less time, less than
// one microsecond.
constexpr Index kSharedWork = Index{1} << 18;
// Tasks that are worth cutting an image for.
constexpr Index kManyTasks = 16;
// Scratch memory of a task should stay in the L2 cache of a core, or not be far larger.
constexpr Index kMaxTaskFloats = Index{1} << 18;
// Vectors that make a task of several small images.
constexpr Index kImageVecs = 12;
constexpr Index kPanelImageVecs = 24;
// Images go side by side in panels if each alone leaves more than one of so many lanes empty.
constexpr Index kWorthCopies = 8;
// Blocks of columns of an item, at least: all items of some positions make the adapter's codes.
constexpr Index kItemBlocks = 8;
// Fewer products of a sum would not pay for turning a strip into rows of positions.
constexpr Index kStripSteps = 256;
// Products of vectors that take as long as copying a row's vector.
constexpr Index kCopyWork = 12;
// And as copying a vector of outputs from where positions run on over rows.
constexpr Index kDropWork = 6;

void CheckCount(const char* name, std::size_t got, std::size_t want) {
  if (got != want) Refuse(name, " must have ", want, " values, got ", got);
}

// Far beyond any use, and far from overflowing a product.
constexpr Index kMaxAttribute = Index{1} << 20;

void CheckWithin(const char* name, const std::vector<Index>& values, Index least) {
  for (const Index value : values) {
    if (value < least || value > kMaxAttribute) {
      Refuse(name, " must be ", least, "..", kMaxAttribute, ", got ", value);
    }
  }
}

// Right-aligned: the axes of the model are the last ones.
void Put(const std::vector<Index>& values, std::size_t from, std::size_t rank, Axes* axes) {
  for (std::size_t i = 0; i < rank; ++i) (*axes)[kAxes - rank + i] = values[from + i];
}

void CheckWeightDims(const char* name, const Dims& w, Index least_columns) {
  const auto end = w.size.begin() + w.rank;
  if (w.rank < 3 || w.rank > 2 + kAxes || w[0] < least_columns ||
      std::find(w.size.begin() + 1, end, 0) != end) {
    Refuse("input ", name, " must have 3 to 5 dimensions, none of them 0",
           least_columns == 0 ? " but the first" : "", ", got ", w);
  }
  // A weight without columns has no data that would bound its other sizes.
  Index steps = 1;
  for (std::size_t i = 1; i < w.rank; ++i) {
    if (w[i] > kMaxSteps / steps) {
      Refuse("input ", name, " must have at most ", kMaxSteps, " cells per column, got ", w);
    }
    steps *= static_cast<Index>(w[i]);
  }
}

// Whether output position i reads input position i.
bool IsPointwise(const ConvAttributes& conv) {
  const Axes ones{1, 1, 1};
  const Axes none{0, 0, 0};
  return conv.kernel == ones && conv.strides == ones && conv.pads_begin == none &&
         conv.pads_end == none;
}

}  // namespace

ConvNode ReadConvNode(const NodeInfo& node) {
  return {node.Ints("strides"), node.Ints("pads"), node.Ints("dilations"), node.Int("group")};
}

ConvAttributes ResolveConv(const ConvNode& node, const char* w_name, const Dims& w,
                           Index least_columns) {
  CheckWeightDims(w_name, w, least_columns);
  ConvAttributes conv;
  conv.rank = w.rank - 2;
  conv.columns = static_cast<Index>(w[0]);
  conv.depth = static_cast<Index>(w[1]);
  conv.group = node.group;
  CheckCount("strides", node.strides.size(), conv.rank);
  CheckCount("pads", node.pads.size(), 2 * conv.rank);
  CheckCount("dilations", node.dilations.size(), conv.rank);
  CheckWithin("strides", node.strides, 1);
  CheckWithin("pads", node.pads, 0);
  CheckWithin("dilations", node.dilations, 1);
  if (conv.group < 1 || conv.columns % conv.group != 0) {
    Refuse("group must divide ", conv.columns, " output channels, got ", conv.group);
  }
  Put(node.strides, 0, conv.rank, &conv.strides);
  Put(node.dilations, 0, conv.rank, &conv.dilations);
  Put(node.pads, 0, conv.rank, &conv.pads_begin);
  Put(node.pads, conv.rank, conv.rank, &conv.pads_end);
  for (std::size_t i = 0; i < conv.rank; ++i) {
    conv.kernel[kAxes - conv.rank + i] = static_cast<Index>(w[2 + i]);
  }
  return conv;
}

ConvShape ShapeOf(const ConvAttributes& conv, const Tensor& x, Dims* y_dims) {
  const Index channels = conv.group * conv.depth;
  if (x.dims.rank != conv.rank + 2 || x.dims[1] != channels) {
    Refuse("input x must have the shape [N, ", channels, "] and ", conv.rank,
           " spatial dimensions, got ", x.dims);
  }
  ConvShape shape;
  shape.batch = static_cast<Index>(x.dims[0]);
  y_dims->rank = x.dims.rank;
  y_dims->size[0] = x.dims[0];
  y_dims->size[1] = conv.columns;
  for (std::size_t i = 0; i < conv.rank; ++i) {
    const std::size_t axis = kAxes - conv.rank + i;
    const Index size = static_cast<Index>(x.dims[2 + i]);
    const Index padded = size + conv.pads_begin[axis] + conv.pads_end[axis];
    const Index window = conv.dilations[axis] * (conv.kernel[axis] - 1) + 1;
    if (padded < window) {
      Refuse("the padded input is smaller than the kernel, got x ", x.dims);
    }
    shape.in[axis] = size;
    shape.out[axis] = (padded - window) / conv.strides[axis] + 1;
    y_dims->size[2 + i] = shape.out[axis];
  }
  return shape;
}

ConvPlan::ConvPlan(const ConvAttributes& conv, const ConvShape& shape, bool split_columns,
                   const kernels::KernelTable& kernels, Index other_columns, bool align,
                   bool panels, bool strips)
    : conv_(conv),
      shape_(shape),
      columns_(conv.GroupColumns()),
      lanes_(kernels.lanes),
      num_blocks_(CeilDiv(columns_, kernels.max_rows)),
      block_vecs_(std::min<Index>(kernels::kMaxVecs,
                                  kernels.max_accumulators / CeilDiv(columns_, num_blocks_))) {
  if (panels && IsPointwise(conv)) {
    is_panels_ = true;
    shape_.in = shape_.out = {1, 1, shape.OutVolume()};
  }
  band_axis_ = shape_.out[0] > 1 ? 0 : shape_.out[1] > 1 ? 1 : 2;
  for (std::size_t axis = static_cast<std::size_t>(band_axis_) + 1; axis < kAxes; ++axis) {
    band_inner_ *= shape_.out[axis];
  }
  max_band_ = shape_.out[static_cast<std::size_t>(band_axis_)];
  FindPhases();
  if (strips) ChooseStrips(kernels);
  ChooseWeave(align);
  ChooseImages();
  ChooseParts(split_columns, other_columns);
  ChooseLanes();
}

void ConvPlan::FindPhases() {
  for (std::size_t axis = 0; axis < kAxes; ++axis) {
    for (Index k = 0; k < conv_.kernel[axis]; ++k) {
      const Index at = k * conv_.dilations[axis];
      const Index phase = at % conv_.strides[axis];
      if (std::find(phases_[axis].begin(), phases_[axis].end(), phase) == phases_[axis].end()) {
        phases_[axis].push_back(phase);
      }
      reach_[axis] = std::max(reach_[axis], at / conv_.strides[axis]);
    }
    extent_[axis] = shape_.out[axis] + reach_[axis];
  }
}

Index ConvPlan::NumPhases() const {
  return static_cast<Index>(phases_[0].size() * phases_[1].size() * phases_[2].size());
}

Index ConvPlan::RowPositions(const Axes& out) const {
  return out[0] * out[1] * RoundUp(out[2], lanes_);
}

Index ConvPlan::RunOnPositions(const Axes& out) const {
  return RoundUp(((out[0] - 1) * extent_[1] + out[1] - 1) * extent_[2] + out[2], lanes_);
}

// Strips pay where the vectors of rows of positions are out of line with the cache, or there are
// few of them; not where an input is read too rarely for a copy of all of it.
void ConvPlan::ChooseStrips(const kernels::KernelTable& kernels) {
  const bool in_line = conv_.strides[2] == 1 && shape_.out[2] % lanes_ == 0;
  bool reads_all = true;
  for (std::size_t axis = 0; axis < kAxes; ++axis) {
    reads_all = reads_all && conv_.kernel[axis] >= conv_.strides[axis];
  }
  is_strips_ = kernels.strips.columns > 0 && columns_ % kernels.strips.columns == 0 &&
               !is_panels_ && !in_line && reads_all && num_offsets() >= kStripSteps;
}

// Weaving pays where the positions that it saves cost more than the copies that it makes.
void ConvPlan::ChooseWeave(bool align) {
  if (is_panels_) return;
  const Axes& out = shape_.out;
  Index positions = std::min(RowPositions(out), RunOnPositions(out));
  if (shape_.batch > 1) positions = std::min(positions, plane());
  const Index woven = out[0] * RoundUp(out[1] * out[2], lanes_);
  const Index saved = positions - woven;
  // Positions that run on over rows are copied.
  const Index dropped = RunOnPositions(out) < RowPositions(out) ? kDropWork * woven : 0;
  const Index copies = NumPhases() / static_cast<Index>(phases_[2].size()) *
                       (conv_.kernel[2] - static_cast<Index>(phases_[2].size()));
  const Index copied = copies * extent_[0] * extent_[1] * CeilDiv(out[2], lanes_);
  const bool aligns = align && out[2] % lanes_ == 0 && conv_.kernel[2] > 1 && conv_.strides[2] == 1;
  const Index won = (saved * conv_.Window() + dropped) / lanes_ * columns_;
  if (!is_strips_ && !aligns && won <= kCopyWork * copied) return;
  is_woven_ = true;
  phases_[2].clear();
  for (Index k = 0; k < conv_.kernel[2]; ++k) phases_[2].push_back(k * conv_.dilations[2]);
  reach_[2] = 0;
  extent_[2] = out[2];
}

// Positions of a small image don't fill vectors; then several images go side by side.
void ConvPlan::ChooseImages() {
  if (is_woven_) return;
  const Index alone = std::min(RowPositions(shape_.out), RunOnPositions(shape_.out));
  if (plane() >= alone || shape_.batch < 2) return;
  // Of one image the input needs no copy.
  if (is_panels_ && alone * kWorthCopies < plane() * (kWorthCopies + 1)) return;
  const Index vecs = is_panels_ ? kPanelImageVecs : kImageVecs;
  images_per_item_ = std::min(shape_.batch, CeilDiv(vecs * lanes_, plane()));
}

void ConvPlan::ChooseParts(bool split_columns, Index other_columns) {
  const Index columns = conv_.columns + other_columns;
  const Index work = shape_.batch * columns * num_offsets() * shape_.OutVolume();
  const Index least_tasks = work >= kSharedWork ? 2 : 1;
  Index wanted = std::clamp(work / kTaskWork, least_tasks, kManyTasks);
  // Threads get the same number of tasks each, and their number is even.
  if (wanted > 2) wanted = RoundUp(wanted, 4);
  const auto axis = static_cast<std::size_t>(band_axis_);
  images_parts_ = CeilDiv(shape_.batch, images_per_item_);
  group_parts_ = std::min(conv_.group, CeilDiv(wanted, images_parts_));
  if (images_per_item_ == 1) {
    const Index floats = NumPhases() * conv_.depth * plane();
    // A band reads `reach` steps that its neighbour reads too, so it should be longer than
    // that.
    const Index least =
        is_panels_ ? panel_row()
                   : std::max<Index>({1, 2 * reach_[axis], CeilDiv(2 * lanes_, band_inner_)});
    const Index parts =
        std::max(CeilDiv(wanted, images_parts_ * group_parts_), CeilDiv(floats, kMaxTaskFloats));
    band_parts_ = std::clamp(parts, Index{1}, std::max(Index{1}, max_band_ / least));
    if (band_parts_ > 2) band_parts_ -= band_parts_ % 2;
    const auto vecs = [&](Index bands) {
      return bands * CeilDiv(CeilDiv(max_band_, bands) * band_inner_, lanes_);
    };
    // The last vector of a band may be the smaller part of a vector.
    while (is_woven_ && band_parts_ > 1 && vecs(band_parts_) * 24 > vecs(1) * 25) --band_parts_;
  }
  if (split_columns && group_parts_ == conv_.group) {
    block_parts_ = std::min(CeilDiv(wanted, images_parts_ * group_parts_ * band_parts_),
                            CeilDiv(num_blocks_, kItemBlocks));
  }
  band_step_ = is_panels_ && images_per_item_ == 1 ? panel_row() : 1;
  max_band_ = CeilDiv(CeilDiv(max_band_, band_step_), band_parts_) * band_step_;
  extent_[axis] = max_band_ + reach_[axis];
}

Axes ConvPlan::BandOut() const {
  Axes out = shape_.out;
  out[static_cast<std::size_t>(band_axis_)] = max_band_;
  return out;
}

void ConvPlan::ChooseLanes() {
  const Axes out = BandOut();
  // Dropping positions costs a copy, so running on over rows has to save more than that.
  by_rows_ =
      is_woven_ || (images_per_item_ == 1 && RowPositions(out) * 15 <= RunOnPositions(out) * 16);
  MeasureScratch();
}

ConvPlan ConvPlan::WithDepth(Index depth) const {
  ConvPlan plan = *this;
  plan.conv_.depth = depth;
  plan.MeasureScratch();
  return plan;
}

void ConvPlan::MeasureScratch() {
  Index channel = images_per_item_ * plane();
  if (is_panels_) channel = RoundUp(channel, panel_row());
  scratch_floats_ = RoundUp(NumPhases() * conv_.depth * channel + 2 * lanes_, 16);
  if (scratch_floats_ > std::numeric_limits<std::int32_t>::max()) {
    Refuse("a part of the input takes ", scratch_floats_, " values, more than 2^31");
  }
  FillOffsets();
}

Index ConvPlan::MaxPositions() const {
  return RoundUp(std::max(RowPositions(BandOut()), images_per_item_ * plane()), panel_row());
}

ConvItem ConvPlan::Item(Index i) const {
  const Index block = i % block_parts_;
  i /= block_parts_;
  const Index group = i % group_parts_;
  i /= group_parts_;
  const Index band = i % band_parts_;
  i /= band_parts_;
  const Index out = shape_.out[static_cast<std::size_t>(band_axis_)];
  const Range steps = Part(CeilDiv(out, band_step_), band_parts_, band);
  return {{i * images_per_item_, std::min((i + 1) * images_per_item_, shape_.batch)},
          {steps.begin * band_step_, std::min(steps.end * band_step_, out)},
          Part(conv_.group, group_parts_, group),
          Part(num_blocks_, block_parts_, block)};
}

void ConvPlan::FillOffsets() {
  offsets_.resize(static_cast<std::size_t>(num_offsets()));
  const Index channel = is_panels_ ? panel_row() : images_per_item_ * plane();
  const auto place = [&](std::size_t axis, Index k) {
    const Index at = k * conv_.dilations[axis];
    if (is_woven_ && axis == 2) return std::pair<Index, Index>(k, 0);
    const auto phase =
        std::find(phases_[axis].begin(), phases_[axis].end(), at % conv_.strides[axis]);
    return std::pair<Index, Index>(phase - phases_[axis].begin(), at / conv_.strides[axis]);
  };
  const Index volume = shape_.OutVolume();
  for (Index c = 0; c < conv_.depth && is_panels_ && conv_.depth * volume < kMaxSteps; ++c) {
    direct_offsets_.push_back(static_cast<std::int32_t>(c * volume));
  }
  const auto phases1 = static_cast<Index>(phases_[1].size());
  const auto phases2 = static_cast<Index>(phases_[2].size());
  const Index window = conv_.Window();
  Index q = 0;
  for (Index kd = 0; kd < conv_.kernel[0]; ++kd) {
    const auto [pd, d] = place(0, kd);
    for (Index kh = 0; kh < conv_.kernel[1]; ++kh) {
      const auto [ph, h] = place(1, kh);
      for (Index kw = 0; kw < conv_.kernel[2]; ++kw, ++q) {
        const auto [pw, w] = place(2, kw);
        const Index phase = (pd * phases1 + ph) * phases2 + pw;
        const Index at = phase * conv_.depth * channel + (d * extent_[1] + h) * extent_[2] + w;
        for (Index c = 0; c < conv_.depth; ++c) {
          offsets_[static_cast<std::size_t>(c * window + q)] =
              static_cast<std::int32_t>(at + c * channel);
        }
      }
    }
  }
}

}  // namespace rimc
