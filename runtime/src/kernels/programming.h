// SPDX-License-Identifier: Apache-2.0
//
// Contract of the kernel that programs cells.
#pragma once

#include <stdint.h>

namespace rimc::kernels {

// A quantity of a device over its target conductance G_t, at one time since programming. Between
// knots, which lie equally spaced from G_min to G_min + G_max, it is a + (b - a) * share.
constexpr int kLawIntervals = 4096;
struct LawColumn {
  const double* knots = nullptr;  // [kLawIntervals + 1]; null: `value` at all conductances
  double value = 0.0;             // 0: the law has no such quantity, and draws nothing for it
};

// Deviation of a device from its target, and the targets of a weight: the parameters of the steps
// in rimc_onnx/device/programming.py. Conductances are in microsiemens.
struct CellLaw {
  // Error of programming, where programming_sigma_us has none:
  //   (z * drift_frac + drift_mean_frac) * (reference_slope * G_t + reference_us)
  double drift_frac = 0.0;
  double drift_mean_frac = 0.0;
  double reference_slope = 0.0;
  double reference_us = 0.0;
  double g_max_us = 0.0;
  double g_min_us = 0.0;
  double intervals_per_us = 0.0;  // kLawIntervals / G_max
  LawColumn programming_sigma_us;
  LawColumn mean_us;
  LawColumn drift_sigma_us;
  LawColumn nu_mean;
  LawColumn nu_sigma;
  double log_time = 0.0;           // ln(t / t0) of nu
  uint64_t stuck_min_words = 0;    // of 2^32 words, how many leave a device stuck at G_min
  uint64_t stuck_max_words = 0;    // at G_min + G_max
  int32_t clips = 0;               // 1: weights beyond W_max are cut
  int32_t level_bits = 0;          // 0: any conductance
  int32_t num_slices = 1;          // pairs that share a weight's bits
  int32_t devices_per_weight = 1;  // pairs in parallel, each with the same target
};

// Purposes of random numbers: rimc_onnx.device.Purpose.
constexpr uint32_t kPurposeProgramming = 0;
constexpr uint32_t kPurposeDrift = 2;
constexpr uint32_t kPurposeFault = 3;

// Cells first_cell .. first_cell + count - 1 of a node: from target weights to realised ones
// (rimc_onnx.device.program). A cell's column is cell / run mod num_columns.
// Pre: 0 <= first_cell, first_cell + count <= 2^34, run >= 1. w_realised may be w.
struct ProgramArgs {
  const float* w;     // [count]
  float* w_realised;  // [count]
  int64_t first_cell;
  int64_t count;
  // [num_columns]; the first where W_max is 0 is 0. A step is 1 us, with levels one of the
  // weight's.
  const double* steps_per_weight;
  const double* weight_per_step;
  const double* weight_per_us;  // W_max / G_max
  const double* w_max;
  int64_t num_columns;
  int64_t run;
  uint32_t key[2];   // seed, lower and upper 32 bits
  uint32_t name[2];  // the first two words of the sha256 of the node's name, little-endian
  CellLaw law;
};

}  // namespace rimc::kernels
