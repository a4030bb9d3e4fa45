// SPDX-License-Identifier: Apache-2.0
#include "provider/fusion/conv_network.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace rimc {
namespace {

// Where images are small, so many go together that a step reads and writes 4 MiB.
constexpr Index kNearFloats = Index{1} << 20;
constexpr Index kLineFloats = 16;

Index ImageFloats(const Dims& dims) { return dims[0] == 0 ? 0 : dims.Count() / dims[0]; }

Index PowerOfTwo(Index least) {
  Index power = 1;
  while (power < least) power *= 2;
  return power;
}

// Errors of `body` begin with the label of the step.
template <class Body>
void Labelled(const ConvNetwork::Step& step, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    throw Error(error.code(), step.label + ": " + error.what());
  }
}

}  // namespace

ConvNetwork::ConvNetwork(std::vector<Step> steps, std::size_t num_inputs, std::size_t num_outputs)
    : steps_(std::move(steps)), num_inputs_(num_inputs), num_outputs_(num_outputs) {
  num_values_ = num_inputs + num_outputs;
  for (const Step& step : steps_) num_values_ = std::max(num_values_, step.y + 1);
  lifetimes_.resize(num_values_, {0, 0});
  for (std::size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = steps_[s];
    const auto here = static_cast<Index>(s);
    lifetimes_[step.y] = {here, here + 1};
    lifetimes_[step.x].end = here + 1;
    if (step.residual) lifetimes_[*step.residual].end = here + 1;
  }
}

void ConvNetwork::Compute(const Context& context) const {
  std::vector<Dims> inputs(num_inputs_);
  std::vector<float*> data(num_values_, nullptr);  // of which only outputs of steps are written
  const auto read = [&](std::size_t value) {
    if (value >= num_inputs_ || data[value] != nullptr) return;
    const Tensor input = context.Input(value);
    inputs[value] = input.dims;
    data[value] = const_cast<float*>(input.Floats());
  };
  for (const Step& step : steps_) {
    Labelled(step, [&] {
      read(step.x);
      if (step.residual) read(*step.residual);
    });
  }
  const auto layout = layout_.For(inputs, [&] { return LayOut(inputs); });
  for (const Step& step : steps_) {
    if (IsBetween(step.y)) continue;
    Labelled(step,
             [&] { data[step.y] = context.Output(step.y - num_inputs_, layout->dims[step.y]); });
  }
  std::vector<std::uint64_t> numbers;
  for (const Step& step : steps_) numbers.push_back(step.group->NextRun());
  const auto batch = static_cast<Index>(inputs[steps_[0].x][0]);
  if (batch == 0) return;
  std::optional<Scratch> between;
  Labelled(steps_[0], [&] { between.emplace(context, layout->floats); });
  for (std::size_t v = num_inputs_ + num_outputs_; v < num_values_; ++v) {
    data[v] = between->data() + layout->places[v];
  }
  for (const Pass& pass : layout->passes) {
    for (Index image = 0; image < batch; image += pass.images) {
      const Range images{image, std::min(image + pass.images, batch)};
      for (Index s = pass.steps.begin; s < pass.steps.end; ++s) {
        const auto at = static_cast<std::size_t>(s);
        RunStep(context, steps_[at], numbers[at], *layout, images, data);
      }
    }
  }
}

void ConvNetwork::RunStep(const Context& context, const Step& step, std::uint64_t number,
                          const Layout& layout, Range images,
                          const std::vector<float*>& data) const {
  const auto view = [&](std::size_t value) {
    Dims dims = layout.dims[value];
    // A value of fewer images than the batch holds the images of this batch tile.
    const bool holds_all = layout.images[value] >= dims[0];
    float* const first = data[value] + (holds_all ? images.begin * ImageFloats(dims) : 0);
    dims.size[0] = images.size();
    return std::pair(Tensor{abi::kFloat, dims, first}, first);
  };
  std::vector<Tensor> inputs{view(step.x).first};
  if (step.residual) inputs.push_back(view(*step.residual).first);
  Labelled(step, [&] {
    step.group->Compute(Context(context, inputs, view(step.y).second), {number, images.begin});
  });
}

