// SPDX-License-Identifier: Apache-2.0
//
// A crossbar's convolution in one pass over its input: packs the input of a group (inputs.h), and
// computes blocks of columns for the vectors of its positions (tiling.h) with their epilogue
// (epilogue.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/slot_pool.h"
#include "conv/epilogue.h"
#include "conv/inputs.h"
#include "conv/plan.h"
#include "conv/strips.h"
#include "conv/tiling.h"
#include "conv/work.h"
#include "kernels/kernels.h"
#include "ort/ort.h"

namespace rimc {

class ConvEngine {
 public:
  // `inputs`: of the same plan. `has_pairs`: they are int16 pairs, and sums are integers. All
  // arguments have to outlive the engine.
  ConvEngine(const ConvPlan& plan, const kernels::KernelTable& kernels, const ConvInputs& inputs,
             bool has_pairs = false)
      : plan_(plan),
        kernels_(kernels),
        inputs_(inputs),
        has_pairs_(has_pairs),
        tiling_(plan, kernels),
        epilogue_(plan, kernels, tiling_) {}
  ConvEngine(const ConvEngine&) = delete;
  ConvEngine& operator=(const ConvEngine&) = delete;

  // Passes that find the inputs they need in the L1 cache.
  std::vector<ConvPass> PlanPasses(const ConvReadout& readout) const;

  // Sums are taken in strips, whose plan has the same tasks. `inputs`: the engine's inputs.
  void TakeStrips(const StripPlan& strips, const FloatInputs& inputs) {
    strips_ = &strips;
    strip_inputs_ = &inputs;
  }

  // Has Run copy all inputs, for a caller that reads place.input.
  void CopyAlways() { copies_always_ = true; }

  const ConvInputs& inputs() const { return inputs_; }
  const ConvTiling& tiling() const { return tiling_; }

  // Calls body(place) for every group of every item of the plan, on the threads of the session; the
  // input of a group is packed once for consecutive items that share it. `branch`: the adapter's
  // codes, or null. `body` must not throw.
  template <class Body>
  void Run(const Context& context, Index extra_floats, const ConvInputs* branch,
           const Body& body) const;

  // The sums of an item's columns of a group with their epilogue. `column0`: index of the group's
  // first column in readout.gain. `output` is of the group's first column.
  void Compute(const ConvPlace& place, const ConvCells& cells, const ConvReadout& readout,
               const std::vector<ConvPass>& passes, Index column0, const ConvOutput& output,
               const ConvPostOps* post_ops, const ConvNoise* noise = nullptr) const noexcept;

  // Sums over `depth` word lines for the vectors of an item.
  void SumVecs(const ConvPlace& place, const float* cells, Index depth, float* sums) const noexcept;

 private:
  struct VectorBlock;
  struct Job;
  // Whether Compute reads x itself, but for the last positions of a channel that don't fill a
  // vector.
  bool ReadsDirectly() const noexcept;
  bool CopiesCodesByPart() const noexcept;
  void PackInputs(const ConvPlace& place, const ConvInputs* branch) const noexcept;
  void PackPanels(const ConvPlace& place, const ConvInputs* branch) const noexcept;
  void SumStrips(const ConvPlace& place, const ConvCells& cells,
                 const ConvOutput& output) const noexcept;
  Index PartialVectorPositions(const ConvPlace& place, const ConvCells& cells,
                               const ConvNoise* noise) const noexcept;
  void SetPartPointers(const ConvPlace& place, Range vecs, Index i, const ConvOutput& output,
                       VectorBlock* vectors) const noexcept;
  void ComputePass(const ConvPlace& place, const Job& job, std::size_t number,
                   Index count) const noexcept;
  void ComputeColumns(const ConvPlace& place, Range columns, Index num_blocks, Index rows,
                      const ConvOutput& output, const ConvPass& pass, bool has_post_ops,
                      VectorBlock* vectors) const noexcept;

  const ConvPlan& plan_;
  const kernels::KernelTable& kernels_;
  const ConvInputs& inputs_;
  const bool has_pairs_;
  const ConvTiling tiling_;
  const ConvEpilogue epilogue_;
  bool copies_always_ = false;
  const StripPlan* strips_ = nullptr;
  const FloatInputs* strip_inputs_ = nullptr;
};

template <class Body>
void ConvEngine::Run(const Context& context, Index extra_floats, const ConvInputs* branch,
                     const Body& body) const {
  constexpr Index kMaxTasks = 64;
  const Index num_tasks = std::min(plan_.num_items(), kMaxTasks);
  const Index input_floats =
      RoundUp(strips_ == nullptr ? plan_.scratch_floats() : strips_->scratch_floats(), 16);
  const Index code_floats = branch == nullptr ? 0 : branch->plan().scratch_floats();
  // Sums whose vectors run on over rows, and their residual; or sums of a partial vector.
  const Index column_floats = plan_.by_rows()
                                  ? kernels_.partial_vector_positions
                                  : 2 * PartsTogether(plan_, kernels_) * plan_.panel_row();
  const Index local_floats = RoundUp(plan_.columns() * column_floats, 16);
  const Index task_floats = input_floats + code_floats + local_floats + RoundUp(extra_floats, 16);
  const Scratch scratch(context, num_tasks * task_floats);
  float* const memory = scratch.data();

  SlotPool slots;
  std::array<Index, kMaxTasks> copied;  // which input a slot has
  copied.fill(-1);
  context.ParallelFor(num_tasks, [&](Index task) {
    const int slot = slots.Take();
    float* const input = memory + slot * task_floats;
    float* const local = input + input_floats + code_floats;
    const Range items = Part(plan_.num_items(), num_tasks, task);
    for (Index i = items.begin; i < items.end; ++i) {
      ConvPlace place{plan_.Item(i),
                      0,
                      input,
                      plan_.offsets(),
                      local,
                      local + local_floats,
                      input + input_floats,
                      branch == nullptr ? nullptr : branch->plan().offsets(),
                      plan_.direct_offsets()};
      for (Index g = place.item.groups.begin; g < place.item.groups.end; ++g) {
        place.group = g;
        const Index wanted = i / plan_.sharers() * plan_.conv().group + g;
        Index& has = copied[static_cast<std::size_t>(slot)];
        place.is_new = has != wanted;
        if (place.is_new) PackInputs(place, branch);
        has = wanted;
        body(place);
      }
    }
    slots.Return(slot);
  });
}

}  // namespace rimc
