// SPDX-License-Identifier: Apache-2.0
//
// Runs the tasks of a ConvPlan: has a group's input packed (inputs.h), and computes blocks of
// columns from it with their epilogue (work.h). Used for the crossbar, and for the first factor and
// the sparse cells of an adapter.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "adapter/quads.h"
#include "adapter/sparse.h"
#include "base/slot_pool.h"
#include "conv/inputs.h"
#include "conv/plan.h"
#include "conv/strips.h"
#include "conv/work.h"
#include "crossbar/column_blocks.h"
#include "kernels/kernels.h"
#include "ort/ort.h"

namespace rimc {

class ConvEngine {
 public:
  // `inputs`: of the same plan. `has_pairs`: they are int16 pairs, and sums are integers (for
  // ComputeFused). All arguments have to outlive the engine.
  ConvEngine(const ConvPlan& plan, const kernels::KernelTable& kernels, const ConvInputs& inputs,
             bool has_pairs = false)
      : plan_(plan), kernels_(kernels), inputs_(inputs), has_pairs_(has_pairs) {}

  // Passes that find the inputs they need in the L1 cache.
  std::vector<ConvPass> PlanPasses(const ConvReadout& readout) const;

  // Sums are taken in strips, whose plan has the same tasks. `inputs`: the engine's inputs.
  void TakeStrips(const StripPlan& strips, const FloatInputs& inputs) {
    strips_ = &strips;
    strip_inputs_ = &inputs;
  }

  // Has RunFused copy all inputs, for a caller that reads place.input.
  void CopyAlways() { copies_always_ = true; }

  const ConvInputs& inputs() const { return inputs_; }

  // Memory and place of a task while it works on a group of an item.
  struct Place {
    ConvItem item;
    Index group;
    float* input;                 // of the group
    const std::int32_t* offsets;  // ConvPlan::offsets
    float* local;                 // one block of outputs; of RunFused, all whose sums go on
    float* extra;                 // `extra_floats` for the caller
    float* codes;                 // the same as input and offsets of the branch, in RunFused
    const std::int32_t* code_offsets;
    const std::int32_t* direct_offsets;  // in x itself, where ReadsDirectly()
    bool is_new = true;  // false: input and codes are already packed, for the place before
  };

  // Noise of the reads of a group's sums. Values per position are in the order of the vectors'
  // lanes.
  struct Noise {
    const float* sigma;           // [tiles, sigma_row] over a deviation of 1
    Index sigma_row;              // MaxPositions() of the plan
    const std::uint32_t* places;  // [sigma_row] of draws
    const float* deviation;       // [columns of the group]
    Index column0;                // number of its first column
    kernels::DrawKey key;         // of tile 0
    std::uint32_t* z;             // ZFloats(): of the columns whose draws are of one counter
    static Index ZFloats(const ConvPlan& plan) {
      return kPartsTogether * kernels::kDrawRows * plan.panel_row();
    }
  };
  // places[i]: index of the position in lane i of an item's vectors among the positions of all
  // images; lanes without a position get any. `first_image`: of all, the first of the run.
  void FillPlaces(const Place& place, Index first_image, std::uint32_t* places) const noexcept;
  // Sums over `depth` word lines for the vectors of an item.
  void SumVecs(const Place& place, const float* cells, Index depth, float* sums) const noexcept;

  // Calls body(place) for every group of every item of the plan, on the threads of the session.
  // `body` must not throw.
  template <class Body>
  void Run(const Context& context, Index extra_floats, const Body& body) const;

  // Computes `blocks` of the columns of a group. `column0`: index of its first column in
  // readout.gain.
  void Compute(const Place& place, const ConvCells& cells, Range blocks, const ConvReadout& readout,
               Index column0, const ConvOutput& output) const noexcept;

  // The sums of an item's columns of a group with their epilogue. `output` is of the group's first
  // column.
  void ComputeFused(const Place& place, const ConvCells& cells, const ConvReadout& readout,
                    const std::vector<ConvPass>& passes, Index column0, const ConvOutput& output,
                    const ConvPostOps* post_ops, const Noise* noise = nullptr) const noexcept;

  // Runs body(place) for every group of every item of the plan, as Run, for ComputeFused: the input
  // of a group is packed once for consecutive items that share it. `branch`: the adapter's
  // codes, or null.
  template <class Body>
  void RunFused(const Context& context, Index extra_floats, const ConvInputs* branch,
                const Body& body) const;

  // Computes the columns of a group from lists of cells, without an ADC. `columns`: which of
  // `cells` these are. `cell_offsets`: place.offsets of every cell, from the first one of the group
  // on.
  void ComputeSparse(const Place& place, const SparseColumns& cells, Range columns,
                     const std::int32_t* cell_offsets, const ConvOutput& output) const noexcept;

