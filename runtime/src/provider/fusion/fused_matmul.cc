// SPDX-License-Identifier: Apache-2.0
#include "provider/fusion/fused_matmul.h"

#include <algorithm>
#include <utility>

namespace rimc {
namespace {

// Values of a task, where the sums had to be stored before their post-ops.
constexpr Index kTaskFloats = Index{1} << 15;

}  // namespace

FusedMatMul::FusedMatMul(const NodeInfo& crossbar, const NodeInfo* adapter, const PostOps& post_ops)
    : crossbar_(crossbar), post_ops_(post_ops) {
  if (adapter != nullptr) adapter_.emplace(*adapter);
}

FusedMatMul::FusedMatMul(const Tensor& w, Periphery periphery, const std::vector<float>& bias,
                         const PostOps& post_ops)
    : crossbar_(w, std::move(periphery)), post_ops_(post_ops) {
  if (!bias.empty()) bias_ = crossbar_.PadColumns(bias);
}

void FusedMatMul::Compute(const Context& context) const {
  const Tensor x = context.Input(post_ops_.x);
  const Dims y_dims = crossbar_.OutputDims(x);
  const float* const residual = ResidualOf(post_ops_, context, y_dims);
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
    ApplyPostOps(context, residual, rows, y);
    return;
  }
  const Index rank = adapter_ ? adapter_->layout_.active_rank : 0;
  const Scratch u(context, rows * rank);
  if (adapter_) adapter_->ComputeBranch(context, x, u.data());
  const MatMulPostOps post_ops = PostOpsFor(u.data(), residual);
  crossbar_.Compute(Context(context, inputs, y), &post_ops);
}

bool FusedMatMul::IsApart() const {
  return crossbar_.HasStoredSums() || (adapter_ && adapter_->layout_.num_cells > 0);
}

MatMulPostOps FusedMatMul::PostOpsFor(const float* u, const float* residual) const {
  MatMulPostOps post_ops;
  post_ops.residual = residual;
  post_ops.activates = post_ops_.activates;
  post_ops.low = post_ops_.low;
  post_ops.high = post_ops_.high;
  if (bias_.size() > 0) post_ops.bias = bias_.data();
  if (!adapter_) return post_ops;
  const DoraMatMul::Layout& layout = adapter_->layout_;
  const float* const packed = adapter_->packed_.data();
  post_ops.u = u;
  post_ops.rank = layout.active_rank;
  post_ops.basis = packed + layout.b();
  post_ops.basis_row = layout.b_row;
  if (layout.rank > 0) post_ops.scale = packed + layout.scale();
  post_ops.magnitude = packed + layout.magnitude();
  post_ops.bias = packed + layout.bias();
  return post_ops;
}

// Bias of an ordinary model's node, residual and activation, in place.
void FusedMatMul::ApplyPostOps(const Context& context, const float* residual, Index rows,
                               float* y) const {
  const float* const bias = bias_.size() > 0 ? bias_.data() : nullptr;
  if (bias == nullptr && residual == nullptr && !post_ops_.activates) return;
  const Index columns = crossbar_.columns_;
  const Index tasks = std::clamp(rows * columns / kTaskFloats, Index{1}, rows);
  context.ParallelFor(tasks, [&](Index task) {
    const Range part = Part(rows, tasks, task);
    for (Index row = part.begin; row < part.end; ++row) {
      for (Index n = 0; n < columns; ++n) {
        const Index i = row * columns + n;
        if (bias != nullptr) y[i] += bias[n];
        if (residual != nullptr) y[i] += residual[i];
        if (post_ops_.activates) y[i] = Activate(post_ops_, y[i]);
      }
    }
  });
}

}  // namespace rimc
