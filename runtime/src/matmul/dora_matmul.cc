// SPDX-License-Identifier: Apache-2.0
#include "matmul/dora_matmul.h"

#include <algorithm>
#include <vector>

#include "kernels/dispatch.h"

namespace rimc {
namespace {

// Operations of a task: some microseconds of one core.
constexpr Index kTaskWork = Index{1} << 18;
constexpr Index kMaxTasks = 64;
// Most word lines: places are 32 bits wide.
constexpr Index kMaxDepth = Index{1} << 24;
// Rows whose codes are made before they are used.
constexpr Index kChunkRows = 16;
// Likewise where they are read by cell, in vectors: a sum waits for the one before it, so several
// at a time, although the codes then lie in the L2 cache.
constexpr Index kChunkVecs = 4;
// Word lines of a pass over a panel, and rows of a task that reads panels, as in RramMatMul.
constexpr Index kPassRows = 384;
constexpr Index kDenseTaskRows = 48;

}  // namespace

DoraMatMul::DoraMatMul(const NodeInfo& node) : kernels_(ActiveKernels()) {
  ConstantAdapterOf::Pack(node, this);
}

DoraMatMul::Layout DoraMatMul::Check(const DoraTensors& adapter) const {
  const Dims& a = adapter[kLoraA].dims;
  const Dims& b = adapter[kLoraB].dims;
  if (a.rank != 2 || a[0] < 1) Refuse("input lora_a must have the shape [K, R], got ", a);
  if (a[0] > kMaxDepth) Refuse("input lora_a must have at most ", kMaxDepth, " rows, got ", a);
  if (b.rank != 2 || b[0] != a[1] || b[1] < 1) {
    Refuse("input lora_b must have the shape [", a[1], ", N], got ", b);
  }
  Layout layout{};
  layout.depth = static_cast<Index>(a[0]);
  layout.rank = static_cast<Index>(a[1]);
  layout.columns = static_cast<Index>(b[1]);
  // Without ranks lora_b has no values: nothing but the magnitudes bounds its columns.
  CheckAdapter(adapter, {layout.columns, layout.rank, layout.rank, layout.depth, layout.rank, 1});
  layout.a_row = RoundUp(layout.depth, kernels_.lanes);
  layout.b_row = RoundUp(layout.columns, kernels_.lanes);
  layout.active_rank = IsZero(adapter[kLoraB]) ? 0 : layout.rank;
  const CellGrid grid = layout.Grid();
  layout.num_cells = CheckSparse(adapter, grid);
  layout.dense = IsDense(layout.num_cells, grid);
  layout.chunk_rows = kChunkVecs * kernels_.lanes;
  return layout;
}

void DoraMatMul::Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const {
  std::fill_n(memory, layout.size(), 0.0f);
  const std::int8_t* a = adapter[kLoraA].Int8s();
  const std::int8_t* b = adapter[kLoraB].Int8s();
  for (Index r = 0; r < layout.rank; ++r) {
    for (Index k = 0; k < layout.depth; ++k) {
      memory[layout.a() + r * layout.a_row + k] = static_cast<float>(a[k * layout.rank + r]);
    }
    for (Index n = 0; n < layout.columns; ++n) {
      memory[layout.b() + r * layout.b_row + n] = static_cast<float>(b[r * layout.columns + n]);
    }
  }
  FillMergeVectors(adapter, layout.columns,
                   {memory + layout.scale(), memory + layout.sparse_scale(),
                    memory + layout.magnitude(), memory + layout.bias()});
  std::copy_n(adapter[kRankStep].Floats(), layout.rank, memory + layout.rank_step());
  if (layout.dense) {
    PackPanels(adapter, layout, memory + layout.cells());
  } else {
    PackSparse(adapter, layout.Grid(), layout.chunk_rows, memory + layout.cells());
  }
}

// `panels` are zero.
void DoraMatMul::PackPanels(const DoraTensors& adapter, const Layout& layout, float* panels) const {
  const Index num_vecs = layout.b_row / kernels_.lanes;
  const Index num_panels = NumPanels(layout);
  // Where the first cell of a column lies, and how far apart its cells are.
  std::vector<Range> places;
  for (Index panel = 0; panel < num_panels; ++panel) {
    const Range vecs = Part(num_vecs, num_panels, panel);
    const Index width = vecs.size() * kernels_.lanes;
    const Index first = vecs.begin * kernels_.lanes * layout.depth;
    for (Index n = 0; n < width; ++n) places.push_back({first + n, width});
  }
  CellPlaces cells(layout.Grid());
  for (Index e = 0; e < layout.num_cells; ++e) {
    const auto [column, step] = cells.Find(adapter[kSparseIndex].Int64s()[e]);
    const auto [first, width] = places[static_cast<std::size_t>(column)];
    panels[first + step * width] = static_cast<float>(adapter[kSparseValues].Int8s()[e]);
  }
}

void DoraMatMul::Compute(const Context& context) const {
  const Tensor x = context.Input(kDoraX);
  const Tensor h = context.Input(kDoraH);
  Layout layout = layout_;
  float x_scale = x_scale_;
  DoraTensors adapter;
  if (!is_constant_) {
    adapter = CurrentAdapter(context);
    layout = Check(adapter);
    x_scale = adapter[kXScale].Floats()[0];
  }
  const std::size_t last = x.dims.rank - 1;
  if (x.dims.rank == 0 || x.dims[last] != layout.depth) {
    Refuse("input x must have the shape [..., ", layout.depth, "], got ", x.dims);
  }
  Dims y_dims = x.dims;
  y_dims.size[last] = layout.columns;
  CheckDims("h", h, y_dims);
  float* const y = context.Output(0, y_dims);
  const Index rows = x.dims.Count() / layout.depth;
  if (rows == 0) return;

  const Scratch memory(context, is_constant_ ? 0 : layout.size());
  if (!is_constant_) Pack(adapter, layout, memory.data());
  const Quads quads = is_constant_ ? Quads{} : PackQuads(adapter, layout);
  const float* const packed = is_constant_ ? packed_.data() : memory.data();
  const Run run{layout, packed, is_constant_ ? quads_ : quads, x_scale, x.Floats(), h.Floats(),
                y,      nullptr};
  ComputeRun(context, run, rows);
}

void DoraMatMul::ComputeBranch(const Context& context, const Tensor& x, float* u) const {
  if (layout_.active_rank == 0) return;
  const Run run{layout_, packed_.data(), quads_, x_scale_, x.Floats(), nullptr, nullptr, u};
  ComputeRun(context, run, x.dims.Count() / layout_.depth);
}

void DoraMatMul::ComputeRun(const Context& context, const Run& run, Index rows) const {
  const Layout& layout = run.layout;
  const Index rank = layout.active_rank;
  const bool adds_nothing = rank == 0 && layout.num_cells == 0;
  const Index row_work =
      layout.depth * (2 + rank) + layout.columns * (4 + rank) + 2 * layout.num_cells;
  const Index least_rows = layout.dense           ? kDenseTaskRows
                           : layout.num_cells > 0 ? layout.chunk_rows
                                                  : 1;
  const Index num_tasks = std::clamp(rows * row_work / kTaskWork, Index{1},
                                     std::min(kMaxTasks, CeilDiv(rows, least_rows)));
  if (kernels_.quads != nullptr && !adds_nothing && RunQuads(context, run, rows, num_tasks)) return;
  RunFloats(context, run, rows, num_tasks);
}

void DoraMatMul::RunFloats(const Context& context, const Run& run, Index rows,
                           Index num_tasks) const {
  const Index task_floats = RoundUp(TaskFloats(run.layout, CeilDiv(rows, num_tasks)), 16);
  const Scratch scratch(context, num_tasks * task_floats);
  context.ParallelFor(num_tasks, [&](Index task) {
    RunTask(run, Part(rows, num_tasks, task), scratch.data() + task * task_floats);
  });
}

Index DoraMatMul::TaskFloats(const Layout& layout, Index rows) const {
  const Index rank = layout.active_rank;
  if (layout.num_cells == 0) return kChunkRows * rank;
  if (layout.dense) return kChunkRows * rank + rows * layout.depth;
  return layout.chunk_rows * (rank + layout.depth + std::max(layout.depth, layout.columns));
}

void DoraMatMul::RunTask(const Run& run, Range rows, float* memory) const noexcept {
  const Layout& layout = run.layout;
  const Index depth = layout.depth;
  const Index rank = layout.active_rank;
  const bool has_lists = layout.num_cells > 0 && !layout.dense;
  const Index chunk_rows = has_lists ? layout.chunk_rows : kChunkRows;
  float* const codes = memory;
  float* const transposed = codes + chunk_rows * std::max(depth, layout.columns);
  float* const u = layout.num_cells == 0 ? memory
                   : layout.dense        ? codes + rows.size() * depth
                                         : transposed + chunk_rows * depth;
  const kernels::Quantizer x_codes{run.x_scale, -127.0f, 127.0f, 1.0f};
  if (layout.dense) {
    kernels_.quantize(run.x + rows.begin * depth, codes, rows.size() * depth, x_codes);
    SumDense(run, rows, codes);
  }
  for (Index row = rows.begin; row < rows.end; row += chunk_rows) {
    const Range chunk{row, std::min(row + chunk_rows, rows.end)};
    const float* x = run.x + row * depth;
    if (has_lists) {
      kernels_.quantize(x, codes, chunk.size() * depth, x_codes);
      x = codes;
    } else if (layout.dense) {
      x = codes + (row - rows.begin) * depth;
    }
    if (rank > 0) {
      kernels_.rank_codes({x, run.packed + layout.a(), layout.a_row, chunk.size(), depth, rank,
                           run.x_scale, layout.num_cells > 0, run.packed + layout.rank_step(),
                           run.u == nullptr ? u : run.u + row * rank});
    }
    if (has_lists) SumLists(run, chunk, codes, transposed);
    if (run.y != nullptr) Merge(run, chunk, u);
  }
}

void DoraMatMul::SumDense(const Run& run, Range rows, const float* codes) const noexcept {
  const Layout& layout = run.layout;
  const Index lanes = kernels_.lanes;
  const Index num_panels = NumPanels(layout);
  kernels::BlockArgs args{};
  args.a_row = layout.depth;
  args.c_row = layout.columns;
  for (Index panel = 0; panel < num_panels; ++panel) {
    const Range vecs = Part(layout.b_row / lanes, num_panels, panel);
    const Index n0 = vecs.begin * lanes;
    const Index num_blocks = CeilDiv(rows.size(), kernels_.PanelRows(vecs.size()));
    for (Index v = 0; v < vecs.size(); ++v) {
      args.lanes[v] = static_cast<int>(std::min(lanes, layout.columns - n0 - v * lanes));
    }
    for (Index k = 0; k < layout.depth; k += kPassRows) {
      args.b[0] = run.packed + layout.cells() + n0 * layout.depth + k * vecs.size() * lanes;
      args.depth = std::min(kPassRows, layout.depth - k);
      args.resume = k > 0;
      for (Index block = 0; block < num_blocks; ++block) {
        const Range part = Part(rows.size(), num_blocks, block);
        args.a = codes + part.begin * layout.depth + k;
        for (Index v = 0; v < vecs.size(); ++v) {
          args.c[v] = run.y + (rows.begin + part.begin) * layout.columns + n0 + v * lanes;
        }
        kernels_.matmul_block[part.size() - 1][vecs.size() - 1](args);
      }
    }
  }
}

// With the codes transposed, a vector holds one word line of several rows, and a column is a block
// of one row like that of a convolution.
void DoraMatMul::SumLists(const Run& run, Range rows, float* codes,
                          float* transposed) const noexcept {
  const Layout& layout = run.layout;
  const Index lanes = kernels_.lanes;
  const Index num_vecs = CeilDiv(rows.size(), lanes);
  std::fill(codes + rows.size() * layout.depth, codes + num_vecs * lanes * layout.depth, 0.0f);
  kernels_.transpose(
      {codes, layout.depth, transposed, layout.chunk_rows, num_vecs * lanes, layout.depth});
  float* const sums = codes;  // [N, chunk_rows]
  const SparseColumns cells =
      SparseIn(run.packed + layout.cells(), layout.columns, layout.num_cells);
  kernels::BlockArgs args{};
  for (Index v = 0; v < num_vecs; ++v) {
    args.b[v] = transposed + v * lanes;
    args.c[v] = sums + v * lanes;
    args.lanes[v] = static_cast<int>(lanes);
  }
  const auto kernel = kernels_.conv_block[0][num_vecs - 1];
  for (Index n = 0; n < layout.columns; ++n) {
    args.a = cells.values + cells.starts[n];
    args.b_offset = cells.steps + cells.starts[n];
    args.depth = cells.starts[n + 1] - cells.starts[n];
    kernel(args);
    for (Index v = 0; v < num_vecs; ++v) args.c[v] += layout.chunk_rows;
  }
  kernels_.transpose({sums, layout.chunk_rows, run.y + rows.begin * layout.columns, layout.columns,
                      layout.columns, rows.size()});
}

void DoraMatMul::Merge(const Run& run, Range rows, const float* u) const noexcept {
  const Layout& layout = run.layout;
  kernels::MergeArgs args{};
  args.coef = u;
  args.coef_row = layout.active_rank;
  args.basis = run.packed + layout.b();
  args.basis_row = layout.b_row;
  args.rank = layout.active_rank;
  args.h = run.h + rows.begin * layout.columns;
  args.sums = run.y + rows.begin * layout.columns;
  args.y = run.y + rows.begin * layout.columns;
  args.y_row = layout.columns;
  args.rows = rows.size();
  args.columns = layout.columns;
  args.scale = layout.rank > 0 ? run.packed + layout.scale() : nullptr;
  args.sums_scale = layout.num_cells > 0 ? run.packed + layout.sparse_scale() : nullptr;
  args.magnitude = run.packed + layout.magnitude();
  args.bias = run.packed + layout.bias();
  kernels_.merge_columns(args);
}

}  // namespace rimc
