// SPDX-License-Identifier: Apache-2.0
//
// Kernels of a read with noise: normals that depend on their address alone, the variance of a sum,
// and the converter behind it. Over the SIMD type S of simd.h.
#pragma once

#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// The words of the counters {place, group, key.counter[0], key.counter[1]}: Philox 4x32 (Salmon et
// al., SC 2011), but for what only the last three of these have a part in, which is done here.
constexpr int kReadRounds = 7;
constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u;
constexpr uint32_t kPhiloxFactor1 = 0xCD9E8D57u;

struct PhiloxStart {
  uint32_t key[kReadRounds][2];
  uint32_t first;   // word 2 after the first round is this and the upper half of the product
  uint32_t second;  // word 0 after the second, likewise
  uint32_t third;   // word 2 after the second is this and word 3 before it
  uint32_t fourth;  // word 2 after the third is this and the upper half of the product
};

// A template so that every ISA has its own.
template <class S>
inline PhiloxStart StartPhilox(const DrawKey& key, uint32_t group) {
  PhiloxStart start;
  uint32_t k0 = key.key[0];
  uint32_t k1 = key.key[1];
  for (int round = 0; round < kReadRounds; ++round) {
    start.key[round][0] = k0;
    start.key[round][1] = k1;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t product1 = uint64_t{key.counter[0]} * kPhiloxFactor1;
  const uint32_t word0 = static_cast<uint32_t>(product1 >> 32) ^ group ^ start.key[0][0];
  const uint64_t product0 = uint64_t{word0} * kPhiloxFactor0;
  start.first = key.counter[1] ^ start.key[0][1];
  start.second = static_cast<uint32_t>(product1) ^ start.key[1][0];
  start.third = static_cast<uint32_t>(product0 >> 32) ^ start.key[1][1];
  start.fourth = static_cast<uint32_t>(product0) ^ start.key[2][1];
  return start;
}

// Of several vectors at a time, to hide the latency of a multiplication.
template <class S, int kVecs>
inline void Philox(const PhiloxStart& start, const typename S::Int (&places)[kVecs],
                   typename S::Int (&words)[kVecs][4]) {
  using Wide = typename S::Wide;
  Wide c[kVecs][4];
  // Products ignore what is left in upper halves.
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    c[v][3] = S::MulWide(S::Widen(places[v]), kPhiloxFactor0);
    c[v][1] = S::MulWide(S::XorWide(S::UpperWide(c[v][3]), start.first), kPhiloxFactor1);
    c[v][0] = S::XorWide(S::UpperWide(c[v][1]), start.second);
    c[v][2] = S::XorWide(c[v][3], start.third);
  }
  RIMC_UNROLL
  for (int round = 2; round + 1 < kReadRounds; ++round) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const Wide product0 = S::MulWide(c[v][0], kPhiloxFactor0);
      const Wide product1 = S::MulWide(c[v][2], kPhiloxFactor1);
      c[v][0] = S::XorWide(S::UpperWide(product1), c[v][1], start.key[round][0]);
      c[v][2] = round == 2 ? S::XorWide(S::UpperWide(product0), start.fourth)
                           : S::XorWide(S::UpperWide(product0), c[v][3], start.key[round][1]);
      c[v][1] = product1;
      c[v][3] = product0;
    }
  }
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const Wide product0 = S::MulWide(c[v][0], kPhiloxFactor0);
    const Wide product1 = S::MulWide(c[v][2], kPhiloxFactor1);
    const uint32_t(&key)[2] = start.key[kReadRounds - 1];
    words[v][0] = S::Xor(S::NarrowUpper(product1), S::Narrow(c[v][1]), key[0]);
    words[v][1] = S::Narrow(product1);
    words[v][2] = S::Xor(S::NarrowUpper(product0), S::Narrow(c[v][3]), key[1]);
    words[v][3] = S::Narrow(product0);
  }
}

// 2^16 normals, the same as of rimc_onnx/device/random/read_draws.py: with `s` the signed number
// that the upper 16 bits of a word are, the sign of s + 1/2 and a polynomial in a = |s + 1/2| 2^16.
// Of each power the 16 coefficients at the lowest bits of the exponent of a.
const float kReadNormals[4][16] = {
#include "kernels/read_normals.inc"
};

template <class S, class Table>
struct NormalPowers {
  Table power0{kReadNormals[0]}, power1{kReadNormals[1]}, power2{kReadNormals[2]},
      power3{kReadNormals[3]};

  typename S::Vec operator()(typename S::Int index, typename S::Vec a) const {
    typename S::Vec z = S::Fma(power3(index), a, power2(index));
    z = S::Fma(z, a, power1(index));
    return S::Fma(z, a, power0(index));
  }
};

// Whether a SIMD type looks up half of a table in less time than all of it.
template <class S, class = void>
struct HasMiddle {
  static constexpr bool value = false;
};
template <class S>
struct HasMiddle<S, decltype(static_cast<void>(sizeof(typename S::Lookup16::Middle)))> {
  static constexpr bool value = true;
};

