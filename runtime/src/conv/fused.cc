// SPDX-License-Identifier: Apache-2.0
//
// ConvEngine::ComputeFused: sums of a crossbar, with the epilogue while they are in registers.
#include <algorithm>

#include "conv/engine.h"

namespace rimc {
namespace {

// Inputs of a pass, in floats: two thirds of an L1 cache of 48 KiB.
constexpr Index kPassFloats = 8192;
// Fewer word lines would not pay for the sums that are stored and loaded again.
constexpr Index kPassSteps = 96;
// An item of so few blocks of vectors computes each block of columns for all of them: cells of a
// large matrix come from main memory.
constexpr Index kFewParts = kPartsTogether;

// End of the columns that one draw covers: `columns`, and the others of the last one's counter.
Index DrawnWith(Range columns, Index group_columns, Index column0) {
  const Index end = RoundUp(column0 + columns.end, kernels::kDrawRows) - column0;
  return end - columns.begin <= kernels::kDrawRows ? std::min(end, group_columns) : columns.end;
}

// The products of a low-rank part that adds nothing.
constexpr float kZeros[kernels::kMaxRows * kernels::kMaxVecs * 16] = {};

// Floats of a channel that a block of `positions` reads.
Index ChannelFloats(const ConvPlan& plan, Index positions) {
  if (plan.is_panels()) return positions;
  const Axes& kernel = plan.conv().kernel;
  const Index rows = kernel[0] * kernel[1];
  const Index copies = plan.is_woven() ? kernel[2] : 1;
  const Index reach = plan.is_woven() ? 0 : kernel[2] - 1;
  const Index apart = rows * (positions + reach);
  const Index joined = kernel[0] * (positions + (kernel[1] - 1) * plan.extent()[2] + reach);
  return copies * std::min(apart, joined);
}

// Whether no two blocks of a group's columns share the counter of a draw.
bool DrawsByBlock(const ConvCells& cells) {
  return cells.num_blocks * kernels::kDrawRows == cells.columns;
}

// PartsTogether of whole vectors; the few positions of a partial vector go with them.
Index FullParts(const ConvPlan& plan, const kernels::KernelTable& kernels) {
  const Index positions = plan.images_per_item() * plan.MaxBandSize();
  const Index together = kFewParts * plan.panel_row() + kernels.partial_vector_positions;
  return positions <= together ? kPartsTogether : 1;
}

// Whether the post-ops need sums of the adapter for each block of columns.
bool NeedsBranchByBlock(const ConvBranch& branch) {
  const bool in_kernel = branch.b.depth == 1;
  return (branch.cells.columns > 0 && !branch.cells.is_lists()) ||
         (branch.b.columns > 0 && !in_kernel);
}

}  // namespace

Index PartsTogether(const ConvPlan& plan, const kernels::KernelTable& kernels) {
  return 1 + FullParts(plan, kernels);
}

std::vector<ConvPass> ConvEngine::PlanPasses(const ConvReadout& readout) const {
  const ConvPlan& plan = plan_;
  std::vector<ConvPass> passes;
  const auto num_tiles = static_cast<Index>(readout.tiles.size());
  if (num_tiles > 1) {
    for (Index t = 0; t < num_tiles; ++t) {
      const ConvTile& tile = readout.tiles[static_cast<std::size_t>(t)];
      passes.push_back({tile.k, t, false, true, tile.first, tile.last});
    }
    return passes;
  }
  const Index steps = plan.num_offsets();
  // The epilogue of sums that the strips have stored.
  if (strips_ != nullptr) return {{{0, 0}, 0, true, true, true, true}};
  if (ReadsDirectly()) return {{{0, steps}, 0, false, true, true, true}};
  const Index channel = ChannelFloats(plan, FullParts(plan, kernels_) * plan.panel_row());
  const Index fits = std::max(kPassSteps, kPassFloats / channel * plan.conv().Window());
  const Index parts = CeilDiv(steps, fits);
  for (Index i = 0; i < parts; ++i) {
    passes.push_back({Part(steps, parts, i), 0, i > 0, i + 1 == parts, true, true});
  }
  return passes;
}

// Post-ops of a block's sums, for the kernel.
void ConvEngine::PostOpsOfBlock(const Block& block, const float* const* codes,
                                const ConvPostOps& post_ops,
                                kernels::PostOpArgs* args) const noexcept {
  const ConvBranch& branch = post_ops.branch;
  const Index column = block.columns.begin;
  const Range vecs{0, block.vecs.size()};
  const Index row = vecs.size() * kernels_.lanes;
  *args = post_ops.args;
  for (const float** values : {&args->scale, &args->sums_scale, &args->magnitude, &args->bias}) {
    if (*values != nullptr) *values += column;
  }
  const float* const u = branch.u + block.vecs.begin * kernels_.lanes;
  if (branch.b.columns > 0 && branch.b.depth == 1) {
    args->b = branch.b.quads + column;
    args->b_start = branch.b.start + column;
    args->u = reinterpret_cast<const std::uint32_t*>(u);
  } else if (branch.b.columns > 0) {
    const float* at[kernels::kMaxVecs];
    for (Index v = 0; v < vecs.end; ++v) at[v] = u + v * kernels_.lanes;
    ComputeBranch(branch.b, block.columns, at, vecs, branch.v, row);
    args->v = branch.v;
  } else if (args->scale != nullptr) {
    args->v = kZeros;
  }
  if (branch.cells.columns > 0) {
    ComputeBranch(branch.cells, block.columns, codes, vecs, branch.sums, row);
    args->sums = branch.sums;
  }
}

// A block of vectors of an item while its columns are computed.
struct ConvEngine::Aim {
  Range vecs;
  Index first_column;                     // of the item
  Index partial_positions;                // positions of a last vector of few, 0: vectors
  kernels::BlockArgs args;                // of the first column
  kernels::DrawArgs draws;                // where the kernel makes them
  const std::int32_t* offsets;            // of its inputs
  const float* codes[kernels::kMaxVecs];  // the branch's input
  const ConvPostOps* post_ops;            // or null
  float* local;  // column 0 of sums of vectors that run on over rows; residuals follow all sums
};

// What all passes over an item share.
struct ConvEngine::Job {
  const ConvCells& cells;
  Index block_rows;  // columns of every block, 0 where they differ
  const ConvReadout& readout;
  const std::vector<ConvPass>& passes;
  Index column0;
  const ConvOutput& output;
  const ConvPostOps* post_ops;
  const Noise* noise;
  Aim* aims;

