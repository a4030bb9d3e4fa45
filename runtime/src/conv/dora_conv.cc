// SPDX-License-Identifier: Apache-2.0
#include "conv/dora_conv.h"

#include <algorithm>
#include <vector>

#include "kernels/dispatch.h"

namespace rimc {
namespace {

// Values of h that make a task where the branch adds nothing.
constexpr Index kMergeTask = Index{1} << 15;

// Gap between the rows of u. Without it, rows of 4 KiB would share page offsets with rows of h and
// y, which processors take for store-to-load dependences.
constexpr Index kRowGap = 80;

// Products that take as long as making a code of a value, or merging one.
constexpr Index kPassWork = 4;

// The cells of S and the zeros between them.
std::vector<std::int8_t> FullMatrix(const DoraTensors& adapter, const CellGrid& grid) {
  std::vector<std::int8_t> matrix(static_cast<std::size_t>(grid.Count()));
  for (Index e = 0; e < adapter[kSparseIndex].dims.Count(); ++e) {
    matrix[static_cast<std::size_t>(adapter[kSparseIndex].Int64s()[e])] =
        adapter[kSparseValues].Int8s()[e];
  }
  return matrix;
}

}  // namespace

struct DoraConv::Run {
  const Layout& layout;
  const float* packed;
  const Quads& quads;
  float x_scale;
  ConvShape shape;
  Dims x_dims;
  const float* x;
  const float* h;
  float* y;
};

DoraConv::DoraConv(const NodeInfo& node) : kernels_(ActiveKernels()), node_(ReadConvNode(node)) {
  ConstantAdapterOf::Pack(node, this);
}

DoraConv::Layout DoraConv::Check(const DoraTensors& adapter) const {
  Layout layout{};
  layout.conv = ResolveConv(node_, "lora_a", adapter[kLoraA].dims, 0);
  const Index ranks = layout.conv.columns;
  layout.rank = layout.conv.GroupColumns();
  const Dims& b = adapter[kLoraB].dims;
  Dims want = adapter[kLoraA].dims;
  std::fill_n(want.size.begin(), want.rank, 1);
  want.size[0] = b[0];
  want.size[1] = layout.rank;
  CheckDims("lora_b", adapter[kLoraB], want);
  layout.columns = static_cast<Index>(b[0]);
  if (layout.columns < 1 || layout.columns % layout.conv.group != 0) {
    Refuse("group must divide the ", layout.columns, " output channels of lora_b, got ",
           layout.conv.group);
  }
  const Index steps = layout.Steps();
  CheckAdapter(adapter, {layout.columns, ranks, layout.rank, steps, 1, steps});
  const CellGrid grid = layout.Grid();
  layout.num_cells = CheckSparse(adapter, grid);
  layout.dense = IsDense(layout.num_cells, grid);
  layout.active_rank = IsZero(adapter[kLoraB]) ? 0 : layout.rank;
  const Index group_cells = CeilDiv(layout.num_cells, layout.conv.group);
  layout.conv.columns = layout.conv.group * (layout.active_rank + CeilDiv(group_cells, steps));
  return layout;
}

void DoraConv::Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const {
  PackColumnBlocks(adapter[kLoraA].Int8s(), layout.conv.group, layout.rank, layout.Steps(),
                   CeilDiv(layout.rank, kernels_.max_rows), memory + layout.a());
  const std::int8_t* b = adapter[kLoraB].Int8s();
  std::transform(b, b + layout.columns * layout.rank, memory + layout.b(),
                 [](std::int8_t code) { return static_cast<float>(code); });
  FillMergeVectors(adapter, layout.columns,
                   {memory + layout.scale(), memory + layout.sparse_scale(),
                    memory + layout.magnitude(), memory + layout.bias()});
  std::copy_n(adapter[kRankStep].Floats(), layout.conv.group * layout.rank,
              memory + layout.rank_step());
  if (layout.dense) {
    PackColumnBlocks(FullMatrix(adapter, layout.Grid()).data(), layout.conv.group,
                     layout.GroupColumns(), layout.Steps(),
                     CeilDiv(layout.GroupColumns(), kernels_.max_rows), memory + layout.cells());
  } else {
    PackSparse(adapter, layout.Grid(), 1, memory + layout.cells());
  }
}

DoraConv::Quads DoraConv::PackQuads(const DoraTensors& adapter, const Layout& layout) const {
  Quads quads;
  if (kernels_.quads == nullptr || (layout.active_rank == 0 && layout.num_cells == 0)) return quads;
  const ConvAttributes& conv = layout.conv;
  const Index window = conv.Window();
  quads.x_divisor = DivisorOf(adapter[kXScale].Floats()[0]);
  if (layout.active_rank > 0) {
    quads.a = QuadMatrix(adapter[kLoraA].Int8s(),
                         {conv.group, layout.rank, conv.depth, window, kernels_.max_rows});
  }
  if (layout.num_cells > 0) {
    quads.cells =
        QuadMatrix(adapter, layout.Grid(),
                   {conv.group, layout.GroupColumns(), conv.depth, window, kernels_.max_rows});
  }
  const Index steps = CeilDiv(conv.depth, kQuadChannels) * window;
  const Index cells = quads.cells.is_lists() ? CeilDiv(quads.cells.max_group_quads(), steps)
                      : layout.num_cells > 0 ? layout.GroupColumns()
                                             : 0;
  const Index passes = CeilDiv(kPassWork * (conv.depth + layout.GroupColumns()), steps);
  quads.sum_columns = conv.group * (layout.active_rank + cells);
  quads.other_columns = conv.group * passes;
  return quads;
}

void DoraConv::Compute(const Context& context) const {
  const Tensor x = context.Input(kDoraX);
  const Tensor h = context.Input(kDoraH);
  if (is_constant_) {
    ComputeWith(context, x, h, layout_, packed_.data(), quads_, x_scale_);
    return;
  }
  const DoraTensors adapter = CurrentAdapter(context);
  const Layout layout = Check(adapter);
  const Scratch packed(context, layout.size());
  Pack(adapter, layout, packed.data());
  ComputeWith(context, x, h, layout, packed.data(), PackQuads(adapter, layout),
              adapter[kXScale].Floats()[0]);
}

void DoraConv::ComputeWith(const Context& context, const Tensor& x, const Tensor& h,
                           const Layout& layout, const float* packed, const Quads& quads,
                           float x_scale) const {
  Dims y_dims;
  const ConvShape shape = ShapeOf(layout.conv, x, &y_dims);
  y_dims.size[1] = layout.columns;
  CheckDims("h", h, y_dims);
  float* const y = context.Output(0, y_dims);
  if (shape.batch == 0) return;
  const Run run{layout, packed, quads, x_scale, shape, x.dims, x.Floats(), h.Floats(), y};
  if (layout.active_rank == 0 && layout.num_cells == 0) {
    MergeOnly(context, run);
  } else if (kernels_.quads == nullptr || !AddQuadBranch(context, run)) {
    AddBranch(context, run);
  }
}

kernels::MergeArgs DoraConv::MergeOf(const Run& run, Index column0) noexcept {
  const Layout& layout = run.layout;
  kernels::MergeArgs args{};
  args.y_row = run.shape.OutVolume();
  args.scale = layout.rank > 0 ? run.packed + layout.scale() + column0 : nullptr;
  args.sums_scale = layout.num_cells > 0 ? run.packed + layout.sparse_scale() + column0 : nullptr;
  args.magnitude = run.packed + layout.magnitude() + column0;
  args.bias = run.packed + layout.bias() + column0;
  return args;
}

void DoraConv::MergeOnly(const Context& context, const Run& run) const {
  const Layout& layout = run.layout;
  const Index volume = run.shape.OutVolume();
  const Index parts = std::clamp(layout.columns * volume / kMergeTask, Index{1}, layout.columns);
  context.ParallelFor(run.shape.batch * parts, [&](Index task) {
    const Range columns = Part(layout.columns, parts, task % parts);
    const Index at = (task / parts * layout.columns + columns.begin) * volume;
    kernels::MergeArgs args = MergeOf(run, columns.begin);
    args.h = run.h + at;
    args.y = run.y + at;
    args.rows = columns.size();
    args.columns = volume;
    kernels_.merge_rows(args);
  });
}

bool DoraConv::AddQuadBranch(const Context& context, const Run& run) const {
  const Layout& layout = run.layout;
  const Quads& quads = run.quads;
  const auto make = [&] {
    ConvAttributes conv = layout.conv;
    conv.depth = CeilDiv(conv.depth, kQuadChannels);
    conv.columns = quads.sum_columns;
    return ConvPlan(conv, run.shape, false, kernels_, quads.other_columns, quads.cells.is_lists());
  };
  // An adapter that is not constant may have another size in the next run.
  const auto cached =
      is_constant_ ? plans_.For(run.x_dims, make) : std::make_shared<const ConvPlan>(make());
  const ConvPlan& plan = *cached;
  const QuadInputs inputs(plan, kernels_, layout.conv.depth, quads.x_divisor, run.x);
  const ConvSums sums(plan, kernels_, inputs);
  const Index rank = layout.active_rank;
  const Index u_row = RoundUp(plan.images_per_item() * plan.MaxBandSize(), 16) + kRowGap;
  const Index u_floats = rank * u_row + kernels_.lanes;
  sums.Run(context, u_floats + quads.cells.max_group_quads(), [&](const ConvPlace& place) {
    float* const u = place.extra;
    if (rank > 0) {
      const float* const rank_step = run.packed + layout.rank_step();
      sums.ComputeQuads(place, quads.a.Blocks(place.group), rank_step + place.group * rank,
                        {u, u_row, plan.BandSize(place.item)});
    }
    if (layout.num_cells > 0) {
      SumQuads(run, plan, sums, place, reinterpret_cast<std::int32_t*>(u + u_floats));
    }
    MergeGroup(run, plan, place.item, place.group, u, u_row);
  });
  return !inputs.has_nan();
}

void DoraConv::SumQuads(const Run& run, const ConvPlan& plan, const ConvSums& sums,
                        const ConvPlace& place, std::int32_t* offsets) const noexcept {
  const QuadMatrix& cells = run.quads.cells;
  const ConvOutput output = OutputOf(run, plan, place);
  if (!cells.is_lists()) {
    sums.ComputeQuads(place, cells.Blocks(place.group), nullptr, output);
    return;
  }
  const Index columns = run.layout.GroupColumns();
  const QuadLists lists = cells.Lists();
  const Range group{place.group * columns, (place.group + 1) * columns};
  std::transform(lists.steps + lists.starts[group.begin], lists.steps + lists.starts[group.end],
                 offsets, [&](std::int32_t step) { return place.offsets[step]; });
  sums.ComputeQuadLists(place, lists, group, offsets, output);
}

// The output of a group of an item in y.
ConvOutput DoraConv::OutputOf(const Run& run, const ConvPlan& plan,
                              const ConvPlace& place) const noexcept {
  const Layout& layout = run.layout;
  const Index volume = run.shape.OutVolume();
  const Index column =
      place.item.images.begin * layout.columns + place.group * layout.GroupColumns();
  return {run.y + column * volume + plan.BandOffset(place.item), volume, layout.columns * volume};
}

void DoraConv::AddBranch(const Context& context, const Run& run) const {
  const Layout& layout = run.layout;
  const ConvPlan plan(layout.conv, run.shape, false, kernels_);
  const kernels::Quantizer x_codes{run.x_scale, -127.0f, 127.0f, 1.0f};
  const FloatInputs inputs(plan, kernels_, &x_codes, run.x);
  const ConvSums sums(plan, kernels_, inputs);
  const Index steps = layout.Steps();
  const Index rank = layout.active_rank;
  const ConvReadout whole{{{{0, steps}, true, true}}};
  // The kernels read whole vectors of u.
  const Index u_row = RoundUp(plan.images_per_item() * plan.MaxBandSize(), 16) + kRowGap;
  const Index u_floats = rank * u_row + kernels_.lanes;
  const Index offset_floats =
      layout.dense ? 0 : std::min(layout.num_cells, layout.GroupColumns() * steps);
  sums.Run(context, u_floats + offset_floats, [&](const ConvPlace& place) {
    float* const u = place.extra;
    if (rank > 0) {
      const ConvCells a{run.packed + layout.a() + place.group * rank * steps, rank,
                        CeilDiv(rank, kernels_.max_rows)};
      sums.Compute(place, a, {0, a.num_blocks}, whole, 0, {u, u_row, plan.BandSize(place.item)});
      const Index count = place.item.images.size() * plan.BandSize(place.item);
      for (Index r = 0; r < rank; ++r) {
        const float step = run.packed[layout.rank_step() + place.group * rank + r];
        kernels_.quantize(u + r * u_row, u + r * u_row, count, {step, -127.0f, 127.0f, 1.0f});
      }
    }
    if (layout.num_cells > 0) {
      SumCells(run, plan, sums, place, reinterpret_cast<std::int32_t*>(u + u_floats));
    }
    MergeGroup(run, plan, place.item, place.group, u, u_row);
  });
}

void DoraConv::SumCells(const Run& run, const ConvPlan& plan, const ConvSums& sums,
                        const ConvPlace& place, std::int32_t* offsets) const noexcept {
  const Layout& layout = run.layout;
  const Index columns = layout.GroupColumns();
  const Index column0 = place.group * columns;
  const ConvOutput output = OutputOf(run, plan, place);
  const float* const memory = run.packed + layout.cells();
  if (layout.dense) {
    const ConvReadout whole{{{{0, layout.Steps()}, true, true}}};
    const ConvCells cells{memory + column0 * layout.Steps(), columns,
                          CeilDiv(columns, kernels_.max_rows)};
    sums.Compute(place, cells, {0, cells.num_blocks}, whole, 0, output);
    return;
  }
  const SparseColumns cells = SparseIn(memory, layout.columns, layout.num_cells);
  const std::int32_t* const begin = cells.steps + cells.starts[column0];
  const std::int32_t* const end = cells.steps + cells.starts[column0 + columns];
  std::transform(begin, end, offsets, [&](std::int32_t step) { return place.offsets[step]; });
  sums.ComputeSparse(place, cells, {column0, column0 + columns}, offsets, output);
}

void DoraConv::MergeGroup(const Run& run, const ConvPlan& plan, const ConvItem& item, Index g,
                          const float* u, Index u_row) const noexcept {
  const Layout& layout = run.layout;
  const Index band = plan.BandSize(item);
  const Index rank = layout.active_rank;
  const Index volume = run.shape.OutVolume();
  const Index column0 = g * layout.GroupColumns();
  kernels::MergeArgs args = MergeOf(run, column0);
  args.coef = run.packed + layout.b() + column0 * rank;
  args.coef_row = rank;
  args.basis_row = u_row;
  args.rank = rank;
  args.rows = layout.GroupColumns();
  args.columns = band;
  for (Index n = 0; n < item.images.size(); ++n) {
    const Index at =
        ((item.images.begin + n) * layout.columns + column0) * volume + plan.BandOffset(item);
    args.basis = u + n * band;
    args.h = run.h + at;
    args.sums = run.y + at;
    args.y = run.y + at;
    kernels_.merge_rows(args);
  }
}

}  // namespace rimc
