// SPDX-License-Identifier: Apache-2.0
//
// Blocks of every shape, strips and partial vectors. What each output has to be is what the scalar
// block of one row and one value gives for it.
#include <algorithm>

#include "harness.h"

namespace rimc::tests {
namespace {

using kernels::BlockArgs;
using kernels::BlockFunction;
using kernels::KernelTable;

constexpr std::ptrdiff_t kRank = 3;

// The options of a block that a test has.
struct Options {
  bool is_conv;
  bool pairs;
  bool quads;  // the low-rank part of a convolution's adapter as int8 quads
  bool resume, adc, offset, first, last, noise, draws, post_ops, partial, has_nan;
  std::ptrdiff_t depth;
  int more_blocks;

  std::string Text() const {
    std::string text = "depth " + std::to_string(depth);
    const std::pair<bool, const char*> named[] = {{resume, "resume"}, {adc, "adc"},
                                                  {offset, "offset"}, {first, "first"},
                                                  {last, "last"},     {noise, "noise"},
                                                  {draws, "draws"},   {post_ops, "post-ops"},
                                                  {quads, "quads"},   {partial, "partial vectors"},
                                                  {has_nan, "NaN"}};
    for (const auto& [is_on, name] : named) {
      if (is_on) text += std::string(", ") + name;
    }
    return text + ", blocks " + std::to_string(more_blocks + 1);
  }
};

Options RandomOptions(bool is_conv, bool pairs, bool quads, int rows, Random* random) {
  Options o{};
  o.is_conv = is_conv;
  o.pairs = pairs;
  o.depth = random->Once(6) ? 0 : random->Whole(1, 19);
  o.resume = random->Once(3);
  o.adc = random->Once(2);
  o.offset = random->Once(2);
  o.first = random->Once(2);
  o.last = random->Once(2);
  // Sums of pairs without a converter go to c as they are.
  const bool is_read = o.adc || !pairs;
  o.post_ops = is_read && random->Once(2);
  o.noise = is_read && random->Once(3);
  o.draws = o.noise && is_conv && rows == kernels::kDrawRows && random->Once(2);
  o.quads = quads && o.post_ops && random->Once(2);
  o.partial = random->Once(2);
  o.has_nan = !pairs && random->Once(4);
  o.more_blocks = is_conv ? static_cast<int>(random->Whole(0, 2)) : 0;
  return o;
}

// A block with memory for all that it reads and writes.
struct Data {
  Options o;
  int rows, vecs, lanes;
  std::ptrdiff_t all_rows, width, c_row, a_block;
  std::vector<float> a, b, c, gain, offset, back, sigma, deviation;
  std::vector<float> v, scale, sums, sums_scale, magnitude, bias, residual, u, basis;
  std::vector<std::int32_t> b_offset, quad_b, quad_start;
  std::vector<std::uint32_t> z, quad_u;
  std::vector<int> lanes_of;
  kernels::DrawArgs draws{};
  kernels::PostOpArgs post_ops{};
  kernels::PanelPostOpArgs panel{};

