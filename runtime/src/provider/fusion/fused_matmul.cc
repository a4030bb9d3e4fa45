// SPDX-License-Identifier: Apache-2.0
#include "provider/fusion/fused_matmul.h"

#include <algorithm>
#include <utility>

namespace rimc {
namespace {

// Values that a task finishes where they had to be stored.
constexpr Index kTaskFloats = Index{1} << 15;

}  // namespace

MatMulChain::MatMulChain(const NodeInfo& crossbar, const NodeInfo* adapter, const Tail& tail)
    : crossbar_(crossbar), tail_(tail) {
  if (adapter != nullptr) adapter_.emplace(*adapter);
}

MatMulChain::MatMulChain(const Tensor& w, Periphery periphery, const std::vector<float>& bias,
                         const Tail& tail)
    : crossbar_(w, std::move(periphery)), tail_(tail) {
  if (!bias.empty()) bias_ = crossbar_.PadColumns(bias);
}

void MatMulChain::Compute(const Context& context) const {
  const Tensor x = context.Input(tail_.x);
  const Dims y_dims = crossbar_.OutputDims(x);
  const float* const residual = ResidualOf(tail_, context, y_dims);
  float* const y = context.Output(0, y_dims);
  if (y_dims.Count() == 0) return;

  const Index rows = y_dims.Count() / crossbar_.columns_;
  const std::vector<Tensor> inputs{x};
  if (IsApart()) {
    // Sums of cells are as large as h: they are merged while they are at hand, rows by rows.
    const Scratch h(context, adapter_ ? y_dims.Count() : 0);
    crossbar_.Compute(Context(context, inputs, adapter_ ? h.data() : y));
    if (adapter_) {
      const std::vector<Tensor> both{x, {abi::kFloat, y_dims, h.data()}};
      adapter_->Compute(Context(context, both, y));
    }
    FinishRows(context, residual, rows, y);
    return;
  }
  const Index rank = adapter_ ? adapter_->layout_.active_rank : 0;
  const Scratch u(context, rows * rank);
  if (adapter_) adapter_->ComputeBranch(context, x, u.data());
  const MatMulFinish finish = FinishOf(u.data(), residual);
  crossbar_.Compute(Context(context, inputs, y), &finish);
}

bool MatMulChain::IsApart() const {
  return crossbar_.HasStoredSums() || (adapter_ && adapter_->layout_.num_cells > 0);
}

MatMulFinish MatMulChain::FinishOf(const float* u, const float* residual) const {
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
  finish.magnitude = packed + layout.magnitude();
  finish.bias = packed + layout.bias();
  return finish;
}

// Residual and activation, in place.
void MatMulChain::FinishRows(const Context& context, const float* residual, Index rows,
                             float* y) const {
  if (residual == nullptr && !tail_.activates) return;
  const Index columns = crossbar_.columns_;
  const Index tasks = std::clamp(rows * columns / kTaskFloats, Index{1}, rows);
  context.ParallelFor(tasks, [&](Index task) {
    const Range part = Part(rows, tasks, task);
    for (Index i = part.begin * columns; i < part.end * columns; ++i) {
      if (residual != nullptr) y[i] += residual[i];
      if (tail_.activates) y[i] = Activate(tail_, y[i]);
    }
  });
}

}  // namespace rimc
