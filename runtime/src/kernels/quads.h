// SPDX-License-Identifier: Apache-2.0
//
// The integer kernels of kernels.h, written once over a SIMD type S that a file per ISA defines in
// its unnamed namespace. Vectors of int8 quads and of int32 are the Int of simd.h, with
//   LoadCodes (quads of codes, as Dot takes them), Dot(sum, b, a) (sum + the four products of codes b
//     and signed cells a, exact), StartOf(start) (the initial sum: `start` of QuadBlockArgs if Dot
//     takes codes plus 128, or 0), kMaxQuadSums (sums that registers hold),
//   AddInt, Sum32 (of all lanes), ToInt32(v) (rint; the lowest int32 where that is beyond),
//   PackInt8(v, &is_beyond) (four vectors cut to -127 .. 127, as bytes in any order; whether a value
//     may be the lowest int32), InterleaveBytes(bytes) (quads of PackInt8's bytes, plus 128),
//   StoreBytes(p, v) (the lowest byte of each lane), NanMask(v) (not 0 where a value is NaN),
//   Min(v, high) (a NaN in v stays).
#pragma once

#include "kernels/kernels.h"
#include "kernels/microkernel.h"
#include "kernels/quad_rows.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// Sums of QuadBlockArgs, or of RankBlockArgs, of the vectors from kFirst on, in registers and then
// in memory, [rows, vecs * lanes].
template <class S, class Args, int kRows, int kVecs, int kFirst>
RIMC_INLINE void SumQuads(const Args& args, int32_t* sums) {
  using Int = typename S::Int;
  constexpr int kMost = S::kMaxQuadSums / kRows > 0 ? S::kMaxQuadSums / kRows : 1;
  constexpr int kCount = kVecs - kFirst < kMost ? kVecs - kFirst : kMost;
  Int acc[kRows][kCount];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kCount; ++v) acc[i][v] = SetInt32<S>(S::StartOf(args.start[i]));
  }
  const uint32_t* b[kCount];
  RIMC_UNROLL
  for (int v = 0; v < kCount; ++v) b[v] = args.b[kFirst + v];
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    const ptrdiff_t b_at = args.b_offset[k];
    Int b_k[kCount];
    RIMC_UNROLL
    for (int v = 0; v < kCount; ++v) b_k[v] = S::LoadCodes(b[v] + b_at);
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Int a_k = SetInt32<S>(args.a[k * kRows + i]);
      RIMC_UNROLL
      for (int v = 0; v < kCount; ++v) acc[i][v] = S::Dot(acc[i][v], b_k[v], a_k);
    }
  }
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kCount; ++v) {
      S::StoreInt(reinterpret_cast<uint32_t*>(sums) + (i * kVecs + kFirst + v) * S::kLanes,
                  acc[i][v]);
    }
  }
  if constexpr (kFirst + kCount < kVecs) {
    SumQuads<S, Args, kRows, kVecs, kFirst + kCount>(args, sums);
  }
}

// Outputs of a block of sums.
template <class S>
RIMC_NOINLINE void StoreQuadBlock(const QuadBlockArgs& args, BlockShape shape,
                                  const int32_t* sums) {
  const auto* bits = reinterpret_cast<const uint32_t*>(sums);
  const typename S::Vec high = S::Set1(127.0f);
  const typename S::Vec low = S::Set1(-127.0f);
  for (int i = 0; i < shape.rows; ++i) {
    for (int v = 0; v < shape.vecs; ++v, bits += S::kLanes) {
      typename S::Vec sum = S::ToFloat(S::LoadInt(bits));
      if (args.rank_step != nullptr) {
        sum = S::Clip(S::Rint(S::Div(sum, S::Set1(args.rank_step[i]))), low, high);
      }
      StoreLanes<S>(args.c[v] + i * args.c_row, args.lanes[v], sum);
    }
  }
}

