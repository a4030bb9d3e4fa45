// SPDX-License-Identifier: Apache-2.0
//
// Epilogue of a block (BlockArgs of kernels.h): noise, converter, and the post-ops behind them. It
// is written once over the SIMD type S of simd.h, for sums in registers: all of a block, or one
// vector of a block whose sums are in memory.
#pragma once

#include "kernels/kernels.h"
#include "kernels/reading.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// Whether a SIMD type has the integer operations of quads.h.
template <class S, class = void>
struct HasQuads {
  static constexpr bool value = false;
};
template <class S>
struct HasQuads<S, decltype(static_cast<void>(S::kMaxQuadSums))> {
  static constexpr bool value = true;
};

// The first of an epilogue's sums in a block of `vecs` vectors per row.
struct BlockPart {
  int row;
  int vec;
  int vecs;
};

// The epilogue of kRows x kVecs sums, of whose vectors only the last of a row may be partial.
template <class S, int kRows, int kVecs, bool kConv>
struct Epilogue {
  using Vec = typename S::Vec;
  using Sums = Vec[kRows][kVecs];

  const BlockArgs& args;
  const BlockPart part;

  // Calls step(i, v) for all sums: each step is done for all of them, which stay in registers.
  template <class Step>
  RIMC_INLINE static void ForEach(const Step& step) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) step(i, v);
    }
  }

  // Values that are per column of the crossbar: rows of a convolution, lanes of a product.
  RIMC_INLINE Vec OfColumn(const float* values, int i, int v) const {
    return kConv ? S::Set1(values[part.row + i]) : S::Load(values + (part.vec + v) * S::kLanes);
  }
  RIMC_INLINE Vec LoadAt(const float* row, int v) const {
    return v + 1 < kVecs ? S::Load(row) : LoadLanes<S>(row, args.lanes[part.vec + v]);
  }
  RIMC_INLINE float* OutputAt(int i, int v) const {
    return args.c[part.vec + v] + (part.row + i) * args.c_row;
  }

  // Draws become normals here: that takes no sum, so a processor does it while the last products
  // are on their way.
  RIMC_INLINE void AddNoise(Sums& sums) const {
    const NormalsOf<S> normals;
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const int row = part.row + i;
      // Of a block of a convolution sigma is per lane, of others the deviation.
      const Vec of_row = S::Set1((kConv ? args.deviation : args.sigma)[row]);
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const ptrdiff_t lane = (part.vec + v) * S::kLanes;
        const Vec deviation = S::Mul(of_row, S::Load((kConv ? args.sigma : args.deviation) + lane));
        const Vec z = normals(S::LoadInt(args.z + row * args.z_row + lane));
        sums[i][v] = S::Add(sums[i][v], S::Mul(deviation, z));
      }
    }
  }

  RIMC_INLINE void Convert(Sums& sums) const {
    ForEach([&](int i, int v) { sums[i][v] = S::Mul(sums[i][v], OfColumn(args.gain, i, v)); });
    if (args.offset != nullptr) {
      ForEach([&](int i, int v) { sums[i][v] = S::Add(sums[i][v], OfColumn(args.offset, i, v)); });
    }
    const Vec top = S::Set1(args.top);
    const Vec bottom = S::Set1(-args.top);
    ForEach([&](int i, int v) { sums[i][v] = S::Clip(S::Rint(sums[i][v]), bottom, top); });
    if (!args.first) {
      ForEach([&](int i, int v) { sums[i][v] = S::Add(LoadAt(OutputAt(i, v), v), sums[i][v]); });
    }
    if (args.last) {
      ForEach([&](int i, int v) { sums[i][v] = S::Mul(sums[i][v], OfColumn(args.back, i, v)); });
    }
  }

  // Of a convolution.
  RIMC_INLINE void ApplyConvPostOps(Sums& sums) const {
    const PostOpArgs& post_ops = *args.post_ops;
    const auto add = [&](const float* values, const float* scale) {
      ForEach([&](int i, int v) {
        const int row = part.row + i;
        const Vec value = S::Load(values + (row * part.vecs + part.vec + v) * S::kLanes);
        sums[i][v] = S::Add(sums[i][v], S::Mul(value, S::Set1(scale[row])));
      });
    };
    if constexpr (HasQuads<S>::value) {
      if (post_ops.b != nullptr) AddQuads(post_ops, sums);
    }
    if (post_ops.v != nullptr) add(post_ops.v, post_ops.scale);
    if (post_ops.sums != nullptr) add(post_ops.sums, post_ops.sums_scale);
    if (post_ops.magnitude != nullptr) {
      ForEach([&](int i, int v) {
        sums[i][v] = S::Mul(sums[i][v], OfColumn(post_ops.magnitude, i, v));
      });
    }
    if (post_ops.bias != nullptr) {
      ForEach(
          [&](int i, int v) { sums[i][v] = S::Add(sums[i][v], OfColumn(post_ops.bias, i, v)); });
    }
    if (post_ops.has_residual) {
      ForEach([&](int i, int v) {
        const float* const residual = post_ops.residual[part.vec + v] + (part.row + i) * args.c_row;
        sums[i][v] = S::Add(sums[i][v], LoadAt(residual, v));
      });
    }
    if (post_ops.activates) {
      const Vec low = S::Set1(post_ops.low);
      const Vec high = S::Set1(post_ops.high);
      ForEach([&](int i, int v) { sums[i][v] = S::Clip(sums[i][v], low, high); });
    }
  }

  // The low-rank part of an adapter of up to four ranks, whose codes are int8 quads.
  RIMC_INLINE void AddQuads(const PostOpArgs& post_ops, Sums& sums) const {
    typename S::Int u[kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) u[v] = S::LoadCodes(post_ops.u + (part.vec + v) * S::kLanes);
    ForEach([&](int i, int v) {
      const int row = part.row + i;
      const auto start = SetInt32<S>(S::StartOf(post_ops.b_start[row]));
      const Vec value = S::ToFloat(S::Dot(start, u[v], SetInt32<S>(post_ops.b[row])));
      sums[i][v] = S::Add(sums[i][v], S::Mul(value, S::Set1(post_ops.scale[row])));
    });
  }

  // Of a product of matrices.
  RIMC_INLINE void ApplyPanelPostOps(Sums& sums) const {
    const PanelPostOpArgs& post_ops = *args.panel_post_ops;
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const ptrdiff_t at = (part.vec + v) * S::kLanes;
      RIMC_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const ptrdiff_t row = part.row + i;
        Vec total = sums[i][v];
        if (post_ops.scale != nullptr) {
          Vec branch = S::Set1(0.0f);
          for (ptrdiff_t r = 0; r < post_ops.rank; ++r) {
            const Vec basis = S::Load(post_ops.basis + r * post_ops.basis_row + at);
            branch = S::Fma(S::Set1(post_ops.u[row * post_ops.rank + r]), basis, branch);
          }
          total = S::Add(total, S::Mul(branch, S::Load(post_ops.scale + at)));
        }
        if (post_ops.magnitude != nullptr) total = S::Mul(total, S::Load(post_ops.magnitude + at));
        if (post_ops.bias != nullptr) total = S::Add(total, S::Load(post_ops.bias + at));
        if (post_ops.residual != nullptr) {
          total = S::Add(total, LoadAt(post_ops.residual + row * post_ops.row + at, v));
        }
        if (post_ops.activates)
          total = S::Clip(total, S::Set1(post_ops.low), S::Set1(post_ops.high));
        sums[i][v] = total;
      }
    }
  }

  // All of it, and the outputs.
  RIMC_INLINE void Run(Sums& sums) const {
    if (args.z != nullptr) AddNoise(sums);
    Finish(sums);
  }

  // Converter, post-ops and store.
  RIMC_INLINE void Finish(Sums& sums) const {
    if (args.gain != nullptr) Convert(sums);
    if constexpr (kConv) {
      if (args.post_ops != nullptr) ApplyConvPostOps(sums);
    } else {
      if (args.panel_post_ops != nullptr) ApplyPanelPostOps(sums);
    }
    ForEach([&](int i, int v) {
      StoreLanes<S>(OutputAt(i, v), v + 1 < kVecs ? S::kLanes : args.lanes[part.vec + v],
                    sums[i][v]);
    });
  }
};

}  // namespace rimc::kernels
