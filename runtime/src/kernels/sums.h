// SPDX-License-Identifier: Apache-2.0
//
// Sums of products of a block (BlockArgs of kernels.h), written once over the SIMD type S of
// simd.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

inline const uint32_t* PairsAt(const float* packed) {
  return reinterpret_cast<const uint32_t*>(packed);
}
inline uint32_t* PairsAt(float* packed) { return reinterpret_cast<uint32_t*>(packed); }

// Products of float32.
template <class S>
struct FloatProducts {
  using Sum = typename S::Vec;
  using Operand = typename S::Vec;
  static constexpr bool kPrefetchesInputs = true;
  static constexpr bool kNeedsRegister = false;
  static Sum Zero() { return S::Set1(0.0f); }
  static Sum Load(const float* p, int lanes) { return LoadLanes<S>(p, lanes); }
  static void Store(float* p, int lanes, Sum sum) { StoreLanes<S>(p, lanes, sum); }
  static Operand LoadOperand(const float* p) { return S::Load(p); }
  static Operand Broadcast(const float* p) { return S::Set1(*p); }
  static Sum Add(Sum sum, Operand a, Operand b) { return S::Fma(a, b, sum); }
  static typename S::Vec ToFloat(Sum sum) { return sum; }
};

// Products of int16 pairs.
template <class S>
struct PairProducts {
  using Sum = typename S::Sums;
  using Operand = typename S::Int;
  static constexpr bool kPrefetchesInputs = false;
  static constexpr bool kNeedsRegister = S::kPairsNeedRegister;
  static Sum Zero() { return S::ZeroSums(); }
  static Sum Load(const float* p, int lanes) { return S::LoadSums(PairsAt(p), lanes); }
  static void Store(float* p, int lanes, Sum sum) { S::StoreSums(PairsAt(p), lanes, sum); }
  static Operand LoadOperand(const float* p) { return S::LoadInt(PairsAt(p)); }
  static Operand Broadcast(const float* p) { return S::SetInt(*PairsAt(p)); }
  static Sum Add(Sum sum, Operand a, Operand b) { return S::DotPairs(sum, a, b); }
  static Sum AddAtOnce(Sum sum, Operand a, Operand b) { return S::DotPairsAtOnce(sum, a, b); }
  static typename S::Vec ToFloat(Sum sum) { return S::SumsToFloat(sum); }
};

// Whether a SIMD type multiplies by a lane of a vector, which then holds cells of several columns.
template <class S, class = void>
struct HasLanes {
  static constexpr bool value = false;
};
template <class S>
struct HasLanes<S, decltype(static_cast<void>(S::kHasLanes))> {
  static constexpr bool value = true;
};

// The sums of columns 4 n .. 4 n + 3 of a block of a convolution, for the vectors b.
template <class S, int kRows, int kVecs, int kFirst = 0>
RIMC_INLINE void AddByLanes(const float* a, const typename S::Vec (&b)[kVecs],
                            typename S::Vec (&sums)[kRows][kVecs]) {
  const typename S::Vec cells = S::Load(a + kFirst);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    sums[kFirst][v] = S::template FmaLane<0>(b[v], cells, sums[kFirst][v]);
    sums[kFirst + 1][v] = S::template FmaLane<1>(b[v], cells, sums[kFirst + 1][v]);
    sums[kFirst + 2][v] = S::template FmaLane<2>(b[v], cells, sums[kFirst + 2][v]);
    sums[kFirst + 3][v] = S::template FmaLane<3>(b[v], cells, sums[kFirst + 3][v]);
  }
  if constexpr (kFirst + 4 < kRows) AddByLanes<S, kRows, kVecs, kFirst + 4>(a, b, sums);
}

template <class S, bool kPairs>
struct ProductsOf {
  using Type = FloatProducts<S>;
};
template <class S>
struct ProductsOf<S, true> {
  using Type = PairProducts<S>;
};

