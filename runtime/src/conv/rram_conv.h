// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/plan_cache.h"
#include "conv/engine.h"
#include "conv/sums.h"
#include "crossbar/integer_cells.h"
#include "crossbar/periphery.h"
#include "kernels/kernels.h"
#include "ort/ort.h"
#include "ort/shape_inference.h"

namespace rimc {

// Address of the draws of a run: its number in the session, and the first image of a batch tile.
struct ReadRun {
  std::uint64_t number;
  Index first_image = 0;
};

// RramConv: x [N, C, *S] and the crossbar w [M, C / group, *kernel] give [N, M, *S_out], one to
// three spatial dimensions. w has to be a constant.
//
// Sums are read as they leave the registers; only bit-serial inputs, noise that is relative to each
// device, and cells with an I-V curve of their own store them first. Where word lines and cells are
// integers, sums are integers of int16 pairs.
class RramConv {
 public:
  static constexpr const char* kName = "RramConv";
  static constexpr std::size_t kNumInputs = 2;
  static int InputType(std::size_t) { return abi::kFloat; }
  static void InferShape(const InferContext& context) { InferConv(context); }

  explicit RramConv(const NodeInfo& node);
  // By default one array of any height per group, with ideal converters.
  RramConv(const ConvNode& conv, const Tensor& w, Periphery periphery = {});
  Output Compute(const Context& context) const { return ComputeRun(context, {NextRun()}); }

 private:
  friend class FusedConv;
  RramConv(const ConvAttributes& conv, const float* w, Periphery periphery);
  struct Run;
  struct Memory;
  // Plans for an input of some dimensions.
  struct Shaped {
    Dims y_dims;
    ConvPlan plan;
    std::optional<StripPlan> strips;
  };

  void Pack(const float* w);
  void PackCells(const float* w, AlignedFloats* packed) const;
  bool PackPairs(const float* w);
  void PackReadout();
  // The same crossbar with float32 sums: for inputs with a NaN.
  const RramConv& Floats() const;
  // Calls run(engine), an engine of all but stored sums, for an input.
  template <class Body>
  void WithEngine(const Shaped& shaped, const float* x, const Body& run) const;
  // Throws where the dimensions of an input don't fit.
  Shaped ShapedFor(const Tensor& x) const;
  ConvCells CellsOf(const ConvPlan& plan, Index group) const noexcept;
  ConvOutput OutputOf(const ConvPlan& plan, const ConvPlace& place, float* y) const noexcept;
  // Number of a run, which the draws of its noise depend on.
  std::uint64_t NextRun() const { return runs_.fetch_add(1, std::memory_order_relaxed); }
  Output ComputeRun(const Context& context, const ReadRun& read) const;
  void ComputeStored(const Context& context, const ConvPlan& plan, const float* x, float* y,
                     const ReadRun& read) const;
  void StoreTask(const Run& run, const ConvPlace& place) const noexcept;
  void SquareChannels(const ConvPlan& plan, const ConvPlace& place, Range channels, float* squares,
                      std::int32_t* offsets) const noexcept;
  void ChannelSquares(const Run& run, const ConvPlace& place, Range channels,
                      const Memory& memory) const noexcept;
  void ReadBlock(const Run& run, const ConvPlace& place, const Memory& memory, Range columns,
                 Index plane, Index tile) const noexcept;
  Index TaskFloats(const ConvPlan& plan) const;
  // Whether reads can follow the sums while they are in registers, and memory that a task needs
  // then for noise.
  bool ReadsAtOnce() const {
    return periphery_.num_planes() == 1 && !periphery_.iv.on && !periphery_.noise.by_cell();
  }
  Index NoiseFloats(const ConvPlan& plan) const;
  // Noise of one group of an item, in `memory`.
  ConvNoise NoiseOf(const ConvEngine& engine, const ConvPlan& plan, const ConvPlace& place,
                    const ReadRun& read, float* memory) const noexcept;
  void SquareColumns(const float* x, Index x_row, Index rows, float* y, Index count) const noexcept;
  void FillVariance(const ConvEngine& engine, const ConvPlan& plan, const ConvPlace& place,
                    Range channels, float* squares, float* variance) const noexcept;
  // ConvEngine::Compute with the noise of a run, in `memory`.
  void ComputeGroup(const ConvEngine& engine, const ConvPlan& plan, const ConvPlace& place,
                    const std::vector<ConvPass>& passes, float* y, const ConvPostOps* post_ops,
                    const ReadRun& read, float* memory) const noexcept;

  const kernels::KernelTable& kernels_;
  ConvAttributes conv_;
  Periphery periphery_;
  ConvReadout readout_;
  AlignedFloats packed_;  // floats, or int16 pairs where sums are integers
  PairLayout pairs_;
  std::optional<IntegerCells> integer_cells_;
  std::vector<float> pair_gain_;       // of integer sums
  std::vector<float> pair_deviation_;  // likewise
  mutable std::once_flag floats_once_;
  mutable std::unique_ptr<RramConv> floats_;
  std::vector<ConvReadout> sums_;  // of one tile each, unread; where sums are stored
  ConvReadout window_sums_;        // over one channel
  AlignedFloats ones_;             // [window]
  AlignedFloats squares_;          // of the cells' noise, packed the same; where each has its own
  AlignedFloats terms_[2];         // cells of u^2 and u^3, the same; with an I-V curve of theirs
  mutable std::atomic<std::uint64_t> runs_{0};
  PlanCache<Shaped> shaped_;
};

template <class Body>
void RramConv::WithEngine(const Shaped& shaped, const float* x, const Body& run) const {
  const ConvPlan& plan = shaped.plan;
  const kernels::Quantizer line = integer_cells_ ? periphery_.PairQuantizer() : periphery_.Line(0);
  if (integer_cells_) {
    const PairInputs inputs(plan, kernels_, pairs_, line, x);
    run(ConvEngine(plan, kernels_, inputs, true));
    return;
  }
  const FloatInputs inputs(plan, kernels_, periphery_.has_line ? &line : nullptr, x);
  ConvEngine engine(plan, kernels_, inputs);
  if (shaped.strips) engine.TakeStrips(*shaped.strips, inputs);
  if (periphery_.noise.on) engine.CopyAlways();
  run(engine);
}

}  // namespace rimc
