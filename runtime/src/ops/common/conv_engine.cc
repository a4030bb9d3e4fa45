// SPDX-License-Identifier: Apache-2.0
#include "ops/common/conv_engine.h"

#include <cstring>

#include "kernels/unroll.h"

namespace rimc {
namespace {

// Channels whose phases are copied together, of a few kilobytes each.
constexpr Index kCopiedTogether = 8;
// Those whose input is asked for are so many channels ahead.
constexpr Index kChannelsAhead = 2;

}  // namespace

Axes ConvEngine::BandOut(const ConvItem& item) const {
  Axes out = plan_.shape().out;
  out[static_cast<std::size_t>(plan_.band_axis())] = item.band.size();
  return plan_.is_woven() ? Axes{out[0], 1, out[1] * out[2]} : out;
}

Axes ConvEngine::Extent() const {
  const Axes& extent = plan_.extent();
  return plan_.is_woven() ? Axes{extent[0], 1, extent[1] * extent[2]} : extent;
}

ConvEngine::Inside ConvEngine::FindInside(const ConvItem& item, std::size_t axis,
                                          Index phase) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Index stride = conv.strides[axis];
  const Index extent = plan_.extent()[axis];
  const Index in = plan_.shape().in[axis];
  const bool is_band = axis == static_cast<std::size_t>(plan_.band_axis());
  const Index origin = (is_band ? item.band.begin * stride : 0) - conv.pads_begin[axis] + phase;
  const Index low = std::min(origin < 0 ? CeilDiv(-origin, stride) : 0, extent);
  const Index end = in > origin ? CeilDiv(in - origin, stride) : 0;
  return {low, std::clamp(end, low, extent), origin + low * stride};
}

void ConvEngine::CopyInput(const ConvItem& item, Index g, Range channels,
                           const kernels::Quantizer* quantizer, float* memory) const noexcept {
  const Sources sources = FindSources(item);
  // All phases of a few channels, which are in the L1 cache then.
  for (Index c = channels.begin; c < channels.end; c += kCopiedTogether) {
    const Range few{c, std::min(c + kCopiedTogether, channels.end)};
    CopyPhases(item, g, few, quantizer, sources, memory);
  }
}

void ConvEngine::CopyPhases(const ConvItem& item, Index g, Range channels,
                            const kernels::Quantizer* quantizer, const Sources& sources,
                            float* memory) const noexcept {
  const Index phase_floats = plan_.conv().depth * plan_.images_per_item() * plan_.plane();
  const auto& phases2 = plan_.phases(2);
  const auto source_of = [&](std::size_t i) { return i < sources.size() ? sources[i] : i; };
  const auto at = [&](std::size_t i) { return static_cast<Index>(i) * phase_floats; };
  for (const Index phase0 : plan_.phases(0)) {
    const Inside d = FindInside(item, 0, phase0);
    for (const Index phase1 : plan_.phases(1)) {
      const Inside h = FindInside(item, 1, phase1);
      for (std::size_t i = 0; i < phases2.size(); ++i) {
        if (source_of(i) != i) continue;
        const Inside w = FindInside(item, 2, phases2[i]);
        CopyPhase(item, g, channels, {d, h, w}, quantizer, memory + at(i));
      }
      for (std::size_t i = 0; i < phases2.size(); ++i) {
        const std::size_t source = source_of(i);
        if (source == i) continue;
        ShiftPhase(memory + at(source), FindInside(item, 2, phases2[source]), channels,
                   FindInside(item, 2, phases2[i]), memory + at(i));
      }
      memory += at(phases2.size());
    }
  }
}

ConvEngine::Sources ConvEngine::FindSources(const ConvItem& item) const noexcept {
  Sources sources{};
  for (std::size_t i = 0; i < std::min(sources.size(), plan_.phases(2).size()); ++i) {
    sources[i] = SourceOf(item, i);
  }
  return sources;
}

