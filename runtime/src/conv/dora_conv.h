// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "adapter/dora.h"
#include "adapter/quads.h"
#include "adapter/sparse.h"
#include "base/plan_cache.h"
#include "conv/sums.h"
#include "kernels/kernels.h"
#include "ort/ort.h"
#include "ort/shape_inference.h"

namespace rimc {

// DoraConv: Y = M o (H + (X A) B + X S) + bias, A and S convolutions and B a 1 x 1 convolution;
// x [N, C, *S], h [N, M, *S_out], lora_a [group * R, C / group, *kernel], lora_b [M, R, *ones],
// cells of S [M, C / group, *kernel].
class DoraConv {
 public:
  static constexpr const char* kName = "DoraConv";
  static constexpr std::size_t kNumInputs = kNumDoraInputs;
  static int InputType(std::size_t index) { return DoraInputType(index); }
  static void InferShape(const InferContext& context) { InferSameAs(context, kDoraH); }

  explicit DoraConv(const NodeInfo& node);
  void Compute(const Context& context) const;

 private:
  friend class FusedConv;
  friend struct ConstantAdapterOf;
  // Sizes of an adapter.
  struct Layout {
    ConvAttributes conv;  // columns: as many as cost as much as the branch
    Index columns;        // M
    Index rank;           // R
    Index active_rank;    // R, or 0 where the low-rank part adds nothing
    Index num_cells;      // E
    bool dense;           // S is packed as a full matrix

    Index Steps() const { return conv.depth * conv.Window(); }
    Index GroupColumns() const { return columns / conv.group; }
    CellGrid Grid() const { return {columns, Steps(), Steps(), 1}; }
    // Places in the memory it is packed into:
    Index a() const { return 0; }                            // PackColumnBlocks
    Index b() const { return conv.group * rank * Steps(); }  // [M, R]
    Index scale() const { return b() + columns * rank; }     // [M], and so the next three
    Index sparse_scale() const { return scale() + columns; }
    Index magnitude() const { return sparse_scale() + columns; }
    Index bias() const { return magnitude() + columns; }
    Index rank_step() const { return bias() + columns; }             // [group * R]
    Index cells() const { return rank_step() + conv.group * rank; }  // PackColumnBlocks, PackSparse
    Index size() const {
      return cells() + (dense ? Grid().Count() : SparseFloats(columns, num_cells));
    }
  };
  // Both matrices once more, for the integer kernels of processors that have them.
  struct Quads {
    QuadMatrix a;
    QuadMatrix cells;
    kernels::Divisor x_divisor{1.0f, 1.0f, 0.0f};
    // Cost of the sums, and of packing and merging, in columns of a convolution:
    Index sum_columns = 0;
    Index other_columns = 0;
  };
  struct Run;

  Layout Check(const DoraTensors& adapter) const;
  void Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const;
  Quads PackQuads(const DoraTensors& adapter, const Layout& layout) const;
  void ComputeWith(const Context& context, const Tensor& x, const Tensor& h, const Layout& layout,
                   const float* packed, const Quads& quads, float x_scale) const;
  // Whether x has codes; without (a NaN) y is not complete.
  bool AddQuadBranch(const Context& context, const Run& run) const;
  void SumQuads(const Run& run, const ConvPlan& plan, const ConvSums& sums, const ConvPlace& place,
                std::int32_t* offsets) const noexcept;
  void AddBranch(const Context& context, const Run& run) const;
  ConvOutput OutputOf(const Run& run, const ConvPlan& plan, const ConvPlace& place) const noexcept;
  // X S of one group of an item, to y. `offsets`: memory for those of the group's cells.
  void SumCells(const Run& run, const ConvPlan& plan, const ConvSums& sums, const ConvPlace& place,
                std::int32_t* offsets) const noexcept;
  // Of one group of an item; u [R, u_row] are the codes of the ranks.
  void MergeGroup(const Run& run, const ConvPlan& plan, const ConvItem& item, Index g,
                  const float* u, Index u_row) const noexcept;
  // The arguments of merge_rows for columns from `column0` on.
  static kernels::MergeArgs MergeOf(const Run& run, Index column0) noexcept;
  void MergeOnly(const Context& context, const Run& run) const;

  const kernels::KernelTable& kernels_;
  ConvNode node_;
  // Of a constant adapter:
  bool is_constant_ = false;
  Layout layout_{};
  float x_scale_ = 1.0f;
  AlignedFloats packed_;
  Quads quads_;
  PlanCache<ConvPlan> plans_;
};

}  // namespace rimc
