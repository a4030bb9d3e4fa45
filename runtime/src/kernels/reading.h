// SPDX-License-Identifier: Apache-2.0
//
// Kernels of a read with noise: normals that depend on their address alone, the variance of a sum,
// and the converter behind it. Over the SIMD type S of simd.h.
#pragma once

#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// Four words for each of the counters {first + lane, counter}: Philox 4x32-10 (Salmon et al., SC
// 2011).
template <class S>
inline void Philox(uint32_t first, const DrawKey& key, typename S::Int* words) {
  using Int = typename S::Int;
  const Int multiplier0 = S::SetInt(0xD2511F53u);
  const Int multiplier1 = S::SetInt(0xCD9E8D57u);
  Int c0 = S::AddInt(S::SetInt(first), S::Lanes());
  Int c1 = S::SetInt(key.counter[0]);
  Int c2 = S::SetInt(key.counter[1]);
  Int c3 = S::SetInt(key.counter[2]);
  uint32_t k0 = key.key[0];
  uint32_t k1 = key.key[1];
  for (int round = 0; round < 10; ++round) {
    Int high0;
    Int high1;
    const Int low0 = S::Mul64(c0, multiplier0, &high0);
    const Int low1 = S::Mul64(c2, multiplier1, &high1);
    c0 = S::Xor(S::Xor(high1, c1), S::SetInt(k0));
    c2 = S::Xor(S::Xor(high0, c3), S::SetInt(k1));
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// Horner's rule, highest power first.
template <class S, int kTerms>
inline typename S::Vec Polynomial(const float (&coefficients)[kTerms], typename S::Vec x) {
  typename S::Vec value = S::Set1(coefficients[0]);
  RIMC_UNROLL
  for (int i = 1; i < kTerms; ++i) value = S::Add(S::Mul(value, x), S::Set1(coefficients[i]));
  return value;
}

// The normal of a random word: bit 31 is the sign, and with p = (lower 31 bits + 1/2) / 2^32 the
// distribution function of -|z| is p. z = x P(w), x = 1 - 2 p, w = -ln(4 p (1 - p)), with one
// polynomial in w below 5 and one in sqrt(w) above; after Giles, "Approximating the erfinv
// function", GPU Computing Gems Jade (2011), with coefficients of our own for w up to 21.6. Only
// operations that IEEE 754 rounds in one way; rimc_onnx/device/read_noise.py is the same in numpy.
template <class S>
inline typename S::Vec NormalsOf(typename S::Int word) {
  using Vec = typename S::Vec;
  using Int = typename S::Int;
  static const float kCentre[9] = {
      4.035462808360535e-08f,  4.861039428760705e-07f,  -4.990565230400534e-06f,
      -6.217992904566927e-06f, 0.00030915020033717155f, -0.0017730101244524121f,
      -0.005908171180635691f,  0.3488026559352875f,     2.1233136653900146f};
  static const float kTail[9] = {
      -2.7950824005529284e-05f, -0.00016246568702626973f, 0.0016234691720455885f,
      -0.004842372611165047f,   0.00822721142321825f,     -0.010898633860051632f,
      0.013330565765500069f,    1.416590929031372f,       4.006434917449951f};
  static const float kAtanh[4] = {0.2857142857142857f, 0.4f, 0.6666666666666666f, 2.0f};
  const Vec one = S::Set1(1.0f);
  const Vec half = S::ToFloat(S::And(word, S::SetInt(0x7fffffffu)));
  const Vec p = S::Mul(S::Add(half, S::Set1(0.5f)), S::Set1(2.3283064365386963e-10f));
  const Vec a = S::Mul(S::Mul(S::Set1(4.0f), p), S::Sub(one, p));
  const Vec x = S::Sub(one, S::Add(p, p));
  // a = mantissa * 2^exponent, mantissa in [sqrt(1/2), sqrt(2))
  const Int bits = S::FloatBits(a);
  const Int exponent = S::template ShiftRight<23>(S::SubInt(bits, S::SetInt(0x3f3504f3u)));
  const Vec mantissa = S::BitsFloat(S::SubInt(bits, S::template ShiftLeft<23>(exponent)));
  const Vec f = S::Sub(mantissa, one);
  const Vec s = S::Div(f, S::Add(f, S::Set1(2.0f)));
  const Vec log_mantissa = S::Mul(s, Polynomial<S>(kAtanh, S::Mul(s, s)));
  const Vec log_a =
      S::Add(S::Mul(S::ToFloat(exponent), S::Set1(0.6931471805599453f)), log_mantissa);
  const Vec w = S::Sub(S::Set1(0.0f), log_a);
  const Vec bound = S::Set1(5.0f);
  Vec ratio = Polynomial<S>(kCentre, S::Sub(w, S::Set1(2.5f)));
  if (S::AnyAtLeast(w, bound)) {
    // Lanes of the centre are not looked at; abs keeps them from a root of -0.
    const Vec tail = Polynomial<S>(kTail, S::Sub(S::Sqrt(S::Abs(w)), S::Set1(3.0f)));
    ratio = S::SelectLess(w, bound, ratio, tail);
  }
  const Int sign = S::And(word, S::SetInt(0x80000000u));
  return S::BitsFloat(S::Xor(S::FloatBits(S::Mul(x, ratio)), sign));
}

// Outputs [group * 64, group * 64 + 64), which take 16 consecutive counters.
template <class S>
inline void NormalGroup(const DrawKey& key, uint64_t group, float* z) {
  for (int lane = 0; lane < 16; lane += S::kLanes) {
    typename S::Int words[4];
    Philox<S>(static_cast<uint32_t>(group) * 16u + static_cast<uint32_t>(lane), key, words);
    RIMC_UNROLL
    for (int i = 0; i < 4; ++i) S::Store(z + i * 16 + lane, NormalsOf<S>(words[i]));
  }
}

template <class S>
void Normals(const NormalArgs& args) {
  const uint64_t end = args.start + static_cast<uint64_t>(args.count);
  for (uint64_t group = args.start / 64; group * 64 < end; ++group) {
    const uint64_t first = group * 64;
    if (first >= args.start && first + 64 <= end) {
      NormalGroup<S>(args.key, group, args.z + (first - args.start));
      continue;
    }
    float part[64];
    NormalGroup<S>(args.key, group, part);
    const uint64_t low = first < args.start ? args.start : first;
    const uint64_t high = first + 64 < end ? first + 64 : end;
    for (uint64_t i = low; i < high; ++i) args.z[i - args.start] = part[i - first];
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
void AddSquares(const float* x, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    const typename S::Vec v = LoadLanes<S>(x + i, lanes);
    StoreLanes<S>(y + i, lanes, S::Fma(v, v, LoadLanes<S>(y + i, lanes)));
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
  float sums[16];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) S::Store(sums + v * S::kLanes, acc[v]);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace rimc::kernels