// The phase of a woven plan that has all input positions of phase i of the last axis, and is
// copied from the input: i itself, or another one of which i is the same, shifted.
std::size_t ConvEngine::SourceOf(const ConvItem& item, std::size_t i) const noexcept {
  const auto& phases = plan_.phases(2);
  const Index stride = plan_.conv().strides[2];
  const Inside own = FindInside(item, 2, phases[i]);
  if (!plan_.is_woven() || own.size() == 0) return i;
  std::size_t source = i;
  Index most = own.size();
  for (std::size_t j = 0; j < std::min(phases.size(), kMaxSources); ++j) {
    if (phases[j] % stride != phases[i] % stride) continue;
    const Inside w = FindInside(item, 2, phases[j]);
    const bool covers = w.at <= own.at && own.at + own.size() * stride <= w.at + w.size() * stride;
    if (!covers || w.size() < most || (w.size() == most && j >= source)) continue;
    source = j;
    most = w.size();
  }
  return source;
}

// A phase, which is `own` inside, from one that is `w` inside and has all of it.
void ConvEngine::ShiftPhase(const float* source, const Inside& w, Range channels, const Inside& own,
                            float* to) const noexcept {
  const Index width = plan_.extent()[2];
  const Index channel_floats = plan_.images_per_item() * plan_.plane();
  const Index first = channels.begin * channel_floats;
  const Index floats = channels.size() * channel_floats;
  const Index from = w.low + (own.at - w.at) / plan_.conv().strides[2];
  // All rows as one, and then what came from the rows beside.
  kernels::CopyArgs args{};
  args.from = source + first + from;
  args.stride = 1;
  args.to = to + first + own.low;
  args.rows = 1;
  args.width = floats - std::max(from, own.low);
  kernels_.copy_rows(args);
  if (own.size() == width) return;
  float zero = 0.0f;
  ClearPlanes(&zero, 1);
  for (float* row = to + first; row < to + first + floats; row += width) {
    for (Index j = 0; j < own.low; ++j) row[j] = zero;
    for (Index j = own.high; j < width; ++j) row[j] = zero;
  }
}

void ConvEngine::ClearPlanes(float* to, Index floats) const noexcept {
  // The code 0 is the byte 128.
  std::memset(to, code_channels_ == 0 ? 0 : 128, static_cast<std::size_t>(floats) * sizeof(float));
}

void ConvEngine::CopyPhase(const ConvItem& item, Index g, Range channels, const PhaseParts& parts,
                           const kernels::Quantizer* quantizer, float* memory) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const Index in_plane = in[0] * in[1] * in[2];
  float* to = memory + channels.begin * plan_.images_per_item() * plan_.plane();
  if (code_channels_ == 0 && plan_.extent()[0] == 1 && parts[0].size() == 1) {
    CopyChannels(item, g, channels, parts, quantizer, to);
    return;
  }
  for (Index c = channels.begin; c < channels.end; ++c) {
    if (code_channels_ == 0 && c + kChannelsAhead < conv.depth) {
      const Index first = (item.images.begin * conv.group + g) * conv.depth + c + kChannelsAhead;
      PrefetchRows(parts, x_ + first * in_plane);
    }
    for (Index n = 0; n < item.images.size(); ++n) {
      const Index group = (item.images.begin + n) * conv.group + g;
      Channels from{};
      if (code_channels_ == 0) {
        from.from[0] = x_ + (group * conv.depth + c) * in_plane;
      } else {
        for (Index j = 0; j < std::min<Index>(4, code_channels_ - 4 * c); ++j) {
          from.from[j] = x_ + (group * code_channels_ + 4 * c + j) * in_plane;
        }
      }
      CopyPlane(parts, from, quantizer, to + n * plan_.plane());
    }
    to += plan_.images_per_item() * plan_.plane();
  }
}

