// SPDX-License-Identifier: Apache-2.0
//
// The integer kernels of kernels.h, written once over a SIMD type S that a file per ISA defines in
// its unnamed namespace. It has what microkernel.h asks for, but Block's sizes and Transpose, and
//   Words (a vector of int32), LoadWords, StoreWords(p, n), Set1Words, AddWords,
//   ShiftWords<bits>(left), Dot(sum, b, a) (sum + the products of the unsigned bytes of b and the
//   signed ones of a, exact), ToFloat, ToWords(v) (rint), SumWords,
//   StoreBytes(p, v) (the lowest byte of each word), Nans(v) (not 0 where a value is NaN).
#pragma once

#include "kernels/code_rows.h"
#include "kernels/kernels.h"
#include "kernels/microkernel.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

template <class S, int kRows, int kVecs>
void CodeBlock(const CodeBlockArgs& args) {
  using Vec = typename S::Vec;
  using Words = typename S::Words;
  Words acc[kRows][kVecs];
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) acc[i][v] = S::Set1Words(args.start[i]);
  }
  const uint32_t* b[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) b[v] = args.b[v];
  for (ptrdiff_t k = 0; k < args.depth; ++k) {
    const ptrdiff_t b_at = args.b_offset[k];
    Words b_k[kVecs];
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) b_k[v] = S::LoadWords(b[v] + b_at);
    RIMC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Words a_k = S::Set1Words(args.a[k * kRows + i]);
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[i][v] = S::Dot(acc[i][v], b_k[v], a_k);
    }
  }
  const Vec high = S::Set1(127.0f);
  const Vec low = S::Set1(-127.0f);
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      Vec sum = S::ToFloat(acc[i][v]);
      if (args.rank_step != nullptr) {
        sum = S::Clip(S::Rint(S::Div(sum, S::Set1(args.rank_step[i]))), low, high);
      }
      float* const c = args.c[v] + i * args.c_row;
      if (args.lanes[v] == S::kLanes) {
        S::Store(c, sum);
      } else {
        S::StoreN(c, args.lanes[v], sum);
      }
    }
  }
}

// Whether the quotient of PackCodesOf is the rounded one: a step whose reciprocal is a normal
// number and not next to a power of two.
inline bool QuotientIsExact(float step) {
  uint32_t bits;
  __builtin_memcpy(&bits, &step, sizeof(bits));
  return step > 1e-30f && step < 1e30f && (bits & 0x7fffffu) != 0x7fffffu;
}

template <class S, int kStride>
bool PackCodesOf(const PackArgs& args) {
  using Vec = typename S::Vec;
  using Words = typename S::Words;
  const Vec step = S::Set1(args.step);
  const Vec high = S::Set1(127.0f);
  const Vec low = S::Set1(-127.0f);
  // x / step, rounded once, without a division: a step of Newton's from the rounded reciprocal
  // (Markstein, IBM J. Res. Dev. 34, 1990, theorem 2). Values beyond the code 127 are cut before,
  // so that nothing overflows; quotients whose remainders underflow are 0 as codes.
  const bool divides = !QuotientIsExact(args.step);
  const float reciprocal = 1.0f / args.step;
  const Vec inverse = S::Set1(reciprocal);
  const Vec most = S::Set1(127.0f * args.step);
  const Vec least = S::Set1(-127.0f * args.step);
  const Vec minus_step = S::Set1(-args.step);
  unsigned nans = 0;
  Vec total = step;  // of the channels of a word: a NaN where one is
  const auto codes = [&](const float* from, int lanes) {
    Vec x;
    if constexpr (kStride == 1) {
      x = lanes == S::kLanes ? S::Load(from) : S::LoadN(from, lanes);
    } else if constexpr (kStride == 2) {
      x = S::LoadEven(from, lanes);
    } else {
      float picked[S::kLanes];
      for (int lane = 0; lane < lanes; ++lane) picked[lane] = from[lane * args.stride];
      x = S::LoadN(picked, lanes);
    }
    if (divides) {
      const Vec quotient = S::Clip(S::Div(x, step), low, high);
      total = S::Add(total, quotient);
      return S::ToWords(quotient);
    }
    const Vec cut = S::Clip(x, least, most);
    total = S::Add(total, cut);
    const Vec near = S::Mul(cut, inverse);
    return S::ToWords(S::Fma(S::Fma(near, minus_step, cut), inverse, near));
  };
  for (ptrdiff_t r = 0; r < args.rows; ++r) {
    for (ptrdiff_t i = 0; i < args.width; i += S::kLanes) {
      const int lanes = args.width - i < S::kLanes ? static_cast<int>(args.width - i) : S::kLanes;
      const ptrdiff_t at = r * args.from_row + i * args.stride;
      // Bytes 128 that the codes are added to.
      Words words = S::Set1Words(static_cast<int32_t>(0x80808080u));
      words = S::AddWords(words, codes(args.from[0] + at, lanes));
      if (args.from[1] != nullptr) {
        words = S::AddWords(words, S::template ShiftWords<8>(codes(args.from[1] + at, lanes)));
      }
      if (args.from[2] != nullptr) {
        words = S::AddWords(words, S::template ShiftWords<16>(codes(args.from[2] + at, lanes)));
      }
      if (args.from[3] != nullptr) {
        words = S::AddWords(words, S::template ShiftWords<24>(codes(args.from[3] + at, lanes)));
      }
      nans |= S::Nans(total);
      total = step;
      S::StoreWords(args.to + r * args.to_row + i, lanes, words);
    }
  }
  return nans == 0;
}

template <class S>
bool PackCodes(const PackArgs& args) {
  PackArgs flat = args;
  if (args.stride == 1 && args.from_row == args.width && args.to_row == args.width) {
    flat.width *= args.rows;
    flat.rows = 1;
  }
  if (flat.stride == 1) return PackCodesOf<S, 1>(flat);
  if (flat.stride == 2) return PackCodesOf<S, 2>(flat);
  return PackCodesOf<S, 0>(flat);
}

template <class S, int kRows, int kVecs>
constexpr CodeBlockFunction PickCodeBlock() {
  if constexpr (kRows <= S::kMaxRows && kRows * kVecs <= S::kMaxAccumulators) {
    return &CodeBlock<S, kRows, kVecs>;
  } else {
    return nullptr;
  }
}

#define RIMC_CODE_ROW(S, rows)                                                               \
  {                                                                                          \
      PickCodeBlock<S, rows, 1>(), PickCodeBlock<S, rows, 2>(), PickCodeBlock<S, rows, 3>(), \
      PickCodeBlock<S, rows, 4>(), PickCodeBlock<S, rows, 5>(), PickCodeBlock<S, rows, 6>(), \
      PickCodeBlock<S, rows, 7>(), PickCodeBlock<S, rows, 8>(),                              \
  }

template <class S>
constexpr CodeTable MakeCodeTable() {
  return {{RIMC_CODE_ROW(S, 1), RIMC_CODE_ROW(S, 2), RIMC_CODE_ROW(S, 3), RIMC_CODE_ROW(S, 4),
           RIMC_CODE_ROW(S, 5), RIMC_CODE_ROW(S, 6), RIMC_CODE_ROW(S, 7), RIMC_CODE_ROW(S, 8)},
          &PackCodes<S>,
          &CodeRows<S>,
          &RankWords<S>,
          RIMC_BLOCK_TABLE(S, true)};
}

}  // namespace rimc::kernels
