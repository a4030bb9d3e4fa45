// SPDX-License-Identifier: Apache-2.0
#include "conv/epilogue.h"

#include <algorithm>

namespace rimc {
namespace {

// The products of a low-rank part that adds nothing.
constexpr float kZeros[kernels::kMaxRows * kernels::kMaxVecs * 16] = {};

}  // namespace

void ConvEpilogue::SetReadout(const ConvReadout& readout, const ConvPass& pass, Index column,
                              kernels::BlockArgs* args) noexcept {
  args->gain = nullptr;
  if (!pass.reads || readout.gain == nullptr) return;
  const Index at = pass.tile * readout.tile_columns + column;
  args->gain = readout.gain + at;
  args->offset = readout.offset == nullptr ? nullptr : readout.offset + at;
  args->back = readout.back + column;
  args->top = readout.top;
}

// The draws of some of a group's columns for vectors of an item, z [columns, vecs * lanes].
kernels::DrawArgs ConvEpilogue::DrawsOf(const ConvNoise& noise, Index tile, Range columns,
                                        Range vecs, std::uint32_t* z) const noexcept {
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

void ConvEpilogue::SetNoise(const ConvNoise& noise, Index tile, Index column, Range vecs,
                            const SharedDraws* shared, kernels::DrawArgs* draws,
                            kernels::BlockArgs* args) const noexcept {
  args->z_row = vecs.size() * kernels_.lanes;
  args->sigma = noise.sigma + tile * noise.sigma_row + vecs.begin * kernels_.lanes;
  args->deviation = noise.deviation + column;
  if (shared == nullptr) {
    *draws = DrawsOf(noise, tile, {column, column + kernels::kDrawRows}, vecs, noise.z);
    args->draws = draws;
    args->z = noise.z;
    return;
  }
  if (shared->is_new) kernels_.draw(DrawsOf(noise, tile, shared->drawn, vecs, shared->z));
  args->z = shared->z + (column - shared->drawn.begin) * args->z_row;
}

bool ConvEpilogue::NeedsBranchByBlock(const ConvBranch& branch) noexcept {
  const bool in_kernel = branch.b.depth == 1;
  return (branch.cells.columns > 0 && !branch.cells.is_lists()) ||
         (branch.b.columns > 0 && !in_kernel);
}

void ConvEpilogue::SetPostOps(const ConvPlace& place, const ConvBlock& block,
                              const float* const* codes, const ConvPostOps& post_ops,
                              const ConvOutput& output, float* const* c, float* gathered,
                              kernels::PostOpArgs* args) const noexcept {
  const Index column = block.columns.begin;
  *args = post_ops.args;
  for (const float** values : {&args->scale, &args->sums_scale, &args->magnitude, &args->bias}) {
    if (*values != nullptr) *values += column;
  }
  SetBranch(block, codes, post_ops.branch, args);
  const float* const residual = post_ops.residual;
  args->has_residual = residual != nullptr;
  if (residual == nullptr) return;
  if (plan_.by_rows()) {
    for (Index v = 0; v < block.vecs.size(); ++v) {
      args->residual[v] = residual + (c[v] - output.data);
    }
    return;
  }
  tiling_.GatherRuns(place, block, residual + column * output.column, output, gathered);
  for (Index v = 0; v < block.vecs.size(); ++v) args->residual[v] = gathered + v * kernels_.lanes;
}

// The branch's sums for a block, or what the kernel computes them from.
void ConvEpilogue::SetBranch(const ConvBlock& block, const float* const* codes,
                             const ConvBranch& branch, kernels::PostOpArgs* args) const noexcept {
  const Index column = block.columns.begin;
  const Index num_vecs = block.vecs.size();
  const Index row = num_vecs * kernels_.lanes;
  const float* const u = branch.u + block.vecs.begin * kernels_.lanes;
  if (branch.b.columns > 0 && branch.b.depth == 1) {
    args->b = branch.b.quads + column;
    args->b_start = branch.b.start + column;
    args->u = reinterpret_cast<const std::uint32_t*>(u);
  } else if (branch.b.columns > 0) {
    const float* at[kernels::kMaxVecs];
    for (Index v = 0; v < num_vecs; ++v) at[v] = u + v * kernels_.lanes;
    SumBranch(branch.b, block.columns, at, num_vecs, branch.v, row);
    args->v = branch.v;
  } else if (args->scale != nullptr) {
    args->v = kZeros;
  }
  if (branch.cells.columns > 0) {
    SumBranch(branch.cells, block.columns, codes, num_vecs, branch.sums, row);
    args->sums = branch.sums;
  }
}

// Sums of columns of a matrix of the branch over the `num_vecs` vectors b, to `to`.
void ConvEpilogue::SumBranch(const BranchCells& cells, Range columns, const float* const* b,
                             Index num_vecs, float* to, Index to_row) const noexcept {
  const auto quads = [&](Index v) { return reinterpret_cast<const std::uint32_t*>(b[v]); };
  if (cells.is_lists()) {
    kernels::QuadListsArgs args;
    const Index first = cells.lists[columns.begin] - cells.lists[0];
    args.starts = cells.lists + columns.begin;
    args.a = cells.quads + first;
    args.b_offset = cells.offsets + first;
    args.start = cells.start + columns.begin;
    for (Index v = 0; v < num_vecs; ++v) args.b[v] = quads(v);
    args.rows = columns.size();
    args.c = to;
    args.c_row = to_row;
    kernels_.quads->quad_lists[num_vecs - 1](args);
    return;
  }
  kernels::QuadBlockArgs args{};
  args.a = cells.quads + columns.begin * cells.depth;
  args.start = cells.start + columns.begin;
  args.b_offset = cells.offsets;
  args.depth = cells.depth;
  args.c_row = to_row;
  for (Index v = 0; v < num_vecs; ++v) {
    args.b[v] = quads(v);
    args.c[v] = to + v * kernels_.lanes;
    args.lanes[v] = static_cast<int>(kernels_.lanes);
  }
  kernels_.quads->quad_block[columns.size() - 1][num_vecs - 1](args);
}

void ConvEpilogue::FindCodes(const ConvPlace& place, Range vecs, const ConvBranch& branch,
                             const float** codes) const noexcept {
  const Index lanes = kernels_.lanes;
  if (!plan_.is_panels()) {
    kernels::BlockArgs aim;
    tiling_.SetVectorPointers(place, vecs, {}, &aim);
    for (Index v = 0; v < vecs.size(); ++v) codes[v] = branch.codes + (aim.b[v] - place.input);
    return;
  }
  const Index panel = plan_.block_vecs();
  const Index panel_floats = branch.inputs->plan().conv().depth * panel * lanes;
  for (Index v = vecs.begin; v < vecs.end; ++v) {
    *codes++ = branch.codes + v / panel * panel_floats + v % panel * lanes;
  }
}

void ConvEpilogue::ComputeRanks(const ConvPlace& place, const ConvBranch& branch,
                                Range all) const noexcept {
  const BranchCells& a = branch.a;
  const Index most = std::min<Index>(kernels::kMaxVecs,
                                     kernels_.max_accumulators / CeilDiv(a.columns, a.num_blocks));
  const float* codes[kernels::kMaxVecs];
  for (Index vec = all.begin; vec < all.end; vec += most) {
    const Range vecs{vec, std::min(vec + most, all.end)};
    FindCodes(place, vecs, branch, codes);
    ComputeQuadRanks(branch, codes, vecs);
  }
}

// The codes of the ranks for vectors `vecs`, whose input is at `codes`.
void ConvEpilogue::ComputeQuadRanks(const ConvBranch& branch, const float* const* codes,
                                    Range vecs) const noexcept {
  const BranchCells& a = branch.a;
  kernels::RankBlockArgs args;
  for (Index v = 0; v < vecs.size(); ++v) {
    args.b[v] = reinterpret_cast<const std::uint32_t*>(codes[v]);
  }
  args.b_offset = a.offsets;
  args.depth = a.depth;
  for (Index i = 0; i < a.num_blocks; ++i) {
    const Range ranks = Part(a.columns, a.num_blocks, i);
    args.a = a.quads + ranks.begin * a.depth;
    args.start = a.start + ranks.begin;
    args.rank_step = branch.rank_step + ranks.begin;
    auto* const u = reinterpret_cast<std::uint32_t*>(branch.u + i * branch.u_row);
    for (Index v = 0; v < vecs.size(); ++v) args.u[v] = u + (vecs.begin + v) * kernels_.lanes;
    kernels_.quads->rank_block[ranks.size() - 1][vecs.size() - 1](args);
  }
}

}  // namespace rimc