// Asks for the rows of a channel that a phase reads, of its first plane.
void ConvEngine::PrefetchRows(const PhaseParts& parts, const float* channel) const noexcept {
  constexpr Index kLine = 16;
  const Index width = plan_.shape().in[2];
  const auto& [d, h, w] = parts;
  const float* row = channel + (d.at * plan_.shape().in[1] + h.at) * width;
  for (Index i = 0; i < h.size(); ++i) {
    for (Index j = 0; j < width; j += kLine) RIMC_PREFETCH(row + j);
    row += plan_.conv().strides[1] * width;
  }
}

// A phase of several channels at once, where there is one depth.
void ConvEngine::CopyChannels(const ConvItem& item, Index g, Range channels,
                              const PhaseParts& parts, const kernels::Quantizer* quantizer,
                              float* to) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const auto& [d, h, w] = parts;
  kernels::CopyArgs args{};
  args.from_row = conv.strides[1] * in[2];
  args.stride = conv.strides[2];
  args.to_row = plan_.extent()[2];
  args.rows = h.size();
  args.width = w.size();
  args.quantizer = quantizer;
  args.planes = channels.size();
  args.from_plane = in[0] * in[1] * in[2];
  args.to_plane = plan_.images_per_item() * plan_.plane();
  args.before = h.low * args.to_row + w.low;
  args.size = plan_.plane();
  for (Index n = 0; n < item.images.size(); ++n) {
    const Index channel = ((item.images.begin + n) * conv.group + g) * conv.depth + channels.begin;
    args.from = x_ + channel * args.from_plane + (d.at * in[1] + h.at) * in[2] + w.at;
    args.to = to + n * plan_.plane();
    kernels_.copy_rows(args);
  }
}

// Rows of one channel, or of four as words, from `at` on; `rows` says where to and how many.
void ConvEngine::CopyRows(const Channels& channels, Index at, const kernels::Quantizer* quantizer,
                          const kernels::CopyArgs& rows) const noexcept {
  if (code_channels_ == 0) {
    kernels::CopyArgs args = rows;
    args.from = channels.from[0] + at;
    args.quantizer = quantizer;
    kernels_.copy_rows(args);
    return;
  }
  kernels::PackArgs args{};
  for (Index j = 0; j < 4; ++j) {
    if (channels.from[j] != nullptr) args.from[j] = channels.from[j] + at;
  }
  args.from_row = rows.from_row;
  args.stride = rows.stride;
  args.to = reinterpret_cast<std::uint32_t*>(rows.to);
  args.to_row = rows.to_row;
  args.rows = rows.rows;
  args.width = rows.width;
  args.divisor = code_divisor_;
  if (!kernels_.codes->pack_codes(args)) has_nan_.store(true, std::memory_order_relaxed);
}

// One phase of one channel of one image, or of four as words.
void ConvEngine::CopyPlane(const PhaseParts& parts, const Channels& channels,
                           const kernels::Quantizer* quantizer, float* to) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const Axes& extent = plan_.extent();
  const auto& [d, h, w] = parts;
  if (d.size() < extent[0] || h.size() < extent[1] || w.size() < extent[2]) {
    ClearPlanes(to, plan_.plane());
  }
  kernels::CopyArgs args{};
  args.from_row = conv.strides[1] * in[2];
  args.stride = conv.strides[2];
  args.to_row = extent[2];
  args.rows = h.size();
  args.width = w.size();
  for (Index i = d.low; i < d.high; ++i) {
    const Index in_d = d.at + (i - d.low) * conv.strides[0];
    args.to = to + (i * extent[1] + h.low) * extent[2] + w.low;
    CopyRows(channels, (in_d * in[1] + h.at) * in[2] + w.at, quantizer, args);
  }
}

