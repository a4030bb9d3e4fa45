// SPDX-License-Identifier: Apache-2.0
#include "ops/conv_chain.h"

#include <algorithm>
#include <utility>

namespace rimc {

ConvChain::ConvChain(const NodeInfo& crossbar, const NodeInfo* adapter, const Tail& tail)
    : crossbar_(crossbar), tail_(tail) {
  if (adapter != nullptr) adapter_.emplace(*adapter);
}

ConvChain::ConvChain(const ConvNode& conv, const Tensor& w, std::vector<float> bias,
                     const Tail& tail)
    : crossbar_(conv, w), bias_(std::move(bias)), tail_(tail) {}

void ConvChain::Compute(const Context& context) const {
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
  ComputeApart(context, x, y_dims, y);
  Finish(context, y_dims, residual, y);
}

// The crossbar and its adapter one after the other.
void ConvChain::ComputeApart(const Context& context, const Tensor& x, const Dims& y_dims,
                             float* y) const {
  const std::vector<Tensor> inputs{x};
  if (!adapter_) {
    crossbar_.Compute(Context(context, inputs, y));
    return;
  }
  const Scratch h(context, y_dims.Count());
  crossbar_.Compute(Context(context, inputs, h.data()));
  adapter_->Compute(Context(context, {x, {abi::kFloat, y_dims, h.data()}}, y));
}

// Bias, residual and activation, in place.
void ConvChain::Finish(const Context& context, const Dims& y_dims, const float* residual,
                       float* y) const {
  if (bias_.empty() && residual == nullptr && !tail_.activates) return;
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
        if (tail_.activates) value = Activate(tail_, value);
        y[i] = value;
      }
    }
  });
}

}  // namespace rimc
