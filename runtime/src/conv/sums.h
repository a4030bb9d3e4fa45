// SPDX-License-Identifier: Apache-2.0
//
// Sums of a convolution that are stored without post-ops: of crossbars whose sums are read later,
// and of an adapter's first factor and sparse cells.
#pragma once

#include <algorithm>

#include "adapter/quads.h"
#include "adapter/sparse.h"
#include "base/slot_pool.h"
#include "conv/inputs.h"
#include "conv/plan.h"
#include "conv/tiling.h"
#include "conv/work.h"
#include "kernels/kernels.h"
#include "ort/ort.h"

namespace rimc {

class ConvSums {
 public:
  // `inputs`: of the same plan. All arguments have to outlive the object.
  ConvSums(const ConvPlan& plan, const kernels::KernelTable& kernels, const ConvInputs& inputs)
      : plan_(plan), kernels_(kernels), inputs_(inputs), tiling_(plan, kernels) {}

  const ConvInputs& inputs() const { return inputs_; }

  // Calls body(place) for every group of every item of the plan, on the threads of the session.
  // `body` must not throw.
  template <class Body>
  void Run(const Context& context, Index extra_floats, const Body& body) const;

  // Computes `blocks` of the columns of a group. `column0`: index of its first column in
  // readout.gain.
  void Compute(const ConvPlace& place, const ConvCells& cells, Range blocks,
               const ConvReadout& readout, Index column0, const ConvOutput& output) const noexcept;

  // Computes the columns of a group from lists of cells, without an ADC. `columns`: which of
  // `cells` these are. `cell_offsets`: place.offsets of every cell, from the first one of the group
  // on.
  void ComputeSparse(const ConvPlace& place, const SparseColumns& cells, Range columns,
                     const std::int32_t* cell_offsets, const ConvOutput& output) const noexcept;

  // Compute and ComputeSparse of int8 quads. `rank_step`: of the columns of the group, or null.
  void ComputeQuads(const ConvPlace& place, const QuadCells& cells, const float* rank_step,
                    const ConvOutput& output) const noexcept;
  void ComputeQuadLists(const ConvPlace& place, const QuadLists& cells, Range columns,
                        const std::int32_t* cell_offsets, const ConvOutput& output) const noexcept;

 private:
  void ComputeBlock(const ConvPlace& place, const ConvBlock& block, const float* packed,
                    const ConvReadout& readout, Index column0,
                    kernels::BlockArgs* args) const noexcept;
  void ComputeLists(const ConvPlace& place, const ConvBlock& block, const SparseColumns& cells,
                    const std::int32_t* cell_offsets, const ConvOutput& output) const noexcept;
  // Calls body(block, args) for `blocks` of the columns of a group and all vectors, to which the
  // pointers of args are set.
  template <class Body>
  void ForBlocks(const ConvPlace& place, Index columns, Index num_blocks, Range blocks,
                 const ConvOutput& output, const Body& body) const;
  // Calls body(block) for all vectors of a group whose columns are lists.
  template <class Body>
  void ForListBlocks(const ConvPlace& place, Range columns, const Body& body) const;

  const ConvPlan& plan_;
  const kernels::KernelTable& kernels_;
  const ConvInputs& inputs_;
  const ConvTiling tiling_;
};

template <class Body>
void ConvSums::Run(const Context& context, Index extra_floats, const Body& body) const {
  // Where items share their input, it is copied first; otherwise a task copies what it needs. A
  // task takes every num_tasks-th item, in its own memory.
  constexpr Index kMaxTasks = 64;
  const bool shared = plan_.sharers() > 1;
  const Index num_tasks = std::min(plan_.num_items(), kMaxTasks);
  const Index num_inputs = shared ? plan_.num_items() / plan_.sharers() : num_tasks;
  const Index input_floats = plan_.scratch_floats();
  const Index local_floats = kernels_.max_accumulators * kernels_.lanes;
  const Index task_floats = RoundUp(local_floats + extra_floats, 16);
  const Scratch scratch(context, num_inputs * input_floats + num_tasks * task_floats);
  float* const inputs = scratch.data();
  float* const locals = inputs + num_inputs * input_floats;

  const Index depth = plan_.conv().depth;
  if (shared) {
    const Index parts = std::min(depth, CeilDiv(input_floats, 1 << 14));
    context.ParallelFor(num_inputs * parts, [&](Index task) {
      const ConvItem item = plan_.Item(task / parts * plan_.sharers());
      inputs_.Copy(item, item.groups.begin, Part(depth, parts, task % parts),
                   inputs + task / parts * input_floats);
    });
  }
  SlotPool slots;
  context.ParallelFor(num_tasks, [&](Index task) {
    const int slot = slots.Take();
    float* const local = locals + slot * task_floats;
    for (Index i = task; i < plan_.num_items(); i += num_tasks) {
      float* const input = inputs + (shared ? i / plan_.sharers() : slot) * input_floats;
      ConvPlace place{plan_.Item(i), 0, input, plan_.offsets(), local, local + local_floats};
      for (Index g = place.item.groups.begin; g < place.item.groups.end; ++g) {
        place.group = g;
        if (!shared) inputs_.Copy(place.item, g, {0, depth}, input);
        body(place);
      }
    }
    slots.Return(slot);
  });
}

}  // namespace rimc
