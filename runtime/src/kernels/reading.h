// SPDX-License-Identifier: Apache-2.0
//
// Kernels of a read with noise: normals that depend on their address alone, the variance of a sum,
// and the converter behind it. Over the SIMD type S of simd.h.
#pragma once

#include "kernels/simd.h"
#include "kernels/unroll.h"

namespace rimc::kernels {

// Four words for each of the counters {first + i, counter}, i < kVecs * S::kLanes: Philox 4x32-10
// (Salmon et al., SC 2011). words[4 * v + w] are words w of vector v of counters.
template <class S, int kVecs>
inline void Philox(uint32_t first, const DrawKey& key, typename S::Int* words) {
  using Wide = typename S::Wide;
  Wide c[kVecs][4];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    c[v][0] = S::CountWide(first + static_cast<uint32_t>(v * S::kLanes));
    c[v][1] = S::SetWide(key.counter[0]);
    c[v][2] = S::SetWide(key.counter[1]);
    c[v][3] = S::SetWide(key.counter[2]);
  }
  uint32_t k0 = key.key[0];
  uint32_t k1 = key.key[1];
  RIMC_UNROLL
  for (int round = 0; round < 10; ++round) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      // What is left in upper halves, no product sees.
      const Wide product0 = S::MulWide(c[v][0], 0xD2511F53u);
      const Wide product1 = S::MulWide(c[v][2], 0xCD9E8D57u);
      c[v][0] = S::XorWide(S::UpperWide(product1), c[v][1], k0);
      c[v][2] = S::XorWide(S::UpperWide(product0), c[v][3], k1);
      c[v][1] = product1;
      c[v][3] = product0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    RIMC_UNROLL
    for (int w = 0; w < 4; ++w) words[4 * v + w] = S::Narrow(c[v][w]);
  }
}

// Horner's rule for several vectors side by side, highest power first: none waits for itself.
template <class S, int kVecs, int kTerms>
inline void Polynomials(const float (&coefficients)[kTerms], const typename S::Vec* x,
                        typename S::Vec* values) {
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) values[v] = S::Set1(coefficients[0]);
  RIMC_UNROLL
  for (int i = 1; i < kTerms; ++i) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      values[v] = S::Add(S::Mul(values[v], x[v]), S::Set1(coefficients[i]));
    }
  }
}

// The normal of a random word: bit 31 is the sign, and with p = (lower 31 bits + 1/2) / 2^32 the
// distribution function of -|z| is p. z = x P(w), x = 1 - 2 p, w = -ln(4 p (1 - p)), with one
// polynomial in w below 5 and one in sqrt(w) above; after Giles, "Approximating the erfinv
// function", GPU Computing Gems Jade (2011), with coefficients of our own for w up to 21.6. Only
// operations that IEEE 754 rounds in one way; rimc_onnx/device/read_noise.py is the same in numpy,
// where factors that are powers of two, and so exact, are steps of their own.
constexpr float kCentreBound = 5.0f - 2.5f;

// x with the sign of z, and -w.
template <class S, int kVecs>
inline void Places(const typename S::Int* words, typename S::Vec* x, typename S::Vec* log) {
  using Vec = typename S::Vec;
  using Int = typename S::Int;
  static const float kAtanh[4] = {0.2857142857142857f, 0.4f, 0.6666666666666666f, 2.0f};
  constexpr float kTwoTo30 = 1073741824.0f;
  const Vec one = S::Set1(1.0f);
  const Int sqrt_half = S::SetInt(0x3f3504f3u);
  Vec s[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    // p * 2^32
    const Vec scaled = S::Add(S::ToFloat(S::And(words[v], S::SetInt(0x7fffffffu))), S::Set1(0.5f));
    x[v] = S::Fma(scaled, S::Set1(-0.5f / kTwoTo30), one);
    x[v] = S::BitsFloat(S::Xor(S::FloatBits(x[v]), S::And(words[v], S::SetInt(0x80000000u))));
    const Vec rest =
        S::Fma(scaled, S::Set1(-0.25f / kTwoTo30 / kTwoTo30), S::Set1(1.0f / kTwoTo30));
    // 4 p (1 - p) = mantissa * 2^exponent, mantissa in [sqrt(1/2), sqrt(2))
    const Int above = S::SubInt(S::FloatBits(S::Mul(scaled, rest)), sqrt_half);
    const Vec mantissa = S::BitsFloat(S::AddInt(S::And(above, S::SetInt(0x007fffffu)), sqrt_half));
    s[v] = S::Div(S::Sub(mantissa, one), S::Add(mantissa, one));
    log[v] = S::Mul(S::ToFloat(S::template ShiftRight<23>(above)), S::Set1(0.6931471805599453f));
  }
  Vec squares[kVecs];
  Vec series[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) squares[v] = S::Mul(s[v], s[v]);
  Polynomials<S, kVecs>(kAtanh, squares, series);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) log[v] = S::Add(log[v], S::Mul(s[v], series[v]));
}

