// SPDX-License-Identifier: Apache-2.0
#include "ops/dora_matmul.h"

#include <algorithm>

#include "dispatch.h"

namespace rimc {
namespace {

// Operations of a task: some microseconds of one core.
constexpr Index kTaskWork = Index{1} << 18;
constexpr Index kMaxTasks = 64;
// Rows whose codes are made before they are used.
constexpr Index kChunkRows = 16;

}  // namespace

DoraMatMul::DoraMatMul(const NodeInfo& node) : kernels_(ActiveKernels()) {
  const auto adapter = ConstantAdapter(node);
  if (!adapter) return;
  is_constant_ = true;
  layout_ = Check(*adapter);
  packed_ = AlignedFloats(layout_.size());
  Pack(*adapter, layout_, packed_.data());
  x_scale_ = (*adapter)[kXScale].Floats()[0];
}

DoraMatMul::Layout DoraMatMul::Check(const DoraTensors& adapter) const {
  const Dims& a = adapter[kLoraA].dims;
  const Dims& b = adapter[kLoraB].dims;
  if (a.rank != 2 || a.Count() == 0) Refuse("input lora_a must have the shape [K, R], got ", a);
  if (b.rank != 2 || b[0] != a[1] || b.Count() == 0) {
    Refuse("input lora_b must have the shape [", a[1], ", N], got ", b);
  }
  Layout layout{};
  layout.depth = static_cast<Index>(a[0]);
  layout.rank = static_cast<Index>(a[1]);
  layout.columns = static_cast<Index>(b[1]);
  layout.a_row = RoundUp(layout.depth, kernels_.lanes);
  layout.b_row = RoundUp(layout.columns, kernels_.lanes);
  layout.silent = IsSilent(adapter[kLoraB]);
  CheckAdapter(adapter, {layout.columns, layout.rank, layout.rank, layout.depth, layout.rank, 1});
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
                   {memory + layout.scale(), memory + layout.magnitude(), memory + layout.bias()});
  std::copy_n(adapter[kRankStep].Floats(), layout.rank, memory + layout.rank_step());
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

  const Index packed_floats = is_constant_ ? 0 : RoundUp(layout.size(), 16);
  const Index rank = layout.silent ? 0 : layout.rank;
  const Scratch scratch(context, packed_floats + rows * rank);
  if (!is_constant_) Pack(adapter, layout, scratch.data());
  const float* const packed = is_constant_ ? packed_.data() : scratch.data();
  float* const codes = scratch.data() + packed_floats;

  const Index row_work = layout.depth * (2 + rank) + layout.columns * (4 + rank);
  const Index num_tasks =
      std::clamp(rows * row_work / kTaskWork, Index{1}, std::min(kMaxTasks, rows));
  context.ParallelFor(num_tasks, [&](Index task) {
    const Range part = Part(rows, num_tasks, task);
    for (Index row = part.begin; row < part.end; row += kChunkRows) {
      const Index num_rows = std::min(kChunkRows, part.end - row);
      float* const u = codes + row * rank;
      if (rank > 0) {
        kernels_.rank_codes({x.Floats() + row * layout.depth, packed + layout.a(), layout.a_row,
                             num_rows, layout.depth, rank, x_scale, packed + layout.rank_step(),
                             u});
      }
      kernels_.merge_columns({u, rank, packed + layout.b(), layout.b_row, rank,
                              h.Floats() + row * layout.columns, y + row * layout.columns,
                              layout.columns, num_rows, layout.columns, packed + layout.scale(),
                              packed + layout.magnitude(), packed + layout.bias()});
    }
  });
}

}  // namespace rimc
