// SPDX-License-Identifier: Apache-2.0
//
// Contracts of the compute kernels. One table of functions per instruction set; every table gives
// the same bits. What makes that so: an output is a sum taken with fma in the order of k, one
// accumulator per output, whatever the blocking; every other step is one rounded fp32 operation.
//
// Kernels work on memory they are given: they don't allocate, throw, start threads or read the
// environment. No pointer needs alignment; packed buffers aligned to 64 bytes are faster. Inputs
// and outputs must not overlap, but where said. NaN in gives NaN out.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/block_sizes.h"
#include "kernels/programming.h"
#include "kernels/quad_args.h"
#include "kernels/strip_table.h"

namespace rimc::kernels {

// Coefficients of the curve of a word line: powers 0 .. 13 of u^2.
constexpr int kCurveTerms = 14;

// out * clip(rint(x / step), low, high); rint goes to even at ties.
//
// Further conversions, off by default:
//   not `quantize`:  x in place of the above
//   base > 0:  one digit of the code, which keeps the code's sign:
//              out * (floor(|code| * down) - base * floor(|code| * next)); down and next are powers
//              of two
//   curve:     with u = clip(v / range, -1, 1) of the value v so far,
//              u * (sum over n of curve[n] * (u * u)^n, by Horner's rule) * range
//   grid > 0:  with a curve, rint of that without range, times grid, times unit
//   table:     with `quantize` and a curve, what the line makes of codes or digits 0, 1, ..: the
//              same values, which a kernel may look up; `table_size` of them, 128 or 256
struct Quantizer {
  float step;
  float low;
  float high;
  float out;
  bool quantize = true;
  float down = 0.0f;
  float next = 0.0f;
  float base = 0.0f;
  const float* curve = nullptr;
  float range = 0.0f;
  float grid = 0.0f;
  float unit = 0.0f;
  const float* table = nullptr;
  int table_size = 0;
};

// Rows of one channel to scratch memory:
//   to[r * to_row + i] = f(from[r * from_row + i * stride]), r < rows, i < width
// where f is the quantizer, or nothing where that is null. The same for `planes` channels, 0 is
// one, which are from_plane and to_plane apart. Where `size` is not 0, `to` of each is made 0 from
// `before` values ahead of the first row on, `size` values in all, but for the rows; then it
// points to those values, and no longer to the row.
struct CopyArgs {
  const float* from;
  ptrdiff_t from_row;
  ptrdiff_t stride;
  float* to;
  ptrdiff_t to_row;
  ptrdiff_t rows;
  ptrdiff_t width;
  const Quantizer* quantizer;
  ptrdiff_t planes;
  ptrdiff_t from_plane;
  ptrdiff_t to_plane;
  ptrdiff_t before;
  ptrdiff_t size;
};

// int16 pairs: the values of two word lines in one uint32, the first line in the lower half:
//   to[r * to_row + i] = f(from[0][r * from_row + i * stride]) & 0xffff
//                        | f(from[1][r * from_row + i * stride]) << 16, r < rows, i < width
// The second half is 0 where from[1] is null, and from i = second_width on.
// Pre: the quantizer gives integers that an int16 holds.
struct PairPackArgs {
  const float* from[2];
  ptrdiff_t from_row;
  ptrdiff_t stride;
  uint32_t* to;
  ptrdiff_t to_row;
  ptrdiff_t rows;
  ptrdiff_t width;
  ptrdiff_t second_width;
  const Quantizer* quantizer;
};

// Post-ops of a complete sum c[i, v] of a convolution:
//   y = ((c + v * scale) + sums * sums_scale) * magnitude + bias + residual
//   y = min(max(y, low), high) where `activates`; a NaN stays
// A term whose values are null is left out. v and sums are [rows, vecs * lanes]; scales, magnitude
// and bias are per row; residual[v] is indexed like c[v]. In the conv_block of a QuadTable v may be
// b_start[i] + the four products of b[i] and u [vecs * lanes] instead, quads as in QuadBlockArgs.
struct PostOpArgs {
  const float* v;
  const int32_t* b;
  const int32_t* b_start;
  const uint32_t* u;
  const float* scale;
  const float* sums;
  const float* sums_scale;
  const float* magnitude;
  const float* bias;
  const float* residual[kMaxVecs];
  bool has_residual;
  bool activates;
  float low;
  float high;
};

// Post-ops of a product x w, without `sums`: one row of c for each row of x. Terms whose scale or
// vector is null are left out; these are per lane, at v * lanes.
//   v = sum over r < rank of u[i * rank + r] * basis[r * basis_row + v * lanes]
// residual is at i * row + v * lanes, as many values as c has.
struct PanelPostOpArgs {
  const float* u;
  const float* basis;
  ptrdiff_t basis_row;
  ptrdiff_t rank;
  const float* scale;
  const float* magnitude;
  const float* bias;
  const float* residual;
  ptrdiff_t row;
  bool activates;
  float low;
  float high;
};

// Address of the draws of one read: a Philox 4x32-7 key and counter words 2 and 3.
struct DrawKey {
  uint32_t key[2];
  uint32_t counter[2];
};

// Rows of outputs whose draws are of one counter.
constexpr int kDrawRows = 8;

// z[i * z_row + j] = the draw of the output in row `row` + i at place j, i < rows, j < count: in
// its upper half 16 bits of Philox's output for the counter whose word 0 is places[j], or first + j
// where that is null, and word 1 the row / kDrawRows; its lower half is 2^15. NormalsOf in
// reading.h makes it a normal. Pre: z_row is count rounded up to whole vectors or more: these are
// written, and read of `places`.
struct DrawArgs {
  DrawKey key;
  uint64_t row;
  ptrdiff_t rows;
  uint32_t first;
  const uint32_t* places;
  ptrdiff_t count;
  uint32_t* z;
  ptrdiff_t z_row;
};

// A block of outputs: `rows` rows of `vecs` vectors of `lanes` each.
//
//   partial[i, v] = (resume ? c[i, v] : 0) + sum over k < depth, in order, of a[i, k] * b[k, v]
//   value = partial + (sigma * deviation) * normal(z); partial where z is null
//   without ADC (gain null):  c[i, v] = value
//   with ADC:  code = clip(rint(value * gain + offset), -top, top); no sum where offset is null
//              total = (first ? 0 : c[i, v]) + code;  c[i, v] = last ? total * back : total
//   with `post_ops`, which is of conv_block and of the last sums only, c[i, v] is then its y; the
//   same of `panel_post_ops` and matmul_block
//
// c[i, v] is at c[v] + i * c_row, of which lanes[v] values are read and written.
//
// In blocks of PairBlocks a and b hold int16 pairs, whose product is that of the lower halves plus
// that of the upper halves, and sums are int32. Without ADC c receives these int32 and there is no
// noise; with ADC they are first converted to float32, rounded. Pre: the sum of the absolute
// products is below 2^31, so their order is free.
struct BlockArgs {
  const float* a;
  const float* b[kMaxVecs];
  const int32_t* b_offset;
  ptrdiff_t a_row;
  ptrdiff_t depth;
  float* c[kMaxVecs];
  ptrdiff_t c_row;
  int lanes[kMaxVecs];
  // Draws z[i * z_row + v * lanes], whole vectors, as of DrawArgs. deviation is like gain; sigma is
  // [rows] in matmul_block, and per lane, at v * lanes, in conv_block.
  // A block of a convolution of kDrawRows rows makes those of `draws` first, unless that is null.
  const uint32_t* z;
  ptrdiff_t z_row;
  const DrawArgs* draws;
  const float* sigma;
  const float* deviation;
  const float* gain;
  const float* offset;
  const float* back;
  float top;
  bool resume;
  bool first;
  bool last;
  const PostOpArgs* post_ops;
  const PanelPostOpArgs* panel_post_ops;
  const float* next_a;  // what a next block of a convolution reads as `a`, or null
  // Number of blocks of a convolution that follow, of as many rows each: `a` advances by a_block,
  // and c, arguments per row, the residual, `sums`, z and `draws` advance by the rows. Not with a v
  // that differs from block to block.
  ptrdiff_t more_blocks;
  ptrdiff_t a_block;
  // Inputs that a next call reads, at next_b + next_offset[k] and on; prefetched by the first
  // blocks, a line of a channel each. Or null.
  const float* next_b;
  const int32_t* next_offset;
  // Of one vector: where its sums start, at partial_vector_sums + i * partial_vector_row, or null.
  const float* partial_vector_sums;
  ptrdiff_t partial_vector_row;
};

// Sums of a partial vector of few positions: `blocks` of max_rows rows, of int16 pairs in
// PairBlocks,
//   c[i, j] = (resume ? c[i, j] : 0) + sum over k < depth, in order, of a[i, k] * b[k, j]
// where j < positions; a and b_offset as in conv_block, c[i, j] is at c + i * c_row + j.
struct PartialVectorArgs {
  const float* a;
  const float* b;
  const int32_t* b_offset;
  ptrdiff_t depth;
  float* c;
  ptrdiff_t c_row;
  ptrdiff_t positions;  // up to partial_vector_positions
  ptrdiff_t blocks;
  ptrdiff_t a_block;  // from one block to the next
  bool resume;
};

// u[i, r] = clip(rint((sum over k of code(x[i, k]) * a[r, k]) / rank_step[r]), -127, 127)
// where code(x) = clip(rint(x / x_scale), -127, 127), or x itself where that is a code already.
// Pre: sums are integers below 2^24, so their order is free. a: [rank, a_row], a_row a multiple of
// the table's lanes, zero beyond depth.
struct RankArgs {
  const float* x;  // [rows, depth]
  const float* a;
  ptrdiff_t a_row;
  ptrdiff_t rows;
  ptrdiff_t depth;
  ptrdiff_t rank;
  float x_scale;
  bool x_is_codes;
  const float* rank_step;
  float* u;  // [rows, rank]
};

// to[c * to_row + r] = from[r * from_row + c], r < rows, c < columns
struct TransposeArgs {
  const float* from;
  ptrdiff_t from_row;
  float* to;
  ptrdiff_t to_row;
  ptrdiff_t rows;
  ptrdiff_t columns;
};

// y = ((h + v * scale) + sums * sums_scale) * magnitude + bias
// where v[i, n] = sum over r of coef[i, r] * basis[r, n]; the term of a scale that is null is left
// out. The scales, magnitude and bias are indexed by n in `merge_columns`, by i in `merge_rows`.
// Pre: v is an integer below 2^24. Rank 0 is v = 0, and so is a null scale, whose rank is 0.
struct MergeArgs {
  const float* coef;
  ptrdiff_t coef_row;
  const float* basis;
  ptrdiff_t basis_row;
  ptrdiff_t rank;
  const float* h;  // may be y, and so may
  const float* sums;
  float* y;
  ptrdiff_t y_row;  // of h and sums too
  ptrdiff_t rows;
  ptrdiff_t columns;
  const float* scale;
  const float* sums_scale;
  const float* magnitude;
  const float* bias;
};

// Reads `count` sums that lie side by side:
//   value = partial + (sqrt(variance) * deviation) * normal(z)  partial alone where z is null
//   without ADC (gain null):  read = value
//   with ADC:                 read = clip(rint(value * gain + offset), -top, top)
//   total = (first ? 0 : y) + read * weight
//   y = with ADC and last ? total * back : total
// In `read_columns` the sums are of one row, and gain, offset, back and deviation are indexed like
// them; in `read_rows` the sums are of one column, which has one of each. One variance for all of
// them, or (variance_each) one for each. offset may be null.
struct ReadArgs {
  const float* partial;
  const uint32_t* z;
  const float* variance;
  const float* deviation;
  const float* gain;
  const float* offset;
  const float* back;
  float top;
  float weight;
  bool variance_each;
  bool first;
  bool last;
  ptrdiff_t count;
  float* y;
};

using BlockFunction = void (*)(const BlockArgs& args);

// Blocks of int16 pairs, indexed like those of a table's floats.
struct PairBlocks {
  BlockFunction matmul_block[kMaxRows][kMaxVecs];
  BlockFunction conv_block[kMaxRows][kMaxVecs];
  void (*conv_partial_vector)(const PartialVectorArgs& args);
};

// Kernels of int8 quads. A vector has a quad for every lane of the enclosing table, and blocks are
// as large.
struct QuadTable {
  // Indexed like conv_block.
  QuadBlockFunction quad_block[kMaxRows][kMaxVecs];
  // Indexed [vecs - 1].
  QuadListsFunction quad_lists[kMaxVecs];
  // Indexed [ranks - 1][vecs - 1], ranks * vecs <= max_accumulators.
  RankBlockFunction rank_block[kQuadRanks][kMaxVecs];
  // False where a value is NaN, which no code represents.
  bool (*pack_quads)(const QuadPackArgs& args);
  // Likewise.
  bool (*pack_quad_rows)(const QuadRowsArgs& args);
  void (*quad_ranks)(const QuadRanksArgs& args);
  // conv_block of the table with an epilogue that also takes the adapter's codes as int8 quads.
  BlockFunction conv_block[kMaxRows][kMaxVecs];
  // The enclosing table's, by the instruction set of the quads.
  PairBlocks pairs;
};

struct KernelTable {
  const char* isa;
  int lanes;             // values per vector
  int max_rows;          // rows of a block, at most
  int max_accumulators;  // rows * vecs of a block, at most
  int panel_vecs;        // vectors of a panel of matmul_block, at most