// Normals of kVecs vectors of words, right where w is below 5. Bit v of what is returned says that
// vector v has a lane where it is not.
template <class S, int kVecs>
inline uint64_t CentreNormals(const typename S::Int* words, typename S::Vec* z) {
  using Vec = typename S::Vec;
  static const float kCentre[9] = {
      4.035462808360535e-08f,  4.861039428760705e-07f,  -4.990565230400534e-06f,
      -6.217992904566927e-06f, 0.00030915020033717155f, -0.0017730101244524121f,
      -0.005908171180635691f,  0.3488026559352875f,     2.1233136653900146f};
  Vec x[kVecs];
  Vec centred[kVecs];
  Places<S, kVecs>(words, x, centred);
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) centred[v] = S::Sub(S::Set1(-2.5f), centred[v]);
  Polynomials<S, kVecs>(kCentre, centred, z);
  uint64_t beyond = 0;
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    z[v] = S::Mul(x[v], z[v]);
    beyond |= uint64_t{S::AnyAtLeast(centred[v], S::Set1(kCentreBound))} << v;
  }
  return beyond;
}

// The normals of words some of which are beyond the centre, given those of the centre.
template <class S>
inline typename S::Vec TailNormals(typename S::Int word, typename S::Vec centre) {
  using Vec = typename S::Vec;
  static const float kTail[9] = {
      -2.7950824005529284e-05f, -0.00016246568702626973f, 0.0016234691720455885f,
      -0.004842372611165047f,   0.00822721142321825f,     -0.010898633860051632f,
      0.013330565765500069f,    1.416590929031372f,       4.006434917449951f};
  Vec x;
  Vec log;
  Places<S, 1>(&word, &x, &log);
  // abs keeps lanes of the centre, which are not looked at, from a root of -0.
  const Vec root = S::Sub(S::Sqrt(S::Abs(log)), S::Set1(3.0f));
  Vec ratio;
  Polynomials<S, 1>(kTail, &root, &ratio);
  const Vec centred = S::Sub(S::Set1(-2.5f), log);
  return S::SelectLess(centred, S::Set1(kCentreBound), centre, S::Mul(x, ratio));
}

// Groups of 64 outputs, which take 16 consecutive counters: [group * 64, (group + count) * 64), in
// 64 vectors at most. Words first, then normals, then the few beyond the centre: within each of
// these steps a processor finds enough to do at a time, and no branch to guess.
template <class S>
inline void NormalGroups(const DrawKey& key, uint64_t group, int count, float* z) {
  using Int = typename S::Int;
  using Vec = typename S::Vec;
  // Vectors side by side: as many as registers hold.
  constexpr int kTogether = S::kLanes == 16 ? 8 : 4;
  constexpr int kCounters = S::kLanes == 16 ? 2 : 1;
  constexpr int kGroupVecs = 64 / S::kLanes;
  constexpr int kParts = 16 / S::kLanes;  // vectors of the counters of a group
  Int words[64 + kTogether];
  const auto first = static_cast<uint32_t>(group) * 16u;
  for (int part = 0; part < count * kParts; part += kCounters) {
    Int found[4 * kCounters];
    Philox<S, kCounters>(first + static_cast<uint32_t>(part * S::kLanes), key, found);
    RIMC_UNROLL
    for (int i = 0; i < 4 * kCounters; ++i) {
      const int at = part + i / 4;
      words[at / kParts * kGroupVecs + i % 4 * kParts + at % kParts] = found[i];
    }
  }
  const int vecs = count * kGroupVecs;
  uint64_t beyond = 0;
  for (int n = 0; n < vecs; n += kTogether) {
    Vec found[kTogether];
    beyond |= CentreNormals<S, kTogether>(words + n, found) << n;
    RIMC_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      if (n + i < vecs) S::Store(z + (n + i) * S::kLanes, found[i]);
    }
  }
  if (vecs < 64) beyond &= (uint64_t{1} << vecs) - 1;
  for (int n = 0; beyond != 0; ++n, beyond >>= 1) {
    if ((beyond & 1) == 0) continue;
    float* const at = z + n * S::kLanes;
    S::Store(at, TailNormals<S>(words[n], S::Load(at)));
  }
}

template <class S>
void Normals(const NormalArgs& args) {
  constexpr uint64_t kMost = S::kLanes;  // groups of 64 vectors
  const uint64_t end = args.start + static_cast<uint64_t>(args.count);
  uint64_t group = args.start / 64;
  while (group * 64 < end) {
    const uint64_t first = group * 64;
    if (first >= args.start && first + 64 <= end) {
      const uint64_t whole = (end - first) / 64;
      const int count = static_cast<int>(whole < kMost ? whole : kMost);
      NormalGroups<S>(args.key, group, count, args.z + (first - args.start));
      group += static_cast<uint64_t>(count);
      continue;
    }
    float part[64];
    NormalGroups<S>(args.key, group, 1, part);
    const uint64_t low = first < args.start ? args.start : first;
    const uint64_t high = first + 64 < end ? first + 64 : end;
    for (uint64_t i = low; i < high; ++i) args.z[i - args.start] = part[i - first];
    ++group;
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