template <class S>
struct NormalsOf {
  using Vec = typename S::Vec;
  using Int = typename S::Int;

  // `draw`: 16 bits and 2^15.
  RIMC_INLINE Vec operator()(Int draw) const {
    const Vec number = S::ToFloat(draw);
    if constexpr (HasMiddle<S>::value) {
      // Of 256 draws 255 have an exponent of 23 .. 30, whose index is 6 .. 13.
      const Vec a = S::Abs(number);
      if (!S::AreAtLeast(a, 0x1p23f)) return OfAny(number);
      return S::FlipSign(NormalPowers<S, typename S::Lookup16::Middle>{}(Index(number), a), number);
    } else {
      return S::FlipSign(NormalPowers<S, typename S::Lookup16>{}(Index(number), S::Abs(number)),
                         number);
    }
  }

 private:
  static Int Index(Vec number) { return S::template ShiftRight<23>(S::FloatBits(number)); }
  RIMC_NOINLINE static Vec OfAny(Vec number) {
    return S::FlipSign(NormalPowers<S, typename S::Lookup16>{}(Index(number), S::Abs(number)),
                       number);
  }
};

// Rows [begin, end) of a group (eight in all, two of each word) for the next kVecs vectors.
template <class S, int kVecs, bool kAll>
inline void DrawVecs(const DrawArgs& args, const PhiloxStart& start, ptrdiff_t from, int begin,
                     int end, uint32_t* z) {
  using Int = typename S::Int;
  Int places[kVecs];
  Int words[kVecs][4];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const ptrdiff_t at = from + v * S::kLanes;
    places[v] = args.places == nullptr ? S::Count(args.first + static_cast<uint32_t>(at))
                                       : S::LoadInt(args.places + at);
  }
  Philox<S, kVecs>(start, places, words);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const ptrdiff_t at = from + v * S::kLanes;
    RIMC_UNROLL
    for (int row = 0; row < kDrawRows; ++row) {
      if (!kAll && (row < begin || row >= end)) continue;
      const Int word = words[v][row / 2];
      const Int bits = row % 2 == 0 ? S::template ShiftLeft<16>(word) : word;
      S::StoreInt(z + (row - begin) * args.z_row + at, S::AndOr(bits, 0xffff0000u, 0x8000u));
    }
  }
}

template <class S, bool kAll>
inline void DrawGroup(const DrawArgs& args, uint32_t group, int begin, int end, uint32_t* z) {
  const PhiloxStart start = StartPhilox<S>(args.key, group);
  ptrdiff_t i = 0;
  if constexpr (S::kLanes == 16) {
    // As many as registers hold.
    for (; i + 2 * S::kLanes < args.count; i += 3 * S::kLanes) {
      DrawVecs<S, 3, kAll>(args, start, i, begin, end, z);
    }
    for (; i + S::kLanes < args.count; i += 2 * S::kLanes) {
      DrawVecs<S, 2, kAll>(args, start, i, begin, end, z);
    }
  }
  for (; i < args.count; i += S::kLanes) {
    DrawVecs<S, 1, kAll>(args, start, i, begin, end, z);
  }
}

template <class S>
void Draw(const DrawArgs& args) {
  const uint64_t end = args.row + static_cast<uint64_t>(args.rows);
  for (uint64_t row = args.row; row < end;) {
    const uint64_t group = row / kDrawRows;
    const int first = static_cast<int>(row % kDrawRows);
    const uint64_t left = end - group * kDrawRows;
    const int last = left < kDrawRows ? static_cast<int>(left) : kDrawRows;
    uint32_t* const z = args.z + static_cast<ptrdiff_t>(row - args.row) * args.z_row;
    if (last - first == kDrawRows) {
      DrawGroup<S, true>(args, static_cast<uint32_t>(group), first, last, z);
    } else {
      DrawGroup<S, false>(args, static_cast<uint32_t>(group), first, last, z);
    }
    row += static_cast<uint64_t>(last - first);
  }
}

template <class S, bool kColumns>
void Read(const ReadArgs& args) {
  using Vec = typename S::Vec;
  const Vec top = S::Set1(args.top);
  const Vec bottom = S::Set1(-args.top);
  const Vec weight = S::Set1(args.weight);
  const NormalsOf<S> normals;
  for (ptrdiff_t i = 0; i < args.count; i += S::kLanes) {
    const int lanes = args.count - i < S::kLanes ? static_cast<int>(args.count - i) : S::kLanes;
    const auto of_column = [&](const float* values) {
      return kColumns ? LoadLanes<S>(values + i, lanes) : S::Set1(*values);
    };
    Vec value = LoadLanes<S>(args.partial + i, lanes);
    if (args.z != nullptr) {
      const Vec variance =
          args.variance_each ? LoadLanes<S>(args.variance + i, lanes) : S::Set1(*args.variance);
      const Vec deviation = S::Mul(S::Sqrt(variance), of_column(args.deviation));
      uint32_t draws[S::kLanes] = {};
      for (int lane = 0; lane < lanes; ++lane) draws[lane] = args.z[i + lane];
      value = S::Add(value, S::Mul(deviation, normals(S::LoadInt(draws))));
    }
    if (args.gain != nullptr) {
      value = S::Mul(value, of_column(args.gain));
      if (args.offset != nullptr) value = S::Add(value, of_column(args.offset));
      value = S::Clip(S::Rint(value), bottom, top);
    }
    Vec total = S::Mul(value, weight);
    if (!args.first) total = S::Add(LoadLanes<S>(args.y + i, lanes), total);
    if (args.gain != nullptr && args.last) total = S::Mul(total, of_column(args.back));
    StoreLanes<S>(args.y + i, lanes, total);
  }
}

