// SPDX-License-Identifier: Apache-2.0
#include "ops/rram_matmul.h"

#include <algorithm>

#include "dispatch.h"

namespace rimc {
namespace {

// Word lines of a pass without ADC: 256 rows of a panel of three AVX-512 vectors fill the L1
// cache. Passes are resumed, so the sums don't depend on it.
constexpr Index kPassRows = 256;
// Multiplications of a task: a few microseconds of one core.
constexpr Index kTaskWork = Index{1} << 18;
// Fewer rows take as long as these: reading the panels costs more than the products.
constexpr Index kLeastRows = 4;
constexpr Index kMaxTasks = 24;
// A task of fewer rows reads a panel too often for what it computes.
constexpr Index kTaskRows = 48;

}  // namespace

// One run: rows of x are cut into row_tasks parts, panels into panel_tasks parts.
struct RramMatMul::Work {
  const float* x;
  float* x_dac;  // null without a DAC
  float* y;
  Index rows;
  Index row_tasks;
  Index panel_tasks;
};

RramMatMul::RramMatMul(const NodeInfo& node) : kernels_(ActiveKernels()) {
  const auto w = node.Constant(1);
  if (!w) Refuse("input w must be an initializer or a constant: crossbars are written once");
  TakeShape(*w);
  periphery_ = ReadPeriphery(node, columns_, depth_, 1);
  PlanPasses();
  PackPanels(w->Floats());
}

RramMatMul::RramMatMul(const Tensor& w) : kernels_(ActiveKernels()) {
  TakeShape(w);
  PlanPasses();
  PackPanels(w.Floats());
}

void RramMatMul::TakeShape(const Tensor& w) {
  if (w.dims.rank != 2 || w.dims.Count() == 0) {
    Refuse("input w must have the shape [K, N], got ", w.dims);
  }
  depth_ = static_cast<Index>(w.dims[0]);
  columns_ = static_cast<Index>(w.dims[1]);
  num_vecs_ = CeilDiv(columns_, kernels_.lanes);
  num_panels_ = CeilDiv(num_vecs_, kernels_.panel_vecs);
}

void RramMatMul::PackPanels(const float* w) {
  panels_ = AlignedFloats(depth_ * num_vecs_ * kernels_.lanes);
  for (Index panel = 0; panel < num_panels_; ++panel) {
    const Range vecs = PanelVecs(panel);
    const Index width = vecs.size() * kernels_.lanes;
    const Index n0 = vecs.begin * kernels_.lanes;
    const Index valid = std::min(width, columns_ - n0);
    float* out = panels_.data() + n0 * depth_;
    for (Index k = 0; k < depth_; ++k) {
      std::copy_n(w + k * columns_ + n0, valid, out + k * width);
    }
  }
  if (!periphery_.has_adc) return;
  gain_ = AlignedFloats(num_vecs_ * kernels_.lanes);
  back_ = AlignedFloats(num_vecs_ * kernels_.lanes);
  std::copy(periphery_.adc_gain.begin(), periphery_.adc_gain.end(), gain_.data());
  std::copy(periphery_.adc_back.begin(), periphery_.adc_back.end(), back_.data());
}

void RramMatMul::PlanPasses() {
  const bool tiled = periphery_.has_adc && periphery_.num_tiles > 1;
  const Index rows = tiled ? CeilDiv(depth_, periphery_.num_tiles) : kPassRows;
  for (Index k = 0; k < depth_; k += rows) {
    const bool first = k == 0;
    const bool last = k + rows >= depth_;
    passes_.push_back({{k, std::min(k + rows, depth_)},
                       !tiled && !first,
                       periphery_.has_adc && (tiled || last),
                       !tiled || first,
                       last});
  }
}

Output RramMatMul::Compute(const Context& context) const {
  const Tensor x = context.Input(0);
  if (x.dims.rank == 0 || x.dims[x.dims.rank - 1] != depth_) {
    Refuse("input x must have the shape [..., ", depth_, "], got ", x.dims);
  }
  Dims y_dims = x.dims;
  y_dims.size[x.dims.rank - 1] = columns_;
  Work work{};
  work.x = x.Floats();
  work.y = context.Output(0, y_dims);
  work.rows = x.dims.Count() / depth_;
  if (work.rows == 0) return {work.y, y_dims};

  const Index num_products = std::max(work.rows, kLeastRows) * depth_ * columns_;
  const Index tasks = std::clamp(num_products / kTaskWork, Index{1}, kMaxTasks);
  work.row_tasks = std::min(tasks, CeilDiv(work.rows, kTaskRows));
  work.panel_tasks = std::min(CeilDiv(tasks, work.row_tasks), num_panels_);

  const Scratch scratch(context, periphery_.has_dac ? work.rows * depth_ : 0);
  work.x_dac = scratch.data();
  if (work.x_dac != nullptr && work.panel_tasks > 1) {
    // Several tasks share rows, so their DAC comes first.
    const Index parts = std::clamp(work.rows * depth_ / 65536, Index{1}, kMaxTasks);
    context.ParallelFor(parts, [&](Index i) {
      const Range part = Part(work.rows * depth_, parts, i);
      kernels_.quantize(work.x + part.begin, work.x_dac + part.begin, part.size(), periphery_.dac);
    });
  }
  context.ParallelFor(work.row_tasks * work.panel_tasks, [&](Index task) { RunTask(work, task); });
  return {work.y, y_dims};
}

void RramMatMul::RunTask(const Work& work, Index task) const {
  const Range rows = Part(work.rows, work.row_tasks, task / work.panel_tasks);
  const Range panels = Part(num_panels_, work.panel_tasks, task % work.panel_tasks);
  const float* x = work.x;
  if (work.x_dac != nullptr) {
    x = work.x_dac;
    if (work.panel_tasks == 1) {
      kernels_.quantize(work.x + rows.begin * depth_, work.x_dac + rows.begin * depth_,
                        rows.size() * depth_, periphery_.dac);
    }
  }
  const Index num_blocks = CeilDiv(rows.size(), kernels_.max_rows);

  kernels::BlockArgs args{};
  args.a_row = depth_;
  args.c_row = columns_;
  args.top = periphery_.adc_top;
  for (Index panel = panels.begin; panel < panels.end; ++panel) {
    const Range vecs = PanelVecs(panel);
    const Index n0 = vecs.begin * kernels_.lanes;
    for (Index v = 0; v < vecs.size(); ++v) {
      args.lanes[v] =
          static_cast<int>(std::min<Index>(kernels_.lanes, columns_ - n0 - v * kernels_.lanes));
    }
    for (const Pass& pass : passes_) {
      args.b[0] = panels_.data() + n0 * depth_ + pass.k.begin * vecs.size() * kernels_.lanes;
      args.depth = pass.k.size();
      args.gain = pass.adc ? gain_.data() + n0 : nullptr;
      args.back = pass.adc ? back_.data() + n0 : nullptr;
      args.resume = pass.resume;
      args.first = pass.first;
      args.last = pass.last;
      for (Index block = 0; block < num_blocks; ++block) {
        const Range part = Part(rows.size(), num_blocks, block);
        const Index row = rows.begin + part.begin;
        args.a = x + row * depth_ + pass.k.begin;
        for (Index v = 0; v < vecs.size(); ++v) {
          args.c[v] = work.y + row * columns_ + n0 + v * kernels_.lanes;
        }
        kernels_.matmul_block[part.size() - 1][vecs.size() - 1](args);
      }
    }
  }
}

}  // namespace rimc
