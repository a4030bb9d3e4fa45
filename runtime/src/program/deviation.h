// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace rimc {

// Standard deviation of every column's weights, [columns]: exact sums of weights rounded to
// w_max / 2^20, hence the bits of rimc_onnx/device/mapping.py. Cell i belongs to column
// i / run % columns.
std::vector<double> StandardDeviations(const float* w, std::int64_t count,
                                       const std::vector<float>& w_max, std::int64_t run);

}  // namespace rimc