  // Rows of a block of a panel, at most.
  int PanelRows(ptrdiff_t vecs) const {
    const int rows = max_accumulators / static_cast<int>(vecs);
    return rows < max_rows ? rows : max_rows;
  }

  // a[i, k] = a[i * a_row + k]; b[k, v] = b[0][(k * vecs + v) * lanes]; gain and back per lane,
  // at v * lanes. Indexed [rows - 1][vecs - 1], vecs <= panel_vecs, rows * vecs <=
  // max_accumulators.
  BlockFunction matmul_block[kMaxRows][kMaxVecs];
  // a[i, k] = a[k * rows + i]; b[k, v] = b[v] + b_offset[k]; gain and back per row.
  // Indexed [rows - 1][vecs - 1], rows * vecs <= max_accumulators.
  BlockFunction conv_block[kMaxRows][kMaxVecs];

  // Null, and 0, where that is no faster than conv_block.
  void (*conv_partial_vector)(const PartialVectorArgs& args);
  int partial_vector_positions;

  PairBlocks pairs;

  StripTable strips;

  void (*quantize)(const float* x, float* y, ptrdiff_t count, const Quantizer& quantizer);
  void (*copy_rows)(const CopyArgs& args);
  // False where a value is NaN, which no int16 represents.
  bool (*pack_pairs)(const PairPackArgs& args);
  void (*rank_codes)(const RankArgs& args);
  void (*transpose)(const TransposeArgs& args);
  void (*merge_columns)(const MergeArgs& args);
  void (*merge_rows)(const MergeArgs& args);
  void (*program_cells)(const ProgramArgs& args);

