// SPDX-License-Identifier: Apache-2.0
//
// What goes with a device model in every read, as attributes of a node have it: the C++ twin of
// iv_curve.py and read_noise_table.py in rimc_onnx/device and of passes/periphery_attributes.py,
// operation by operation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device/law.h"

namespace rimc {

// Read noise and I-V curve that a model states, for nodes of any name.
struct DeviceReads {
  std::string model;        // name of the device model
  double read_noise = 0.0;  // of a pair's weight, as a fraction of G_max; 0: none
  // Of pairs over their weight, kNoiseKnots, as a fraction of G_max; none: the same for all.
  std::vector<double> noise_curve;
  double squared_shares = 1.0;  // of pairs that share a weight, summed
  double iv_sinh = 0.0;         // 0: none
  std::optional<IvPolynomial> iv_polynomial;
  double g_min_us = 0.0;
  double g_max_us = 0.0;
  int num_slices = 1;

  bool HasCurve() const { return iv_sinh > 0.0 || iv_polynomial.has_value(); }
  bool HasNoise() const { return read_noise > 0.0 || !noise_curve.empty(); }
  bool Any() const { return HasNoise() || HasCurve(); }
};

// Reads `time_s` after programming.
DeviceReads ReadsOf(const DeviceModel& model, double time_s);

// read_noise and read_noise_curve of nodes. Throws Error where reads.noise_curve has no such.
struct NoiseAttributes {
  float read_noise;
  std::vector<float> curve;
};
NoiseAttributes NoiseOf(const DeviceReads& reads);

// iv_square and iv_cube of nodes whose inputs use the share `input_shrink` of the voltage range.
struct IvCurves {
  std::vector<float> square;
  std::vector<float> cube;
};
IvCurves WeightCurves(const DeviceReads& reads, double input_shrink);

// The attribute read_key of a node.
std::int64_t ReadKeyOf(std::uint64_t seed, const std::string& node);

}  // namespace rimc