// Adds the products of a block to its sums, which stay in registers.
template <class S, class Products, int kRows, int kVecs, bool kConv>
RIMC_INLINE void AddProducts(const BlockArgs& args, typename Products::Sum (&sums)[kRows][kVecs]) {
  const float* a[kRows];
  const float* b[kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) a[i] = args.a + (kConv ? i : i * args.a_row);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) b[v] = kConv ? args.b[v] : args.b[0] + v * S::kLanes;
  const float* const next_a = args.next_a != nullptr ? args.next_a : args.a;
  const float* const next_b = args.next_b;
  // Sums, inputs, a cell and its product would be one register too many: inputs of the last vector
  // are read by the multiplications.
  constexpr bool kReloads = Products::kNeedsRegister && kRows * kVecs == S::kMaxAccumulators;
  constexpr int kHeld = kReloads ? kVecs - 1 : kVecs;
  const auto add = [](auto sum, auto a_k, auto b_k) {
    if constexpr (kReloads && !kConv) {
      return Products::AddAtOnce(sum, a_k, b_k);
    } else {
      return Products::Add(sum, a_k, b_k);
    }
  };
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    if (kConv) {
      RIMC_PREFETCH(next_a + k * kRows);
      if (Products::kPrefetchesInputs && next_b != nullptr) {
        RIMC_PREFETCH(next_b + args.next_offset[k]);
      }
    }
    const ptrdiff_t a_at = kConv ? k * kRows : k;
    const ptrdiff_t b_at = kConv ? args.b_offset[k] : k * (kVecs * S::kLanes);
    typename Products::Operand b_k[kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kHeld; ++v) b_k[v] = Products::LoadOperand(b[v] + b_at);
    if constexpr (kConv && HasLanes<S>::value && Products::kPrefetchesInputs && kRows % 4 == 0) {
      AddByLanes<S>(args.a + a_at, b_k, sums);
      continue;
    }
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto a_k = Products::Broadcast(a[i] + a_at);
      RIMC_UNROLL
      for (int v = 0; v < kHeld; ++v) sums[i][v] = add(sums[i][v], a_k, b_k[v]);
      if constexpr (kReloads) {
        RIMC_RELOAD(b[kHeld]);
        sums[i][kHeld] = add(sums[i][kHeld], a_k, Products::LoadOperand(b[kHeld] + b_at));
      }
    }
  }
}

// A block of `vecs` vectors per row.
struct BlockShape {
  int rows;
  int vecs;
};

// Sums of a block in memory, [rows, vecs * lanes]: they start from what is there, or from 0.
using SumFunction = void (*)(const BlockArgs& args, BlockShape shape, bool starts, float* sums);

template <class S, int kRows, int kVecs, bool kConv, bool kPairs>
void SumBlock(const BlockArgs& args, BlockShape, bool starts, float* sums) {
  using Products = typename ProductsOf<S, kPairs>::Type;
  typename Products::Sum in_registers[kRows][kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) in_registers[i][v] = Products::Zero();
  }
  if (starts) {
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        in_registers[i][v] = Products::Load(sums + (i * kVecs + v) * S::kLanes, S::kLanes);
      }
    }
  }
  AddProducts<S, Products, kRows, kVecs, kConv>(args, in_registers);
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      Products::Store(sums + (i * kVecs + v) * S::kLanes, S::kLanes, in_registers[i][v]);
    }
  }
}

// The same for any shape, one vector after the other.
template <class S, bool kConv, bool kPairs>
void SumOneByOne(const BlockArgs& args, BlockShape shape, bool starts, float* sums) {
  using Products = typename ProductsOf<S, kPairs>::Type;
  const int vecs = shape.vecs;
  for (int i = 0; i < shape.rows; ++i) {
    for (int v = 0; v < vecs; ++v) {
      const float* const a = args.a + (kConv ? i : i * args.a_row);
      const float* const b = kConv ? args.b[v] : args.b[0] + v * S::kLanes;
      float* const at = sums + (i * vecs + v) * S::kLanes;
      auto sum = starts ? Products::Load(at, S::kLanes) : Products::Zero();
      for (ptrdiff_t k = 0; k < args.depth; ++k) {
        const ptrdiff_t b_at = kConv ? args.b_offset[k] : k * (vecs * S::kLanes);
        sum = Products::Add(sum, Products::Broadcast(a + (kConv ? k * shape.rows : k)),
                            Products::LoadOperand(b + b_at));
      }
      Products::Store(at, S::kLanes, sum);
    }
  }
}

}  // namespace rimc::kernels
