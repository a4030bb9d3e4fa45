// SPDX-License-Identifier: Apache-2.0
#include "conv/engine.h"

#include <algorithm>

#include "adapter/quads.h"

namespace rimc {
namespace {

// Positions of an item from which on its channels are packed one by one.
constexpr Index kLongRow = 512;
// Copied inputs of which codes are made at a time: half of an L1 cache, with what they come from.
constexpr Index kPackFloats = 4096;

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

// PartsTogether of whole vectors; the few positions of a partial vector go with them.
Index FullParts(const ConvPlan& plan, const kernels::KernelTable& kernels) {
  const Index positions = plan.images_per_item() * plan.MaxBandSize();
  const Index together = kFewParts * plan.panel_row() + kernels.partial_vector_positions;
  return positions <= together ? kPartsTogether : 1;
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

void ConvEngine::SumVecs(const ConvPlace& place, const float* cells, Index depth,
                         float* sums) const noexcept {
  const Index num_vecs = tiling_.NumVecs(place.item);
  kernels::BlockArgs args{};
  args.a = cells;
  args.b_offset = place.offsets;
  args.depth = depth;
  for (Index vec = 0; vec < num_vecs; vec += plan_.block_vecs()) {
    const Range vecs{vec, std::min(vec + plan_.block_vecs(), num_vecs)};
    tiling_.SetVectorPointers(place, vecs, {}, &args);
    for (Index v = 0; v < vecs.size(); ++v) {
      args.c[v] = sums + (vec + v) * kernels_.lanes;
      args.lanes[v] = static_cast<int>(kernels_.lanes);
    }
    kernels_.conv_block[0][vecs.size() - 1](args);
  }
}

bool ConvEngine::ReadsDirectly() const noexcept {
  const Index floats = plan_.conv().depth * plan_.shape().OutVolume();
  return plan_.is_panels() && plan_.images_per_item() == 1 && inputs_.is_plain() &&
         !copies_always_ && floats < kMaxSteps;
}

// Whether Compute makes the codes of each part of the positions just before it reads them.
// Items that share their input share its codes too.
bool ConvEngine::CopiesCodesByPart() const noexcept {
  return ReadsDirectly() && plan_.sharers() == 1;
}

// The input of a group, and the codes of the branch.
void ConvEngine::PackInputs(const ConvPlace& place, const ConvInputs* branch) const noexcept {
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

void ConvEngine::PackPanels(const ConvPlace& place, const ConvInputs* branch) const noexcept {
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

// A block of vectors of an item while its columns are computed.
struct ConvEngine::VectorBlock {
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
  const ConvNoise* noise;
  VectorBlock* blocks;

  // A division takes as long as dozens of products.
  Index ColumnOf(Index block) const {
    if (block_rows > 0) return block * block_rows;
    return Part(cells.columns, cells.num_blocks, block).begin;
  }
};

// Sets the pointers of the vectors `vecs` of the positions; `i`: the part's number among parts
// computed together.
void ConvEngine::SetPartPointers(const ConvPlace& place, Range vecs, Index i,
                                 const ConvOutput& output, VectorBlock* vectors) const noexcept {
  const Index lanes = kernels_.lanes;
  vectors->vecs = vecs;
  vectors->partial_positions = 0;
  tiling_.SetVectorPointers(place, vecs, output, &vectors->args);
  vectors->local = place.local + i * plan_.columns() * plan_.panel_row() -
                   vectors->first_column * vecs.size() * lanes;
  const bool direct = ReadsDirectly() && vecs.end * lanes <= plan_.BandSize(place.item);
  vectors->offsets = direct ? place.direct_offsets : place.offsets;
  if (plan_.is_panels()) {
    const Index panel = vecs.begin / plan_.block_vecs() * plan_.panel_row();
    const Index in_panel = vecs.begin % plan_.block_vecs() * lanes;
    const float* const b = direct
                               ? inputs_.ChannelAt(place.item, place.group, 0) + vecs.begin * lanes
                               : place.input + panel * plan_.conv().depth + in_panel;
    for (Index v = 0; v < vecs.size(); ++v) vectors->args.b[v] = b + v * lanes;
  }
  if (vectors->post_ops == nullptr) return;
  const ConvBranch& branch = vectors->post_ops->branch;
  if (branch.inputs != nullptr && CopiesCodesByPart()) {
    const Index end = std::min(vecs.end * lanes, plan_.BandSize(place.item));
    branch.inputs->CopyPanels(place.item, place.group, {0, branch.inputs->plan().conv().depth},
                              {vecs.begin * lanes, end}, place.codes);
    if (branch.a.columns > 0) epilogue_.ComputeRanks(place, branch, vecs);
  }
  if (branch.cells.columns > 0) epilogue_.FindCodes(place, vecs, branch, vectors->codes);
}

// Positions of an item's last vector, if they are few and go to conv_partial_vector; otherwise 0.
Index ConvEngine::PartialVectorPositions(const ConvPlace& place, const ConvCells& cells,
                                         const ConvNoise* noise) const noexcept {
  if (strips_ != nullptr) return 0;
  const bool is_row = plan_.is_panels() ? plan_.images_per_item() == 1
                                        : plan_.is_woven() && plan_.shape().out[0] == 1;
  const bool is_full = cells.num_blocks * kernels_.max_rows == cells.columns;
  if (!is_row || !is_full || (noise != nullptr && !ConvEpilogue::DrawsByBlock(cells))) return 0;
  const Index positions = plan_.BandSize(place.item) % kernels_.lanes;
  return positions <= kernels_.partial_vector_positions ? positions : 0;
}

void ConvEngine::Compute(const ConvPlace& place, const ConvCells& cells, const ConvReadout& readout,
                         const std::vector<ConvPass>& passes, Index column0,
                         const ConvOutput& output, const ConvPostOps* post_ops,
                         const ConvNoise* noise) const noexcept {
  if (strips_ != nullptr) {
    SumStrips(place, cells, output);
    if (post_ops == nullptr) return;
  }
  const Index partial_positions = PartialVectorPositions(place, cells, noise);
  const Index num_vecs = tiling_.NumVecs(place.item) - (partial_positions > 0 ? 1 : 0);
  const Index block_vecs = plan_.block_vecs();
  const Index parts = CeilDiv(num_vecs, block_vecs);
  const Index all_parts = parts + (partial_positions > 0 ? 1 : 0);
  const Index together = FullParts(plan_, kernels_);
  const bool is_even = cells.columns % cells.num_blocks == 0;
  const Index block_rows = is_even ? cells.columns / cells.num_blocks : 0;
  VectorBlock blocks[kPartsTogether + 1];
  const Job job{cells, block_rows, readout, passes, column0, output, post_ops, noise, blocks};
  const Index first = job.ColumnOf(place.item.blocks.begin);
  for (Index i = 0; i < std::min(together + 1, all_parts); ++i) {
    blocks[i].first_column = first;
    blocks[i].args = {};
    blocks[i].post_ops = post_ops;
  }
  if (post_ops != nullptr && post_ops->branch.a.columns > 0 && place.is_new &&
      !CopiesCodesByPart()) {
    epilogue_.ComputeRanks(place, post_ops->branch, {0, tiling_.NumVecs(place.item)});
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
      SetPartPointers(place, vecs, i, output, &blocks[i]);
      if (part + i == parts) blocks[i].partial_positions = partial_positions;
    }
    part += count;
    for (std::size_t p = 0; p < passes.size(); ++p) ComputePass(place, job, p, count);
  }
}

// One pass over the blocks of columns, for `count` parts that are computed together.
void ConvEngine::ComputePass(const ConvPlace& place, const Job& job, std::size_t number,
                             Index count) const noexcept {
  const ConvCells& cells = job.cells;
  const ConvPass& pass = job.passes[number];
  const bool ends = number + 1 == job.passes.size();
  const ConvPass& next = job.passes[ends ? 0 : number + 1];
  const ConvNoise* const noise = pass.reads ? job.noise : nullptr;
  const bool has_post_ops = ends && job.post_ops != nullptr;
  const bool by_block = job.block_rows == 0 ||
                        (has_post_ops && ConvEpilogue::NeedsBranchByBlock(job.post_ops->branch));
  const Range blocks = place.item.blocks;
  const Index first = job.ColumnOf(blocks.begin);
  const bool together = count > 1 || (has_post_ops && job.post_ops->branch.cells.is_lists());
  // Blocks that share draws, which are made before them.
  const Index drawn_blocks = by_block ? 1 : std::max<Index>(kernels::kDrawRows / job.block_rows, 1);
  const bool shares_draws = job.noise != nullptr && !ConvEpilogue::DrawsByBlock(cells);
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
      VectorBlock& vectors = job.blocks[i];
      kernels::BlockArgs& args = vectors.args;
      const Index next_a = i + 1 < count ? columns.begin : end < blocks.end ? columns.end : first;
      args.a = cells.packed + columns.begin * plan_.num_offsets() + pass.k.begin * rows;
      args.next_a = cells.packed + next_a * plan_.num_offsets() + pass.k.begin * rows;
      args.a_block = rows * plan_.num_offsets();
      args.b_offset = vectors.offsets + pass.k.begin;
      args.depth = pass.k.size();
      args.next_b = nullptr;
      if (vectors.offsets == place.direct_offsets && b - blocks.begin <= plan_.block_vecs()) {
        args.next_b = args.b[0] + (ends ? plan_.panel_row() * count : 0) +
                      (b - blocks.begin) * kernels_.lanes;
        args.next_offset =
            vectors.offsets + std::min(next.k.begin, plan_.num_offsets() - pass.k.size());
      }
      args.resume = pass.resume;
      args.first = pass.first;
      args.last = pass.last;
      ConvEpilogue::SetReadout(job.readout, pass, job.column0 + columns.begin, &args);
      args.z = nullptr;
      args.draws = nullptr;
      if (noise != nullptr) {
        const ConvEpilogue::SharedDraws shared{
            noise->z + i * kernels::kDrawRows * plan_.panel_row(), drawn, draws};
        epilogue_.SetNoise(*noise, pass.tile, columns.begin, vectors.vecs,
                           shares_draws ? &shared : nullptr, &vectors.draws, &args);
      }
      const Index num_blocks = job.block_rows > 0 ? end - b : 1;
      ComputeColumns(place, columns, num_blocks, rows, job.output, pass, has_post_ops, &vectors);
    }
  }
}

// Blocks of `rows` columns each of a part: sums, epilogue, and the copy to the output where vectors
// run on over rows.
void ConvEngine::ComputeColumns(const ConvPlace& place, Range columns, Index num_blocks, Index rows,
                                const ConvOutput& output, const ConvPass& pass, bool has_post_ops,
                                VectorBlock* vectors) const noexcept {
  const Index vecs = vectors->vecs.size();
  const Index lanes = kernels_.lanes;
  kernels::BlockArgs& args = vectors->args;
  const Index local_row = vecs * lanes;
  float* const local = vectors->local + columns.begin * local_row;
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
    epilogue_.SetPostOps(place, {vectors->vecs, columns}, vectors->codes, *vectors->post_ops,
                         output, args.c, added, &post_ops);
    has_quads = post_ops.b != nullptr;
    args.post_ops = &post_ops;
  }
  args.partial_vector_sums = nullptr;
  if (vectors->partial_positions > 0) {
    args.partial_vector_row = kernels_.partial_vector_positions;
    float* const sums = place.local + columns.begin * args.partial_vector_row;
    const auto sum_partial_vector =
        has_pairs_ ? kernels_.pairs.conv_partial_vector : kernels_.conv_partial_vector;
    sum_partial_vector({args.a, args.b[0], args.b_offset, args.depth, sums, args.partial_vector_row,
                        vectors->partial_positions, num_blocks, args.a_block, args.resume});
    args.partial_vector_sums = sums;
    args.depth = 0;
    args.resume = false;
  }
  const auto kernel = has_pairs_  ? kernels_.pairs.conv_block[rows - 1][vecs - 1]
                      : has_quads ? kernels_.quads->conv_block[rows - 1][vecs - 1]
                                  : kernels_.conv_block[rows - 1][vecs - 1];
  if (vectors->partial_positions == 0 || pass.reads) kernel(args);
  if (pass.reads && pass.last && !plan_.by_rows()) {
    tiling_.ScatterRuns(place, {vectors->vecs, columns}, local,
                        {output.data + columns.begin * output.column, output.column, output.image});
  }
  for (Index v = 0; v < vecs; ++v) args.c[v] = c[v];
}

}  // namespace rimc
