// SPDX-License-Identifier: Apache-2.0
//
// The adapter's branch of ConvEngine::ComputeFused: codes of the ranks, and sums over them and over
// the sparse cells.
#include <algorithm>

#include "adapter/quads.h"
#include "conv/engine.h"

namespace rimc {

// Sums of columns of a matrix of the branch over the vectors b, to `to`.
void ConvEngine::ComputeBranch(const BranchCells& cells, Range columns, const float* const* b,
                               Range vecs, float* to, Index to_row) const noexcept {
  const Index num_vecs = vecs.size();
  const auto quads = [&](Index v) {
    return reinterpret_cast<const std::uint32_t*>(b[vecs.begin + v]);
  };
  if (cells.is_lists()) {
    kernels::QuadListsArgs args;
    const Index first = cells.lists[columns.begin] - cells.lists[0];
    args.starts = cells.lists + columns.begin;
    args.a = cells.quads + first;
    args.b_offset = cells.offsets + first;
    args.start = cells.start + columns.begin;
    for (Index v = 0; v < num_vecs; ++v) args.b[v] = quads(v);
    args.rows = columns.size();
    args.c = to + vecs.begin * kernels_.lanes;
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
    args.c[v] = to + (vecs.begin + v) * kernels_.lanes;
    args.lanes[v] = static_cast<int>(kernels_.lanes);
  }
  kernels_.quads->quad_block[columns.size() - 1][num_vecs - 1](args);
}

// Pointers to the codes of vectors `vecs` of an item's positions.
void ConvEngine::FindCodePointers(const Place& place, Range vecs, const ConvBranch& branch,
                                  const float** codes) const noexcept {
  const Index lanes = kernels_.lanes;
  if (!plan_.is_panels()) {
    kernels::BlockArgs aim;
    SetVectorPointers(place, vecs, {}, &aim);
    for (Index v = 0; v < vecs.size(); ++v) codes[v] = branch.codes + (aim.b[v] - place.input);
    return;
  }
  const Index panel = plan_.block_vecs();
  const Index panel_floats = branch.inputs->plan().conv().depth * panel * lanes;
  for (Index v = vecs.begin; v < vecs.end; ++v) {
    *codes++ = branch.codes + v / panel * panel_floats + v % panel * lanes;
  }
}

// The codes of the ranks for vectors `all` of an item's positions.
void ConvEngine::ComputeRanks(const Place& place, const ConvBranch& branch,
                              Range all) const noexcept {
  const BranchCells& a = branch.a;
  const Index most = std::min<Index>(kernels::kMaxVecs,
                                     kernels_.max_accumulators / CeilDiv(a.columns, a.num_blocks));
  const float* codes[kernels::kMaxVecs];
  for (Index vec = all.begin; vec < all.end; vec += most) {
    const Range vecs{vec, std::min(vec + most, all.end)};
    FindCodePointers(place, vecs, branch, codes);
    ComputeQuadRanks(branch, codes, vecs);
  }
}

// The codes of the ranks for vectors `vecs`, whose input is at `codes`.
void ConvEngine::ComputeQuadRanks(const ConvBranch& branch, const float* const* codes,
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
