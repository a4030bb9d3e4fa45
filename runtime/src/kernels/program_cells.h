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
#include "kernels/unroll.h"

namespace rimc::kernels {

// Philox makes four words of a counter.
constexpr int kWordsPerDraw = 4;
constexpr int kDraws = 64;
constexpr int kCells = kDraws * kWordsPerDraw;

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, doi 10.1145/2063384.2063405): the words of
// counters (first, c1, name) .. (first + kDraws - 1, c1, name), counter after counter.
template <class S>
RIMC_NOINLINE void RandomWords(const uint32_t* key, uint32_t first, uint32_t c1,
                               const uint32_t* name, uint32_t* words) {
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

// The nearest whole number, halves to even, the sign kept as rint does: |x| < 2^51.
template <class S>
inline double Rint(double x) {
  constexpr uint64_t kSign = 0x8000000000000000u;
  constexpr double kTwo52 = 4503599627370496.0;
  const double size = FromBits<S>(ToBits<S>(x) & ~kSign) + kTwo52 - kTwo52;
  return FromBits<S>(ToBits<S>(size) | (ToBits<S>(x) & kSign));
}

// e^x for -700 <= x <= 0 (rimc_onnx/device/reproducible_math.py).
template <class S>
inline double Exp(double x) {
  constexpr double kLn2 = 0.6931471805599453;
  constexpr double kLn2High = 0.6931471803691238, kLn2Low = 1.9082149292705877e-10;
  // Adding it leaves a whole number in the lower bits of the mantissa.
  constexpr double kRound = 6755399441055744.0;
  constexpr uint64_t kRoundBits = 0x4338000000000000u;
  const double rounded = x * (1.0 / kLn2) + kRound;
  const double k = rounded - kRound;
  double r = x - k * kLn2High;
  r = r - k * kLn2Low;
  double series = 1.0 / 6227020800.0 * r;
  series = (series + 1.0 / 479001600.0) * r;
  series = (series + 1.0 / 39916800.0) * r;
  series = (series + 1.0 / 3628800.0) * r;
  series = (series + 1.0 / 362880.0) * r;
  series = (series + 1.0 / 40320.0) * r;
  series = (series + 1.0 / 5040.0) * r;
  series = (series + 1.0 / 720.0) * r;
  series = (series + 1.0 / 120.0) * r;
  series = (series + 1.0 / 24.0) * r;
  series = (series + 1.0 / 6.0) * r;
  series = (series + 1.0 / 2.0) * r;
  series = (series + 1.0) * r;
  series = series + 1.0;
  return series * FromBits<S>((ToBits<S>(rounded) - kRoundBits + 1023) << 52);
}

template <class S>
inline bool Has(const LawColumn& column) {
  return column.knots != nullptr || column.value != 0.0;
}

// Targets of one device of each of `kCells` cells, and where they lie in a table.
struct Targets {
  double us[kCells];
  int32_t interval[kCells];
  double share[kCells];
};

template <class S>
inline void Locate(const CellLaw& law, Targets& targets) {
  for (int i = 0; i < kCells; ++i) {
    const double at = (targets.us[i] - law.g_min_us) * law.intervals_per_us;
    constexpr double kLast = kLawIntervals - 1;
    targets.interval[i] = static_cast<int32_t>(at < kLast ? at : kLast);
    targets.share[i] = at - static_cast<double>(targets.interval[i]);
  }
}

template <class S>
inline void Read(const LawColumn& column, const Targets& targets, double* values) {
  const double* knots = column.knots;
  if (knots == nullptr) {
    for (int i = 0; i < kCells; ++i) values[i] = column.value;
    return;
  }
  for (int i = 0; i < kCells; ++i) {
    const double a = knots[targets.interval[i]];
    values[i] = (knots[targets.interval[i] + 1] - a) * targets.share[i] + a;
  }
}

// Numbers of one device of the cells that `draw` is the first one's.
template <class S>
inline void Words(const ProgramArgs& args, uint32_t draw, uint32_t purpose, int device,
                  uint32_t* words) {
  const uint32_t c1 = (purpose << 16) + static_cast<uint32_t>(device);
  RandomWords<S>(args.key, draw, c1, args.name, words);
}

template <class S>
inline void ProgrammingShift(const ProgramArgs& args, uint32_t draw, int device,
                             const Targets& targets, double* shift_us) {
  const CellLaw& law = args.law;
  const bool from_table = Has<S>(law.programming_sigma_us);
  if (!from_table && law.drift_frac == 0.0 && law.drift_mean_frac == 0.0) {
    for (int i = 0; i < kCells; ++i) shift_us[i] = 0.0;
    return;
  }
  uint32_t words[kCells];
  Words<S>(args, draw, kPurposeProgramming, device, words);
  if (from_table) {
    double sigma_us[kCells];
    Read<S>(law.programming_sigma_us, targets, sigma_us);
    for (int i = 0; i < kCells; ++i) shift_us[i] = Normal<S>(words[i]) * sigma_us[i];
    return;
  }
  for (int i = 0; i < kCells; ++i) {
    const double reference_us = law.reference_slope * targets.us[i] + law.reference_us;
    shift_us[i] = (Normal<S>(words[i]) * law.drift_frac + law.drift_mean_frac) * reference_us;
  }
}

template <class S>
inline void AddDrift(const ProgramArgs& args, uint32_t draw, int device, const Targets& targets,
                     double* shift_us) {
  const CellLaw& law = args.law;
  double value[kCells];
  if (Has<S>(law.mean_us)) {
    Read<S>(law.mean_us, targets, value);
    for (int i = 0; i < kCells; ++i) shift_us[i] = shift_us[i] + value[i];
  }
  const bool has_nu_sigma = Has<S>(law.nu_sigma);
  double z[kCells];
  if (Has<S>(law.drift_sigma_us) || has_nu_sigma) {
    uint32_t words[kCells];
    Words<S>(args, draw, kPurposeDrift, device, words);
    for (int i = 0; i < kCells; ++i) z[i] = Normal<S>(words[i]);
  }
  if (Has<S>(law.drift_sigma_us)) {
    Read<S>(law.drift_sigma_us, targets, value);
    for (int i = 0; i < kCells; ++i) shift_us[i] = shift_us[i] + z[i] * value[i];
  }
  if (!has_nu_sigma && !Has<S>(law.nu_mean)) return;

  double nu[kCells];
  for (int i = 0; i < kCells; ++i) nu[i] = 0.0;
  if (has_nu_sigma) {
    Read<S>(law.nu_sigma, targets, value);
    for (int i = 0; i < kCells; ++i) nu[i] = z[i] * value[i];
  }
  if (Has<S>(law.nu_mean)) {
    Read<S>(law.nu_mean, targets, value);
    for (int i = 0; i < kCells; ++i) nu[i] = nu[i] + value[i];
  }
  for (int i = 0; i < kCells; ++i) {
    const double nu_abs = FromBits<S>(ToBits<S>(nu[i]) & 0x7FFFFFFFFFFFFFFFu);
    const double decay = Exp<S>(Larger<S>(nu_abs * -law.log_time, -700.0));
    shift_us[i] = Larger<S>(targets.us[i] + shift_us[i], 0.0) * decay - targets.us[i];
  }
}

template <class S>
inline void StickFaulty(const ProgramArgs& args, uint32_t draw, int device, const Targets& targets,
                        double* shift_us) {
  const CellLaw& law = args.law;
  if (law.stuck_min_words == 0 && law.stuck_max_words == 0) return;
  uint32_t words[kCells];
  Words<S>(args, draw, kPurposeFault, device, words);
  const double top_us = law.g_min_us + law.g_max_us;
  const uint64_t from_top = (uint64_t{1} << 32) - law.stuck_max_words;
  for (int i = 0; i < kCells; ++i) {
    const uint64_t word = words[i];
    const double low_us = law.g_min_us - targets.us[i];
    const double high_us = top_us - targets.us[i];
    const double held_us = word < law.stuck_min_words ? low_us : shift_us[i];
    shift_us[i] = word >= from_top ? high_us : held_us;
  }
}

// Deviations of `kCells` devices from their targets. `sign` is that of the weights whose
// conductance the device holds.
template <class S>
RIMC_NOINLINE void Shift(const ProgramArgs& args, uint32_t draw, int device, const double* g_us,
                         double sign, double* shift_us) {
  const CellLaw& law = args.law;
  Targets targets;
  for (int i = 0; i < kCells; ++i) {
    targets.us[i] = Larger<S>(sign * g_us[i], 0.0) + law.g_min_us;
  }
  const LawColumn* columns[] = {&law.programming_sigma_us, &law.mean_us, &law.drift_sigma_us,
                                &law.nu_mean, &law.nu_sigma};
  bool has_knots = false;
  for (const LawColumn* column : columns) has_knots = has_knots || column->knots != nullptr;
  if (has_knots) Locate<S>(law, targets);
  ProgrammingShift<S>(args, draw, device, targets, shift_us);
  AddDrift<S>(args, draw, device, targets, shift_us);
  // Not below zero conductance.
  for (int i = 0; i < kCells; ++i) shift_us[i] = Larger<S>(shift_us[i], -targets.us[i]);
  StickFaulty<S>(args, draw, device, targets, shift_us);
}

// Some cells: their weights, and what their columns say.
struct Cells {
  double w[kCells];
  double steps_per_weight[kCells];
  double weight_per_step[kCells];
  double weight_per_us[kCells];
  double w_max[kCells];
};

template <class S>
inline void SetColumn(const ProgramArgs& args, int64_t column, int i, Cells& cells) {
  cells.steps_per_weight[i] = args.steps_per_weight[column];
  cells.weight_per_step[i] = args.weight_per_step[column];
  cells.weight_per_us[i] = args.weight_per_us[column];
  cells.w_max[i] = args.w_max[column];
}

// Cells `from` .. `to` - 1 of the block at cell number `block`.
template <class S>
inline void Load(const ProgramArgs& args, int64_t block, int from, int to, Cells& cells) {
  const int64_t at = block - args.first_cell;  // of i = 0
  for (int i = from; i < to; ++i) cells.w[i] = static_cast<double>(args.w[at + i]);
  if (args.num_columns > 1) {
    int64_t column = (block + from) / args.run % args.num_columns;
    int64_t left = args.run - (block + from) % args.run;
    for (int i = from; i < to; ++i) {
      SetColumn<S>(args, column, i, cells);
      if (--left == 0) {
        left = args.run;
        column = column + 1 == args.num_columns ? 0 : column + 1;
      }
    }
  }
  if (args.law.clips != 0) {
    for (int i = 0; i < kCells; ++i) {
      const double above = Larger<S>(cells.w[i], -cells.w_max[i]);
      cells.w[i] = (above < cells.w_max[i] ? above : cells.w_max[i]) + 0.0;
    }
  }
}

// Conductances [kCells] above G_min that slice `slice` of the cells is asked to hold, with the sign
// of the device of the pair that holds it; returns the weight of the slice in the sum.
template <class S>
inline double Slice(const CellLaw& law, int slice, const double* steps, double* g_us) {
  if (law.level_bits == 0) {
    for (int i = 0; i < kCells; ++i) g_us[i] = steps[i];
    return 1.0;
  }
  constexpr uint64_t kSign = 0x8000000000000000u;
  constexpr double kMostSteps = 16777215.0;
  const int shift = slice * law.level_bits;
  const int32_t digit_top = (1 << law.level_bits) - 1;
  const double us_per_digit = law.g_max_us / digit_top;
  for (int i = 0; i < kCells; ++i) {
    const uint64_t bits = ToBits<S>(steps[i]);
    const double size_exact = FromBits<S>(bits & ~kSign);
    const auto size = static_cast<int32_t>(size_exact < kMostSteps ? size_exact : kMostSteps);
    const double digit_us = ((size >> shift) & digit_top) * us_per_digit;
    g_us[i] = FromBits<S>(ToBits<S>(digit_us) | (bits & kSign));
  }
  const double top = static_cast<double>((1 << (law.level_bits * law.num_slices)) - 1);
  return static_cast<double>(digit_top << shift) / top;
}

template <class S>
void ProgramCells(const ProgramArgs& args) {
  const CellLaw& law = args.law;
  Cells cells;
  double steps[kCells], g_us[kCells], total_us[kCells], shift0_us[kCells], shift1_us[kCells];
  for (int i = 0; i < kCells; ++i) {
    cells.w[i] = 0.0;
    SetColumn<S>(args, 0, i, cells);
  }
  // Draws come in fours, so the first block may begin up to three cells before the first one.
  const int64_t end = args.first_cell + args.count;
  for (int64_t block = args.first_cell / kWordsPerDraw * kWordsPerDraw; block < end;
       block += kCells) {
    const int from = block < args.first_cell ? static_cast<int>(args.first_cell - block) : 0;
    const int to = end - block < kCells ? static_cast<int>(end - block) : kCells;
    Load<S>(args, block, from, to, cells);
    for (int i = 0; i < kCells; ++i) steps[i] = cells.w[i] * cells.steps_per_weight[i];
    if (law.level_bits != 0) {
      for (int i = 0; i < kCells; ++i) {
        steps[i] = Rint<S>(steps[i]);
        cells.w[i] = steps[i] * cells.weight_per_step[i];
      }
    }
    const auto draw = static_cast<uint32_t>(block / kWordsPerDraw);
    for (int i = 0; i < kCells; ++i) total_us[i] = 0.0;
    for (int slice = 0; slice < law.num_slices; ++slice) {
      const double share = Slice<S>(law, slice, steps, g_us) / law.devices_per_weight;
      for (int replica = 0; replica < law.devices_per_weight; ++replica) {
        const int pair = 2 * (slice * law.devices_per_weight + replica);
        Shift<S>(args, draw, pair, g_us, 1.0, shift0_us);
        Shift<S>(args, draw, pair + 1, g_us, -1.0, shift1_us);
        for (int i = 0; i < kCells; ++i) {
          // From 0 on, so that no shift is 0, never -0, whichever zero Larger gave.
          total_us[i] = total_us[i] + (shift0_us[i] - shift1_us[i]) * share;
        }
      }
    }
    const int64_t at = block - args.first_cell;  // of i = 0
    for (int i = from; i < to; ++i) {
      const double w = cells.w[i] + total_us[i] * cells.weight_per_us[i];
      args.w_realised[at + i] = static_cast<float>(w);
    }
  }
}

}  // namespace rimc::kernels
