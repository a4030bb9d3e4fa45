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

template <class S>
inline void Philox(const PhiloxStart& start, typename S::Int places, typename S::Int (&words)[4]) {
  using Wide = typename S::Wide;
  // What is left in upper halves, no product sees.
  Wide product0 = S::MulWide(S::Widen(places), kPhiloxFactor0);
  Wide product1 = S::MulWide(S::XorWide(S::UpperWide(product0), start.first), kPhiloxFactor1);
  Wide c0 = S::XorWide(S::UpperWide(product1), start.second);
  Wide c2 = S::XorWide(product0, start.third);
  Wide c1 = product1;
  product0 = S::MulWide(c0, kPhiloxFactor0);
  product1 = S::MulWide(c2, kPhiloxFactor1);
  c0 = S::XorWide(S::UpperWide(product1), c1, start.key[2][0]);
  c2 = S::XorWide(S::UpperWide(product0), start.fourth);
  c1 = product1;
  Wide c3 = product0;
  RIMC_UNROLL
  for (int round = 3; round + 1 < kReadRounds; ++round) {
    product0 = S::MulWide(c0, kPhiloxFactor0);
    product1 = S::MulWide(c2, kPhiloxFactor1);
    c0 = S::XorWide(S::UpperWide(product1), c1, start.key[round][0]);
    c2 = S::XorWide(S::UpperWide(product0), c3, start.key[round][1]);
    c1 = product1;
    c3 = product0;
  }
  product0 = S::MulWide(c0, kPhiloxFactor0);
  product1 = S::MulWide(c2, kPhiloxFactor1);
  words[0] = S::Xor(S::NarrowUpper(product1), S::Narrow(c1), start.key[kReadRounds - 1][0]);
  words[1] = S::Narrow(product1);
  words[2] = S::Xor(S::NarrowUpper(product0), S::Narrow(c3), start.key[kReadRounds - 1][1]);
  words[3] = S::Narrow(product0);
}

// 2^16 normals, the same as of rimc_onnx/device/read_noise.py: with `s` the signed number that the
// upper 16 bits of a word are, the sign of s + 1/2 and a polynomial in a = |s + 1/2| 2^16. Of each
// power the 16 coefficients at the lowest bits of the exponent of a.
const float kReadNormals[4][16] = {
#include "kernels/read_normals.inc"
};

template <class S>
struct NormalsOfHalves {
  using Lookup = typename S::Lookup16;
  Lookup power0{kReadNormals[0]}, power1{kReadNormals[1]}, power2{kReadNormals[2]},
      power3{kReadNormals[3]};

  // `half`: 16 bits and 2^15.
  typename S::Vec operator()(typename S::Int half) const {
    using Vec = typename S::Vec;
    const Vec number = S::ToFloat(half);
    const auto index = S::template ShiftRight<23>(S::FloatBits(number));
    const Vec a = S::Abs(number);
    Vec z = S::Fma(power3(index), a, power2(index));
    z = S::Fma(z, a, power1(index));
    z = S::Fma(z, a, power0(index));
    return S::FlipSign(z, number);
  }
};

// Rows [begin, end) of a group: eight in all, two of each word.
template <class S, bool kAll>
inline void NormalsOfGroup(const NormalArgs& args, uint32_t group, int begin, int end, float* z) {
  using Int = typename S::Int;
  const PhiloxStart start = StartPhilox<S>(args.key, group);
  const NormalsOfHalves<S> normals;
  const auto draw = [&](ptrdiff_t i, Int(&words)[4]) {
    const Int places = args.places == nullptr ? S::Count(args.first + static_cast<uint32_t>(i))
                                              : S::LoadInt(args.places + i);
    Philox<S>(start, places, words);
  };
  const auto transform = [&](ptrdiff_t i, const Int(&words)[4], const auto& store) {
    RIMC_UNROLL
    for (int row = 0; row < kDrawRows; ++row) {
      if (!kAll && (row < begin || row >= end)) continue;
      const Int bits = row % 2 == 0 ? S::template ShiftLeft<16>(words[row / 2]) : words[row / 2];
      const Int half = S::AndOr(bits, 0xffff0000u, 0x8000u);
      store(z + (row - begin) * args.z_row + i, normals(half));
    }
  };
  // The words of a vector are made, which is one long chain, while those of the last become
  // normals.
  Int words[4];
  if (args.count <= 0) return;
  draw(0, words);
  ptrdiff_t i = 0;
  for (; i + S::kLanes <= args.count; i += S::kLanes) {
    Int next[4] = {words[0], words[1], words[2], words[3]};
    if (i + S::kLanes < args.count) draw(i + S::kLanes, next);
    transform(i, words, [](float* to, typename S::Vec normal) { S::Store(to, normal); });
    RIMC_UNROLL
    for (int w = 0; w < 4; ++w) words[w] = next[w];
  }
  if (i == args.count) return;
  const int lanes = static_cast<int>(args.count - i);
  transform(i, words, [&](float* to, typename S::Vec normal) { S::StoreN(to, lanes, normal); });
}

