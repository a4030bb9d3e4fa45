// SPDX-License-Identifier: Apache-2.0
//
// Programming a node's weight into crossbars, around the kernel that does the cells.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace rimc {

// Key of a node's draws: the first two words of the sha256 of its name, little-endian.
std::array<std::uint32_t, 2> NameWords(std::string_view node);

// The attribute read_key of a node: rimc_onnx.device.read_key.
std::int64_t ReadKeyOf(std::uint64_t seed, const std::string& node);

// Parameters of the realised weight of a node.
struct CellRun {
  std::int64_t first_cell = 0;
  std::int64_t run = 1;          // cells from one column to the next
  const float* w_max = nullptr;  // [num_columns]
  std::int64_t num_columns = 1;
  std::uint64_t seed = 0;
  std::array<std::uint32_t, 2> name{};
  kernels::CellLaw law{};
};

// Realised weights of `count` cells, on up to `max_threads` threads (0: as many as the machine
// has). The bits depend on nothing but the arguments. w_realised may be w. May throw
// std::bad_alloc.
void ProgramWeights(const kernels::KernelTable& kernels, const CellRun& cells, const float* w,
                    float* w_realised, std::int64_t count, int max_threads);

// W_max: largest |w| of each column, at most `clip_sigma` standard deviations of it where that is
// above 0: [num_columns]. Where a weight is NaN or infinite so is a value of the result, and the
// others are of no use.
std::vector<float> LargestWeights(const float* w, std::int64_t count, std::int64_t num_columns,
                                  std::int64_t run, double clip_sigma);

}  // namespace rimc
