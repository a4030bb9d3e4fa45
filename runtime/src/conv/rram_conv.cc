// SPDX-License-Identifier: Apache-2.0
#include "conv/rram_conv.h"

#include <algorithm>
#include <utility>

#include "base/pages.h"
#include "kernels/dispatch.h"

namespace rimc {

// One run that stores sums.
struct RramConv::Run {
  const ConvPlan& plan;
  const ConvSums& sums;
  float* y;
  ReadRun read;

  // Positions of a task in the memory of its sums.
  Index Positions() const { return plan.images_per_item() * plan.MaxBandSize(); }
};

// Memory of a task that stores sums.
struct RramConv::Memory {
  float* partial;         // [images, columns of a block, positions of a band]
  std::uint32_t* z;       // draws of one image, rows of whole vectors
  float* variance;        // as partial, or [images, positions of a band]
  float* squares;         // of the inputs, or their sums over the channels of a tile
  std::int32_t* offsets;  // [window] into the sums of squares
  float* terms[2];        // inputs of the cells of the I-V curve
  float* term_sums;       // of these, as partial
};

RramConv::RramConv(const NodeInfo& node) : kernels_(ActiveKernels()) {
  const auto w = node.Constant(1);
  if (!w) Refuse("input w must be an initializer or a constant: crossbars are written once");
  CheckWeights(*w);
  conv_ = ResolveConv(ReadConvNode(node), "w", w->dims, 1);
  periphery_ = ReadPeriphery(node, conv_.columns, conv_.depth, conv_.Window());
  const Index tile_group = node.Int("tile_group");
  if (tile_group != conv_.group * periphery_.num_tiles) {
    Refuse("tile_group must be group * num_tiles = ", conv_.group * periphery_.num_tiles, ", got ",
           tile_group);
  }
  Pack(w->Floats());
  PageOut(w->Floats(), static_cast<std::size_t>(w->dims.Count()) * sizeof(float));
}

RramConv::RramConv(const ConvNode& conv, const Tensor& w, Periphery periphery)
    : kernels_(ActiveKernels()),
      conv_(ResolveConv(conv, "w", w.dims, 1)),
      periphery_(std::move(periphery)) {
  Pack(w.Floats());
}

void RramConv::PackCells(const float* w, AlignedFloats* packed) const {
  const Index steps = conv_.depth * conv_.Window();
  *packed = AlignedFloats(conv_.columns * steps);
  PackColumnBlocks(w, conv_.group, conv_.GroupColumns(), steps,
                   CeilDiv(conv_.GroupColumns(), kernels_.max_rows), packed->data());
}

void RramConv::Pack(const float* w) {
  if (PackPairs(w)) return;
  PackCells(w, &packed_);
  const Index steps = conv_.depth * conv_.Window();
  const Index tile = CeilDiv(conv_.depth, periphery_.num_reads()) * conv_.Window();
  for (Index k = 0; k < steps; k += tile) {
    readout_.tiles.push_back({{k, std::min(k + tile, steps)}, k == 0, k + tile >= steps});
  }
  PackReadout();
  if (!periphery_.stored_sums()) return;

  for (const ConvTile& whole : readout_.tiles) {
    sums_.emplace_back();
    sums_.back().tiles.push_back({whole.k, true, true});
  }
  window_sums_.tiles.push_back({{0, conv_.Window()}, true, true});
  if (periphery_.iv.on) {
    for (int term = 0; term < 2; ++term) {
      PackCells(periphery_.iv.Cells(term, w, conv_.columns * steps, steps).data(), &terms_[term]);
    }
  }
  if (periphery_.noise.by_cell()) {
    PackCells(periphery_.noise.Cells(w, conv_.columns * steps, steps).data(), &squares_);
    kernels_.square(squares_.data(), squares_.data(), conv_.columns * steps);
  }
}

void RramConv::PackReadout() {
  ones_ = AlignedFloats(conv_.Window());
  std::fill_n(ones_.data(), conv_.Window(), 1.0f);
  if (!periphery_.has_adc) return;
  readout_.top = periphery_.adc_top;
  readout_.gain = periphery_.Gain(0);
  readout_.offset = periphery_.Offset(0);
  readout_.back = periphery_.adc_back.data();
  readout_.tile_columns = periphery_.adc_tiles == 1 ? 0 : conv_.columns;
}

// Packs int16 pairs and returns true where the sums are integers.
bool RramConv::PackPairs(const float* w) {
  if (!ReadsAtOnce() || !periphery_.has_adc) return false;
  const Index window = conv_.Window();
  const Index steps = conv_.depth * window;
  pairs_ = {conv_.depth, CeilDiv(conv_.depth, periphery_.num_reads())};
  integer_cells_ =
      FindIntegers(periphery_, w, conv_.columns, steps, pairs_.tile * window, {steps, 1});
  if (!integer_cells_) return false;
  const Index pairs = pairs_.NumPairs();
  std::vector<std::uint32_t> cells(static_cast<std::size_t>(conv_.columns * pairs * window));
  for (Index m = 0; m < conv_.columns; ++m) {
    for (Index p = 0; p < pairs; ++p) {
      const PairLayout::Pair pair = pairs_.At(p);
      const Index first = m * steps + pair.first * window;
      const Index second = m * steps + pair.second * window;
      std::uint32_t* const to = cells.data() + (m * pairs + p) * window;
      for (Index q = 0; q < window; ++q) {
        to[q] = integer_cells_->PackPair(first + q, pair.second < 0 ? -1 : second + q);
      }
    }
  }
  packed_ = AlignedFloats(conv_.columns * pairs * window);
  PackColumnBlocks(cells.data(), conv_.group, conv_.GroupColumns(), pairs * window,
                   CeilDiv(conv_.GroupColumns(), kernels_.max_rows),
                   reinterpret_cast<std::uint32_t*>(packed_.data()));
  for (Index t = 0; t < pairs_.NumTiles(); ++t) {
    const Range part = pairs_.OfTile(t);
    readout_.tiles.push_back(
        {{part.begin * window, part.end * window}, t == 0, t + 1 == pairs_.NumTiles()});
  }
  PackReadout();
  pair_gain_ = integer_cells_->Scaled(periphery_.adc_gain, periphery_.pair_unit);
  readout_.gain = pair_gain_.data();
  pair_deviation_ = integer_cells_->Unscaled(periphery_.noise.deviation);
  return true;
}

const RramConv& RramConv::Floats() const {
  std::call_once(floats_once_, [&] {
    const Index steps = conv_.depth * conv_.Window();
    const std::vector<float> w = integer_cells_->Weights(conv_.columns, {steps, 1});
    Periphery periphery = periphery_;
    periphery.pair_max = 0.0f;
    floats_.reset(new RramConv(conv_, w.data(), std::move(periphery)));
  });
  return *floats_;
}

RramConv::RramConv(const ConvAttributes& conv, const float* w, Periphery periphery)
    : kernels_(ActiveKernels()), conv_(conv), periphery_(std::move(periphery)) {
  Pack(w);
}

RramConv::Shaped RramConv::ShapedFor(const Tensor& x) const {
  Dims y_dims;
  ConvShape shape = ShapeOf(conv_, x, &y_dims);
  shape.batch = std::max<Index>(shape.batch, 1);  // there is no plan of no image
  ConvAttributes conv = conv_;
  if (integer_cells_) conv.depth = pairs_.NumPairs();
  const bool strips = ReadsAtOnce() && !periphery_.has_adc && !periphery_.noise.on;
  Shaped shaped{y_dims, ConvPlan(conv, shape, true, kernels_, 0, false, true, strips), {}};
  if (shaped.plan.is_strips()) shaped.strips.emplace(shaped.plan);
  return shaped;
}

Output RramConv::ComputeRun(const Context& context, const ReadRun& read) const {
  const Tensor x = context.Input(0);
  const auto shaped = shaped_.For(x.dims, [&] { return ShapedFor(x); });
  const Dims& y_dims = shaped->y_dims;
  const ConvPlan& plan = shaped->plan;
  float* const y = context.Output(0, y_dims);
  if (y_dims.Count() == 0) return {y, y_dims};
  if (!ReadsAtOnce()) {
    // The planes of a bit-serial input overwrite each other, so items can't share it.
    Dims dims;
    const ConvPlan stored(conv_, ShapeOf(conv_, x, &dims), periphery_.num_planes() == 1, kernels_);
    ComputeStored(context, stored, x.Floats(), y, read);
    return {y, y_dims};
  }
  bool has_nan = false;
  WithEngine(*shaped, x.Floats(), [&](const ConvEngine& engine) {
    const std::vector<ConvPass> passes = engine.PlanPasses(readout_);
    engine.Run(context, NoiseFloats(plan), nullptr, [&](const ConvPlace& place) {
      ComputeGroup(engine, plan, place, passes, y, nullptr, read, place.extra);
    });
    has_nan = engine.inputs().has_nan();
  });
  return has_nan ? Floats().ComputeRun(context, read) : Output{y, y_dims};
}

Index RramConv::NoiseFloats(const ConvPlan& plan) const {
  if (!periphery_.noise.on) return 0;
  return (static_cast<Index>(readout_.tiles.size()) + 1) * plan.MaxPositions() +
         ConvNoise::ZFloats(plan) + plan.scratch_floats() + RoundUp(conv_.Window(), 16);
}

ConvNoise RramConv::NoiseOf(const ConvEngine& engine, const ConvPlan& plan, const ConvPlace& place,
                            const ReadRun& read, float* memory) const noexcept {
  const auto num_tiles = static_cast<Index>(readout_.tiles.size());
  const Index row = plan.MaxPositions();
  auto* const places = reinterpret_cast<std::uint32_t*>(memory + num_tiles * row);
  auto* const z = places + row;
  float* const squares = memory + (num_tiles + 1) * row + ConvNoise::ZFloats(plan);
  engine.tiling().FillPlaces(place, read.first_image, places);
  for (Index tile = 0; tile < num_tiles; ++tile) {
    const Range k = readout_.tiles[static_cast<std::size_t>(tile)].k;
    const Range channels{k.begin / conv_.Window(), k.end / conv_.Window()};
    FillVariance(engine, plan, place, channels, squares, memory + tile * row);
  }
  kernels_.root(memory, memory, num_tiles * row);
  const Index column0 = place.group * plan.columns();
  const auto& deviation = integer_cells_ ? pair_deviation_ : periphery_.noise.deviation;
  return {
      memory, row, places, deviation.data() + column0, column0, periphery_.Draws(read.number, 0, 0),
      z};
}

void RramConv::SquareColumns(const float* x, Index x_row, Index rows, float* y,
                             Index count) const noexcept {
  if (integer_cells_) {
    kernels_.pair_column_squares(reinterpret_cast<const std::uint32_t*>(x), x_row, rows, y, count);
  } else {
    kernels_.column_squares(x, x_row, rows, y, count);
  }
}

// variance: sums of x^2 over `channels` of every window, in the order of the lanes.
void RramConv::FillVariance(const ConvEngine& engine, const ConvPlan& plan, const ConvPlace& place,
                            Range channels, float* squares, float* variance) const noexcept {
  if (plan.is_panels()) {
    const Index panel = plan.panel_row();
    const Index positions = place.item.images.size() * plan.BandSize(place.item);
    for (Index p = 0; p < positions; p += panel) {
      const Index at = (p / panel * plan.conv().depth + channels.begin) * panel;
      SquareColumns(place.input + at, panel, channels.size(), variance + p, panel);
    }
    return;
  }
  auto* const offsets = reinterpret_cast<std::int32_t*>(squares + plan.scratch_floats());
  SquareChannels(plan, place, channels, squares, offsets);
  ConvPlace summed = place;
  summed.input = squares;
  summed.offsets = offsets;
  engine.SumVecs(summed, ones_.data(), conv_.Window(), variance);
}

void RramConv::ComputeGroup(const ConvEngine& engine, const ConvPlan& plan, const ConvPlace& place,
                            const std::vector<ConvPass>& passes, float* y,
                            const ConvPostOps* post_ops, const ReadRun& read,
                            float* memory) const noexcept {
  const ConvCells cells = CellsOf(plan, place.group);
  const ConvOutput output = OutputOf(plan, place, y);
  const Index column0 = place.group * plan.columns();
  if (!periphery_.noise.on) {
    engine.Compute(place, cells, readout_, passes, column0, output, post_ops);
    return;
  }
  const ConvNoise noise = NoiseOf(engine, plan, place, read, memory);
  engine.Compute(place, cells, readout_, passes, column0, output, post_ops, &noise);
}

ConvCells RramConv::CellsOf(const ConvPlan& plan, Index group) const noexcept {
  return {packed_.data() + group * plan.columns() * plan.num_offsets(), plan.columns(),
          plan.num_blocks()};
}

// The output of a group of an item in y.
ConvOutput RramConv::OutputOf(const ConvPlan& plan, const ConvPlace& place,
                              float* y) const noexcept {
  const Index volume = plan.shape().OutVolume();
  const Index column = place.item.images.begin * conv_.columns + place.group * plan.columns();
  return {y + column * volume + plan.BandOffset(place.item), volume, conv_.columns * volume};
}

// Floats that a task needs for Memory.
Index RramConv::TaskFloats(const ConvPlan& plan) const {
  const Index positions = plan.images_per_item() * plan.MaxBandSize();
  const Index block = RoundUp(kernels_.max_rows * positions, 16);
  const Index terms = periphery_.iv.on ? block + 2 * plan.scratch_floats() : Index{0};
  return 2 * block + kernels_.max_rows * RoundUp(positions, 16) + plan.scratch_floats() +
         RoundUp(conv_.Window(), 16) + terms;
}

void RramConv::ComputeStored(const Context& context, const ConvPlan& plan, const float* x, float* y,
                             const ReadRun& read) const {
  const kernels::Quantizer line = periphery_.Line(0);
  const FloatInputs inputs(plan, kernels_, periphery_.has_line ? &line : nullptr, x);
  const ConvSums sums(plan, kernels_, inputs);
  const Run run{plan, sums, y, read};
  sums.Run(context, TaskFloats(plan), [&](const ConvPlace& place) { StoreTask(run, place); });
}

void RramConv::StoreTask(const Run& run, const ConvPlace& place) const noexcept {
  const ConvPlan& plan = run.plan;
  const Index block_floats = RoundUp(kernels_.max_rows * run.Positions(), 16);
  const Index z_floats = kernels_.max_rows * RoundUp(run.Positions(), 16);
  Memory memory{};
  memory.partial = place.extra;
  memory.z = reinterpret_cast<std::uint32_t*>(memory.partial + block_floats);
  memory.variance = memory.partial + block_floats + z_floats;
  memory.squares = memory.variance + block_floats;
  memory.offsets = reinterpret_cast<std::int32_t*>(memory.squares + plan.scratch_floats());
  if (periphery_.iv.on) {
    memory.term_sums = memory.squares + plan.scratch_floats() + RoundUp(conv_.Window(), 16);
    memory.terms[0] = memory.term_sums + block_floats;
    memory.terms[1] = memory.terms[0] + plan.scratch_floats();
  }

  const Index column0 = place.group * plan.columns();
  const Index at = column0 * plan.num_offsets();
  const ConvCells cells{packed_.data() + at, plan.columns(), plan.num_blocks()};
  ConvPlace squared = place;
  squared.input = memory.squares;
  const bool relative = squares_.size() > 0;
  const Index band = plan.BandSize(place.item);
  for (Index plane = 0; plane < periphery_.num_planes(); ++plane) {
    const kernels::Quantizer line = periphery_.Line(plane);
    if (plane > 0) {
      const FloatInputs digits(plan, kernels_, &line, run.sums.inputs().x());
      digits.Copy(place.item, place.group, {0, plan.conv().depth}, place.input);
    }
    if (relative) kernels_.square(place.input, memory.squares, plan.scratch_floats());
    if (periphery_.iv.on) {
      periphery_.DriveTerms(plane, place.input, plan.scratch_floats(), memory.terms[0],
                            memory.terms[1]);
    }
    for (std::size_t tile = 0; tile < sums_.size(); ++tile) {
      if (periphery_.noise.on && !relative) {
        const Range k = sums_[tile].tiles[0].k;
        ChannelSquares(run, place, {k.begin / conv_.Window(), k.end / conv_.Window()}, memory);
      }
      for (Index b = place.item.blocks.begin; b < place.item.blocks.end; ++b) {
        const Range columns = Part(plan.columns(), plan.num_blocks(), b);
        // The engine counts columns from the group's first one.
        const auto output = [&](float* data) -> ConvOutput {
          return {data - columns.begin * band, band, columns.size() * band};
        };
        run.sums.Compute(place, cells, {b, b + 1}, sums_[tile], column0, output(memory.partial));
        for (int term = 0; term < (memory.term_sums != nullptr ? 2 : 0); ++term) {
          ConvPlace more = place;
          more.input = memory.terms[term];
          const ConvCells terms{terms_[term].data() + at, plan.columns(), plan.num_blocks()};
          run.sums.Compute(more, terms, {b, b + 1}, sums_[tile], column0, output(memory.term_sums));
          const Index count = place.item.images.size() * columns.size() * band;
          for (Index i = 0; i < count; ++i) memory.partial[i] += memory.term_sums[i];
        }
        if (relative) {
          const ConvCells squares{squares_.data() + at, plan.columns(), plan.num_blocks()};
          run.sums.Compute(squared, squares, {b, b + 1}, sums_[tile], column0,
                           output(memory.variance));
        }
        ReadBlock(run, place, memory, columns, plane, static_cast<Index>(tile));
      }
    }
  }
}

// squares: sums of x^2 over `channels` of every phase of an input. offsets: of the kernel's
// positions in them.
void RramConv::SquareChannels(const ConvPlan& plan, const ConvPlace& place, Range channels,
                              float* squares, std::int32_t* offsets) const noexcept {
  const Index depth = plan.conv().depth;
  const Index channel = plan.images_per_item() * plan.plane();
  const auto phases =
      static_cast<Index>(plan.phases(0).size() * plan.phases(1).size() * plan.phases(2).size());
  for (Index phase = 0; phase < phases; ++phase) {
    SquareColumns(place.input + (phase * depth + channels.begin) * channel, channel,
                  channels.size(), squares + phase * channel, channel);
  }
  // A phase is `depth` channels away from the next one in place.input, and one channel here.
  const Index phase_floats = depth * channel;
  for (Index q = 0; q < conv_.Window(); ++q) {
    const Index offset = place.offsets[q];
    offsets[q] = static_cast<std::int32_t>(offset / phase_floats * channel + offset % phase_floats);
  }
}

// variance [images, band]: of every window, the sum of x^2 over `channels`, first over channels,
// then over the kernel's positions.
void RramConv::ChannelSquares(const Run& run, const ConvPlace& place, Range channels,
                              const Memory& memory) const noexcept {
  const ConvPlan& plan = run.plan;
  SquareChannels(plan, place, channels, memory.squares, memory.offsets);
  ConvPlace summed = place;
  summed.input = memory.squares;
  summed.offsets = memory.offsets;
  const Index band = plan.BandSize(place.item);
  run.sums.Compute(summed, {ones_.data(), 1, 1}, {0, 1}, window_sums_, 0,
                   {memory.variance, band, band});
}

// Reads the stored sums of a block of a group's columns: noise, ADC, and the digital sum.
void RramConv::ReadBlock(const Run& run, const ConvPlace& place, const Memory& memory,
                         Range columns, Index plane, Index tile) const noexcept {
  const ConvPlan& plan = run.plan;
  const Index volume = plan.shape().OutVolume();
  const Index band = plan.BandSize(place.item);
  const Index column0 = place.group * plan.columns() + columns.begin;
  const Index last_tile = static_cast<Index>(sums_.size()) - 1;
  const bool relative = squares_.size() > 0;
  const kernels::DrawKey key = periphery_.Draws(run.read.number, plane, tile);
  const Index z_row = RoundUp(band, kernels_.lanes);
  kernels::ReadArgs args{};
  args.top = periphery_.adc_top;
  args.weight = periphery_.PlaneWeight(plane);
  args.first = plane == 0 && tile == 0;
  args.last = plane + 1 == periphery_.num_planes() && tile == last_tile;
  args.count = band;
  args.variance_each = true;
  const float* const gain = periphery_.Gain(tile);
  const float* const offset = periphery_.Offset(tile);
  for (Index n = 0; n < place.item.images.size(); ++n) {
    const Index image = place.item.images.begin + n;
    const Index start = (image * conv_.columns + column0) * volume + plan.BandOffset(place.item);
    if (periphery_.noise.on) {
      const Index first = (run.read.first_image + image) * volume + plan.BandOffset(place.item);
      kernels_.draw({key, static_cast<std::uint64_t>(column0), columns.size(),
                     static_cast<std::uint32_t>(first), nullptr, band, memory.z, z_row});
    }
    for (Index i = 0; i < columns.size(); ++i) {
      const Index at = (n * columns.size() + i) * band;
      args.partial = memory.partial + at;
      if (periphery_.noise.on) {
        args.z = memory.z + i * z_row;
        args.variance = memory.variance + (relative ? at : n * band);
        args.deviation = periphery_.noise.deviation.data() + column0 + i;
      }
      args.gain = gain == nullptr ? nullptr : gain + column0 + i;
      args.offset = offset == nullptr ? nullptr : offset + column0 + i;
      args.back = gain == nullptr ? nullptr : periphery_.adc_back.data() + column0 + i;
      args.y = run.y + start + i * volume;
      kernels_.read_rows(args);
    }
  }
}

}  // namespace rimc
