// SPDX-License-Identifier: Apache-2.0
#include "ops/matmul_chain.h"

#include <algorithm>

namespace rimc {
namespace {

// Values that a task finishes where they had to be stored.
constexpr Index kTaskFloats = Index{1} << 15;

}  // namespace

MatMulChain::MatMulChain(const NodeInfo& crossbar, const NodeInfo* adapter, const Tail& tail)
    : crossbar_(crossbar), tail_(tail) {
  if (adapter != nullptr) adapter_.emplace(*adapter);
}

MatMulChain::MatMulChain(const Tensor& w, const std::vector<float>& bias, const Tail& tail)
    : crossbar_(w), tail_(tail) {
  if (!bias.empty()) bias_ = crossbar_.PadColumns(bias);
}

void MatMulChain::Compute(const Context& context) const {
  const Tensor x = context.Input(tail_.x);
  const Dims y_dims = crossbar_.OutputDims(x);
  const float* residual = nullptr;
  if (tail_.residual) {
    const Tensor added = context.Input(*tail_.residual);
    CheckDims("residual", added, y_dims);
    residual = added.Floats();
  }
  float* const y = context.Output(0, y_dims);
  if (y_dims.Count() == 0) return;

  const Index rows = y_dims.Count() / crossbar_.columns_;
  const Index rank = adapter_ ? adapter_->layout_.active_rank : 0;
  const bool has_cells = adapter_ && adapter_->layout_.num_cells > 0;
  const Index u_floats = RoundUp(rows * rank, 16);
  const Scratch scratch(context, u_floats + (has_cells ? y_dims.Count() : 0));
  float* const sums = has_cells ? scratch.data() + u_floats : nullptr;
  if (adapter_) adapter_->ComputeBranch(context, x, scratch.data(), sums);
  const MatMulFinish finish = FinishOf(scratch.data(), sums, residual);
  const std::vector<Tensor> inputs{x};
  const Context crossbar(context, inputs, y);
  if (crossbar_.HasStoredSums()) {
    crossbar_.Compute(crossbar);
    ComputeApart(context, finish, rows, y);
  } else {
    crossbar_.Compute(crossbar, &finish);
  }
}

MatMulFinish MatMulChain::FinishOf(const float* u, const float* sums, const float* residual) const {
  MatMulFinish finish;
  finish.residual = residual;
  finish.activates = tail_.activates;
  finish.low = tail_.low;
  finish.high = tail_.high;
  if (bias_.size() > 0) finish.bias = bias_.data();
  if (!adapter_) return finish;
  const DoraMatMul::Layout& layout = adapter_->layout_;
  const float* const packed = adapter_->packed_.data();
  finish.u = u;
  finish.rank = layout.active_rank;
  finish.basis = packed + layout.b();
  finish.basis_row = layout.b_row;
  if (layout.rank > 0) finish.scale = packed + layout.scale();
  finish.sums = sums;
  if (sums != nullptr) finish.sums_scale = packed + layout.sparse_scale();
  finish.magnitude = packed + layout.magnitude();
  finish.bias = packed + layout.bias();
  return finish;
}

// Finishes sums that are in y already.
void MatMulChain::ComputeApart(const Context& context, const MatMulFinish& finish, Index rows,
                               float* y) const {
  const kernels::KernelTable& kernels = crossbar_.kernels_;
  const Index columns = crossbar_.columns_;
  const Index tasks = std::clamp(rows * columns / kTaskFloats, Index{1}, rows);
  context.ParallelFor(tasks, [&](Index task) {
    const Range part = Part(rows, tasks, task);
    const Index at = part.begin * columns;
    if (finish.magnitude != nullptr) {
      kernels::MergeArgs args{};
      args.coef = finish.u + part.begin * finish.rank;
      args.coef_row = finish.rank;
      args.basis = finish.basis;
      args.basis_row = finish.basis_row;
      args.rank = finish.rank;
      args.h = y + at;
      args.sums = finish.sums == nullptr ? nullptr : finish.sums + at;
      args.y = y + at;
      args.y_row = columns;
      args.rows = part.size();
      args.columns = columns;
      args.scale = finish.scale;
      args.sums_scale = finish.sums_scale;
      args.magnitude = finish.magnitude;
      args.bias = finish.bias;
      kernels.merge_columns(args);
    }
    for (Index i = at; i < part.end * columns; ++i) {
      if (finish.residual != nullptr) y[i] += finish.residual[i];
      if (finish.activates) y[i] = Activate(tail_, y[i]);
    }
  });
}

}  // namespace rimc
