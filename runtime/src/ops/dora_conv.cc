// SPDX-License-Identifier: Apache-2.0
#include "ops/dora_conv.h"

#include <algorithm>

#include "dispatch.h"

namespace rimc {
namespace {

// Values of h that make a task of a branch that is silent.
constexpr Index kMergeTask = Index{1} << 15;

// Between the rows of u. Without it, rows of 4 KiB would lie at the same place of a page as those
// of h and y, which processors take for dependences.
constexpr Index kRowGap = 80;

}  // namespace

struct DoraConv::Run {
  const Layout& layout;
  const float* packed;
  float x_scale;
  ConvShape shape;
  const float* x;
  const float* h;
  float* y;
};

DoraConv::DoraConv(const NodeInfo& node) : kernels_(ActiveKernels()), node_(ReadConvNode(node)) {
  const auto adapter = ConstantAdapter(node);
  if (!adapter) return;
  is_constant_ = true;
  layout_ = Check(*adapter);
  packed_ = AlignedFloats(layout_.size());
  Pack(*adapter, layout_, packed_.data());
  x_scale_ = (*adapter)[kXScale].Floats()[0];
}

DoraConv::Layout DoraConv::Check(const DoraTensors& adapter) const {
  Layout layout{};
  layout.conv = ResolveConv(node_, "lora_a", adapter[kLoraA].dims);
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
  layout.silent = IsSilent(adapter[kLoraB]);
  CheckAdapter(adapter, {layout.columns, layout.conv.columns, layout.rank, layout.Steps(), 1,
                         layout.Steps()});
  return layout;
}

void DoraConv::Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const {
  PackConvWeights(adapter[kLoraA].Int8s(), layout.conv.group, layout.rank, layout.Steps(),
                  CeilDiv(layout.rank, kernels_.max_rows), memory + layout.a());
  const std::int8_t* b = adapter[kLoraB].Int8s();
  std::transform(b, b + layout.columns * layout.rank, memory + layout.b(),
                 [](std::int8_t code) { return static_cast<float>(code); });
  FillMergeVectors(adapter, layout.columns,
                   {memory + layout.scale(), memory + layout.magnitude(), memory + layout.bias()});
  std::copy_n(adapter[kRankStep].Floats(), layout.conv.columns, memory + layout.rank_step());
}

void DoraConv::Compute(const Context& context) const {
  const Tensor x = context.Input(kDoraX);
  const Tensor h = context.Input(kDoraH);
  if (is_constant_) {
    ComputeWith(context, x, h, layout_, packed_.data(), x_scale_);
    return;
  }
  const DoraTensors adapter = CurrentAdapter(context);
  const Layout layout = Check(adapter);
  const Scratch packed(context, layout.size());
  Pack(adapter, layout, packed.data());
  ComputeWith(context, x, h, layout, packed.data(), adapter[kXScale].Floats()[0]);
}

void DoraConv::ComputeWith(const Context& context, const Tensor& x, const Tensor& h,
                           const Layout& layout, const float* packed, float x_scale) const {
  Dims y_dims;
  const ConvShape shape = ShapeOf(layout.conv, x, &y_dims);
  y_dims.size[1] = layout.columns;
  CheckDims("h", h, y_dims);
  float* const y = context.Output(0, y_dims);
  if (shape.batch == 0) return;
  const Run run{layout, packed, x_scale, shape, x.Floats(), h.Floats(), y};
  if (layout.silent) {
    MergeOnly(context, run);
  } else {
    AddBranch(context, run);
  }
}

void DoraConv::MergeOnly(const Context& context, const Run& run) const {
  const Layout& layout = run.layout;
  const Index volume = run.shape.OutVolume();
  const Index parts = std::clamp(layout.columns * volume / kMergeTask, Index{1}, layout.columns);
  context.ParallelFor(run.shape.batch * parts, [&](Index task) {
    const Range columns = Part(layout.columns, parts, task % parts);
    const Index at = (task / parts * layout.columns + columns.begin) * volume;
    kernels::MergeArgs args{};
    args.h = run.h + at;
    args.y = run.y + at;
    args.y_row = volume;
    args.rows = columns.size();
    args.columns = volume;
    args.scale = run.packed + layout.scale() + columns.begin;
    args.magnitude = run.packed + layout.magnitude() + columns.begin;
    args.bias = run.packed + layout.bias() + columns.begin;
    kernels_.merge_rows(args);
  });
}

void DoraConv::AddBranch(const Context& context, const Run& run) const {
  const Layout& layout = run.layout;
  const ConvPlan plan(layout.conv, run.shape, false, kernels_);
  const kernels::Quantizer x_codes{run.x_scale, -127.0f, 127.0f, 1.0f};
  const ConvEngine engine(plan, kernels_, &x_codes, run.x);
  const ConvReadout sums{{{{0, layout.Steps()}, true, true}}};
  // The kernels read whole vectors of u.
  const Index u_row = RoundUp(plan.images_per_item() * plan.MaxBandSize(), 16) + kRowGap;
  engine.Run(context, layout.rank * u_row + kernels_.lanes, [&](const ConvEngine::Place& place) {
    float* const u = place.extra;
    engine.Compute(place, run.packed + layout.a() + place.group * layout.rank * layout.Steps(),
                   sums, 0, {u, u_row, plan.BandSize(place.item)});
    MergeGroup(run, plan, place.item, place.group, u, u_row);
  });
}

void DoraConv::MergeGroup(const Run& run, const ConvPlan& plan, const ConvItem& item, Index g,
                          float* u, Index u_row) const noexcept {
  const Layout& layout = run.layout;
  const Index band = plan.BandSize(item);
  for (Index r = 0; r < layout.rank; ++r) {
    const float step = run.packed[layout.rank_step() + g * layout.rank + r];
    kernels_.quantize(u + r * u_row, u + r * u_row, item.images.size() * band,
                      {step, -127.0f, 127.0f, 1.0f});
  }
  const Index volume = run.shape.OutVolume();
  const Index group_columns = layout.columns / layout.conv.group;
  const Index column0 = g * group_columns;
  for (Index n = 0; n < item.images.size(); ++n) {
    const Index at =
        ((item.images.begin + n) * layout.columns + column0) * volume + plan.BandOffset(item);
    kernels::MergeArgs args{};
    args.coef = run.packed + layout.b() + column0 * layout.rank;
    args.coef_row = layout.rank;
    args.basis = u + n * band;
    args.basis_row = u_row;
    args.rank = layout.rank;
    args.h = run.h + at;
    args.y = run.y + at;
    args.y_row = volume;
    args.rows = group_columns;
    args.columns = band;
    args.scale = run.packed + layout.scale() + column0;
    args.magnitude = run.packed + layout.magnitude() + column0;
    args.bias = run.packed + layout.bias() + column0;
    kernels_.merge_rows(args);
  }
}

}  // namespace rimc
