// SPDX-License-Identifier: Apache-2.0
//
// DoraMatMul with integer kernels: codes of x are bytes, sums of their products are exact, so the
// result has the bits of the other path.
#include <algorithm>
#include <atomic>
#include <vector>

#include "matmul/dora_matmul.h"

namespace rimc {
namespace {

// Rows whose codes are made before they are used, where there are no cells.
constexpr Index kChunkRows = 16;

}  // namespace

DoraMatMul::Quads DoraMatMul::PackQuads(const DoraTensors& adapter, const Layout& layout) const {
  Quads quads;
  if (kernels_.quads == nullptr || (layout.active_rank == 0 && layout.num_cells == 0)) return quads;
  const Index lanes = kernels_.lanes;
  quads.row_quads = RoundUp(CeilDiv(layout.depth, kQuadChannels), lanes);
  if (layout.active_rank > 0) {
    quads.a.resize(static_cast<std::size_t>(layout.rank * quads.row_quads));
    quads.start.resize(static_cast<std::size_t>(layout.rank));
    const std::int8_t* a = adapter[kLoraA].Int8s();
    for (Index k = 0; k < layout.depth; ++k) {
      for (Index r = 0; r < layout.rank; ++r, ++a) {
        quads.a[static_cast<std::size_t>(r * quads.row_quads + k / kQuadChannels)] |=
            std::uint32_t{static_cast<std::uint8_t>(*a)} << (8 * (k % kQuadChannels));
        quads.start[static_cast<std::size_t>(r)] -= 128 * *a;
      }
    }
  }
  if (layout.num_cells == 0) return quads;
  // A chunk is as wide as a panel of as many vectors.
  const Index most = kernels_.PanelRows(layout.chunk_rows / lanes);
  quads.cells = QuadMatrix(adapter, layout.Grid(), {1, layout.columns, layout.depth, 1, most});
  const bool lists = quads.cells.is_lists();
  const Index count = lists ? quads.cells.max_group_quads() : quads.cells.steps();
  for (Index i = 0; i < count; ++i) {
    const Index step = lists ? Index{quads.cells.Lists().steps[i]} : i;
    quads.offsets.push_back(static_cast<std::int32_t>(step * layout.chunk_rows));
  }
  return quads;
}

bool DoraMatMul::RunQuads(const Context& context, const Run& run, Index rows,
                          Index num_tasks) const {
  const Layout& layout = run.layout;
  const Quads& quads = run.quads;
  const bool has_cells = layout.num_cells > 0;
  const Index chunk_rows = has_cells ? layout.chunk_rows : kChunkRows;
  const Index sum_columns = quads.cells.is_lists() ? Index{kernels_.lanes} : layout.columns;
  const Index task_floats =
      RoundUp(chunk_rows * ((has_cells ? 2 : 1) * quads.row_quads + layout.active_rank +
                            (has_cells ? sum_columns : 0)),
              16);
  const Scratch scratch(context, num_tasks * task_floats);
  std::atomic<bool> complete{true};
  context.ParallelFor(num_tasks, [&](Index task) {
    const Range part = Part(rows, num_tasks, task);
    if (!RunQuadTask(run, part, scratch.data() + task * task_floats)) {
      complete.store(false, std::memory_order_relaxed);
    }
  });
  return complete.load(std::memory_order_relaxed);
}

bool DoraMatMul::RunQuadTask(const Run& run, Range rows, float* memory) const noexcept {
  const Layout& layout = run.layout;
  const Quads& quads = run.quads;
  const bool has_cells = layout.num_cells > 0;
  const Index rank = layout.active_rank;
  const Index chunk_rows = has_cells ? layout.chunk_rows : kChunkRows;
  const Index row_quads = quads.row_quads;
  float* const codes = memory;  // [chunk_rows, row_quads]
  float* const transposed = codes + chunk_rows * row_quads;
  float* const sums = transposed + (has_cells ? chunk_rows * row_quads : 0);
  const Index sum_columns = quads.cells.is_lists() ? Index{kernels_.lanes} : layout.columns;
  float* const u = sums + (has_cells ? chunk_rows * sum_columns : 0);
  for (Index row = rows.begin; row < rows.end; row += chunk_rows) {
    const Range chunk{row, std::min(row + chunk_rows, rows.end)};
    if (!kernels_.quads->pack_quad_rows({run.x + row * layout.depth, layout.depth, chunk.size(),
                                         reinterpret_cast<std::uint8_t*>(codes),
                                         row_quads * kQuadChannels, run.x_scale})) {
      return false;
    }
    if (rank > 0) {
      kernels_.quads->quad_ranks({reinterpret_cast<const std::uint32_t*>(codes), quads.a.data(),
                                  row_quads, chunk.size(), rank, quads.start.data(),
                                  run.packed + layout.rank_step(),
                                  run.u == nullptr ? u : run.u + row * rank});
    }
    if (has_cells) {
      // A vector of transposed codes holds one quad of several rows; whole vectors of rows are
      // read.
      const Index whole = RoundUp(chunk.size(), kernels_.lanes);
      std::fill(codes + chunk.size() * row_quads, codes + whole * row_quads, 0.0f);
      kernels_.transpose({codes, row_quads, transposed, chunk_rows, whole, row_quads});
      if (quads.cells.is_lists()) {
        SumQuadLists(run, chunk, transposed, sums);
      } else {
        SumQuadBlocks(run, chunk, transposed, sums);
      }
    }
    if (run.y != nullptr) Merge(run, chunk, u);
  }
  return true;
}

void DoraMatMul::SumQuadLists(const Run& run, Range rows, const float* transposed,
                              float* sums) const noexcept {
  const Layout& layout = run.layout;
  const Index lanes = kernels_.lanes;
  const Index num_vecs = CeilDiv(rows.size(), lanes);
  const QuadLists lists = run.quads.cells.Lists();
  kernels::QuadListsArgs args{};
  for (Index v = 0; v < num_vecs; ++v) {
    args.b[v] = reinterpret_cast<const std::uint32_t*>(transposed) + v * lanes;
  }
  args.c = sums;
  args.c_row = layout.chunk_rows;
  for (Index n0 = 0; n0 < layout.columns; n0 += lanes) {
    const Index n1 = std::min(n0 + lanes, layout.columns);
    float* const to = run.y + rows.begin * layout.columns + n0;
    if (lists.starts[n0] == lists.starts[n1]) {
      for (Index i = 0; i < rows.size(); ++i) std::fill_n(to + i * layout.columns, n1 - n0, 0.0f);
      continue;
    }
    args.starts = lists.starts + n0;
    args.a = lists.quads + *args.starts;
    args.b_offset = run.quads.offsets.data() + *args.starts;
    args.start = lists.start + n0;
    args.rows = n1 - n0;
    kernels_.quads->quad_lists[num_vecs - 1](args);
    kernels_.transpose({sums, layout.chunk_rows, to, layout.columns, n1 - n0, rows.size()});
  }
}

void DoraMatMul::SumQuadBlocks(const Run& run, Range rows, const float* transposed,
                               float* sums) const noexcept {
  const Layout& layout = run.layout;
  const Index lanes = kernels_.lanes;
  const Index num_vecs = CeilDiv(rows.size(), lanes);
  const QuadCells cells = run.quads.cells.Blocks(0);
  kernels::QuadBlockArgs args{};
  args.b_offset = run.quads.offsets.data();
  args.depth = run.quads.cells.steps();
  args.c_row = layout.chunk_rows;
  for (Index v = 0; v < num_vecs; ++v) {
    args.b[v] = reinterpret_cast<const std::uint32_t*>(transposed) + v * lanes;
    args.lanes[v] = static_cast<int>(lanes);
  }
  for (Index block = 0; block < cells.num_blocks; ++block) {
    const Range columns = Part(cells.columns, cells.num_blocks, block);
    args.a = cells.packed + columns.begin * args.depth;
    args.start = cells.start + columns.begin;
    for (Index v = 0; v < num_vecs; ++v) {
      args.c[v] = sums + columns.begin * layout.chunk_rows + v * lanes;
    }
    kernels_.quads->quad_block[columns.size() - 1][num_vecs - 1](args);
  }
  kernels_.transpose({sums, layout.chunk_rows, run.y + rows.begin * layout.columns, layout.columns,
                      layout.columns, rows.size()});
}

}  // namespace rimc