  Data(const Options& options, int rows_, int vecs_, int lanes_, Random* random)
      : o(options), rows(rows_), vecs(vecs_), lanes(lanes_) {
    const auto size = [](std::ptrdiff_t n) { return static_cast<std::size_t>(n); };
    all_rows = rows * (o.more_blocks + 1);
    width = vecs * lanes;
    c_row = width + 5;
    a_block = o.depth * rows + 3;
    const auto operands = [&](std::ptrdiff_t n) {
      return o.pairs ? random->Pairs(size(n)) : random->Reals(size(n));
    };
    a = operands(a_block * (o.more_blocks + 1) + o.depth * rows + 64);
    b = operands(o.depth * width + width + 64);
    for (std::ptrdiff_t k = 0; k < o.depth + 1; ++k) {
      b_offset.push_back(static_cast<std::int32_t>(random->Whole(0, o.depth * width)));
    }
    if (o.has_nan) b[size(random->Whole(0, static_cast<std::ptrdiff_t>(b.size()) - 1))] = NAN;
    c = o.pairs && o.resume ? std::vector<float>(size(all_rows * c_row))
                            : random->Reals(size(all_rows * c_row), -9, 9);
    const std::ptrdiff_t columns = o.is_conv ? all_rows : width;
    gain = random->Reals(size(columns), 0.5f, 3.0f);
    offset = random->Reals(size(columns));
    back = random->Reals(size(columns));
    deviation = random->Reals(size(columns), 0.0f, 1.0f);
    sigma = random->Reals(size(o.is_conv ? width : all_rows), 0.0f, 2.0f);
    z = random->Uint32s(size(all_rows * width));
    for (auto& draw : z) draw = (draw & 0xffff0000u) | 0x8000u;
    for (int i = 0; i < vecs; ++i) {
      const bool may = o.is_conv || i + 1 == vecs;
      lanes_of.push_back(o.partial && may ? static_cast<int>(random->Whole(1, lanes)) : lanes);
    }
    v = random->Reals(size(rows * width));
    sums = random->Reals(size(all_rows * width));
    for (auto* values : {&scale, &sums_scale, &magnitude, &bias}) {
      *values = random->Reals(size(columns));
    }
    residual = random->Reals(size(all_rows * c_row));
    u = random->Reals(size(rows * kRank));
    basis = random->Reals(size(kRank * width));
    quad_u = random->Quads(size(width));
    for (std::ptrdiff_t i = 0; i < all_rows; ++i) {
      quad_b.push_back(static_cast<std::int32_t>(random->Next()));
      quad_start.push_back(StartOf(quad_b.back()));
    }
    if (o.draws) {
      draws.key = {{7, 8}, {9, 10}};
      draws.row = static_cast<std::uint64_t>(kernels::kDrawRows * random->Whole(0, 9));
      draws.rows = kernels::kDrawRows;
      draws.first = static_cast<std::uint32_t>(random->Next());
      draws.count = draws.z_row = width;
    }
    // Any term may be left out; v is of one block, so it needs a call of one block.
    const bool has_v = !o.quads && o.more_blocks == 0 && random->Once(2);
    const bool has[4] = {random->Once(2), random->Once(2), random->Once(2), random->Once(2)};
    post_ops.v = has_v ? v.data() : nullptr;
    post_ops.scale = has_v || o.quads ? scale.data() : nullptr;
    post_ops.b = o.quads ? quad_b.data() : nullptr;
    post_ops.b_start = quad_start.data();
    post_ops.u = quad_u.data();
    post_ops.sums = has[0] ? sums.data() : nullptr;
    post_ops.sums_scale = has[0] ? sums_scale.data() : nullptr;
    post_ops.magnitude = has[1] ? magnitude.data() : nullptr;
    post_ops.bias = has[2] ? bias.data() : nullptr;
    post_ops.has_residual = has[3];
    post_ops.activates = random->Once(2);
    post_ops.low = -1.0f;
    post_ops.high = 1.5f;
    panel = {u.data(),
             basis.data(),
             width,
             kRank,
             has[0] ? scale.data() : nullptr,
             post_ops.magnitude,
             post_ops.bias,
             has[3] ? residual.data() : nullptr,
             c_row,
             post_ops.activates,
             post_ops.low,
             post_ops.high};
  }