  // Compute and ComputeSparse of int8 quads. `rank_step`: of the columns of the group, or null.
  void ComputeQuads(const Place& place, const QuadCells& cells, const float* rank_step,
                    const ConvOutput& output) const noexcept;
  void ComputeQuadLists(const Place& place, const QuadLists& cells, Range columns,
                        const std::int32_t* cell_offsets, const ConvOutput& output) const noexcept;

 private:
  // Vectors [vecs.begin, vecs.end) of an item's positions, for one block of columns.
  struct Block {
    Range vecs;
    Range columns;
  };
  struct Aim;
  struct Job;
  // Whether ComputeFused reads x itself, but for the last positions of a channel that don't fill a
  // vector.
  bool ReadsDirectly() const noexcept;
  bool CopiesCodesByPart() const noexcept;
  Index PartialVectorPositions(const Place& place, const ConvCells& cells,
                               const Noise* noise) const noexcept;
  void PackInputs(const Place& place, const ConvInputs* branch) const noexcept;
  void SumStrips(const Place& place, const ConvCells& cells,
                 const ConvOutput& output) const noexcept;
  void PackPanels(const Place& place, const ConvInputs* branch) const noexcept;
  void FindCodePointers(const Place& place, Range vecs, const ConvBranch& branch,
                        const float** codes) const noexcept;
  void ComputeRanks(const Place& place, const ConvBranch& branch, Range all) const noexcept;
  void ComputeQuadRanks(const ConvBranch& branch, const float* const* codes,
                        Range vecs) const noexcept;
  void ComputeBranch(const BranchCells& cells, Range columns, const float* const* b, Range vecs,
                     float* to, Index to_row) const noexcept;
  kernels::DrawArgs DrawsOf(const Noise& noise, Index tile, Range columns, Range vecs,
                            std::uint32_t* z) const noexcept;
  void SetNoisePointers(const Job& job, Index tile, Range columns, Range drawn, bool is_new,
                        Index i) const noexcept;
  void SetPartPointers(const Place& place, Range vecs, Index i, const ConvOutput& output,
                       Aim* aim) const noexcept;
  void ComputePass(const Place& place, const Job& job, std::size_t number,
                   Index count) const noexcept;
  static void SetReadout(const ConvReadout& readout, const ConvPass& pass, Index column,
                         kernels::BlockArgs* args) noexcept;
  void ComputeColumns(const Place& place, Range columns, Index num_blocks, Index rows,
                      const ConvOutput& output, const ConvPass& pass, bool has_post_ops,
                      Aim* aim) const noexcept;
  void PostOpsOfBlock(const Block& block, const float* const* codes, const ConvPostOps& post_ops,
                      kernels::PostOpArgs* args) const noexcept;
  Index NumVecs(const ConvItem& item) const noexcept;
  void SetVectorPointers(const Place& place, Range vecs, const ConvOutput& output,
                         kernels::BlockArgs* args) const noexcept;
  void ComputeBlock(const Place& place, const Block& block, const float* packed,
                    const ConvReadout& readout, Index column0,
                    kernels::BlockArgs* args) const noexcept;
  void ComputeLists(const Place& place, const Block& block, const SparseColumns& cells,
                    const std::int32_t* cell_offsets, const ConvOutput& output) const noexcept;
  // Calls body(block, args) for `blocks` of the columns of a group and all vectors; args are aimed.
  template <class Body>
  void ForBlocks(const Place& place, Index columns, Index num_blocks, Range blocks,
                 const ConvOutput& output, const Body& body) const;
  // Calls body(block) for all vectors of a group whose columns go in lists.
  template <class Body>
  void ForListBlocks(const Place& place, Range columns, const Body& body) const;
  template <class Body>
  void ForRuns(const ConvItem& item, Range positions, Index image, const Body& body) const;
  void ScatterRuns(const Place& place, const Block& block, const float* local,
                   const ConvOutput& output) const noexcept;
  void GatherRuns(const Place& place, const Block& block, const float* from,
                  const ConvOutput& output, float* local) const noexcept;
  // Output positions of an item and extents of a channel, where rows that are one count as one.
  Axes BandOut(const ConvItem& item) const;
  Axes Extent() const;

  const ConvPlan& plan_;
  const kernels::KernelTable& kernels_;
  const ConvInputs& inputs_;
  const bool has_pairs_;
  bool copies_always_ = false;
  const StripPlan* strips_ = nullptr;
  const FloatInputs* strip_inputs_ = nullptr;
};

template <class Body>
void ConvEngine::Run(const Context& context, Index extra_floats, const Body& body) const {
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
      Place place{plan_.Item(i),        0,       input,   plan_.offsets(), local,
                  local + local_floats, nullptr, nullptr, nullptr};
      for (Index g = place.item.groups.begin; g < place.item.groups.end; ++g) {
        place.group = g;
        if (!shared) inputs_.Copy(place.item, g, {0, depth}, input);
        body(place);
      }
    }
    slots.Return(slot);
  });
}

template <class Body>
void ConvEngine::RunFused(const Context& context, Index extra_floats, const ConvInputs* branch,
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
      Place place{plan_.Item(i),
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