template <class S, int kRows, int kVecs>
void QuadBlock(const QuadBlockArgs& args) {
  alignas(64) int32_t sums[kRows * kVecs * S::kLanes];
  SumQuads<S, QuadBlockArgs, kRows, kVecs, 0>(args, sums);
  StoreQuadBlock<S>(args, {kRows, kVecs}, sums);
}

// With few vectors a sum would wait for the latency of each product: even and odd quads then have an
// accumulator each.
template <class S, int kVecs>
void QuadLists(const QuadListsArgs& args) {
  using Int = typename S::Int;
  constexpr int kChains = kVecs <= 4 ? 2 : 1;
  const uint32_t* b[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) b[v] = args.b[v];
  const int32_t* a = args.a;
  const int32_t* b_offset = args.b_offset;
  float* c = args.c;
  for (ptrdiff_t i = 0; i < args.rows; ++i, c += args.c_row) {
    Int acc[kChains][kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      acc[0][v] = SetInt32<S>(S::StartOf(args.start[i]));
      if (kChains > 1) acc[kChains - 1][v] = S::SetInt(0);
    }
    const auto add = [&](ptrdiff_t k, Int(&sums)[kVecs]) {
      const Int a_k = SetInt32<S>(a[k]);
      const ptrdiff_t at = b_offset[k];
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) sums[v] = S::Dot(sums[v], S::LoadCodes(b[v] + at), a_k);
    };
    const ptrdiff_t depth = args.starts[i + 1] - args.starts[i];
    ptrdiff_t k = 0;
    if constexpr (kChains > 1) {
      for (; k + 1 < depth; k += 2) {
        add(k, acc[0]);
        add(k + 1, acc[1]);
      }
    }
    for (; k < depth; ++k) add(k, acc[0]);
    a += depth;
    b_offset += depth;
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      if (kChains > 1) acc[0][v] = S::AddInt(acc[0][v], acc[kChains - 1][v]);
      S::Store(c + v * S::kLanes, S::ToFloat(acc[0][v]));
    }
  }
}

// Codes as int32, not yet cut to -127 .. 127; the lowest int32 where x is beyond.
template <class S, bool kDivides>
inline typename S::Int CodesOf(typename S::Vec x, const Divisor& divisor) {
  if (kDivides) {
    const typename S::Vec quotient = S::Div(x, S::Set1(divisor.step));
    return S::ToInt32(S::Clip(quotient, S::Set1(-127.0f), S::Set1(127.0f)));
  }
  const typename S::Vec rest = S::Mul(x, S::Set1(divisor.rest));
  return S::ToInt32(S::Fma(x, S::Set1(divisor.inverse), rest));
}

// A value whose code is 127, for any divisor that multiplies.
inline float LargestValue(const Divisor& divisor) { return 128.0f * divisor.step; }

// Codes of the ranks of a block of sums, as quads.
template <class S>
RIMC_NOINLINE void StoreRankBlock(const RankBlockArgs& args, BlockShape shape,
                                  const int32_t* sums) {
  using Int = typename S::Int;
  for (int v = 0; v < shape.vecs; ++v) {
    Int codes[kQuadRanks];
    RIMC_UNROLL
    for (int i = 0; i < kQuadRanks; ++i) {
      codes[i] = S::SetInt(0);
      if (i >= shape.rows) continue;
      const Divisor divisor = args.rank_step[i];
      const auto* const bits = reinterpret_cast<const uint32_t*>(sums);
      const typename S::Vec sum = S::ToFloat(S::LoadInt(bits + (i * shape.vecs + v) * S::kLanes));
      codes[i] = divisor.rest < 0.0f
                     ? CodesOf<S, true>(sum, divisor)
                     : CodesOf<S, false>(S::Min(sum, S::Set1(LargestValue(divisor))), divisor);
    }
    bool is_beyond = false;
    S::StoreInts(args.u[v], S::kLanes, S::InterleaveBytes(S::PackInt8(codes, &is_beyond)));
  }
}

