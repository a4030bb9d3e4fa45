// SPDX-License-Identifier: Apache-2.0
//
// Programming of cells (kernels.h), written once for all ISAs: plain loops over short arrays, which
// the compiler turns into vector code in the files that allow it. The bits do not depend on that:
// only operations that IEEE 754 rounds in one way are used, each rounded by itself. The numpy code
// that this has to equal bit for bit is rimc_onnx/device.
//
// S is the SIMD type of the file, here only a name that keeps instances of different flags apart.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

namespace rimc::kernels {

// Philox makes four words of a counter.
constexpr int kWordsPerDraw = 4;
constexpr int kDraws = 64;
constexpr int kCells = kDraws * kWordsPerDraw;

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, doi 10.1145/2063384.2063405): the words of
// counters (first, c1, name) .. (first + kDraws - 1, c1, name), counter after counter.
template <class S>
inline void RandomWords(const uint32_t* key, uint32_t first, uint32_t c1, const uint32_t* name,
                        uint32_t* words) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint32_t c[kWordsPerDraw][kDraws];
  for (int i = 0; i < kDraws; ++i) {
    c[0][i] = first + static_cast<uint32_t>(i);
    c[1][i] = c1;
    c[2][i] = name[0];
    c[3][i] = name[1];
  }
  uint32_t k0 = key[0];
  uint32_t k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kDraws; ++i) {
      const uint64_t product0 = c[0][i] * kMultiplier0;
      const uint64_t product1 = c[2][i] * kMultiplier1;
      c[0][i] = static_cast<uint32_t>(product1 >> 32) ^ c[1][i] ^ k0;
      c[2][i] = static_cast<uint32_t>(product0 >> 32) ^ c[3][i] ^ k1;
      c[1][i] = static_cast<uint32_t>(product1);
      c[3][i] = static_cast<uint32_t>(product0);
    }
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  for (int i = 0; i < kDraws; ++i) {
    for (int word = 0; word < kWordsPerDraw; ++word) words[i * kWordsPerDraw + word] = c[word][i];
  }
}

template <class S>
inline double FromBits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <class S>
inline uint64_t ToBits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// An integer below 2^52 as a double; exact, and a vector operation on every ISA.
template <class S>
inline double ToDouble(uint64_t value) {
  constexpr uint64_t kTwo52 = 0x4330000000000000u;
  return FromBits<S>(kTwo52 | value) - 4503599627370496.0;
}

// -ln p for 2^-33 <= p < 1; relative error under 1e-10.
template <class S>
inline double MinusLog(double p) {
  constexpr double kLn2 = 0.6931471805599453, kSqrtHalf = 0.7071067811865476;
  const uint64_t bits = ToBits<S>(p);
  // p = mantissa * 2^exponent, mantissa in [1/2, 1)
  const double exponent = ToDouble<S>(bits >> 52) - 1022.0;
  const double mantissa = FromBits<S>((bits & 0x000FFFFFFFFFFFFFu) | 0x3FE0000000000000u);
  const double s = (mantissa - kSqrtHalf) / (mantissa + kSqrtHalf);
  const double s2 = s * s;
  double series = 2.0 / 13 * s2;
  series = (series + 2.0 / 11) * s2;
  series = (series + 2.0 / 9) * s2;
  series = (series + 2.0 / 7) * s2;
  series = (series + 2.0 / 5) * s2;
  series = (series + 2.0 / 3) * s2;
  series = series + 2.0;
  return (0.5 - exponent) * kLn2 - s * series;
}

