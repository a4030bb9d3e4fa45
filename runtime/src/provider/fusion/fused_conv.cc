// SPDX-License-Identifier: Apache-2.0
#include "provider/fusion/fused_conv.h"

#include <algorithm>
#include <utility>

namespace rimc {

// One run that does everything in one pass.
struct FusedConv::Run {
  const Tensor& x;
  const float* residual;
  float* y;
  ReadRun read;  // of the crossbar
};

FusedConv::FusedConv(const NodeInfo& crossbar, const NodeInfo* adapter, const PostOps& post_ops)
    : crossbar_(crossbar), post_ops_(post_ops) {
  if (adapter == nullptr) return;
  adapter_.emplace(*adapter);
  if (adapter_->layout_.active_rank > 0 && crossbar_.kernels_.quads != nullptr) {
    PackRanks(*adapter);
  }
}

FusedConv::FusedConv(const ConvNode& conv, const Tensor& w, Periphery periphery,
                     std::vector<float> bias, const PostOps& post_ops)
    : crossbar_(conv, w, std::move(periphery)), bias_(std::move(bias)), post_ops_(post_ops) {}

void FusedConv::Compute(const Context& context, const ReadRun& read) const {
  const Tensor x = context.Input(post_ops_.x);
  const auto shaped = shaped_.For(x.dims, [&] { return ShapedFor(x); });
  const Dims& y_dims = shaped->crossbar.y_dims;
  const float* const residual = ResidualOf(post_ops_, context, y_dims);
  float* const y = context.Output(0, y_dims);
  if (y_dims.Count() == 0) return;
  const Run run{x, residual, y, read};
  if (crossbar_.ReadsAtOnce() && ComputeFused(context, *shaped, run)) return;
  ComputeApart(context, run, y_dims);
  Finish(context, y_dims, residual, y);
}

Dims FusedConv::OutputDims(const Dims& x) const {
  Dims y_dims;
  ShapeOf(crossbar_.conv_, {abi::kFloat, x, nullptr}, &y_dims);
  return y_dims;
}

FusedConv::Shaped FusedConv::ShapedFor(const Tensor& x) const {
  const RramConv::Shaped crossbar = crossbar_.ShapedFor(x);
  const Index depth = crossbar_.conv_.depth;
  const ConvPlan codes = crossbar.plan.WithDepth(CeilDiv(depth, kQuadChannels));
  return {crossbar, codes, CellOffsets(codes)};
}

// Offsets of the inputs of the cells in the adapter's lists; none without lists.
std::vector<std::int32_t> FusedConv::CellOffsets(const ConvPlan& codes) const {
  if (!adapter_ || !adapter_->quads_.cells.is_lists()) return {};
  const QuadLists lists = adapter_->quads_.cells.Lists();
  const std::int32_t* const steps = lists.steps;
  const Index count = lists.starts[adapter_->layout_.columns];
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(count));
  std::transform(steps, steps + count, offsets.begin(),
                 [&](std::int32_t step) { return codes.offsets()[step]; });
  return offsets;
}

void FusedConv::PackRanks(const NodeInfo& adapter) {
  const DoraConv::Layout& layout = adapter_->layout_;
  const ConvAttributes& conv = layout.conv;
  const DoraTensors tensors = *ConstantAdapter(adapter);
  const Index columns = layout.GroupColumns();
  const Index max_rows = crossbar_.kernels_.max_rows;
  const Index most = kernels::kQuadRanks;
  const Index ranks = layout.rank > most ? RoundUp(layout.rank, most) : layout.rank;  // of a group
  rank_step_.assign(static_cast<std::size_t>(conv.group * ranks), {1.0f, 1.0f, 0.0f});
  std::vector<std::int8_t> a(static_cast<std::size_t>(conv.group * ranks * layout.Steps()));
  for (Index g = 0; g < conv.group; ++g) {
    for (Index r = 0; r < layout.rank; ++r) {
      const Index from = g * layout.rank + r;
      const Index to = g * ranks + r;
      rank_step_[static_cast<std::size_t>(to)] = DivisorOf(tensors[kRankStep].Floats()[from]);
      std::copy_n(tensors[kLoraA].Int8s() + from * layout.Steps(), layout.Steps(),
                  a.begin() + to * layout.Steps());
    }
  }
  a_quads_ = QuadMatrix(a.data(), {conv.group, ranks, conv.depth, conv.Window(), most});
  b_quads_ = QuadMatrix(tensors[kLoraB].Int8s(), {conv.group, columns, layout.rank, 1, max_rows});
}

