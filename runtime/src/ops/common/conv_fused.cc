// SPDX-License-Identifier: Apache-2.0
//
// ConvEngine::ComputeFused: sums of a crossbar, and what follows them while they are in registers.
#include <algorithm>

#include "ops/common/conv_engine.h"

namespace rimc {
namespace {

// Inputs of a pass, in floats: two thirds of an L1 cache of 48 KiB.
constexpr Index kPassFloats = 8192;
// Fewer word lines would not pay for the sums that are stored and loaded again.
constexpr Index kPassSteps = 96;
// Blocks of columns that are computed for one part of the positions after the other: their cells
// stay in the L2 cache.
constexpr Index kBlocksTogether = 8;
// Channels of x itself in a pass: they may be a power of two of cache lines apart.
constexpr Index kDirectSteps = 128;
// An item of so few blocks of vectors computes each block of columns for all of them: the cells of
// large matrices come from far.
constexpr Index kFewParts = kPartsTogether;

// The products of a low-rank part that adds nothing.
constexpr float kNothing[kernels::kMaxRows * kernels::kMaxVecs * 16] = {};

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

// PartsTogether of whole vectors.
Index FullParts(const ConvPlan& plan) {
  const Index positions = plan.images_per_item() * plan.MaxBandSize();
  return positions <= kFewParts * plan.panel_row() ? kPartsTogether : 1;
}

// Whether what follows the sums needs sums of its own for each block of columns.
bool FinishesByBlock(const ConvBranch& branch) {
  const bool in_kernel = branch.b.words != nullptr && branch.b.depth == 1;
  return branch.cells.columns > 0 || (branch.b.columns > 0 && !in_kernel);
}

}  // namespace

Index PartsTogether(const ConvPlan& plan, bool noisy) {
  const Index positions = plan.images_per_item() * plan.MaxBandSize();
  // Rows that don't fill vectors need twice as many at most.
  if (noisy) return CeilDiv(2 * positions, plan.panel_row()) + 1;
  return 1 + FullParts(plan);
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
  const Index channel = ChannelFloats(plan, FullParts(plan) * plan.panel_row());
  const Index fits = std::max(kPassSteps, kPassFloats / channel * plan.conv().Window());
  const Index most = ReadsDirectly() ? std::min(fits, kDirectSteps) : fits;
  const Index parts = CeilDiv(steps, most);
  for (Index i = 0; i < parts; ++i) {
    passes.push_back({Part(steps, parts, i), 0, i > 0, i + 1 == parts, true, true});
  }
  return passes;
}

// Columns of a matrix of the branch, from the vectors b on, to `to`.
void ConvEngine::ComputeBranch(const BranchCells& cells, Range columns, const float* const* b,
                               Range vecs, const float* rank_step, float* to,
                               Index to_row) const noexcept {
  const Index num_vecs = vecs.size();
  const Index rows = cells.lists == nullptr ? columns.size() : 1;
  kernels::CodeBlockArgs words{};
  kernels::BlockArgs floats{};
  for (Index v = 0; v < num_vecs; ++v) {
    floats.b[v] = b[vecs.begin + v];
    words.b[v] = reinterpret_cast<const std::uint32_t*>(floats.b[v]);
    words.lanes[v] = floats.lanes[v] = static_cast<int>(kernels_.lanes);
  }
  words.c_row = floats.c_row = to_row;
  floats.last = true;
  for (Index m = columns.begin; m < columns.end; m += rows) {
    const Index cell = cells.lists == nullptr ? m * cells.depth : cells.lists[m] - cells.lists[0];
    const Index depth = cells.lists == nullptr ? cells.depth : cells.lists[m + 1] - cells.lists[m];
    const std::int32_t* const offsets = cells.offsets + (cells.lists == nullptr ? 0 : cell);
    for (Index v = 0; v < num_vecs; ++v) {
      words.c[v] = floats.c[v] =
          to + (m - columns.begin) * to_row + (vecs.begin + v) * kernels_.lanes;
    }
    if (cells.words != nullptr) {
      words.a = cells.words + cell;
      words.start = cells.start + m;
      words.b_offset = offsets;
      words.depth = depth;
      words.rank_step = rank_step == nullptr ? nullptr : rank_step + m;
      kernels_.codes->code_block[rows - 1][num_vecs - 1](words);
    } else {
      floats.a = cells.floats + cell;
      floats.b_offset = offsets;
      floats.depth = depth;
      kernels_.conv_block[rows - 1][num_vecs - 1](floats);
    }
  }
}

// The codes of the ranks, branch.u [ranks, panel_row]; words of four ranks follow them.
void ConvEngine::ComputeRanks(const ConvBranch& branch, const float* const* codes,
                              Index vecs) const noexcept {
  const BranchCells& a = branch.a;
  const Index u_row = plan_.panel_row();
  const Index most = kernels_.max_accumulators / CeilDiv(a.columns, a.num_blocks);
  for (Index i = 0; i < a.num_blocks; ++i) {
    const Range ranks = Part(a.columns, a.num_blocks, i);
    for (Index v = 0; v < vecs; v += most) {
      ComputeBranch(a, ranks, codes, {v, std::min(v + most, vecs)}, branch.rank_step,
                    branch.u + ranks.begin * u_row, u_row);
    }
  }
  const Index count = vecs * kernels_.lanes;
  if (a.words == nullptr) {
    for (Index r = 0; r < a.columns; ++r) {
      float* const u = branch.u + r * u_row;
      kernels_.quantize(u, u, count, {branch.rank_step[r], -127.0f, 127.0f, 1.0f});
    }
    return;
  }
  for (Index r = 0; r < a.columns; r += 4) {
    kernels::PackArgs args{};
    for (Index j = 0; j < std::min<Index>(4, a.columns - r); ++j) {
      args.from[j] = branch.u + (r + j) * u_row;
    }
    args.stride = 1;
    args.to = reinterpret_cast<std::uint32_t*>(branch.u + (a.columns + r / 4) * u_row);
    args.rows = 1;
    args.width = count;
    args.step = 1.0f;
    kernels_.codes->pack_codes(args);
  }
}

// The word lines of the tile that a pass ends.
Range TileOf(const ConvReadout& readout, const ConvPass& pass) {
  return readout.tiles[static_cast<std::size_t>(pass.tile)].k;
}

// What follows the sums of a block, for the kernel.
void ConvEngine::FinishBlock(const Block& block, const float* const* codes,
                             const ConvFinish& finish, kernels::FinishArgs* args) const noexcept {
  const ConvBranch& branch = finish.branch;
  const Index column = block.columns.begin;
  const Range vecs{0, block.vecs.size()};
  const Index row = vecs.size() * kernels_.lanes;
  *args = finish.args;
  for (const float** values : {&args->scale, &args->sums_scale, &args->magnitude, &args->bias}) {
    if (*values != nullptr) *values += column;
  }
  const float* const words = branch.u + branch.a.columns * plan_.panel_row();
  if (branch.b.words != nullptr && branch.b.depth == 1) {
    args->b = branch.b.words + column;
    args->b_start = branch.b.start + column;
    args->u = reinterpret_cast<const std::uint32_t*>(words);
  } else if (branch.b.columns > 0) {
    const float* u[kernels::kMaxVecs];
    for (Index v = 0; v < vecs.end; ++v) {
      u[v] = (branch.b.words == nullptr ? branch.u : words) + v * kernels_.lanes;
    }
    ComputeBranch(branch.b, block.columns, u, vecs, nullptr, branch.v, row);
    args->v = branch.v;
  } else if (args->scale != nullptr) {
    args->v = kNothing;
  }
  if (branch.cells.columns > 0) {
    ComputeBranch(branch.cells, block.columns, codes, vecs, nullptr, branch.sums, row);
    args->sums = branch.sums;
  }
}

// A block of vectors of an item while its columns are computed.
struct ConvEngine::Aim {
  Range vecs;
  Index tail;                             // positions of a last vector of few, 0: vectors
  kernels::BlockArgs args;                // of the first column
  const std::int32_t* offsets;            // of its inputs
  const float* codes[kernels::kMaxVecs];  // where the branch reads
  ConvFinish finish;                      // with memory of its own
  float* local;  // sums of column 0 of those, where positions run on; residuals come after all sums
};

// What ComputeFused is given, and its aims.
struct ConvEngine::Job {
  const ConvCells& cells;
  const ConvReadout& readout;
  const std::vector<ConvPass>& passes;
  Index column0;
  const ConvOutput& output;
  bool finishes;
  const Noise* noise;
  Aim* aims;
};

// Aims at the vectors `vecs` of the positions; `i`: which of those that are computed together.
void ConvEngine::AimPart(const Place& place, Range vecs, Index i, const ConvOutput& output,
                         Aim* aim) const noexcept {
  const Index lanes = kernels_.lanes;
  aim->vecs = vecs;
  aim->tail = 0;
  aim->args = {};
  AimAt(place, vecs, output, &aim->args);
  const Index first = Part(plan_.columns(), plan_.num_blocks(), place.item.blocks.begin).begin;
  aim->local = place.local + i * plan_.columns() * plan_.panel_row() - first * vecs.size() * lanes;
  const ConvBranch& branch = aim->finish.branch;
  const Index row = plan_.panel_row();
  const Index panel = vecs.begin / plan_.block_vecs() * row;
  const Index place_in_panel = vecs.begin % plan_.block_vecs() * lanes;
  const bool direct = ReadsDirectly() && vecs.end * lanes <= plan_.BandSize(place.item);
  aim->offsets = direct ? place.direct_offsets : place.offsets;
  for (Index v = 0; v < vecs.size(); ++v) {
    const float* const input = aim->args.b[v];
    if (direct) {
      aim->args.b[v] = ChannelAt(place, 0) + (vecs.begin + v) * lanes;
    } else if (plan_.is_panels()) {
      aim->args.b[v] = place.input + panel * plan_.conv().depth + place_in_panel + v * lanes;
    }
    if (branch.engine == nullptr) continue;
    aim->codes[v] = plan_.is_panels() ? branch.codes + panel * branch.engine->plan_.conv().depth +
                                            place_in_panel + v * lanes
                                      : branch.codes + (input - place.input);
  }
  if (branch.engine != nullptr && CopiesCodesByPart()) {
    const Index end = std::min(vecs.end * lanes, plan_.BandSize(place.item));
    branch.engine->CopyPanelRows(place, {0, branch.engine->plan_.conv().depth},
                                 {vecs.begin * lanes, end}, place.codes);
  }
  if (branch.a.columns > 0) ComputeRanks(branch, aim->codes, vecs.size());
}

// Positions of an item's last vector, if they are few and go to conv_tail; otherwise 0.
Index ConvEngine::TailPositions(const Place& place, const ConvCells& cells,
                                const Noise* noise) const noexcept {
  const bool is_row = plan_.is_panels() ? plan_.images_per_item() == 1
                                        : plan_.is_woven() && plan_.shape().out[0] == 1;
  const bool is_full = cells.num_blocks * kernels_.max_rows == cells.columns;
  if (!is_row || !is_full || noise != nullptr) return 0;
  const Index positions = plan_.BandSize(place.item) % kernels_.lanes;
  return positions <= kernels_.tail_positions ? positions : 0;
}

void ConvEngine::ComputeFused(const Place& place, const ConvCells& cells,
                              const ConvReadout& readout, const std::vector<ConvPass>& passes,
                              Index column0, const ConvOutput& output, const ConvFinish* finish,
                              const Noise* noise) const noexcept {
  const Index tail = TailPositions(place, cells, noise);
  const Index num_vecs = NumVecs(place.item) - (tail > 0 ? 1 : 0);
  const Index block_vecs = plan_.block_vecs();
  const Index parts = CeilDiv(num_vecs, block_vecs);
  const Index all_parts = parts + (tail > 0 ? 1 : 0);
  const Index together = noise == nullptr ? FullParts(plan_) : parts;
  Aim few[kPartsTogether + 1];
  std::vector<Aim> many(static_cast<std::size_t>(noise == nullptr ? 0 : parts));
  Aim* const aims = noise == nullptr ? few : many.data();
  const Index num_aims = noise == nullptr ? PartsTogether(plan_, false) : parts;
  for (Index i = 0; i < num_aims && finish != nullptr; ++i) {
    aims[i].finish = *finish;
    aims[i].finish.branch.u += i * ConvBranch::UFloats(plan_, finish->branch.a.columns);
  }
  const Job job{cells, readout, passes, column0, output, finish != nullptr, noise, aims};
  for (Index part = 0; part < all_parts;) {
    // The last positions go with those before them.
    Index count = std::min(together, all_parts - part);
    if (tail > 0 && part + count == parts) ++count;
    for (Index i = 0; i < count; ++i) {
      const Index begin = (part + i) * block_vecs;
      Range vecs{begin, std::min(begin + block_vecs, num_vecs)};
      if (part + i == parts) {
        vecs = {num_vecs, num_vecs + 1};
      } else if (!plan_.is_panels()) {
        vecs = Part(num_vecs, parts, part + i);
      }
      AimPart(place, vecs, i, output, &aims[i]);
      if (part + i == parts) aims[i].tail = tail;
    }
    part += count;
    for (std::size_t p = 0; p < passes.size(); ++p) ComputePass(place, job, p, count);
  }
}

// A pass over the columns of `count` parts of the positions, which job.aims aim at.
void ConvEngine::ComputePass(const Place& place, const Job& job, std::size_t number,
                             Index count) const noexcept {
  const ConvCells& cells = job.cells;
  const ConvPass& pass = job.passes[number];
  const bool ends = number + 1 == job.passes.size();
  const ConvPass& next = job.passes[ends ? 0 : number + 1];
  const Noise* const noise = pass.reads ? job.noise : nullptr;
  if (noise != nullptr) noise->FillVariance(place, TileOf(job.readout, pass));
  const bool finishes = ends && job.finishes;
  const bool by_block = job.noise != nullptr || cells.columns % cells.num_blocks != 0 ||
                        (finishes && FinishesByBlock(job.aims->finish.branch));
  const Range blocks = place.item.blocks;
  const Index first = Part(cells.columns, cells.num_blocks, blocks.begin).begin;
  const Index step = by_block ? 1 : count > 1 ? kBlocksTogether : blocks.size();
  for (Index b = blocks.begin; b < blocks.end; b += step) {
    const Index end = std::min(b + step, blocks.end);
    const Range columns{Part(cells.columns, cells.num_blocks, b).begin,
                        Part(cells.columns, cells.num_blocks, end - 1).end};
    const Index rows = columns.size() / (end - b);
    if (noise != nullptr) noise->FillNormals(place, pass.tile, columns);
    for (Index i = 0; i < count; ++i) {
      Aim& aim = job.aims[i];
      kernels::BlockArgs& args = aim.args;
      const Index ahead = i + 1 < count ? columns.begin : end < blocks.end ? columns.end : first;
      args.a = cells.packed + columns.begin * plan_.num_offsets() + pass.k.begin * rows;
      args.ahead = cells.packed + ahead * plan_.num_offsets() + pass.k.begin * rows;
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
      if (noise != nullptr) SetNoise(place, *noise, columns.begin, job.output, &aim);
      ComputeColumns(place, columns, end - b, job.output, pass, finishes, &aim);
    }
  }
}

// The noise of the columns from `column` on.
void ConvEngine::SetNoise(const Place& place, const Noise& noise, Index column,
                          const ConvOutput& output, Aim* aim) const noexcept {
  kernels::BlockArgs& args = aim->args;
  args.z = noise.z;
  args.z_row = plan_.BandSize(place.item);
  args.variance = noise.variance;
  args.deviation = noise.deviation + column;
  for (Index v = 0; v < aim->vecs.size(); ++v) args.z_at[v] = args.c[v] - output.data;
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

// Blocks of columns of a part: the kernel, what follows its sums, and their way to the output.
void ConvEngine::ComputeColumns(const Place& place, Range columns, Index num_blocks,
                                const ConvOutput& output, const ConvPass& pass, bool finishes,
                                Aim* aim) const noexcept {
  const Index vecs = aim->vecs.size();
  const Index lanes = kernels_.lanes;
  const Index rows = columns.size() / num_blocks;
  kernels::BlockArgs& args = aim->args;
  const Index local_row = vecs * lanes;
  float* const local = aim->local + columns.begin * local_row;
  float* const added = local + PartsTogether(plan_, false) * plan_.columns() * plan_.panel_row();
  float* c[kernels::kMaxVecs];  // of the first column
  for (Index v = 0; v < vecs; ++v) {
    c[v] = args.c[v];
    args.c[v] = plan_.by_rows() ? c[v] + columns.begin * output.column : local + v * lanes;
  }
  kernels::FinishArgs follows;
  const auto* table = &kernels_.conv_block;
  args.finish = nullptr;
  args.more_blocks = num_blocks - 1;
  if (finishes) {
    const Block block{aim->vecs, columns};
    FinishBlock(block, aim->codes, aim->finish, &follows);
    const float* const residual = aim->finish.residual;
    follows.has_residual = residual != nullptr;
    if (follows.has_residual && !plan_.by_rows()) {
      Gather(place, block, residual + columns.begin * output.column, output, added);
    }
    for (Index v = 0; v < vecs && follows.has_residual; ++v) {
      follows.residual[v] =
          plan_.by_rows() ? residual + (args.c[v] - output.data) : added + v * lanes;
    }
    if (follows.b != nullptr) table = &kernels_.codes->conv_block;
    args.finish = &follows;
  }
  args.tail_sums = nullptr;
  if (aim->tail > 0) {
    args.tail_row = kernels_.tail_positions;
    float* const sums = place.local + columns.begin * args.tail_row;
    kernels_.conv_tail({args.a, args.b[0], args.b_offset, args.depth, sums, args.tail_row,
                        aim->tail, num_blocks, args.a_block, args.resume});
    args.tail_sums = sums;
    args.depth = 0;
    args.resume = false;
  }
  if (aim->tail == 0 || pass.reads) (*table)[rows - 1][vecs - 1](args);
  if (pass.reads && pass.last && !plan_.by_rows()) {
    Drop(place, {aim->vecs, columns}, local,
         {output.data + columns.begin * output.column, output.column, output.image});
  }
  for (Index v = 0; v < vecs; ++v) args.c[v] = c[v];
}

}  // namespace rimc