ConvNetwork::Layout ConvNetwork::LayOut(const std::vector<Dims>& inputs) const {
  Layout layout;
  layout.dims = inputs;
  layout.dims.resize(num_values_);
  for (const Step& step : steps_) {
    Labelled(step, [&] {
      layout.dims[step.y] = step.group->OutputDims(layout.dims[step.x]);
      if (layout.dims[step.x][0] != inputs[steps_[0].x][0]) {
        Refuse("input x must have the images of the others, ", inputs[steps_[0].x][0], ", got ",
               layout.dims[step.x]);
      }
      if (step.residual) {
        CheckDims("residual", {abi::kFloat, layout.dims[*step.residual], nullptr},
                  layout.dims[step.y]);
      }
    });
  }
  layout.passes = PlanPasses(layout.dims);
  PlaceValues(&layout);
  return layout;
}

// Steps are cut into blocks where a single value connects the steps before with the steps after.
// Neighbours that are best done with as many images at a time are one pass.
std::vector<ConvNetwork::Pass> ConvNetwork::PlanPasses(const std::vector<Dims>& dims) const {
  const auto count = static_cast<Index>(steps_.size());
  const auto batch = std::max<Index>(static_cast<Index>(dims[steps_[0].x][0]), 1);
  if (batch == 1) return {{{0, count}, batch}};
  std::vector<Pass> passes;
  Index first = 0;
  Index read_until = 0;  // what the steps before have made
  for (Index s = 0; s < count; ++s) {
    const bool is_cut = read_until <= s + 1;
    read_until = std::max(read_until, lifetimes_[steps_[static_cast<std::size_t>(s)].y].end);
    if (!is_cut && s + 1 < count) continue;
    const Index images = std::min(ImagesFor({first, s + 1}, dims), batch);
    if (!passes.empty() && passes.back().images == images) {
      passes.back().steps.end = s + 1;
    } else {
      passes.push_back({{first, s + 1}, images});
    }
    first = s + 1;
  }
  return passes;
}

// The number of images: enough that cells are not read more often than images, and that a step's
// images are worth a task.
Index ConvNetwork::ImagesFor(Range steps, const std::vector<Dims>& dims) const {
  Index cells = 0;
  Index values = 0;
  Index most = 1;  // of a step
  for (Index s = steps.begin; s < steps.end; ++s) {
    const Step& step = steps_[static_cast<std::size_t>(s)];
    Index of_step = ImageFloats(dims[step.x]) + ImageFloats(dims[step.y]);
    if (step.residual) of_step += ImageFloats(dims[*step.residual]);
    cells += step.group->num_cells();
    values += of_step;
    most = std::max(most, of_step);
  }
  return PowerOfTwo(std::max(CeilDiv(cells, std::max<Index>(values, 1)), kNearFloats / most));
}

// Each value between steps takes the lowest place that no value alive at the same time has.
void ConvNetwork::PlaceValues(Layout* layout) const {
  layout->images.resize(num_values_);
  layout->places.resize(num_values_);
  for (std::size_t v = 0; v < num_values_; ++v) {
    layout->images[v] = std::max<Index>(static_cast<Index>(layout->dims[v][0]), 1);
  }
  struct Placed {
    Range steps;
    Range floats;
  };
  std::vector<Placed> placed;
  for (const Step& step : steps_) {
    const std::size_t v = step.y;
    if (!IsBetween(v)) continue;
    Range life = lifetimes_[v];
    for (const Pass& pass : layout->passes) {
      if (pass.steps.begin > life.begin || life.begin >= pass.steps.end) continue;
      if (life.end <= pass.steps.end) {
        layout->images[v] = pass.images;
      } else {
        life.begin = pass.steps.begin;
      }
    }
    for (const Pass& pass : layout->passes) {
      if (life.begin < pass.steps.begin && pass.steps.begin < life.end) {
        life.end = std::max(life.end, pass.steps.end);
      }
    }
    const Index size = RoundUp(layout->images[v] * ImageFloats(layout->dims[v]), kLineFloats);
    Index at = 0;
    for (const Placed& other : placed) {  // by where they begin
      const bool meets = other.steps.begin < life.end && life.begin < other.steps.end;
      if (meets && other.floats.begin < at + size) at = std::max(at, other.floats.end);
    }
    layout->places[v] = at;
    layout->floats = std::max(layout->floats, at + size);
    const Placed own{life, {at, at + size}};
    const auto by_begin = [](const Placed& a, const Placed& b) {
      return a.floats.begin < b.floats.begin;
    };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), own, by_begin), own);
  }
}

}  // namespace rimc
