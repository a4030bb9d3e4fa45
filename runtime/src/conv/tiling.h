// SPDX-License-Identifier: Apache-2.0
//
// Output positions of a task in vectors: where the inputs and outputs of a vector are, and copies
// of vectors that run on over rows.
#pragma once

#include <cstdint>

#include "conv/plan.h"
#include "conv/work.h"
#include "kernels/kernels.h"

namespace rimc {

// Memory and place of a task while it works on a group of an item.
struct ConvPlace {
  ConvItem item;
  Index group;
  float* input;                 // of the group
  const std::int32_t* offsets;  // ConvPlan::offsets
  float* local;                 // outputs of vectors that run on over rows, before they are copied
  float* extra;                 // `extra_floats` for the caller
  float* codes = nullptr;       // the same as input and offsets of the branch
  const std::int32_t* code_offsets = nullptr;
  const std::int32_t* direct_offsets = nullptr;  // in x itself, or null
  bool is_new = true;  // false: input and codes are already packed, for the place before
};

// Vectors [vecs.begin, vecs.end) of an item's positions, for one block of columns.
struct ConvBlock {
  Range vecs;
  Range columns;
};

class ConvTiling {
 public:
  // The arguments have to outlive the object.
  ConvTiling(const ConvPlan& plan, const kernels::KernelTable& kernels)
      : plan_(plan), kernels_(kernels) {}

  // Vectors of positions of an item.
  Index NumVecs(const ConvItem& item) const noexcept;

  // Sets b, c, c_row and lanes of `args` for the vectors of a block's first column: c is in the
  // output, or in place.local where vectors run on over rows.
  void SetVectorPointers(const ConvPlace& place, Range vecs, const ConvOutput& output,
                         kernels::BlockArgs* args) const noexcept;

  // Copies the output positions of a block `local`, whose vectors run on over rows and images, to
  // `output`, which is of the block's first column.
  void ScatterRuns(const ConvPlace& place, const ConvBlock& block, const float* local,
                   const ConvOutput& output) const noexcept;
  // The inverse, for values laid out like the output. `from` is of the block's first column.
  void GatherRuns(const ConvPlace& place, const ConvBlock& block, const float* from,
                  const ConvOutput& output, float* local) const noexcept;

  // places[i]: index of the position in lane i of an item's vectors among the positions of all
  // images; lanes without a position get any. `first_image`: of all, the first of the run.
  void FillPlaces(const ConvPlace& place, Index first_image, std::uint32_t* places) const noexcept;

 private:
  // Output positions of an item and extents of a channel, where rows that are one count as one.
  Axes BandOut(const ConvItem& item) const;
  Axes Extent() const;
  // Calls body(from, at, count) for the runs of `positions`, which go on over rows and images, that
  // belong to the output: so many from positions.begin + `from` on are at `at` of an output's
  // column.
  template <class Body>
  void ForRuns(const ConvItem& item, Range positions, Index image, const Body& body) const;

  const ConvPlan& plan_;
  const kernels::KernelTable& kernels_;
};

}  // namespace rimc