// Vectors of positions of an item.
Index ConvEngine::NumVecs(const ConvItem& item) const noexcept {
  const Axes out = BandOut(item);
  const Axes extent = Extent();
  if (plan_.by_rows()) return out[0] * out[1] * CeilDiv(out[2], kernels_.lanes);
  const Index positions = (item.images.size() - 1) * plan_.plane() +
                          ((out[0] - 1) * extent[1] + out[1] - 1) * extent[2] + out[2];
  return CeilDiv(positions, kernels_.lanes);
}

template <class Body>
void ConvEngine::ForBlocks(const Place& place, Index columns, Index num_blocks, Range blocks,
                           const ConvOutput& output, const Body& body) const {
  const Index num_vecs = NumVecs(place.item);
  const Index block_vecs =
      std::min<Index>(kernels::kMaxVecs, kernels_.max_accumulators / CeilDiv(columns, num_blocks));
  const Index parts = CeilDiv(num_vecs, block_vecs);
  for (Index part = 0; part < parts; ++part) {
    Block block{Part(num_vecs, parts, part), {0, 0}};
    kernels::BlockArgs aim{};
    AimAt(place, block.vecs, output, &aim);
    for (Index b = blocks.begin; b < blocks.end; ++b) {
      const Index before = block.columns.begin;
      block.columns = Part(columns, num_blocks, b);
      if (plan_.by_rows()) {
        const Index step = (block.columns.begin - before) * output.column;
        for (Index v = 0; v < block.vecs.size(); ++v) aim.c[v] += step;
      }
      body(block, aim);
      if (!plan_.by_rows()) {
        Drop(place, block, place.local,
             {output.data + block.columns.begin * output.column, output.column, output.image});
      }
    }
  }
}

void ConvEngine::Compute(const Place& place, const ConvCells& cells, Range blocks,
                         const ConvReadout& readout, Index column0,
                         const ConvOutput& output) const noexcept {
  const auto body = [&](const Block& block, kernels::BlockArgs& args) {
    ComputeBlock(place, block, cells.packed, readout, column0, &args);
  };
  ForBlocks(place, cells.columns, cells.num_blocks, blocks, output, body);
}

template <class Body>
void ConvEngine::ForListBlocks(const Place& place, Range columns, const Body& body) const {
  const Index num_vecs = NumVecs(place.item);
  const Index block_vecs = std::min<Index>(kernels::kMaxVecs, kernels_.max_accumulators);
  const Index parts = CeilDiv(num_vecs, block_vecs);
  for (Index part = 0; part < parts; ++part) {
    const Range vecs = Part(num_vecs, parts, part);
    // What a block leaves in place.local has to fit there.
    const Index rows = plan_.by_rows() ? columns.size() : kernels_.max_accumulators / vecs.size();
    for (Index column = 0; column < columns.size(); column += rows) {
      body(Block{vecs, {column, std::min(column + rows, columns.size())}});
    }
  }
}

void ConvEngine::ComputeSparse(const Place& place, const SparseColumns& cells, Range columns,
                               const std::int32_t* cell_offsets,
                               const ConvOutput& output) const noexcept {
  const SparseColumns group{cells.starts + columns.begin, cells.steps,
                            cells.values + cells.starts[columns.begin]};
  ForListBlocks(place, columns, [&](const Block& block) {
    ComputeLists(place, block, group, cell_offsets, output);
  });
}

// Aims the vectors of a block at their inputs and at their places in the block's first column:
// in the output, or in place.local where vectors run on over rows.
void ConvEngine::AimAt(const Place& place, Range vecs, const ConvOutput& output,
                       kernels::BlockArgs* args) const noexcept {
  const Index lanes = kernels_.lanes;
  if (!plan_.by_rows()) {
    for (Index v = 0; v < vecs.size(); ++v) {
      args->b[v] = place.input + (vecs.begin + v) * lanes;
      args->c[v] = place.local + v * lanes;
      args->lanes[v] = static_cast<int>(lanes);
    }
    args->c_row = vecs.size() * lanes;
    return;
  }
  const Axes out = BandOut(place.item);
  const Axes extent = Extent();
  const Index row_vecs = CeilDiv(out[2], lanes);
  for (Index v = 0; v < vecs.size(); ++v) {
    const Index row = (vecs.begin + v) / row_vecs;
    const Index w = (vecs.begin + v) % row_vecs * lanes;
    args->b[v] = place.input + (row / out[1] * extent[1] + row % out[1]) * extent[2] + w;
    args->c[v] = output.data + row * out[2] + w;
    args->lanes[v] = static_cast<int>(std::min(lanes, out[2] - w));
  }
  args->c_row = output.column;
}

