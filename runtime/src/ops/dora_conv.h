// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/kernels.h"
#include "ops/common/conv_engine.h"
#include "ops/common/dora.h"
#include "ops/common/ort.h"
#include "ops/common/shape_inference.h"

namespace rimc {

// DoraConv: Y = M o (H + (X A) B) + bias, A a convolution and B a 1 x 1 convolution;
// x [N, C, *S], h [N, M, *S_out], lora_a [group * R, C / group, *kernel], lora_b [M, R, *ones].
class DoraConv {
 public:
  static constexpr const char* kName = "DoraConv";
  static constexpr std::size_t kNumInputs = kNumDoraInputs;
  static int InputType(std::size_t index) { return DoraInputType(index); }
  static void InferShape(const InferContext& context) { InferSameAs(context, kDoraH); }

  explicit DoraConv(const NodeInfo& node);
  void Compute(const Context& context) const;

 private:
  // Sizes of an adapter.
  struct Layout {
    ConvAttributes conv;  // of lora_a: columns are group * R
    Index columns;        // M
    Index rank;           // R
    bool silent;          // the branch adds nothing

    Index Steps() const { return conv.depth * conv.Window(); }
    // Places in the memory it is packed into:
    Index a() const { return 0; }                         // PackConvWeights
    Index b() const { return conv.columns * Steps(); }    // [M, R]
    Index scale() const { return b() + columns * rank; }  // [M], and so the next two
    Index magnitude() const { return scale() + columns; }
    Index bias() const { return magnitude() + columns; }
    Index rank_step() const { return bias() + columns; }  // [group * R]
    Index size() const { return rank_step() + conv.columns; }
  };
  struct Run;

  Layout Check(const DoraTensors& adapter) const;
  void Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const;
  void ComputeWith(const Context& context, const Tensor& x, const Tensor& h, const Layout& layout,
                   const float* packed, float x_scale) const;
  void AddBranch(const Context& context, const Run& run) const;
  // Of one group of an item; u [R, u_row] are the sums of the ranks.
  void MergeGroup(const Run& run, const ConvPlan& plan, const ConvItem& item, Index g, float* u,
                  Index u_row) const noexcept;
  void MergeOnly(const Context& context, const Run& run) const;

  const kernels::KernelTable& kernels_;
  ConvNode node_;
  // Of a constant adapter:
  bool is_constant_ = false;
  Layout layout_{};
  float x_scale_ = 1.0f;
  AlignedFloats packed_;
};

}  // namespace rimc
