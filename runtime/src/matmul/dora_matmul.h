// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "adapter/dora.h"
#include "adapter/quads.h"
#include "adapter/sparse.h"
#include "kernels/kernels.h"
#include "ort/ort.h"
#include "ort/shape_inference.h"

namespace rimc {

// DoraMatMul: Y = M o (H + (X A) B + X S) + bias; x [..., K], h [..., N], lora_a [K, R],
// lora_b [R, N], cells of S [K, N].
class DoraMatMul {
 public:
  static constexpr const char* kName = "DoraMatMul";
  static constexpr std::size_t kNumInputs = kNumDoraInputs;
  static int InputType(std::size_t index) { return DoraInputType(index); }
  static void InferShape(const InferContext& context) { InferSameAs(context, kDoraH); }

  explicit DoraMatMul(const NodeInfo& node);
  void Compute(const Context& context) const;

 private:
  friend class FusedMatMul;
  friend struct ConstantAdapterOf;
  // Sizes of an adapter and where its parts lie in the memory it is packed into.
  struct Layout {
    Index depth;        // K
    Index columns;      // N
    Index rank;         // R
    Index active_rank;  // R, or 0 where the low-rank part adds nothing
    Index a_row;        // K rounded up to vectors
    Index b_row;        // N rounded up to vectors
    Index num_cells;    // E
    bool dense;         // S is packed as a full matrix
    Index chunk_rows;   // rows whose codes are used together, in vectors

    CellGrid Grid() const { return {columns, depth, 1, columns}; }
    // Places in the memory:
    Index a() const { return 0; }                       // [R, a_row]
    Index b() const { return rank * a_row; }            // [R, b_row]
    Index scale() const { return b() + rank * b_row; }  // [b_row], and so the next three
    Index sparse_scale() const { return scale() + b_row; }
    Index magnitude() const { return sparse_scale() + b_row; }
    Index bias() const { return magnitude() + b_row; }
    Index rank_step() const { return bias() + b_row; }  // [R]
    // Panels as in RramMatMul, or PackSparse with the steps multiplied by chunk_rows.
    Index cells() const { return RoundUp(rank_step() + rank, 16); }
    Index size() const {
      return cells() + (dense ? depth * b_row : SparseFloats(columns, num_cells));
    }
  };
  // Both matrices once more, for the integer kernels of processors that have them.
  struct Quads {
    Index row_quads = 0;              // of the codes of a row
    std::vector<std::uint32_t> a;     // [R, row_quads]
    std::vector<std::int32_t> start;  // [R] -128 times the sum of a
    QuadMatrix cells;
    std::vector<std::int32_t> offsets;  // of the quads of `cells` in transposed codes
  };
  struct Run;

  Layout Check(const DoraTensors& adapter) const;
  void Pack(const DoraTensors& adapter, const Layout& layout, float* memory) const;
  void PackPanels(const DoraTensors& adapter, const Layout& layout, float* panels) const;
  Quads PackQuads(const DoraTensors& adapter, const Layout& layout) const;
  // Whether x has codes; without (a NaN) y is not complete.
  // Codes of the ranks u [rows, R] of a constant adapter without cells.
  void ComputeBranch(const Context& context, const Tensor& x, float* u) const;
  void ComputeRun(const Context& context, const Run& run, Index rows) const;
  bool RunQuads(const Context& context, const Run& run, Index rows, Index num_tasks) const;
  bool RunQuadTask(const Run& run, Range rows, float* memory) const noexcept;
  // X S of a chunk of rows, to y. `sums`: memory [N, chunk_rows], or of a vector of columns where
  // cells are lists.
  void SumQuadLists(const Run& run, Range rows, const float* transposed,
                    float* sums) const noexcept;
  void SumQuadBlocks(const Run& run, Range rows, const float* transposed,
                     float* sums) const noexcept;
  void RunFloats(const Context& context, const Run& run, Index rows, Index num_tasks) const;
  Index NumPanels(const Layout& layout) const {
    return CeilDiv(layout.b_row / kernels_.lanes, kernels_.panel_vecs);
  }
  // Floats of memory that a task on `rows` rows needs.
  Index TaskFloats(const Layout& layout, Index rows) const;
  void RunTask(const Run& run, Range rows, float* memory) const noexcept;
  // X S of rows whose codes are given [rows, K], to y.
  void SumDense(const Run& run, Range rows, const float* codes) const noexcept;
  // X S of a chunk of rows, to y. `codes` [chunk_rows, K] are overwritten, `transposed` is memory
  // for them [K, chunk_rows].
  void SumLists(const Run& run, Range rows, float* codes, float* transposed) const noexcept;
  void Merge(const Run& run, Range rows, const float* u) const noexcept;

  const kernels::KernelTable& kernels_;
  // Of a constant adapter:
  bool is_constant_ = false;
  Layout layout_{};
  float x_scale_ = 1.0f;
  AlignedFloats packed_;
  Quads quads_;
};

struct DoraMatMul::Run {
  const Layout& layout;
  const float* packed;
  const Quads& quads;
  float x_scale;
  const float* x;
  const float* h;
  float* y;  // null: the codes of ranks alone are wanted, in
  float* u;  // [rows, R], otherwise null
};

}  // namespace rimc