void ConvEngine::ComputeBlock(const Place& place, const Block& block, const float* packed,
                              const ConvReadout& readout, Index column0,
                              kernels::BlockArgs* args) const noexcept {
  const Index rows = block.columns.size();
  const Index column = column0 + block.columns.begin;
  const bool has_adc = readout.gain != nullptr;
  args->gain = has_adc ? readout.gain + column : nullptr;
  args->offset = readout.offset != nullptr ? readout.offset + column : nullptr;
  args->back = has_adc ? readout.back + column : nullptr;
  args->top = readout.top;
  const float* const a = packed + block.columns.begin * plan_.num_offsets();
  const auto kernel = kernels_.conv_block[rows - 1][block.vecs.size() - 1];
  for (const ConvTile& tile : readout.tiles) {
    args->a = a + tile.k.begin * rows;
    args->b_offset = place.offsets + tile.k.begin;
    args->depth = tile.k.size();
    args->first = tile.first;
    args->last = tile.last;
    kernel(*args);
    if (has_adc) args->gain += readout.tile_columns;
    if (args->offset != nullptr) args->offset += readout.tile_columns;
  }
}

// A column is a block of one row that has its own depth and its own offsets. `cells` are of the
// group.
void ConvEngine::ComputeLists(const Place& place, const Block& block, const SparseColumns& cells,
                              const std::int32_t* cell_offsets,
                              const ConvOutput& output) const noexcept {
  const ConvOutput first{output.data + block.columns.begin * output.column, output.column,
                         output.image};
  const Index num_vecs = block.vecs.size();
  kernels::BlockArgs args{};
  AimAt(place, block.vecs, first, &args);
  const auto kernel = kernels_.conv_block[0][num_vecs - 1];
  for (Index m = block.columns.begin; m < block.columns.end; ++m) {
    const Index begin = cells.starts[m] - cells.starts[0];
    args.a = cells.values + begin;
    args.b_offset = cell_offsets + begin;
    args.depth = cells.starts[m + 1] - cells.starts[m];
    kernel(args);
    for (Index v = 0; v < num_vecs; ++v) args.c[v] += args.c_row;
  }
  if (!plan_.by_rows()) Drop(place, block, place.local, first);
}

namespace {

// The arguments of a block of words, from those that AimAt gives.
kernels::CodeBlockArgs WordsAt(const kernels::BlockArgs& aim) {
  kernels::CodeBlockArgs args{};
  for (int v = 0; v < kernels::kMaxVecs; ++v) {
    args.b[v] = reinterpret_cast<const std::uint32_t*>(aim.b[v]);
    args.c[v] = aim.c[v];
    args.lanes[v] = aim.lanes[v];
  }
  args.c_row = aim.c_row;
  return args;
}

}  // namespace

void ConvEngine::ComputeCodes(const Place& place, const CodeCells& cells, const float* rank_step,
                              const ConvOutput& output) const noexcept {
  const Index depth = plan_.num_offsets();
  const auto body = [&](const Block& block, const kernels::BlockArgs& aim) {
    const Index column = block.columns.begin;
    kernels::CodeBlockArgs args = WordsAt(aim);
    args.a = cells.packed + column * depth;
    args.start = cells.start + column;
    args.b_offset = place.offsets;
    args.depth = depth;
    args.rank_step = rank_step == nullptr ? nullptr : rank_step + column;
    kernels_.codes->code_block[block.columns.size() - 1][block.vecs.size() - 1](args);
  };
  ForBlocks(place, cells.columns, cells.num_blocks, {0, cells.num_blocks}, output, body);
}