  // A division takes as long as dozens of products.
  Index ColumnOf(Index block) const {
    if (block_rows > 0) return block * block_rows;
    return Part(cells.columns, cells.num_blocks, block).begin;
  }
};

// Aims at the vectors `vecs` of the positions; `i`: the part's number among parts computed
// together.
void ConvEngine::SetPartPointers(const Place& place, Range vecs, Index i, const ConvOutput& output,
                                 Aim* aim) const noexcept {
  const Index lanes = kernels_.lanes;
  aim->vecs = vecs;
  aim->partial_positions = 0;
  SetVectorPointers(place, vecs, output, &aim->args);
  aim->local = place.local + i * plan_.columns() * plan_.panel_row() -
               aim->first_column * vecs.size() * lanes;
  const bool direct = ReadsDirectly() && vecs.end * lanes <= plan_.BandSize(place.item);
  aim->offsets = direct ? place.direct_offsets : place.offsets;
  if (plan_.is_panels()) {
    const Index panel = vecs.begin / plan_.block_vecs() * plan_.panel_row();
    const Index in_panel = vecs.begin % plan_.block_vecs() * lanes;
    const float* const b = direct
                               ? inputs_.ChannelAt(place.item, place.group, 0) + vecs.begin * lanes
                               : place.input + panel * plan_.conv().depth + in_panel;
    for (Index v = 0; v < vecs.size(); ++v) aim->args.b[v] = b + v * lanes;
  }
  if (aim->post_ops == nullptr) return;
  const ConvBranch& branch = aim->post_ops->branch;
  if (branch.inputs != nullptr && CopiesCodesByPart()) {
    const Index end = std::min(vecs.end * lanes, plan_.BandSize(place.item));
    branch.inputs->CopyPanels(place.item, place.group, {0, branch.inputs->plan().conv().depth},
                              {vecs.begin * lanes, end}, place.codes);
    if (branch.a.columns > 0) ComputeRanks(place, branch, vecs);
  }
  if (branch.cells.columns > 0) FindCodePointers(place, vecs, branch, aim->codes);
}

// Positions of an item's last vector, if they are few and go to conv_partial_vector; otherwise 0.
Index ConvEngine::PartialVectorPositions(const Place& place, const ConvCells& cells,
                                         const Noise* noise) const noexcept {
  if (strips_ != nullptr) return 0;
  const bool is_row = plan_.is_panels() ? plan_.images_per_item() == 1
                                        : plan_.is_woven() && plan_.shape().out[0] == 1;
  const bool is_full = cells.num_blocks * kernels_.max_rows == cells.columns;
  if (!is_row || !is_full || (noise != nullptr && !DrawsByBlock(cells))) return 0;
  const Index positions = plan_.BandSize(place.item) % kernels_.lanes;
  return positions <= kernels_.partial_vector_positions ? positions : 0;
}

void ConvEngine::FillPlaces(const Place& place, Index first_image,
                            std::uint32_t* places) const noexcept {
  const ConvItem& item = place.item;
  const Axes out = BandOut(item);
  const Axes extent = Extent();
  const Index volume = plan_.shape().OutVolume();
  const Index row = plan_.by_rows() ? RoundUp(out[2], kernels_.lanes) : extent[2];
  const Index rows = plan_.by_rows() ? out[1] : extent[1];
  const Index first = (first_image + item.images.begin) * volume + plan_.BandOffset(item);
  for (Index n = 0; n < item.images.size(); ++n) {
    for (Index d = 0; d < (plan_.by_rows() ? out[0] : extent[0]); ++d) {
      for (Index h = 0; h < rows; ++h) {
        const Index at = first + n * volume + (d * out[1] + h) * out[2];
        for (Index w = 0; w < row; ++w) *places++ = static_cast<std::uint32_t>(at + w);
      }
    }
  }
}

void ConvEngine::SumVecs(const Place& place, const float* cells, Index depth,
                         float* sums) const noexcept {
  const Index num_vecs = NumVecs(place.item);
  kernels::BlockArgs args{};
  args.a = cells;
  args.b_offset = place.offsets;
  args.depth = depth;
  for (Index vec = 0; vec < num_vecs; vec += plan_.block_vecs()) {
    const Range vecs{vec, std::min(vec + plan_.block_vecs(), num_vecs)};
    SetVectorPointers(place, vecs, {}, &args);
    for (Index v = 0; v < vecs.size(); ++v) {
      args.c[v] = sums + (vec + v) * kernels_.lanes;
      args.lanes[v] = static_cast<int>(kernels_.lanes);
    }
    kernels_.conv_block[0][vecs.size() - 1](args);
  }
}

// The draws of some of a group's columns for vectors of an item, z [columns, vecs * lanes].
kernels::DrawArgs ConvEngine::DrawsOf(const Noise& noise, Index tile, Range columns, Range vecs,
                                      std::uint32_t* z) const noexcept {
  kernels::DrawArgs args{};
  args.key = noise.key;
  args.key.counter[0] += static_cast<std::uint32_t>(tile);
  args.row = static_cast<std::uint64_t>(noise.column0 + columns.begin);
  args.rows = columns.size();
  args.places = noise.places + vecs.begin * kernels_.lanes;
  args.count = args.z_row = vecs.size() * kernels_.lanes;
  args.z = z;
  return args;
}

// Noise of `columns` for part `i`. Draws are made next to their products: a processor overlaps the
// two. Where no two blocks share a counter the kernel makes them; else `is_new` says that the draws
// of the columns `drawn` have to be made, and following blocks read them too.
void ConvEngine::SetNoisePointers(const Job& job, Index tile, Range columns, Range drawn,
                                  bool is_new, Index i) const noexcept {
  const Noise& noise = *job.noise;
  Aim& aim = job.aims[i];
  kernels::BlockArgs& args = aim.args;
  args.z_row = aim.vecs.size() * kernels_.lanes;
  args.sigma = noise.sigma + tile * noise.sigma_row + aim.vecs.begin * kernels_.lanes;
  args.deviation = noise.deviation + columns.begin;
  if (DrawsByBlock(job.cells)) {
    const Range block{columns.begin, columns.begin + kernels::kDrawRows};
    aim.draws = DrawsOf(noise, tile, block, aim.vecs, noise.z);
    args.draws = &aim.draws;
    args.z = noise.z;
    return;
  }
  std::uint32_t* const z = noise.z + i * kernels::kDrawRows * plan_.panel_row();
  if (is_new) kernels_.draw(DrawsOf(noise, tile, drawn, aim.vecs, z));
  args.z = z + (columns.begin - drawn.begin) * args.z_row;
}

void ConvEngine::ComputeFused(const Place& place, const ConvCells& cells,
                              const ConvReadout& readout, const std::vector<ConvPass>& passes,
                              Index column0, const ConvOutput& output, const ConvPostOps* post_ops,
                              const Noise* noise) const noexcept {
  if (strips_ != nullptr) {
    SumStrips(place, cells, output);
    if (post_ops == nullptr) return;
  }
  const Index partial_positions = PartialVectorPositions(place, cells, noise);
  const Index num_vecs = NumVecs(place.item) - (partial_positions > 0 ? 1 : 0);
  const Index block_vecs = plan_.block_vecs();
  const Index parts = CeilDiv(num_vecs, block_vecs);
  const Index all_parts = parts + (partial_positions > 0 ? 1 : 0);
  const Index together = FullParts(plan_, kernels_);
  const bool is_even = cells.columns % cells.num_blocks == 0;
  const Index block_rows = is_even ? cells.columns / cells.num_blocks : 0;
  Aim aims[kPartsTogether + 1];
  const Job job{cells, block_rows, readout, passes, column0, output, post_ops, noise, aims};
  const Index first = job.ColumnOf(place.item.blocks.begin);
  for (Index i = 0; i < std::min(together + 1, all_parts); ++i) {
    aims[i].first_column = first;
    aims[i].args = {};
    aims[i].post_ops = post_ops;
  }
  if (post_ops != nullptr && post_ops->branch.a.columns > 0 && place.is_new &&
      !CopiesCodesByPart()) {
    ComputeRanks(place, post_ops->branch, {0, NumVecs(place.item)});
  }
  for (Index part = 0; part < all_parts;) {
    // A partial vector goes with the part before it.
    Index count = std::min(together, all_parts - part);
    if (partial_positions > 0 && part + count == parts) ++count;
    for (Index i = 0; i < count; ++i) {
      const Range panel{(part + i) * block_vecs, std::min((part + i + 1) * block_vecs, num_vecs)};
      const Range vecs = part + i == parts   ? Range{num_vecs, num_vecs + 1}
                         : plan_.is_panels() ? panel
                                             : Part(num_vecs, parts, part + i);
      SetPartPointers(place, vecs, i, output, &aims[i]);
      if (part + i == parts) aims[i].partial_positions = partial_positions;
    }
    part += count;
    for (std::size_t p = 0; p < passes.size(); ++p) ComputePass(place, job, p, count);
  }
}

// One pass over the blocks of columns, for `count` parts that are computed together.
void ConvEngine::ComputePass(const Place& place, const Job& job, std::size_t number,
                             Index count) const noexcept {
  const ConvCells& cells = job.cells;
  const ConvPass& pass = job.passes[number];
  const bool ends = number + 1 == job.passes.size();
  const ConvPass& next = job.passes[ends ? 0 : number + 1];
  const Noise* const noise = pass.reads ? job.noise : nullptr;
  const bool has_post_ops = ends && job.post_ops != nullptr;
  const bool by_block =
      job.block_rows == 0 || (has_post_ops && NeedsBranchByBlock(job.post_ops->branch));
  const Range blocks = place.item.blocks;
  const Index first = job.ColumnOf(blocks.begin);
  const bool together = count > 1 || (has_post_ops && job.post_ops->branch.cells.is_lists());
  // Blocks that share draws, which are made before them.
  const Index drawn_blocks = by_block ? 1 : std::max<Index>(kernels::kDrawRows / job.block_rows, 1);
  const bool shares_draws = job.noise != nullptr && !DrawsByBlock(cells);
  const Index step = by_block       ? 1
                     : shares_draws ? drawn_blocks
                     : together     ? kBlocksTogether
                                    : blocks.size();
  Range drawn{0, 0};  // columns
  for (Index b = blocks.begin; b < blocks.end; b += step) {
    const Index end = std::min(b + step, blocks.end);
    const Range columns{job.ColumnOf(b), job.ColumnOf(end)};
    const Index rows = job.block_rows > 0 ? job.block_rows : columns.size();
    const bool draws = noise != nullptr && columns.end > drawn.end;
    if (draws) drawn = {columns.begin, DrawnWith(columns, cells.columns, noise->column0)};
    for (Index i = 0; i < count; ++i) {
      Aim& aim = job.aims[i];
      kernels::BlockArgs& args = aim.args;
      const Index next_a = i + 1 < count ? columns.begin : end < blocks.end ? columns.end : first;
      args.a = cells.packed + columns.begin * plan_.num_offsets() + pass.k.begin * rows;
      args.next_a = cells.packed + next_a * plan_.num_offsets() + pass.k.begin * rows;
      args.a_block = rows * plan_.num_offsets();
      args.b_offset = aim.offsets + pass.k.begin;
      args.depth = pass.k.size();
      args.next_b = nullptr;
      if (aim.offsets == place.direct_offsets && b - blocks.begin <= plan_.block_vecs()) {
        args.next_b = args.b[0] + (ends ? plan_.panel_row() * count : 0) +
                      (b - blocks.begin) * kernels_.lanes;
        args.next_offset =
            aim.offsets + std::min(next.k.begin, plan_.num_offsets() - pass.k.size());
      }
      args.resume = pass.resume;
      args.first = pass.first;
      args.last = pass.last;
      SetReadout(job.readout, pass, job.column0 + columns.begin, &args);
      args.z = nullptr;
      args.draws = nullptr;
      if (noise != nullptr) SetNoisePointers(job, pass.tile, columns, drawn, draws, i);
      const Index num_blocks = job.block_rows > 0 ? end - b : 1;
      ComputeColumns(place, columns, num_blocks, rows, job.output, pass, has_post_ops, &aim);
    }
  }
}

// The converter of the columns from `column` on, if the pass ends a tile.
void ConvEngine::SetReadout(const ConvReadout& readout, const ConvPass& pass, Index column,
                            kernels::BlockArgs* args) noexcept {
  args->gain = nullptr;
  if (!pass.reads || readout.gain == nullptr) return;
  const Index at = pass.tile * readout.tile_columns + column;
  args->gain = readout.gain + at;
  args->offset = readout.offset == nullptr ? nullptr : readout.offset + at;
  args->back = readout.back + column;
  args->top = readout.top;
}

// Blocks of `rows` columns each of a part: sums, epilogue, and the copy to the output where vectors
// run on over rows.
void ConvEngine::ComputeColumns(const Place& place, Range columns, Index num_blocks, Index rows,
                                const ConvOutput& output, const ConvPass& pass, bool has_post_ops,
                                Aim* aim) const noexcept {
  const Index vecs = aim->vecs.size();
  const Index lanes = kernels_.lanes;
  kernels::BlockArgs& args = aim->args;
  const Index local_row = vecs * lanes;
  float* const local = aim->local + columns.begin * local_row;
  float* const added = local + PartsTogether(plan_, kernels_) * plan_.columns() * plan_.panel_row();
  float* c[kernels::kMaxVecs];  // of the first column
  for (Index v = 0; v < vecs; ++v) {
    c[v] = args.c[v];
    args.c[v] = plan_.by_rows() ? c[v] + columns.begin * output.column : local + v * lanes;
  }
  kernels::PostOpArgs post_ops;
  bool has_quads = false;
  args.post_ops = nullptr;
  args.more_blocks = num_blocks - 1;
  if (has_post_ops) {
    const Block block{aim->vecs, columns};
    PostOpsOfBlock(block, aim->codes, *aim->post_ops, &post_ops);
    const float* const residual = aim->post_ops->residual;
    post_ops.has_residual = residual != nullptr;
    if (post_ops.has_residual && !plan_.by_rows()) {
      GatherRuns(place, block, residual + columns.begin * output.column, output, added);
    }
    for (Index v = 0; v < vecs && post_ops.has_residual; ++v) {
      post_ops.residual[v] =
          plan_.by_rows() ? residual + (args.c[v] - output.data) : added + v * lanes;
    }
    has_quads = post_ops.b != nullptr;
    args.post_ops = &post_ops;
  }
  args.partial_vector_sums = nullptr;
  if (aim->partial_positions > 0) {
    args.partial_vector_row = kernels_.partial_vector_positions;
    float* const sums = place.local + columns.begin * args.partial_vector_row;
    const auto sum_partial_vector =
        has_pairs_ ? kernels_.pairs.conv_partial_vector : kernels_.conv_partial_vector;
    sum_partial_vector({args.a, args.b[0], args.b_offset, args.depth, sums, args.partial_vector_row,
                        aim->partial_positions, num_blocks, args.a_block, args.resume});
    args.partial_vector_sums = sums;
    args.depth = 0;
    args.resume = false;
  }
  const auto kernel = has_pairs_  ? kernels_.pairs.conv_block[rows - 1][vecs - 1]
                      : has_quads ? kernels_.quads->conv_block[rows - 1][vecs - 1]
                                  : kernels_.conv_block[rows - 1][vecs - 1];
  if (aim->partial_positions == 0 || pass.reads) kernel(args);
  if (pass.reads && pass.last && !plan_.by_rows()) {
    ScatterRuns(place, {aim->vecs, columns}, local,
                {output.data + columns.begin * output.column, output.column, output.image});
  }
  for (Index v = 0; v < vecs; ++v) args.c[v] = c[v];
}

}  // namespace rimc
