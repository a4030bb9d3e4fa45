// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace rimc::kernels {

// Sums of a few positions of a row for a block of columns, which vectors hold here:
//   c[i, p] = sum over k < depth, in order, of a[k, i] * b[k, p]
// a is in blocks of max_rows columns as in conv_block, a_block apart; b[k, p] is at
// b + b_offset[k] + p * step. The columns begin <= i < end are written, c[i, p] to
// c + (i - begin) * c_row + p.
struct StripArgs {
  const float* a;
  ptrdiff_t a_block;
  const float* b;
  const int32_t* b_offset;
  ptrdiff_t step;
  ptrdiff_t depth;
  float* c;
  ptrdiff_t c_row;
  ptrdiff_t begin;
  ptrdiff_t end;
};

using StripFunction = void (*)(const StripArgs& args);

// For any step, 1 and 2.
struct StripFunctions {
  StripFunction by_step[3];
};
constexpr int kMaxStripPositions = 14;
struct StripTable {
  int columns;                               // of a strip, 0 where there are none
  int positions;                             // of a strip, at most
  StripFunctions block[kMaxStripPositions];  // [positions - 1]

  StripFunction Of(ptrdiff_t count, ptrdiff_t step) const {
    return block[count - 1].by_step[step <= 2 ? step : 0];
  }
};

}  // namespace rimc::kernels