  // Of the block at `output` of an own copy of c.
  BlockArgs Args(std::vector<float>* output, std::vector<std::uint32_t>* drawn) {
    BlockArgs args{};
    args.a = a.data();
    args.a_row = o.depth + 2;
    args.a_block = a_block;
    args.b_offset = b_offset.data();
    args.depth = o.depth;
    args.c_row = c_row;
    for (int i = 0; i < vecs; ++i) {
      args.b[i] = b.data() + i * lanes;
      args.c[i] = output->data() + i * lanes;
      args.lanes[i] = lanes_of[static_cast<std::size_t>(i)];
      post_ops.residual[i] = residual.data() + i * lanes;
    }
    if (o.noise) {
      args.z = o.draws ? drawn->data() : z.data();
      args.z_row = width;
      args.sigma = sigma.data();
      args.deviation = deviation.data();
    }
    if (o.draws) {
      draws.z = drawn->data();
      args.draws = &draws;
    }
    args.gain = o.adc ? gain.data() : nullptr;
    args.offset = o.offset ? offset.data() : nullptr;
    args.back = back.data();
    args.top = 7.0f;
    args.resume = o.resume;
    args.first = o.first;
    args.last = o.last;
    args.more_blocks = o.more_blocks;
    if (o.post_ops && o.is_conv) args.post_ops = &post_ops;
    if (o.post_ops && !o.is_conv) args.panel_post_ops = &panel;
    return args;
  }
};

// The low-rank part of an output, from int8 quads.
float QuadSum(std::int32_t start, std::uint32_t u, std::int32_t b) {
  std::int32_t sum = start;
  for (int byte = 0; byte < 4; ++byte) {
    const auto code = static_cast<std::int32_t>(u >> (8 * byte) & 255);
    sum += code * static_cast<std::int8_t>(static_cast<std::uint32_t>(b) >> (8 * byte) & 255);
  }
  return static_cast<float>(sum);
}

// One output by the scalar block of one row and one value.
void OneOutput(Data& data, BlockFunction scalar, std::ptrdiff_t row, int vec, int lane,
               const std::vector<std::uint32_t>& z, float* c) {
  const Options& o = data.o;
  const std::ptrdiff_t at = vec * data.lanes + lane;
  std::vector<std::uint32_t> unused;
  std::vector<float> none(static_cast<std::size_t>(data.all_rows * data.c_row));
  BlockArgs args = data.Args(&none, &unused);
  args.more_blocks = 0;
  args.draws = nullptr;
  args.c[0] = c;
  args.c_row = 1;
  args.lanes[0] = 1;
  std::vector<float> a, b;
  const float* const block = data.a.data() + row / data.rows * data.a_block;
  for (std::ptrdiff_t k = 0; k < o.depth; ++k) {
    a.push_back(o.is_conv ? block[k * data.rows + row % data.rows] : args.a[row * args.a_row + k]);
    b.push_back(args.b[0][o.is_conv ? at + data.b_offset[static_cast<std::size_t>(k)]
                                    : k * data.width + at]);
  }
  std::vector<std::int32_t> in_turn;
  for (std::ptrdiff_t k = 0; k <= o.depth; ++k) in_turn.push_back(static_cast<std::int32_t>(k));
  b.push_back(0.0f);
  a.push_back(0.0f);
  args.a = a.data();
  args.b[0] = b.data();
  args.b_offset = in_turn.data();
  const std::ptrdiff_t column = o.is_conv ? row : at;
  const std::ptrdiff_t other = o.is_conv ? at : row;
  if (args.gain != nullptr) args.gain += column;
  if (args.offset != nullptr) args.offset += column;
  args.back += column;
  if (o.noise) {
    args.z = z.data() + row * data.width + at;
    args.deviation += column;
    args.sigma += other;
  }
  kernels::PostOpArgs post_ops = data.post_ops;
  kernels::PanelPostOpArgs panel = data.panel;
  float quad_sum = 0.0f;
  if (args.post_ops != nullptr) {
    args.post_ops = &post_ops;
    if (o.quads) {
      const auto i = static_cast<std::size_t>(row);
      quad_sum =
          QuadSum(data.quad_start[i], data.quad_u[static_cast<std::size_t>(at)], data.quad_b[i]);
      post_ops.b = nullptr;
      post_ops.v = &quad_sum;
    } else if (post_ops.v != nullptr) {
      post_ops.v += row * data.width + at;
    }
    if (post_ops.sums != nullptr) post_ops.sums += row * data.width + at;
    for (const float** values :
         {&post_ops.scale, &post_ops.sums_scale, &post_ops.magnitude, &post_ops.bias}) {
      if (*values != nullptr) *values += row;
    }
    post_ops.residual[0] = data.residual.data() + row * data.c_row + at;
  }
  if (args.panel_post_ops != nullptr) {
    args.panel_post_ops = &panel;
    panel.u += row * kRank;
    for (const float** values : {&panel.basis, &panel.scale, &panel.magnitude, &panel.bias}) {
      if (*values != nullptr) *values += at;
    }
    if (panel.residual != nullptr) panel.residual += row * data.c_row + at;
  }
  scalar(args);
}

void TestShape(const KernelTable& table, const KernelTable& scalar, BlockFunction block,
               BlockFunction one, const Options& o, int rows, int vecs, const std::string& entry,
               Random* random, Report* report) {
  Data data(o, rows, vecs, table.lanes, random);
  std::vector<float> got = data.c;
  std::vector<float> want = data.c;
  std::vector<std::uint32_t> drawn(data.z.size());
  std::vector<std::uint32_t> z = data.z;
  if (o.draws) {
    z.assign(drawn.size(), 0);
    kernels::DrawArgs draws = data.draws;
    draws.rows = data.all_rows;
    draws.z = z.data();
    scalar.draw(draws);
  }
  block(data.Args(&got, &drawn));
  for (std::ptrdiff_t row = 0; row < data.all_rows; ++row) {
    for (int vec = 0; vec < vecs; ++vec) {
      for (int lane = 0; lane < data.lanes_of[static_cast<std::size_t>(vec)]; ++lane) {
        float* const c = want.data() + row * data.c_row + vec * data.lanes + lane;
        OneOutput(data, one, row, vec, lane, z, c);
      }
    }
  }
  ExpectSame(got, want, entry + ", " + o.Text(), report);
}

using Blocks = const BlockFunction (&)[kernels::kMaxRows][kernels::kMaxVecs];

void TestTable(const KernelTable& table, const KernelTable& scalar, Blocks blocks, Blocks ones,
               bool is_conv, bool pairs, bool quads, const char* name, Report* report) {
  for (int rows = 1; rows <= kernels::kMaxRows; ++rows) {
    for (int vecs = 1; vecs <= kernels::kMaxVecs; ++vecs) {
      const std::string entry = std::string(table.isa) + " " + name + "[" + std::to_string(rows) +
                                " x " + std::to_string(vecs) + "]";
      const bool is_there = rows <= table.max_rows && rows * vecs <= table.max_accumulators &&
                            (is_conv || vecs <= table.panel_vecs);
      const BlockFunction block = blocks[rows - 1][vecs - 1];
      report->Expect((block != nullptr) == is_there, entry + ": is missing or should not be there");
      if (block == nullptr) continue;
      ++report->entries;
      Random random(static_cast<std::uint64_t>(rows * 100 + vecs));
      for (int turn = 0; turn < 12; ++turn) {
        const Options o = RandomOptions(is_conv, pairs, quads, rows, &random);
        TestShape(table, scalar, block, ones[0][0], o, rows, vecs, entry, &random, report);
      }
    }
  }
}

void TestStrips(const KernelTable& table, const KernelTable& scalar, Report* report) {
  if (table.strips.columns == 0) return;
  for (std::ptrdiff_t positions = 1; positions <= table.strips.positions; ++positions) {
    for (const std::ptrdiff_t step : {1, 2, 5}) {
      ++report->entries;
      Random random(static_cast<std::uint64_t>(positions * 10 + step));
      const std::ptrdiff_t depth = random.Whole(1, 20), columns = table.strips.columns;
      const std::ptrdiff_t rows = table.max_rows, a_block = depth * rows;
      const auto a = random.Reals(static_cast<std::size_t>(columns * depth));
      const auto b = random.Reals(static_cast<std::size_t>(depth * 100));
      std::vector<std::int32_t> offsets;
      for (std::ptrdiff_t k = 0; k < depth; ++k)
        offsets.push_back(static_cast<std::int32_t>(k * 7));
      const std::ptrdiff_t begin = random.Whole(0, 3), end = columns - random.Whole(0, 3);
      std::vector<float> got(static_cast<std::size_t>(columns * 20)), want = got;
      table.strips.Of(positions, step)(
          {a.data(), a_block, b.data(), offsets.data(), step, depth, got.data(), 20, begin, end});
      for (std::ptrdiff_t column = begin; column < end; ++column) {
        for (std::ptrdiff_t p = 0; p < positions; ++p) {
          std::vector<float> of_column;
          for (std::ptrdiff_t k = 0; k < depth; ++k) {
            of_column.push_back(
                a[static_cast<std::size_t>(column / rows * a_block + k * rows + column % rows)]);
          }
          BlockArgs args{};
          args.a = of_column.data();
          args.b[0] = b.data() + p * step;
          args.b_offset = offsets.data();
          args.depth = depth;
          args.c[0] = want.data() + (column - begin) * 20 + p;
          args.lanes[0] = 1;
          scalar.conv_block[0][0](args);
        }
      }
      ExpectSame(got, want,
                 std::string(table.isa) + " strips[" + std::to_string(positions) + "], step " +
                     std::to_string(step),
                 report);
    }
  }
}

void TestPartialVector(const KernelTable& table, const KernelTable& scalar,
                       void (*function)(const kernels::PartialVectorArgs&), bool pairs,
                       Report* report) {
  if (function == nullptr) return;
  const std::string entry =
      std::string(table.isa) + (pairs ? " pairs.conv_partial_vector" : " conv_partial_vector");
  ++report->entries;
  Random random(5);
  for (std::ptrdiff_t positions = 1; positions <= table.partial_vector_positions; ++positions) {
    for (const std::ptrdiff_t blocks : {1, 2, 3, 7, 15}) {
      const std::ptrdiff_t depth = random.Whole(0, 9), rows = table.max_rows;
      const std::ptrdiff_t a_block = depth * rows + 8, c_row = positions + 1;
      const auto size = static_cast<std::size_t>(blocks * a_block + 8);
      const auto a = pairs ? random.Pairs(size) : random.Reals(size);
      const auto b = pairs ? random.Pairs(100) : random.Reals(100);
      std::vector<std::int32_t> offsets(10);
      for (auto& at : offsets) at = static_cast<std::int32_t>(random.Whole(0, 80));
      const bool resume = random.Once(2);
      const auto c_size = static_cast<std::size_t>(blocks * rows * c_row);
      std::vector<float> got = pairs ? random.Pairs(c_size) : random.Reals(c_size), want = got;
      function({a.data(), b.data(), offsets.data(), depth, got.data(), c_row, positions, blocks,
                a_block, resume});
      for (std::ptrdiff_t row = 0; row < blocks * rows; ++row) {
        for (std::ptrdiff_t j = 0; j < positions; ++j) {
          std::vector<float> of_row{0.0f};
          for (std::ptrdiff_t k = 0; k < depth; ++k) {
            const std::ptrdiff_t at = row / rows * a_block + k * rows + row % rows;
            of_row.insert(of_row.end() - 1, a[static_cast<std::size_t>(at)]);
          }
          BlockArgs args{};
          args.a = of_row.data();
          args.b[0] = b.data() + j;
          args.b_offset = offsets.data();
          args.depth = depth;
          args.c[0] = want.data() + row * c_row + j;
          args.lanes[0] = 1;
          args.resume = resume;
          (pairs ? scalar.pairs.conv_block : scalar.conv_block)[0][0](args);
        }
      }
      const std::string what = entry + ", " + std::to_string(positions) + " positions, " +
                               std::to_string(blocks) + " blocks";
      ExpectSame(got, want, what, report);
    }
  }
}

}  // namespace

void TestBlocks(const KernelTable& table, const KernelTable& scalar, Report* report) {
  const bool has_quads = table.quads != nullptr;
  TestTable(table, scalar, table.matmul_block, scalar.matmul_block, false, false, false,
            "matmul_block", report);
  TestTable(table, scalar, table.conv_block, scalar.conv_block, true, false, false, "conv_block",
            report);
  TestTable(table, scalar, table.pairs.matmul_block, scalar.pairs.matmul_block, false, true, false,
            "pairs.matmul_block", report);
  TestTable(table, scalar, table.pairs.conv_block, scalar.pairs.conv_block, true, true, has_quads,
            "pairs.conv_block", report);
  TestStrips(table, scalar, report);
  TestPartialVector(table, scalar, table.conv_partial_vector, false, report);
  TestPartialVector(table, scalar, table.pairs.conv_partial_vector, true, report);
  if (!has_quads) return;
  TestTable(table, scalar, table.quads->conv_block, scalar.conv_block, true, false, true,
            "quads->conv_block", report);
}

}  // namespace rimc::tests