// Memory of a task for its branch: the offsets of B, u, v and sums.
Index FusedConv::ExtraFloats(const ConvPlan& plan) const {
  if (!adapter_) return 0;
  const Index block = crossbar_.kernels_.max_rows * plan.panel_row();
  return RoundUp(adapter_->layout_.rank, 16) + (1 + SumBlocks(plan)) * block +
         RankRows() * plan.MaxPositions();
}

// Blocks of columns whose sums of cells are there at a time.
Index FusedConv::SumBlocks(const ConvPlan& plan) const {
  return adapter_->quads_.cells.is_lists() ? std::min(plan.num_blocks(), kBlocksTogether) : 1;
}

// Whether x has codes; without (a NaN) y is not complete.
bool FusedConv::ComputeFused(const Context& context, const Shaped& shaped, const Run& run) const {
  const ConvPlan& plan = shaped.crossbar.plan;
  const kernels::KernelTable& kernels = crossbar_.kernels_;
  const float* const x = run.x.Floats();
  const bool has_branch =
      adapter_ && (adapter_->layout_.active_rank > 0 || adapter_->layout_.num_cells > 0);
  // Scalar code has no quads.
  if (has_branch && kernels.quads == nullptr) return false;
  std::optional<QuadInputs> codes;
  if (has_branch) {
    codes.emplace(shaped.codes, kernels, crossbar_.conv_.depth, adapter_->quads_.x_divisor, x);
  }
  const Index extra = has_branch ? ExtraFloats(plan) : 0;
  bool has_nan = false;
  crossbar_.WithEngine(shaped.crossbar, x, [&](const ConvEngine& engine) {
    const std::vector<ConvPass> passes = engine.PlanPasses(crossbar_.readout_);
    engine.Run(context, extra + crossbar_.NoiseFloats(plan), codes ? &*codes : nullptr,
               [&](const ConvPlace& place) {
                 ConvPostOps post_ops;
                 FillPostOps(run, plan, place, &post_ops);
                 if (codes) FillBranch(shaped, *codes, place, &post_ops.branch);
                 crossbar_.ComputeGroup(engine, plan, place, passes, run.y, &post_ops, run.read,
                                        place.extra + extra);
               });
    has_nan = engine.inputs().has_nan();
  });
  return !has_nan && (!codes || !codes->has_nan());
}

void FusedConv::FillPostOps(const Run& run, const ConvPlan& plan, const ConvPlace& place,
                            ConvPostOps* post_ops) const noexcept {
  kernels::PostOpArgs& args = post_ops->args;
  const Index column0 = place.group * plan.columns();
  if (adapter_) {
    const DoraConv::Layout& layout = adapter_->layout_;
    const float* const packed = adapter_->packed_.data() + column0;
    args.scale = layout.rank > 0 ? packed + layout.scale() : nullptr;
    args.sums_scale = layout.num_cells > 0 ? packed + layout.sparse_scale() : nullptr;
    args.magnitude = packed + layout.magnitude();
    args.bias = packed + layout.bias();
  } else if (!bias_.empty()) {
    args.bias = bias_.data() + column0;
  }
  args.activates = post_ops_.activates;
  args.low = post_ops_.low;
  args.high = post_ops_.high;
  if (run.residual != nullptr) {
    post_ops->residual = run.residual + (crossbar_.OutputOf(plan, place, run.y).data - run.y);
  }
}