// The normal distribution's inverse at (word + 1/2) / 2^32 (Wichura, AS 241, Applied Statistics 37
// (1988) 477, routine PPND7 in float64). Both branches are computed, so that lanes never part.
template <class S>
inline double Normal(uint32_t word) {
  constexpr double kCentre = 0.425, kCentreSquared = 0.180625;
  constexpr uint64_t kSign = 0x8000000000000000u;
  const double q = (ToDouble<S>(word) - 2147483647.5) * (1.0 / 4294967296.0);
  const double r = kCentreSquared - q * q;
  double a = 5.9109374720e01 * r;
  a = (a + 1.5929113202e02) * r;
  a = (a + 5.0434271938e01) * r;
  a = a + 3.3871327179e00;
  double b = 6.7187563600e01 * r;
  b = (b + 7.8757757664e01) * r;
  b = (b + 1.7895169469e01) * r;
  b = b + 1.0;
  const double centre = a * q / b;

  const double q_abs = FromBits<S>(ToBits<S>(q) & ~kSign);
  const double t = sqrt(MinusLog<S>(0.5 - q_abs)) - 1.6;
  double c = 1.7023821103e-01 * t;
  c = (c + 1.3067284816e00) * t;
  c = (c + 2.7568153900e00) * t;
  c = c + 1.4234372777e00;
  double d = 1.2021132975e-01 * t;
  d = (d + 7.3700164250e-01) * t;
  d = d + 1.0;
  // The tail's value is positive.
  const double tail = FromBits<S>(ToBits<S>(c / d) | (ToBits<S>(q) & kSign));
  return q_abs > kCentre ? tail : centre;
}

// As numpy.maximum, but that a zero of either sign may stand for both.
template <class S>
inline double Larger(double a, double b) {
  return a > b ? a : b;
}

// How far each of `kCells` devices ends up off its target. `sign` is that of the weights whose
// conductance the device holds.
template <class S>
inline void Shift(const CellLaw& law, const uint32_t* words, const double* g_us, double sign,
                  double* shift_us) {
  for (int i = 0; i < kCells; ++i) {
    const double target_us = Larger<S>(sign * g_us[i], 0.0) + law.g_min_us;
    const double reference_us = law.reference_slope * target_us + law.reference_us;
    const double shift =
        (Normal<S>(words[i]) * law.drift_frac + law.drift_mean_frac) * reference_us;
    // Not below zero conductance.
    shift_us[i] = Larger<S>(shift, -target_us);
  }
}

template <class S>
void ProgramCells(const ProgramArgs& args) {
  double w[kCells], g_us[kCells], weight_per_us[kCells];
  double shift0_us[kCells], shift1_us[kCells];
  uint32_t words[kCells];
  for (int i = 0; i < kCells; ++i) {
    w[i] = 0.0;
    g_us[i] = 0.0;
    weight_per_us[i] = args.weight_per_us[0];
  }
  // Draws come in fours, so the first block may begin up to three cells before the first one.
  const int64_t end = args.first_cell + args.count;
  for (int64_t block = args.first_cell / kWordsPerDraw * kWordsPerDraw; block < end;
       block += kCells) {
    const int from = block < args.first_cell ? static_cast<int>(args.first_cell - block) : 0;
    const int to = end - block < kCells ? static_cast<int>(end - block) : kCells;
    const int64_t at = block - args.first_cell;  // of i = 0
    if (args.num_columns == 1) {
      const double us_per_weight = args.us_per_weight[0];
      for (int i = from; i < to; ++i) {
        w[i] = static_cast<double>(args.w[at + i]);
        g_us[i] = w[i] * us_per_weight;
      }
    } else {
      int64_t column = (block + from) / args.run % args.num_columns;
      int64_t left = args.run - (block + from) % args.run;
      for (int i = from; i < to; ++i) {
        w[i] = static_cast<double>(args.w[at + i]);
        g_us[i] = w[i] * args.us_per_weight[column];
        weight_per_us[i] = args.weight_per_us[column];
        if (--left == 0) {
          left = args.run;
          column = column + 1 == args.num_columns ? 0 : column + 1;
        }
      }
    }
    const auto draw = static_cast<uint32_t>(block / kWordsPerDraw);
    RandomWords<S>(args.key, draw, kPurposeProgramming << 16, args.name, words);
    Shift<S>(args.law, words, g_us, 1.0, shift0_us);
    RandomWords<S>(args.key, draw, (kPurposeProgramming << 16) + 1, args.name, words);
    Shift<S>(args.law, words, g_us, -1.0, shift1_us);
    for (int i = from; i < to; ++i) {
      // + 0.0: no shift is 0, never -0, whichever zero Larger gave.
      const double shift_us = shift0_us[i] - shift1_us[i] + 0.0;
      args.w_realised[at + i] = static_cast<float>(w[i] + shift_us * weight_per_us[i]);
    }
  }
}

}  // namespace rimc::kernels