  void (*draw)(const DrawArgs& args);
  void (*read_columns)(const ReadArgs& args);
  void (*read_rows)(const ReadArgs& args);
  // y[i] = x[i] * x[i]
  void (*square)(const float* x, float* y, ptrdiff_t count);
  // y[i] = sqrt(x[i])
  void (*root)(const float* x, float* y, ptrdiff_t count);
  // y[i] = the sum of x[r * x_row + i]^2 over r < rows, with fma in the order of r
  void (*column_squares)(const float* x, ptrdiff_t x_row, ptrdiff_t rows, float* y,
                         ptrdiff_t count);
  // y[r] = the sum of x[r * x_row + i]^2 over i < count: 16 sums with fma, of every 16th value,
  // which are then added in halves.
  void (*row_squares)(const float* x, ptrdiff_t x_row, ptrdiff_t rows, float* y, ptrdiff_t count);

  // y[i] = the sum of the squares of both halves of x[r * x_row + i] over r < rows. Pre: below
  // 2^31.
  void (*pair_column_squares)(const uint32_t* x, ptrdiff_t x_row, ptrdiff_t rows, float* y,
                              ptrdiff_t count);
  // y[r] = the same of x[r * x_row + i] over i < count.
  void (*pair_row_squares)(const uint32_t* x, ptrdiff_t x_row, ptrdiff_t rows, float* y,
                           ptrdiff_t count);

  const QuadTable* quads;  // null where there are none
};

extern const KernelTable rimc_kernels_f32_scalar;
#ifdef RIMC_HAVE_X86_KERNELS
extern const KernelTable rimc_kernels_f32_avx2;    // AVX2 and FMA
extern const QuadTable rimc_kernels_i8_avx2;       // the same
extern const KernelTable rimc_kernels_f32_avx512;  // AVX-512F and BW
#endif
#ifdef RIMC_HAVE_VNNI_KERNELS
extern const QuadTable rimc_kernels_i8_avx2vnni;    // AVX2, FMA and AVX-VNNI
extern const QuadTable rimc_kernels_i8_avx512vnni;  // AVX-512F, BW and VNNI
#endif
#ifdef RIMC_HAVE_NEON_KERNELS
extern const KernelTable rimc_kernels_f32_neon;  // what every 64-bit ARM has
extern const QuadTable rimc_kernels_i8_neon;
#endif

}  // namespace rimc::kernels
