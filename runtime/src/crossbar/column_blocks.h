// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/ranges.h"

namespace rimc {

// Cells of a group in blocks of columns: block after block, each [depth * window, rows].
// `w` is [M, depth * window], `out` of the same size.
template <class T, class Out>
void PackColumnBlocks(const T* w, Index groups, Index columns, Index steps, Index num_blocks,
                      Out* out) {
  for (Index g = 0; g < groups; ++g) {
    for (Index block = 0; block < num_blocks; ++block) {
      const Range rows = Part(columns, num_blocks, block);
      const T* from = w + (g * columns + rows.begin) * steps;
      Out* to = out + (g * columns + rows.begin) * steps;
      for (Index k = 0; k < steps; ++k) {
        for (Index i = 0; i < rows.size(); ++i) {
          to[k * rows.size() + i] = static_cast<Out>(from[i * steps + k]);
        }
      }
    }
  }
}

}  // namespace rimc