template <class S>
void Square(const float* x, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    const typename S::Vec v = LoadLanes<S>(x + i, lanes);
    StoreLanes<S>(y + i, lanes, S::Mul(v, v));
  }
}

template <class S>
void Root(const float* x, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    StoreLanes<S>(y + i, lanes, S::Sqrt(LoadLanes<S>(x + i, lanes)));
  }
}

// y[i] for the next kVecs vectors, of which the last has `lanes`: a sum each, to hide the latency of
// an fma.
template <class S, int kVecs>
inline void ColumnSquaresOf(const float* x, ptrdiff_t x_row, ptrdiff_t rows, float* y, int lanes) {
  using Vec = typename S::Vec;
  Vec sums[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) sums[v] = S::Set1(0.0f);
  for (ptrdiff_t r = 0; r < rows; ++r) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const float* const from = x + r * x_row + v * S::kLanes;
      const Vec value = v + 1 < kVecs ? S::Load(from) : LoadLanes<S>(from, lanes);
      sums[v] = S::Fma(value, value, sums[v]);
    }
  }
  RIMC_UNROLL
  for (int v = 0; v + 1 < kVecs; ++v) S::Store(y + v * S::kLanes, sums[v]);
  StoreLanes<S>(y + (kVecs - 1) * S::kLanes, lanes, sums[kVecs - 1]);
}

template <class S>
void ColumnSquares(const float* x, ptrdiff_t x_row, ptrdiff_t rows, float* y, ptrdiff_t count) {
  constexpr int kMany = 6;
  constexpr int kSome = 3;
  ptrdiff_t i = 0;
  for (; i + kMany * S::kLanes <= count; i += kMany * S::kLanes) {
    ColumnSquaresOf<S, kMany>(x + i, x_row, rows, y + i, S::kLanes);
  }
  for (; i + kSome * S::kLanes <= count; i += kSome * S::kLanes) {
    ColumnSquaresOf<S, kSome>(x + i, x_row, rows, y + i, S::kLanes);
  }
  for (; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    ColumnSquaresOf<S, 1>(x + i, x_row, rows, y + i, lanes);
  }
}

// y[r] for the next kRows rows: a sum each, to hide the latency of an fma.
template <class S, int kRows>
inline void RowSquaresOf(const float* x, ptrdiff_t x_row, float* y, ptrdiff_t count) {
  using Vec = typename S::Vec;
  constexpr int kVecs = 16 / S::kLanes;
  Vec acc[kRows][kVecs];
  RIMC_UNROLL
  for (int r = 0; r < kRows; ++r) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) acc[r][v] = S::Set1(0.0f);
  }
  const auto add = [&](ptrdiff_t i, const auto& load) {
    RIMC_UNROLL
    for (int r = 0; r < kRows; ++r) {
      RIMC_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const ptrdiff_t at = i + v * S::kLanes;
        const Vec value = load(x + r * x_row + at, count - at);
        acc[r][v] = S::Fma(value, value, acc[r][v]);
      }
    }
  };
  ptrdiff_t i = 0;
  for (; i + 16 <= count; i += 16) {
    add(i, [](const float* p, ptrdiff_t) { return S::Load(p); });
  }
  if (i < count) {
    add(i, [](const float* p, ptrdiff_t left) {
      const ptrdiff_t lanes = left < S::kLanes ? left : S::kLanes;
      return lanes <= 0 ? S::Set1(0.0f) : S::LoadN(p, static_cast<int>(lanes));
    });
  }
  RIMC_UNROLL
  for (int r = 0; r < kRows; ++r) {
    RIMC_UNROLL
    for (int half = kVecs / 2; half > 0; half /= 2) {
      RIMC_UNROLL
      for (int v = 0; v < half; ++v) acc[r][v] = S::Add(acc[r][v], acc[r][v + half]);
    }
    y[r] = S::SumHalves(acc[r][0]);
  }
}

template <class S>
void RowSquares(const float* x, ptrdiff_t x_row, ptrdiff_t rows, float* y, ptrdiff_t count) {
  constexpr int kTogether = S::kLanes / 2;
  ptrdiff_t r = 0;
  if constexpr (kTogether > 1) {
    for (; r + kTogether <= rows; r += kTogether) {
      RowSquaresOf<S, kTogether>(x + r * x_row, x_row, y + r, count);
    }
  }
  for (; r < rows; ++r) RowSquaresOf<S, 1>(x + r * x_row, x_row, y + r, count);
}

}  // namespace rimc::kernels