template <class S, int kRanks, int kVecs>
void RankBlock(const RankBlockArgs& args) {
  alignas(64) int32_t sums[kRanks * kVecs * S::kLanes];
  SumQuads<S, RankBlockArgs, kRanks, kVecs, 0>(args, sums);
  StoreRankBlock<S>(args, {kRanks, kVecs}, sums);
}

constexpr ptrdiff_t kPrefetchRows = 3;

// A vector of quads: codes of up to four channels, which start at from[0] .. from[3]; a null channel
// is 0. kAll: none is null and the vectors are full.
template <class S, int kStride, bool kDivides, bool kAll>
RIMC_INLINE typename S::Int PackVec(const float* const* from, ptrdiff_t stride, int lanes,
                                      const Divisor& divisor, unsigned* nans) {
  using Vec = typename S::Vec;
  using Int = typename S::Int;
  const auto load = [&](const float* values) {
    if (!kAll && values == nullptr) return S::Set1(0.0f);
    if constexpr (kStride == 1) {
      return kAll ? S::Load(values) : LoadLanes<S>(values, lanes);
    } else if constexpr (kStride == 2) {
      return S::LoadEven(values, lanes);
    } else {
      float picked[S::kLanes];
      for (int lane = 0; lane < lanes; ++lane) picked[lane] = values[lane * stride];
      return S::LoadN(picked, lanes);
    }
  };
  const auto code = [&](Vec x) { return kDivides ? S::ToInt32(x) : CodesOf<S, false>(x, divisor); };
  Vec x[4];
  Int codes[4];
  RIMC_UNROLL
  for (int j = 0; j < 4; ++j) {
    x[j] = load(from[j]);
    if (kDivides) x[j] = S::Div(x[j], S::Set1(divisor.step));
    codes[j] = code(x[j]);
  }
  bool is_beyond = false;
  const Int bytes = S::PackInt8(codes, &is_beyond);
  if (!is_beyond) return S::InterleaveBytes(bytes);
  // A NaN, or a value far beyond the codes.
  const Vec most = S::Set1(kDivides ? 127.0f : LargestValue(divisor));
  for (int j = 0; j < 4; ++j) {
    *nans |= S::NanMask(x[j]);
    codes[j] = code(S::Min(x[j], most));
  }
  return S::InterleaveBytes(S::PackInt8(codes, &is_beyond));
}

// `rows` rows of `width` values; false where one is a NaN.
template <class S, int kStride, bool kDivides>
bool PackQuadsOf(const QuadPackArgs& args, ptrdiff_t rows, ptrdiff_t width) {
  const Divisor divisor = args.divisor;
  const float* from[4];
  RIMC_UNROLL
  for (int j = 0; j < 4; ++j) from[j] = args.from[j];
  const bool is_full = from[1] != nullptr && from[2] != nullptr && from[3] != nullptr;
  uint32_t* to = args.to;
  unsigned nans = 0;
  const auto move = [&](const float** values, ptrdiff_t count) {
    RIMC_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (values[j] != nullptr) values[j] += count;
    }
  };
  for (ptrdiff_t r = 0; r < rows; ++r) {
    const float* at[4] = {from[0], from[1], from[2], from[3]};
    const ptrdiff_t prefetch =
        kStride == 1 && r + kPrefetchRows < rows ? kPrefetchRows * args.from_row : 0;
    ptrdiff_t i = 0;
    if (kStride == 1 && is_full) {
      for (; i + S::kLanes <= width; i += S::kLanes) {
        RIMC_UNROLL
        for (int j = 0; j < 4; ++j) RIMC_PREFETCH(at[j] + i + prefetch);
        const float* const values[4] = {at[0] + i, at[1] + i, at[2] + i, at[3] + i};
        S::StoreInts(to + i, S::kLanes,
                      PackVec<S, kStride, kDivides, true>(values, 1, S::kLanes, divisor, &nans));
      }
      move(at, i);
    }
    for (; i < width; i += S::kLanes) {
      const int lanes = width - i < S::kLanes ? static_cast<int>(width - i) : S::kLanes;
      S::StoreInts(to + i, lanes,
                    PackVec<S, kStride, kDivides, false>(at, args.stride, lanes, divisor, &nans));
      move(at, S::kLanes * args.stride);
    }
    move(from, args.from_row);
    to += args.to_row;
  }
  return nans == 0;
}

