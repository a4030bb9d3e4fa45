// SPDX-License-Identifier: Apache-2.0
//
// Integer kernels of int8 quads against sums taken one product after the other.
#include <algorithm>

#include "harness.h"

namespace rimc::tests {
namespace {

using kernels::Divisor;
using kernels::KernelTable;

std::int32_t Dot(std::uint32_t b, std::int32_t a) {
  std::int32_t sum = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const auto code = static_cast<std::int32_t>(b >> (8 * byte) & 255);
    sum += code * static_cast<std::int8_t>(static_cast<std::uint32_t>(a) >> (8 * byte) & 255);
  }
  return sum;
}

float Code(float x, float step) {
  return std::min(std::max(std::nearbyint(x / step), -127.0f), 127.0f);
}

std::uint32_t Byte(float x, float step) {
  return static_cast<std::uint32_t>(Code(x, step) + 128.0f);
}

std::string Shape(const KernelTable& table, const char* name, int rows, int vecs) {
  return std::string(table.isa) + " quads->" + name + "[" + std::to_string(rows) + " x " +
         std::to_string(vecs) + "]";
}

// Operands of a block, and its sums [rows, vecs * lanes].
struct Operands {
  std::vector<std::int32_t> a, start, b_offset;
  std::vector<std::uint32_t> b;
  std::vector<std::int32_t> sums;