template <class S>
void Normals(const NormalArgs& args) {
  const uint64_t end = args.row + static_cast<uint64_t>(args.rows);
  for (uint64_t row = args.row; row < end;) {
    const uint64_t group = row / kDrawRows;
    const int first = static_cast<int>(row % kDrawRows);
    const uint64_t left = end - group * kDrawRows;
    const int last = left < kDrawRows ? static_cast<int>(left) : kDrawRows;
    float* const z = args.z + static_cast<ptrdiff_t>(row - args.row) * args.z_row;
    if (last - first == kDrawRows) {
      NormalsOfGroup<S, true>(args, static_cast<uint32_t>(group), first, last, z);
    } else {
      NormalsOfGroup<S, false>(args, static_cast<uint32_t>(group), first, last, z);
    }
    row += static_cast<uint64_t>(last - first);
  }
}

// Adds noise to the sums of a block, which stay in registers.
template <class S, int kRows, int kVecs, bool kConv>
inline void AddNoise(const BlockArgs& args, typename S::Vec (&acc)[kRows][kVecs]) {
  using Vec = typename S::Vec;
  // Of a block of a convolution sigma is per lane, of others the deviation.
  const float* const of_lanes = kConv ? args.sigma : args.deviation;
  const float* const of_rows = kConv ? args.deviation : args.sigma;
  RIMC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const Vec of_row = S::Set1(of_rows[i]);
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const Vec deviation = S::Mul(of_row, S::Load(of_lanes + v * S::kLanes));
      const Vec z = S::Load(args.z + i * args.z_row + v * S::kLanes);
      acc[i][v] = S::Add(acc[i][v], S::Mul(deviation, z));
    }
  }
}

template <class S, bool kColumns>
void Read(const ReadArgs& args) {
  using Vec = typename S::Vec;
  const Vec top = S::Set1(args.top);
  const Vec bottom = S::Set1(-args.top);
  const Vec weight = S::Set1(args.weight);
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
      value = S::Add(value, S::Mul(deviation, LoadLanes<S>(args.z + i, lanes)));
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

template <class S>
void ColumnSquares(const float* x, ptrdiff_t x_row, ptrdiff_t rows, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    typename S::Vec sum = S::Set1(0.0f);
    for (ptrdiff_t r = 0; r < rows; ++r) {
      const typename S::Vec v = LoadLanes<S>(x + r * x_row + i, lanes);
      sum = S::Fma(v, v, sum);
    }
    StoreLanes<S>(y + i, lanes, sum);
  }
}

template <class S>
float SumSquares(const float* x, ptrdiff_t count) {
  constexpr int kVecs = 16 / S::kLanes;
  typename S::Vec acc[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) acc[v] = S::Set1(0.0f);
  for (ptrdiff_t i = 0; i < count; i += 16) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const ptrdiff_t left = count - i - v * S::kLanes;
      if (left <= 0) continue;
      const int lanes = left < S::kLanes ? static_cast<int>(left) : S::kLanes;
      const typename S::Vec value = LoadLanes<S>(x + i + v * S::kLanes, lanes);
      acc[v] = S::Fma(value, value, acc[v]);
    }
  }
  RIMC_UNROLL
  for (int half = kVecs / 2; half > 0; half /= 2) {
    RIMC_UNROLL
    for (int v = 0; v < half; ++v) acc[v] = S::Add(acc[v], acc[v + half]);
  }
  return S::SumHalves(acc[0]);
}

}  // namespace rimc::kernels