template <class S, bool kDivides>
bool PackQuadsStride(const QuadPackArgs& args) {
  ptrdiff_t rows = args.rows;
  ptrdiff_t width = args.width;
  if (args.stride == 1 && args.from_row == width && args.to_row == width) {
    width *= rows;
    rows = 1;
  }
  if (args.stride == 1) return PackQuadsOf<S, 1, kDivides>(args, rows, width);
  if (args.stride == 2) return PackQuadsOf<S, 2, kDivides>(args, rows, width);
  return PackQuadsOf<S, 0, kDivides>(args, rows, width);
}

template <class S>
bool PackQuads(const QuadPackArgs& args) {
  return args.divisor.rest < 0.0f ? PackQuadsStride<S, true>(args)
                                  : PackQuadsStride<S, false>(args);
}

template <class S, int kRanks, int kVecs>
constexpr RankBlockFunction PickRankBlock() {
  if constexpr (kRanks * kVecs <= S::kMaxAccumulators) {
    return &RankBlock<S, kRanks, kVecs>;
  } else {
    return nullptr;
  }
}

#define RIMC_RANK_ROW(S, ranks)                                                                   \
  {                                                                                               \
    PickRankBlock<S, ranks, 1>(), PickRankBlock<S, ranks, 2>(), PickRankBlock<S, ranks, 3>(),     \
        PickRankBlock<S, ranks, 4>(), PickRankBlock<S, ranks, 5>(), PickRankBlock<S, ranks, 6>(), \
        PickRankBlock<S, ranks, 7>(), PickRankBlock<S, ranks, 8>(),                               \
  }

template <class S, int kRows, int kVecs>
constexpr QuadBlockFunction PickQuadBlock() {
  if constexpr (kRows <= S::kMaxRows && kRows * kVecs <= S::kMaxAccumulators) {
    return &QuadBlock<S, kRows, kVecs>;
  } else {
    return nullptr;
  }
}

#define RIMC_QUAD_ROW(S, rows)                                                                 \
  {                                                                                            \
    PickQuadBlock<S, rows, 1>(), PickQuadBlock<S, rows, 2>(), PickQuadBlock<S, rows, 3>(),     \
        PickQuadBlock<S, rows, 4>(), PickQuadBlock<S, rows, 5>(), PickQuadBlock<S, rows, 6>(), \
        PickQuadBlock<S, rows, 7>(), PickQuadBlock<S, rows, 8>(),                              \
  }

template <class S>
constexpr QuadTable MakeQuadTable() {
  return {{RIMC_QUAD_ROW(S, 1), RIMC_QUAD_ROW(S, 2), RIMC_QUAD_ROW(S, 3), RIMC_QUAD_ROW(S, 4),
           RIMC_QUAD_ROW(S, 5), RIMC_QUAD_ROW(S, 6), RIMC_QUAD_ROW(S, 7), RIMC_QUAD_ROW(S, 8)},
          {&QuadLists<S, 1>, &QuadLists<S, 2>, &QuadLists<S, 3>, &QuadLists<S, 4>, &QuadLists<S, 5>,
           &QuadLists<S, 6>, &QuadLists<S, 7>, &QuadLists<S, 8>},
          {RIMC_RANK_ROW(S, 1), RIMC_RANK_ROW(S, 2), RIMC_RANK_ROW(S, 3), RIMC_RANK_ROW(S, 4)},
          &PackQuads<S>,
          &PackQuadRows<S>,
          &QuadRanks<S>,
          RIMC_BLOCK_TABLE(S, true, false),
          MakePairBlocks<S>()};
}

}  // namespace rimc::kernels
