// SPDX-License-Identifier: Apache-2.0
//
// Arguments of the integer kernels of kernels.h: codes of inputs, and sums of their products.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/block_sizes.h"

namespace rimc::kernels {

// How codes, clip(rint(x / step), -127, 127), are computed from x. Where `rest` is 0 or more,
// x * inverse + rounded(x * rest), rounded once, gives the same codes as the quotient.
struct Divisor {
  float step;
  float inverse;
  float rest;
};

// int8 quads: the codes of four channels of a position in one uint32, each plus 128:
//   to[r * to_row + i] = sum over j of (code(from[j][r * from_row + i * stride]) + 128) << 8 j
// where code(x) = clip(rint(x / step), -127, 127), and 0 where from[j] is null; from[0] is not.
struct QuadPackArgs {
  const float* from[4];
  ptrdiff_t from_row;
  ptrdiff_t stride;
  uint32_t* to;
  ptrdiff_t to_row;
  ptrdiff_t rows;
  ptrdiff_t width;
  Divisor divisor;
};

// A block of integer sums of int8 quads: codes plus 128 in b, cells in a.
//   sum = start[i] + sum over k < depth of the four products of a[k * rows + i] and b[k, v]
//   c[i, v] = sum, or clip(rint(sum / rank_step[i]), -127, 127) where rank_step is not null
// b[k, v] = b[v] + b_offset[k]; c and lanes as in BlockArgs.
// Pre: |sum| is below 2^24. start[i] is -128 times the sum of a, which cancels the 128 of b; bytes
// of b are 1 or more.
struct QuadBlockArgs {
  const int32_t* a;
  const int32_t* start;
  const uint32_t* b[kMaxVecs];
  const int32_t* b_offset;
  ptrdiff_t depth;
  float* c[kMaxVecs];
  ptrdiff_t c_row;
  int lanes[kMaxVecs];
  const float* rank_step;
};

// Integer sums of columns of few cells each, whose quads are in lists, one after the other:
//   c[i, v] = start[i] + sum over k in [starts[i], starts[i + 1]) of the four products of a[k] and
//             b[v] + b_offset[k]
// where a and b_offset begin with starts[0]. c[i, v] is at c + i * c_row + v * lanes, whole
// vectors. Quads and start as in QuadBlockArgs.
struct QuadListsArgs {
  const int32_t* starts;  // [rows + 1]
  const int32_t* a;
  const int32_t* b_offset;
  const int32_t* start;
  const uint32_t* b[kMaxVecs];
  ptrdiff_t rows;
  float* c;
  ptrdiff_t c_row;
};

// Codes of up to four ranks as quads: u[v] = sum over i of
// (clip(rint(sum[i, v] / rank_step[i]), -127, 127) + 128) << 8 i, and 128 in place of the other
// bytes. sum, a, start, b and depth as in QuadBlockArgs; whole vectors of u are written.
struct RankBlockArgs {
  const int32_t* a;
  const int32_t* start;
  const uint32_t* b[kMaxVecs];
  const int32_t* b_offset;
  ptrdiff_t depth;
  uint32_t* u[kMaxVecs];
  const Divisor* rank_step;
};
constexpr int kQuadRanks = 4;

// Codes of rows as bytes: to[i * to_row + k] = code(from[i * width + k]) + 128, k < width, and 128
// from there to to_row. code as in QuadPackArgs. Pre: to_row is a multiple of the table's lanes.
struct QuadRowsArgs {
  const float* from;
  ptrdiff_t width;
  ptrdiff_t rows;
  uint8_t* to;
  ptrdiff_t to_row;
  float step;
};

// u[i, r] = clip(rint((start[r] + sum over k < row_quads of the four products of x[i, k] and
// a[r, k]) / rank_step[r]), -127, 127); x holds codes plus 128, a holds cells.
// Pre: as in QuadBlockArgs; row_quads is a multiple of the table's lanes.
struct QuadRanksArgs {
  const uint32_t* x;  // [rows, row_quads]
  const uint32_t* a;  // [rank, row_quads]
  ptrdiff_t row_quads;
  ptrdiff_t rows;
  ptrdiff_t rank;
  const int32_t* start;
  const float* rank_step;
  float* u;  // [rows, rank]
};

using QuadBlockFunction = void (*)(const QuadBlockArgs& args);
using QuadListsFunction = void (*)(const QuadListsArgs& args);
using RankBlockFunction = void (*)(const RankBlockArgs& args);

}  // namespace rimc::kernels
