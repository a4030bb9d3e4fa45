// SPDX-License-Identifier: Apache-2.0
#include "conv/sums.h"

#include <algorithm>

namespace rimc {
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

template <class Body>
void ConvSums::ForBlocks(const ConvPlace& place, Index columns, Index num_blocks, Range blocks,
                         const ConvOutput& output, const Body& body) const {
  const Index num_vecs = tiling_.NumVecs(place.item);
  const Index block_vecs =
      std::min<Index>(kernels::kMaxVecs, kernels_.max_accumulators / CeilDiv(columns, num_blocks));
  const Index parts = CeilDiv(num_vecs, block_vecs);
  for (Index part = 0; part < parts; ++part) {
    ConvBlock block{Part(num_vecs, parts, part), {0, 0}};
    kernels::BlockArgs aim{};
    tiling_.SetVectorPointers(place, block.vecs, output, &aim);
    for (Index b = blocks.begin; b < blocks.end; ++b) {
      const Index before = block.columns.begin;
      block.columns = Part(columns, num_blocks, b);
      if (plan_.by_rows()) {
        const Index step = (block.columns.begin - before) * output.column;
        for (Index v = 0; v < block.vecs.size(); ++v) aim.c[v] += step;
      }
      body(block, aim);
      if (!plan_.by_rows()) {
        tiling_.ScatterRuns(
            place, block, place.local,
            {output.data + block.columns.begin * output.column, output.column, output.image});
      }
    }
  }
}

void ConvSums::Compute(const ConvPlace& place, const ConvCells& cells, Range blocks,
                       const ConvReadout& readout, Index column0,
                       const ConvOutput& output) const noexcept {
  const auto body = [&](const ConvBlock& block, kernels::BlockArgs& args) {
    ComputeBlock(place, block, cells.packed, readout, column0, &args);
  };
  ForBlocks(place, cells.columns, cells.num_blocks, blocks, output, body);
}

template <class Body>
void ConvSums::ForListBlocks(const ConvPlace& place, Range columns, const Body& body) const {
  const Index num_vecs = tiling_.NumVecs(place.item);
  const Index block_vecs = std::min<Index>(kernels::kMaxVecs, kernels_.max_accumulators);
  const Index parts = CeilDiv(num_vecs, block_vecs);
  for (Index part = 0; part < parts; ++part) {
    const Range vecs = Part(num_vecs, parts, part);
    // place.local holds one block of outputs.
    const Index rows = plan_.by_rows() ? columns.size() : kernels_.max_accumulators / vecs.size();
    for (Index column = 0; column < columns.size(); column += rows) {
      body(ConvBlock{vecs, {column, std::min(column + rows, columns.size())}});
    }
  }
}

void ConvSums::ComputeSparse(const ConvPlace& place, const SparseColumns& cells, Range columns,
                             const std::int32_t* cell_offsets,
                             const ConvOutput& output) const noexcept {
  const SparseColumns group{cells.starts + columns.begin, cells.steps,
                            cells.values + cells.starts[columns.begin]};
  ForListBlocks(place, columns, [&](const ConvBlock& block) {
    ComputeLists(place, block, group, cell_offsets, output);
  });
}

void ConvSums::ComputeBlock(const ConvPlace& place, const ConvBlock& block, const float* packed,
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
void ConvSums::ComputeLists(const ConvPlace& place, const ConvBlock& block,
                            const SparseColumns& cells, const std::int32_t* cell_offsets,
                            const ConvOutput& output) const noexcept {
  const ConvOutput first{output.data + block.columns.begin * output.column, output.column,
                         output.image};
  const Index num_vecs = block.vecs.size();
  kernels::BlockArgs args{};
  tiling_.SetVectorPointers(place, block.vecs, first, &args);
  const auto kernel = kernels_.conv_block[0][num_vecs - 1];
  for (Index m = block.columns.begin; m < block.columns.end; ++m) {
    const Index begin = cells.starts[m] - cells.starts[0];
    args.a = cells.values + begin;
    args.b_offset = cell_offsets + begin;
    args.depth = cells.starts[m + 1] - cells.starts[m];
    kernel(args);
    for (Index v = 0; v < num_vecs; ++v) args.c[v] += args.c_row;
  }
  if (!plan_.by_rows()) tiling_.ScatterRuns(place, block, place.local, first);
}

void ConvSums::ComputeQuads(const ConvPlace& place, const QuadCells& cells, const float* rank_step,
                            const ConvOutput& output) const noexcept {
  const Index depth = plan_.num_offsets();
  const auto body = [&](const ConvBlock& block, const kernels::BlockArgs& aim) {
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

void ConvSums::ComputeQuadLists(const ConvPlace& place, const QuadLists& cells, Range columns,
                                const std::int32_t* cell_offsets,
                                const ConvOutput& output) const noexcept {
  const Index cell0 = cells.starts[columns.begin];
  ForListBlocks(place, columns, [&](const ConvBlock& block) {
    const Index column0 = block.columns.begin;
    const ConvOutput first{output.data + column0 * output.column, output.column, output.image};
    kernels::BlockArgs aim{};
    tiling_.SetVectorPointers(place, block.vecs, first, &aim);
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
    if (!plan_.by_rows()) tiling_.ScatterRuns(place, block, place.local, first);
  });
}

}  // namespace rimc
