// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace rimc::kernels {

constexpr int kMaxRows = 8;  // most rows of a block in any table
constexpr int kMaxVecs = 8;  // most vectors per row of a block in any table

}  // namespace rimc::kernels
