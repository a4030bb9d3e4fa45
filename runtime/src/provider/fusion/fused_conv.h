// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "base/plan_cache.h"
#include "conv/dora_conv.h"
#include "conv/rram_conv.h"
#include "provider/fusion/post_ops.h"

namespace rimc {

// A crossbar, its adapter or bias, and its post-ops as one node, which gives the bits of the
// separate nodes.
class FusedConv {
 public:
  // `adapter`: a DoraConv of constants beside the crossbar, or null.
  FusedConv(const NodeInfo& crossbar, const NodeInfo* adapter, const PostOps& post_ops);
  // `bias` [M] or empty.
  FusedConv(const ConvNode& conv, const Tensor& w, Periphery periphery, std::vector<float> bias,
            const PostOps& post_ops);
  // The images of a run, or some of them.
  void Compute(const Context& context, const ReadRun& read) const;
  std::uint64_t NextRun() const { return crossbar_.NextRun(); }

  // Dimensions of the output for an input of `x`. Throws where they don't fit.
  Dims OutputDims(const Dims& x) const;
  // Floats that the cells of the crossbar take.
  Index num_cells() const { return crossbar_.packed_.size(); }

 private:
  struct Run;
  // Plans for an input of some dimensions.
  struct Shaped {
    RramConv::Shaped crossbar;
    ConvPlan codes;                          // of the input of the adapter
    std::vector<std::int32_t> cell_offsets;  // of its cells in lists, from there
  };

  void PackRanks(const NodeInfo& adapter);
  // Rows of the codes of the ranks, a quad of four each.
  Index RankRows() const { return CeilDiv(adapter_->layout_.rank, Index{kernels::kQuadRanks}); }
  Index ExtraFloats(const ConvPlan& plan) const;
  Index SumBlocks(const ConvPlan& plan) const;
  std::vector<std::int32_t> CellOffsets(const ConvPlan& codes) const;
  Shaped ShapedFor(const Tensor& x) const;
  bool ComputeFused(const Context& context, const Shaped& shaped, const Run& run) const;
  void FillBranch(const Shaped& shaped, const ConvInputs& codes, const ConvPlace& place,
                  ConvBranch* branch) const noexcept;
  void FillPostOps(const Run& run, const ConvPlan& plan, const ConvPlace& place,
                   ConvPostOps* post_ops) const noexcept;
  void ComputeApart(const Context& context, const Run& run, const Dims& y_dims) const;
  void Finish(const Context& context, const Dims& y_dims, const float* residual, float* y) const;

  RramConv crossbar_;
  std::optional<DoraConv> adapter_;
  // B in blocks of columns; A in blocks of kQuadRanks, the last of which may be padded.
  QuadMatrix b_quads_;
  QuadMatrix a_quads_;
  std::vector<kernels::Divisor> rank_step_;  // of the ranks of A
  std::vector<float> bias_;
  PostOps post_ops_;
  PlanCache<Shaped> shaped_;
};

}  // namespace rimc
