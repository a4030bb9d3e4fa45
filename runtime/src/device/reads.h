// SPDX-License-Identifier: Apache-2.0
//
// What goes with a device model in every read, as attributes of a node have it: the C++ twin of
// rimc_onnx/device/iv_curve.py and passes/periphery_attributes.py, operation by operation.
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
  double iv_sinh = 0.0;     // 0: none
  std::optional<IvPolynomial> iv_polynomial;
  double g_min_us = 0.0;
  double g_max_us = 0.0;
  int num_slices = 1;

  bool HasCurve() const { return iv_sinh > 0.0 || iv_polynomial.has_value(); }
  bool Any() const { return read_noise > 0.0 || HasCurve(); }
};

DeviceReads ReadsOf(const DeviceModel& model);

// iv_square and iv_cube of nodes whose inputs use the share `input_shrink` of the voltage range.
struct IvCurves {
  std::vector<float> square;
  std::vector<float> cube;
};
IvCurves WeightCurves(const DeviceReads& reads, double input_shrink);

// The attribute read_key of a node.
std::int64_t ReadKeyOf(std::uint64_t seed, const std::string& node);

}  // namespace rimc