  Operands(int rows, std::ptrdiff_t width, std::ptrdiff_t depth, Random* random) {
    for (std::ptrdiff_t i = 0; i < depth * rows; ++i) {
      a.push_back(static_cast<std::int32_t>(random->Next()));
    }
    b = random->Quads(static_cast<std::size_t>(width + 50));
    start.resize(static_cast<std::size_t>(rows));
    for (std::size_t k = 0; k < a.size(); ++k) {
      start[k % static_cast<std::size_t>(rows)] += StartOf(a[k]);
    }
    for (std::ptrdiff_t k = 0; k < depth + 1; ++k) {
      b_offset.push_back(static_cast<std::int32_t>(random->Whole(0, 50)));
    }
    for (int i = 0; i < rows; ++i) {
      for (std::ptrdiff_t at = 0; at < width; ++at) {
        std::int32_t sum = start[static_cast<std::size_t>(i)];
        for (std::ptrdiff_t k = 0; k < depth; ++k) {
          const auto place = static_cast<std::size_t>(at + b_offset[static_cast<std::size_t>(k)]);
          sum += Dot(b[place], a[static_cast<std::size_t>(k * rows + i)]);
        }
        sums.push_back(sum);
      }
    }
  }
};

void TestQuadBlock(const KernelTable& table, int rows, int vecs, Report* report) {
  const auto block = table.quads->quad_block[rows - 1][vecs - 1];
  const std::string entry = Shape(table, "quad_block", rows, vecs);
  const bool is_there = rows <= table.max_rows && rows * vecs <= table.max_accumulators;
  report->Expect((block != nullptr) == is_there, entry + ": is missing or should not be there");
  if (block == nullptr) return;
  ++report->entries;
  Random random(static_cast<std::uint64_t>(rows * 10 + vecs));
  for (int turn = 0; turn < 6; ++turn) {
    const std::ptrdiff_t width = vecs * table.lanes;
    const Operands operands(rows, width, turn == 0 ? 0 : random.Whole(1, 9), &random);
    const bool rounds = random.Once(2);
    const auto steps = random.Reals(static_cast<std::size_t>(rows), 20.0f, 90.0f);
    std::vector<float> got(static_cast<std::size_t>(rows * (width + 3)), 7.0f), want = got;
    kernels::QuadBlockArgs args{};
    args.a = operands.a.data();
    args.start = operands.start.data();
    args.b_offset = operands.b_offset.data();
    args.depth = static_cast<std::ptrdiff_t>(operands.b_offset.size()) - 1;
    args.c_row = width + 3;
    args.rank_step = rounds ? steps.data() : nullptr;
    for (int v = 0; v < vecs; ++v) {
      args.b[v] = operands.b.data() + v * table.lanes;
      args.c[v] = got.data() + v * table.lanes;
      args.lanes[v] = random.Once(2) ? table.lanes : static_cast<int>(random.Whole(1, table.lanes));
      for (int i = 0; i < rows; ++i) {
        for (int lane = 0; lane < args.lanes[v]; ++lane) {
          const std::ptrdiff_t at = v * table.lanes + lane;
          const auto sum =
              static_cast<float>(operands.sums[static_cast<std::size_t>(i * width + at)]);
          want[static_cast<std::size_t>(i * args.c_row + at)] =
              rounds ? Code(sum, steps[static_cast<std::size_t>(i)]) : sum;
        }
      }
    }
    block(args);
    ExpectSame(got, want, entry, report);
  }
}

void TestRankBlock(const KernelTable& table, int ranks, int vecs, Report* report) {
  const auto block = table.quads->rank_block[ranks - 1][vecs - 1];
  const std::string entry = Shape(table, "rank_block", ranks, vecs);
  report->Expect((block != nullptr) == (ranks * vecs <= table.max_accumulators),
                 entry + ": is missing or should not be there");
  if (block == nullptr) return;
  ++report->entries;
  Random random(static_cast<std::uint64_t>(ranks * 10 + vecs));
  for (int turn = 0; turn < 6; ++turn) {
    const std::ptrdiff_t width = vecs * table.lanes;
    const Operands operands(ranks, width, turn == 0 ? 0 : random.Whole(1, 9), &random);
    // A step that divides, or a power of two, whose inverse is exact.
    std::vector<Divisor> steps;
    for (int i = 0; i < ranks; ++i) {
      const float power = std::ldexp(1.0f, static_cast<int>(random.Whole(4, 8)));
      const float step = random.Real(20.0f, 90.0f);
      steps.push_back(random.Once(2) ? Divisor{power, 1.0f / power, 0.0f}
                                     : Divisor{step, 0.0f, -1.0f});
    }
    std::vector<std::uint32_t> got(static_cast<std::size_t>(width)), want = got;
    kernels::RankBlockArgs args{};
    args.a = operands.a.data();
    args.start = operands.start.data();
    args.b_offset = operands.b_offset.data();
    args.depth = static_cast<std::ptrdiff_t>(operands.b_offset.size()) - 1;
    args.rank_step = steps.data();
    for (int v = 0; v < vecs; ++v) {
      args.b[v] = operands.b.data() + v * table.lanes;
      args.u[v] = got.data() + v * table.lanes;
    }
    for (std::ptrdiff_t at = 0; at < width; ++at) {
      std::uint32_t quad = 0x80808080u;
      for (int i = 0; i < ranks; ++i) {
        const auto sum =
            static_cast<float>(operands.sums[static_cast<std::size_t>(i * width + at)]);
        quad &= ~(255u << (8 * i));
        quad |= Byte(sum, steps[static_cast<std::size_t>(i)].step) << (8 * i);
      }
      want[static_cast<std::size_t>(at)] = quad;
    }
    block(args);
    ExpectSame(got, want, entry, report);
  }
}

void TestQuadLists(const KernelTable& table, int vecs, Report* report) {
  ++report->entries;
  Random random(static_cast<std::uint64_t>(vecs));
  const std::ptrdiff_t width = vecs * table.lanes, rows = 11;
  std::vector<std::int32_t> starts{0}, a, b_offset, start;
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    starts.push_back(starts.back() + static_cast<std::int32_t>(random.Whole(0, 4)));
    start.push_back(0);
    for (std::int32_t k = starts[static_cast<std::size_t>(i)]; k < starts.back(); ++k) {
      a.push_back(static_cast<std::int32_t>(random.Next()));
      b_offset.push_back(static_cast<std::int32_t>(random.Whole(0, 50)));
      start.back() += StartOf(a.back());
    }
  }
  const auto b = random.Quads(static_cast<std::size_t>(width + 50));
  std::vector<float> got(static_cast<std::size_t>(rows * width)), want = got;
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    for (std::ptrdiff_t at = 0; at < width; ++at) {
      std::int32_t sum = start[static_cast<std::size_t>(i)];
      for (auto k = static_cast<std::size_t>(starts[static_cast<std::size_t>(i)]);
           k < static_cast<std::size_t>(starts[static_cast<std::size_t>(i) + 1]); ++k) {
        sum += Dot(b[static_cast<std::size_t>(at + b_offset[k])], a[k]);
      }
      want[static_cast<std::size_t>(i * width + at)] = static_cast<float>(sum);
    }
  }
  kernels::QuadListsArgs args{};
  args.starts = starts.data();
  args.a = a.data();
  args.b_offset = b_offset.data();
  args.start = start.data();
  for (int v = 0; v < vecs; ++v) args.b[v] = b.data() + v * table.lanes;
  args.rows = rows;
  args.c = got.data();
  args.c_row = width;
  table.quads->quad_lists[vecs - 1](args);
  ExpectSame(got, want, std::string(table.isa) + " quads->quad_lists[" + std::to_string(vecs) + "]",
             report);
}

