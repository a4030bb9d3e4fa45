// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "crossbar/integer_cells.h"
#include "crossbar/periphery.h"
#include "kernels/kernels.h"
#include "matmul/post_ops.h"
#include "ort/ort.h"
#include "ort/shape_inference.h"

namespace rimc {

// RramMatMul: x [..., K] times the crossbar w [K, N] gives [..., N]. w has to be a constant.
//
// Sums are read as they leave the registers; only noise of each cell and bit-serial inputs store
// them first. Where word lines and cells are integers, sums are integers of int16 pairs.
class RramMatMul {
 public:
  static constexpr const char* kName = "RramMatMul";
  static constexpr std::size_t kNumInputs = 2;
  static int InputType(std::size_t) { return abi::kFloat; }
  static void InferShape(const InferContext& context) { InferMatMul(context); }

  explicit RramMatMul(const NodeInfo& node);
  // By default one array of any height with ideal converters.
  explicit RramMatMul(const Tensor& w, Periphery periphery = {});
  Output Compute(const Context& context) const { return Compute(context, nullptr); }

 private:
  friend class FusedMatMul;

  // Word lines [begin, end) that one pass over a panel takes, and what happens to the sums.
  struct Pass {
    Range k;
    Index tile;
    bool resume;  // continues the sums of the pass before
    bool whole;   // ends a tile: its sums are converted
    bool first;
    bool last;
  };
  struct Work;
  struct Chunk;
  struct Stored;

  // `post_ops` (or null) is done with the sums. Pre: it is null with HasStoredSums.
  Output Compute(const Context& context, const MatMulPostOps* post_ops) const;
  Output ComputeRun(const Context& context, const MatMulPostOps* post_ops,
                    std::uint64_t number) const;
  RramMatMul(Index depth, Index columns, const float* w, Periphery periphery);
  Dims OutputDims(const Tensor& x) const;
  void TakeShape(const Tensor& w);
  void Pack(const float* w);
  AlignedFloats PackPanels(const float* w) const;
  bool PackPairs(const float* w);
  void PadConverters();
  // The same crossbar with float32 sums: for inputs with a NaN.
  const RramMatMul& Floats() const;
  AlignedFloats PadColumns(const std::vector<float>& values) const;
  void PlanPasses();
  bool HasStoredSums() const {
    return periphery_.num_planes() > 1 || periphery_.iv.on || periphery_.noise.by_cell();
  }
  void PlanTasks(Work* work) const;
  Range TaskColumns(Range panels) const;
  Index StoredRows() const;
  Index StoredFloats() const;
  void DriveLines(const Context& context, const Work& work) const;
  void RunTask(const Work& work, Index task) const;
  // The word lines of a plane for `rows` rows of x; false where an int16 would be NaN.
  bool DriveRows(const float* x, Index plane, Index rows, float* line) const;
  // The word lines of a chunk for a pass.
  void TakeLines(const Work& work, const Pass& pass, Chunk* chunk) const;
  // Deviations of the noise of `rows` rows, for all tiles, from what is on their word lines.
  void FindSigma(const float* line, Index rows, float* sigma, Index sigma_row) const;
  void MultiplyPanel(const Work& work, const Pass& pass, const Chunk& chunk, Index panel) const;
  void RunStoredTask(const Work& work, Index task) const;
  void Multiply(const float* x, const AlignedFloats& panels, const Stored& part, const Pass& pass,
                float* sums) const;
  void ReadSums(const Work& work, const Stored& part, Index plane, const Pass& pass) const;
  Index PanelVecs() const;
  Range PanelVecs(Index panel) const { return Part(num_vecs_, num_panels_, panel); }
  // Rows `part` of parts that are cut between groups of rows whose draws go together.
  static Range RowsOf(Index rows, Index parts, Index part);

  const kernels::KernelTable& kernels_;
  Index depth_ = 0;       // K
  Index columns_ = 0;     // N
  Index num_vecs_ = 0;    // vectors that hold the columns
  Index num_panels_ = 0;  // groups of at most panel_vecs vectors
  Periphery periphery_;
  Index line_row_ = 0;  // of the word lines of one row: K floats, or int16 pairs
  std::optional<IntegerCells> integer_cells_;
  PairLayout pairs_;
  mutable std::once_flag floats_once_;
  mutable std::unique_ptr<RramMatMul> floats_;
  bool tiled_ = false;  // a pass is a tile
  std::vector<Pass> passes_;
  AlignedFloats panels_;     // panel after panel, each [K, vecs * lanes], zero beyond N
  AlignedFloats squares_;    // of the cells' noise, packed the same; where each has its own
  AlignedFloats terms_[2];   // cells of u^2 and u^3, the same; with an I-V curve of theirs
  AlignedFloats gain_;       // [adc_tiles, num_vecs * lanes]
  AlignedFloats offset_;     // the same
  AlignedFloats back_;       // [num_vecs * lanes]
  AlignedFloats deviation_;  // the same
  mutable std::atomic<std::uint64_t> runs_{0};
};

}  // namespace rimc