void ConvEngine::ComputeCodeLists(const Place& place, const CodeLists& cells, Range columns,
                                  const std::int32_t* cell_offsets,
                                  const ConvOutput& output) const noexcept {
  const Index cell0 = cells.starts[columns.begin];
  ForListBlocks(place, columns, [&](const Block& block) {
    const Index column0 = block.columns.begin;
    const ConvOutput first{output.data + column0 * output.column, output.column, output.image};
    kernels::BlockArgs aim{};
    AimAt(place, block.vecs, first, &aim);
    kernels::CodeBlockArgs args = WordsAt(aim);
    const auto kernel = kernels_.codes->code_block[0][block.vecs.size() - 1];
    for (Index m = column0; m < block.columns.end; ++m) {
      const Index column = columns.begin + m;
      args.a = cells.words + cells.starts[column];
      args.start = cells.start + column;
      args.b_offset = cell_offsets + (cells.starts[column] - cell0);
      args.depth = cells.starts[column + 1] - cells.starts[column];
      kernel(args);
      for (Index v = 0; v < block.vecs.size(); ++v) args.c[v] += args.c_row;
    }
    if (!plan_.by_rows()) Drop(place, block, place.local, first);
  });
}

// Calls body(from, at, count) for the runs of `positions`, which go on over rows and images, that
// belong to the output: so many from positions.begin + `from` on are at `at` of an output's column.
template <class Body>
void ConvEngine::ForRuns(const ConvItem& item, Range positions, Index image,
                         const Body& body) const {
  const Axes out = BandOut(item);
  const Axes extent = Extent();
  for (Index p = positions.begin; p < positions.end;) {
    const Index line = p / extent[2];
    const Index w = p % extent[2];
    const Index next = std::min(p - w + extent[2], positions.end);
    const Index h = line % extent[1];
    const Index d = line / extent[1] % extent[0];
    const Index n = line / extent[1] / extent[0];
    if (w < out[2] && h < out[1] && d < out[0] && n < item.images.size()) {
      const Index at = n * image + (d * out[1] + h) * out[2] + w;
      body(p - positions.begin, at, std::min(next - p, out[2] - w));
    }
    p = next;
  }
}

// Copies what belongs to the output from a block `local` of positions that run on over rows and
// images. `output` is of the block's first column.
void ConvEngine::Drop(const Place& place, const Block& block, const float* local,
                      const ConvOutput& output) const noexcept {
  const Range positions{block.vecs.begin * kernels_.lanes, block.vecs.end * kernels_.lanes};
  ForRuns(place.item, positions, output.image, [&](Index from, Index at, Index count) {
    kernels::CopyArgs args{};
    args.from = local + from;
    args.from_row = positions.size();
    args.stride = 1;
    args.to = output.data + at;
    args.to_row = output.column;
    args.rows = block.columns.size();
    args.width = count;
    kernels_.copy_rows(args);
  });
}

// The other way round, from what lies as the output does. `from` is of the block's first column.
void ConvEngine::Gather(const Place& place, const Block& block, const float* from,
                        const ConvOutput& output, float* local) const noexcept {
  const Range positions{block.vecs.begin * kernels_.lanes, block.vecs.end * kernels_.lanes};
  ForRuns(place.item, positions, output.image, [&](Index to, Index at, Index count) {
    kernels::CopyArgs args{};
    args.from = from + at;
    args.from_row = output.column;
    args.stride = 1;
    args.to = local + to;
    args.to_row = positions.size();
    args.rows = block.columns.size();
    args.width = count;
    kernels_.copy_rows(args);
  });
}

}  // namespace rimc