void TestPackQuads(const KernelTable& table, Report* report) {
  ++report->entries;
  Random random(3);
  for (int turn = 0; turn < 60; ++turn) {
    const std::ptrdiff_t stride = random.Whole(1, 3), width = random.Whole(1, 40), rows = 3;
    const std::ptrdiff_t from_row = width * stride + random.Whole(0, 2),
                         to_row = width + random.Whole(0, 2);
    const auto x = random.Reals(static_cast<std::size_t>(5 * rows * from_row), -3.0f, 3.0f);
    kernels::QuadPackArgs args{};
    args.from_row = from_row;
    args.stride = stride;
    args.to_row = to_row;
    args.rows = rows;
    args.width = width;
    args.divisor = random.Once(2) ? Divisor{0.03125f, 32.0f, 0.0f} : Divisor{0.02f, 0.0f, -1.0f};
    const std::ptrdiff_t channels = random.Whole(1, 4);
    for (std::ptrdiff_t j = 0; j < channels; ++j) args.from[j] = x.data() + j * rows * from_row;
    std::vector<std::uint32_t> got(static_cast<std::size_t>(rows * to_row)), want = got;
    args.to = got.data();
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
      for (std::ptrdiff_t i = 0; i < width; ++i) {
        std::uint32_t quad = 0;
        for (int j = 0; j < 4; ++j) {
          const float value =
              args.from[j] == nullptr ? 0.0f : args.from[j][r * from_row + i * stride];
          quad |= Byte(value, args.divisor.step) << (8 * j);
        }
        want[static_cast<std::size_t>(r * to_row + i)] = quad;
      }
    }
    const std::string entry = std::string(table.isa) + " quads->pack_quads";
    report->Expect(table.quads->pack_quads(args), entry + ": a NaN where there is none");
    ExpectSame(got, want, entry, report);
    std::vector<float> with_nan = x;
    with_nan[static_cast<std::size_t>((rows - 1) * from_row + (width - 1) * stride)] = NAN;
    args.from[0] = with_nan.data();
    report->Expect(!table.quads->pack_quads(args), entry + ": NaN is not noticed");
  }
}

void TestRows(const KernelTable& table, Report* report) {
  ++report->entries;
  ++report->entries;
  Random random(4);
  for (int turn = 0; turn < 30; ++turn) {
    const std::ptrdiff_t width = random.Whole(1, 90), rows = random.Whole(1, 5);
    const std::ptrdiff_t row_quads =
        (width + 4 * table.lanes - 1) / (4 * table.lanes) * table.lanes;
    auto x = random.Reals(static_cast<std::size_t>(rows * width), -3.0f, 3.0f);
    const float step = random.Real(0.01f, 0.1f);
    std::vector<std::uint8_t> got(static_cast<std::size_t>(rows * row_quads * 4)),
        want(got.size(), 128);
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
      for (std::ptrdiff_t k = 0; k < width; ++k) {
        want[static_cast<std::size_t>(r * row_quads * 4 + k)] =
            static_cast<std::uint8_t>(Byte(x[static_cast<std::size_t>(r * width + k)], step));
      }
    }
    const std::string entry = std::string(table.isa) + " quads->pack_quad_rows";
    report->Expect(
        table.quads->pack_quad_rows({x.data(), width, rows, got.data(), row_quads * 4, step}),
        entry + ": a NaN where there is none");
    ExpectSame(got, want, entry, report);

    const std::ptrdiff_t rank = random.Whole(1, 9);
    const auto quads = random.Quads(static_cast<std::size_t>(rows * row_quads));
    const auto cells = random.Uint32s(static_cast<std::size_t>(rank * row_quads));
    const std::uint32_t* const a = cells.data();
    std::vector<std::int32_t> start(static_cast<std::size_t>(rank));
    for (std::size_t k = 0; k < cells.size(); ++k) {
      const std::size_t r = k / static_cast<std::size_t>(row_quads);
      start[r] += StartOf(static_cast<std::int32_t>(cells[k]));
    }
    const auto rank_step = random.Reals(static_cast<std::size_t>(rank), 900.0f, 9000.0f);
    std::vector<float> u(static_cast<std::size_t>(rows * rank)), want_u;
    for (std::ptrdiff_t i = 0; i < rows; ++i) {
      for (std::ptrdiff_t r = 0; r < rank; ++r) {
        std::int32_t sum = start[static_cast<std::size_t>(r)];
        for (std::ptrdiff_t k = 0; k < row_quads; ++k) {
          sum += Dot(quads[static_cast<std::size_t>(i * row_quads + k)],
                     static_cast<std::int32_t>(a[r * row_quads + k]));
        }
        want_u.push_back(Code(static_cast<float>(sum), rank_step[static_cast<std::size_t>(r)]));
      }
    }
    table.quads->quad_ranks(
        {quads.data(), a, row_quads, rows, rank, start.data(), rank_step.data(), u.data()});
    ExpectSame(u, want_u, std::string(table.isa) + " quads->quad_ranks", report);
    x[0] = NAN;
    report->Expect(
        !table.quads->pack_quad_rows({x.data(), width, rows, got.data(), row_quads * 4, step}),
        entry + ": NaN is not noticed");
  }
}

}  // namespace

void TestQuads(const KernelTable& table, Report* report) {
  for (int vecs = 1; vecs <= kernels::kMaxVecs; ++vecs) {
    for (int rows = 1; rows <= kernels::kMaxRows; ++rows) TestQuadBlock(table, rows, vecs, report);
    for (int ranks = 1; ranks <= kernels::kQuadRanks; ++ranks) {
      TestRankBlock(table, ranks, vecs, report);
    }
    TestQuadLists(table, vecs, report);
  }
  TestPackQuads(table, report);
  TestRows(table, report);
}

}  // namespace rimc::tests
