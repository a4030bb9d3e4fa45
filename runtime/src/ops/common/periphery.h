// SPDX-License-Identifier: Apache-2.0
//
// Converters and tiles of an RRAM node, read from its attributes and checked.
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "ops/common/ort.h"

namespace rimc {

struct Periphery {
  Index num_tiles = 1;
  bool has_dac = false;
  kernels::Quantizer dac{};
  bool has_adc = false;
  float adc_top = 0.0f;
  std::vector<float> adc_gain;  // [M] codes per unit of partial sum
  std::vector<float> adc_back;  // [M] units per code
};

// `columns` bit lines [M]; `depth` steps of `rows_per_step` word lines each (opset.num_tiles).
// Throws where an attribute is missing, out of range, or does not fit the others.
Periphery ReadPeriphery(const NodeInfo& node, Index columns, Index depth, Index rows_per_step);

}  // namespace rimc