void FusedConv::FillBranch(const Shaped& shaped, const ConvInputs& codes, const ConvPlace& place,
                           ConvBranch* branch) const noexcept {
  const ConvPlan& plan = shaped.crossbar.plan;
  const DoraConv::Layout& layout = adapter_->layout_;
  const DoraConv::Quads& quads = adapter_->quads_;
  const Index columns = plan.columns();
  const Index column0 = place.group * columns;
  const Index block = crossbar_.kernels_.max_rows * plan.panel_row();
  auto* const b_offsets = reinterpret_cast<std::int32_t*>(place.extra);
  branch->inputs = &codes;
  branch->codes = place.codes;
  branch->v = place.extra + ExtraFloats(plan) - (1 + SumBlocks(plan)) * block;
  branch->sums = branch->v + block;
  branch->u = branch->v - RankRows() * plan.MaxPositions();
  branch->u_row = plan.MaxPositions();
  if (layout.active_rank > 0) {
    for (Index r = 0; r < RankRows(); ++r) {
      b_offsets[r] = static_cast<std::int32_t>(r * branch->u_row);
    }
    const QuadCells a = a_quads_.Blocks(place.group);
    const QuadCells b = b_quads_.Blocks(place.group);
    branch->a = {a.columns, a.num_blocks, a_quads_.steps(),  a.packed,
                 a.start,   nullptr,      place.code_offsets};
    branch->b = {columns, plan.num_blocks(), b_quads_.steps(), b.packed,
                 b.start, nullptr,           b_offsets};
    branch->rank_step = rank_step_.data() + place.group * branch->a.columns;
  }
  if (layout.num_cells == 0) return;
  BranchCells& cells = branch->cells;
  cells.columns = columns;
  cells.num_blocks = plan.num_blocks();
  cells.offsets = place.code_offsets;
  if (!quads.cells.is_lists()) {
    const QuadCells dense = quads.cells.Blocks(place.group);
    cells.depth = quads.cells.steps();
    cells.quads = dense.packed;
    cells.start = dense.start;
    return;
  }
  const QuadLists lists = quads.cells.Lists();
  cells.lists = lists.starts + column0;
  cells.quads = lists.quads + *cells.lists;
  cells.start = lists.start + column0;
  cells.offsets = shaped.cell_offsets.data() + *cells.lists;
}

// The crossbar and its adapter one after the other.
void FusedConv::ComputeApart(const Context& context, const Run& run, const Dims& y_dims) const {
  const std::vector<Tensor> inputs{run.x};
  if (!adapter_) {
    crossbar_.ComputeRun(Context(context, inputs, run.y), run.read);
    return;
  }
  const Scratch h(context, y_dims.Count());
  crossbar_.ComputeRun(Context(context, inputs, h.data()), run.read);
  adapter_->Compute(Context(context, {run.x, {abi::kFloat, y_dims, h.data()}}, run.y));
}

// Bias, residual and activation, in place.
void FusedConv::Finish(const Context& context, const Dims& y_dims, const float* residual,
                       float* y) const {
  if (bias_.empty() && residual == nullptr && !post_ops_.activates) return;
  constexpr Index kTaskFloats = Index{1} << 16;
  const auto columns = static_cast<Index>(y_dims[1]);
  const Index lines = static_cast<Index>(y_dims[0]) * columns;
  const Index volume = y_dims.Count() / lines;
  const Index tasks = std::clamp<Index>(y_dims.Count() / kTaskFloats, 1, lines);
  context.ParallelFor(tasks, [&](Index task) {
    const Range part = Part(lines, tasks, task);
    for (Index line = part.begin; line < part.end; ++line) {
      const float bias = bias_.empty() ? 0.0f : bias_[static_cast<std::size_t>(line % columns)];
      for (Index i = line * volume; i < (line + 1) * volume; ++i) {
        float value = y[i];
        if (!bias_.empty()) value += bias;
        if (residual != nullptr) value += residual[i];
        if (post_ops_.activates) value = Activate(post_ops_, value);
        y[i] = value;
      }
    }
  });
}

}  // namespace rimc
