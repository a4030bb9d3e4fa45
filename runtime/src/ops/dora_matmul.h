// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/kernels.h"
#include "ops/common/dora.h"
#include "ops/common/ort.h"
#include "ops/common/shape_inference.h"

namespace rimc {

// DoraMatMul: Y = M o (H + (X A) B) + bias; x [..., K], h [..., N], lora_a [K, R], lora_b [R, N].
class DoraMatMul {
 public:
  static constexpr const char* kName = "DoraMatMul";
  static constexpr std::size_t kNumInputs = kNumDoraInputs;
  static int InputType(std::size_t index) { return DoraInputType(index); }
  static void InferShape(const InferContext& context) { InferSameAs(context, kDoraH); }

  explicit DoraMatMul(const NodeInfo& node);
  void Compute(const Context& context) const;

 private:
  // Sizes of an adapter and where its parts lie in the memory it is packed into.
  struct Layout {
    Index depth;    // K
    Index columns;  // N
    Index rank;     // R
    Index a_row;    // K rounded up to vectors
    Index b_row;    // N rounded up to vectors
    bool silent;    // the branch adds nothing

    // Places in the memory:
    Index a() const { return 0; }                       // [R, a_row]
    Index b() const { return rank * a_row; }            // [R, b_row]
    Index scale() const { return b() + rank * b_row; }  // [b_row], and so the next two
    Index magnitude() const { return scale() + b_row; }
    Index bias() const { return magnitude() + b_row; }
    Index rank_step() const { return bias() + b_row; }  // [R]
    Index size() const { return rank_step() + rank; }
  };

  Layout Check(const DoraTensors& adapter) const;
  void Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const;

  const kernels::KernelTable& kernels_;
  // Of a constant adapter:
  bool is_constant_ = false;
  Layout layout_{};
  float x_scale_ = 1.0f;
  AlignedFloats packed_;
};

}  // namespace rimc
