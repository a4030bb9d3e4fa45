// SPDX-License-Identifier: Apache-2.0
#include "conv/engine.h"

#include <algorithm>

namespace rimc {
namespace {

// Positions of an item from which on its channels are packed one by one.
constexpr Index kLongRow = 512;
// Copied inputs of which codes are made at a time: half of an L1 cache, with what they come from.
constexpr Index kPackFloats = 4096;

}  // namespace

bool ConvEngine::ReadsDirectly() const noexcept {
  const Index floats = plan_.conv().depth * plan_.shape().OutVolume();
  return plan_.is_panels() && plan_.images_per_item() == 1 && inputs_.is_plain() &&
         !copies_always_ && floats < kMaxSteps;
}

// Whether ComputeFused makes the codes of each part of the positions just before it reads them.
// Items that share their input share its codes too.
bool ConvEngine::CopiesCodesByPart() const noexcept {
  return ReadsDirectly() && plan_.sharers() == 1;
}

// The input of a group, and the codes of the branch.
void ConvEngine::PackInputs(const Place& place, const ConvInputs* branch) const noexcept {
  if (plan_.is_panels()) {
    PackPanels(place, branch);
    return;
  }
  const ConvItem& item = place.item;
  const Index g = place.group;
  const Index depth = plan_.conv().depth;
  const Index codes = branch == nullptr ? 0 : branch->plan().conv().depth;
  if (strips_ == nullptr && inputs_.is_plain() && branch != nullptr && branch->packs_copies()) {
    // Codes are made of the copy, while it is in the cache.
    const ConvInputs::Sources sources = inputs_.FindSources(item);
    const Index step =
        std::max<Index>(1, kPackFloats / (kQuadChannels * plan_.scratch_floats() / depth));
    for (Index quad = 0; quad < codes; quad += step) {
      const Range part{quad, std::min(quad + step, codes)};
      const Range channels{part.begin * kQuadChannels, std::min(part.end * kQuadChannels, depth)};
      inputs_.Copy(item, g, channels, sources, place.input);
      branch->PackCopied(place.input, part, sources, place.codes);
    }
    return;
  }
  if (strips_ != nullptr) {
    strip_inputs_->CopyStrips(*strips_, item, g, place.input);
  } else {
    inputs_.Copy(item, g, {0, depth}, place.input);
  }
  if (branch != nullptr) branch->Copy(item, g, {0, codes}, place.codes);
}

void ConvEngine::PackPanels(const Place& place, const ConvInputs* branch) const noexcept {
  const Index depth = plan_.conv().depth;
  const Index positions = place.item.images.size() * place.item.band.size();
  const Index panel = plan_.panel_row();
  const bool copies = !ReadsDirectly();
  if (!copies && positions % kernels_.lanes != 0) {
    const Range last{(positions - 1) / panel * panel, positions};
    inputs_.CopyPanels(place.item, place.group, {0, depth}, last, place.input);
  }
  if (!copies && (branch == nullptr || CopiesCodesByPart())) return;
  if (positions < kLongRow || place.item.images.size() > 1) {
    // Whole panels, whose rows are near each other in the input.
    for (Index p = 0; p < positions; p += panel) {
      const Range part{p, std::min(p + panel, positions)};
      if (copies) inputs_.CopyPanels(place.item, place.group, {0, depth}, part, place.input);
      if (branch == nullptr) continue;
      branch->CopyPanels(place.item, place.group, {0, branch->plan().conv().depth}, part,
                         place.codes);
    }
    return;
  }
  // Few channels at a time, of which the codes are made while they are in the cache.
  const Index parts = branch == nullptr ? 1 : branch->plan().conv().depth;
  for (Index i = 0; i < parts; ++i) {
    if (copies)
      inputs_.CopyPanels(place.item, place.group, Part(depth, parts, i), {0, positions},
                         place.input);
    if (branch != nullptr)
      branch->CopyPanels(place.item, place.group, {i, i + 1}, {0, positions}, place.codes);
  }
}

Axes ConvEngine::BandOut(const ConvItem& item) const {
  const Axes& out = plan_.shape().out;
  // Elements one by one: a load of all three would wait for the store of one at an index.
  const auto size = [&](int axis) {
    return axis == plan_.band_axis() ? item.band.size() : out[static_cast<std::size_t>(axis)];
  };
  return plan_.is_woven() ? Axes{size(0), 1, size(1) * size(2)} : Axes{size(0), size(1), size(2)};
}

Axes ConvEngine::Extent() const {
  const Axes& extent = plan_.extent();
  return plan_.is_woven() ? Axes{extent[0], 1, extent[1] * extent[2]} : extent;
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
    SetVectorPointers(place, block.vecs, output, &aim);
    for (Index b = blocks.begin; b < blocks.end; ++b) {
      const Index before = block.columns.begin;
      block.columns = Part(columns, num_blocks, b);
      if (plan_.by_rows()) {
        const Index step = (block.columns.begin - before) * output.column;
        for (Index v = 0; v < block.vecs.size(); ++v) aim.c[v] += step;
      }
      body(block, aim);
      if (!plan_.by_rows()) {
        ScatterRuns(
            place, block, place.local,
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
    // place.local holds one block of outputs.
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
void ConvEngine::SetVectorPointers(const Place& place, Range vecs, const ConvOutput& output,
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
  // A division takes as long as dozens of products.
  const bool is_row = out[0] * out[1] == 1;
  const Index row_vecs = is_row ? 0 : CeilDiv(out[2], lanes);
  Index row = is_row ? 0 : vecs.begin / row_vecs;
  Index w = (vecs.begin - row * row_vecs) * lanes;
  for (Index v = 0; v < vecs.size(); ++v, w += lanes) {
    if (w >= out[2]) {
      w = 0;
      ++row;
    }
    const Index line = row < out[1]  ? row
                       : out[1] == 1 ? row * extent[1]
                                     : row / out[1] * extent[1] + row % out[1];
    args->b[v] = place.input + line * extent[2] + w;
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
  SetVectorPointers(place, block.vecs, first, &args);
  const auto kernel = kernels_.conv_block[0][num_vecs - 1];
  for (Index m = block.columns.begin; m < block.columns.end; ++m) {
    const Index begin = cells.starts[m] - cells.starts[0];
    args.a = cells.values + begin;
    args.b_offset = cell_offsets + begin;
    args.depth = cells.starts[m + 1] - cells.starts[m];
    kernel(args);
    for (Index v = 0; v < num_vecs; ++v) args.c[v] += args.c_row;
  }
  if (!plan_.by_rows()) ScatterRuns(place, block, place.local, first);
}

namespace {

// A quad block's arguments, from the pointers that SetVectorPointers sets.
kernels::QuadBlockArgs QuadArgsOf(const kernels::BlockArgs& aim) {
  kernels::QuadBlockArgs args{};
  for (int v = 0; v < kernels::kMaxVecs; ++v) {
    args.b[v] = reinterpret_cast<const std::uint32_t*>(aim.b[v]);
    args.c[v] = aim.c[v];
    args.lanes[v] = aim.lanes[v];
  }
  args.c_row = aim.c_row;
  return args;
}

}  // namespace

void ConvEngine::ComputeQuads(const Place& place, const QuadCells& cells, const float* rank_step,
                              const ConvOutput& output) const noexcept {
  const Index depth = plan_.num_offsets();
  const auto body = [&](const Block& block, const kernels::BlockArgs& aim) {
    const Index column = block.columns.begin;
    kernels::QuadBlockArgs args = QuadArgsOf(aim);
    args.a = cells.packed + column * depth;
    args.start = cells.start + column;
    args.b_offset = place.offsets;
    args.depth = depth;
    args.rank_step = rank_step == nullptr ? nullptr : rank_step + column;
    kernels_.quads->quad_block[block.columns.size() - 1][block.vecs.size() - 1](args);
  };
  ForBlocks(place, cells.columns, cells.num_blocks, {0, cells.num_blocks}, output, body);
}

void ConvEngine::ComputeQuadLists(const Place& place, const QuadLists& cells, Range columns,
                                  const std::int32_t* cell_offsets,
                                  const ConvOutput& output) const noexcept {
  const Index cell0 = cells.starts[columns.begin];
  ForListBlocks(place, columns, [&](const Block& block) {
    const Index column0 = block.columns.begin;
    const ConvOutput first{output.data + column0 * output.column, output.column, output.image};
    kernels::BlockArgs aim{};
    SetVectorPointers(place, block.vecs, first, &aim);
    kernels::QuadBlockArgs args = QuadArgsOf(aim);
    const auto kernel = kernels_.quads->quad_block[0][block.vecs.size() - 1];
    for (Index m = column0; m < block.columns.end; ++m) {
      const Index column = columns.begin + m;
      args.a = cells.quads + cells.starts[column];
      args.start = cells.start + column;
      args.b_offset = cell_offsets + (cells.starts[column] - cell0);
      args.depth = cells.starts[column + 1] - cells.starts[column];
      kernel(args);
      for (Index v = 0; v < block.vecs.size(); ++v) args.c[v] += args.c_row;
    }
    if (!plan_.by_rows()) ScatterRuns(place, block, place.local, first);
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

// Copies the output positions of a block `local`, whose vectors run on over rows and images, to
// `output`, which is of the block's first column.
void ConvEngine::ScatterRuns(const Place& place, const Block& block, const float* local,
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

// The inverse of ScatterRuns, for values laid out like the output. `from` is of the block's first
// column.
void ConvEngine::GatherRuns(const Place& place, const Block& block, const float* from,
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
