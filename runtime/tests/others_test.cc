// SPDX-License-Identifier: Apache-2.0
//
// Kernels that are no blocks, against the scalar ones; draws against published words of Philox.
#include <algorithm>

#include "harness.h"

namespace rimc::tests {
namespace {

using kernels::KernelTable;
using kernels::Quantizer;

std::size_t Size(std::ptrdiff_t n) { return static_cast<std::size_t>(n); }

// A word line of every kind; `memory` holds its curve and table.
Quantizer RandomLine(Random* random, std::vector<float>* memory) {
  Quantizer q{0.03f, -127.0f, 127.0f, 0.03f};
  q.quantize = random->Once(2);
  *memory = random->Reals(kernels::kCurveTerms + 256, -0.3f, 0.3f);
  if (random->Once(2)) {
    q.curve = memory->data();
    q.range = 3.0f;
    if (random->Once(2)) {
      q.grid = 100.0f;
      q.unit = 0.01f;
    }
  }
  if (q.quantize && random->Once(2)) {
    q.base = 16.0f;
    q.down = random->Once(2) ? 1.0f : 0.0625f;
    q.next = q.down / 16.0f;
  }
  return q;
}

void TestLines(const KernelTable& table, const KernelTable& scalar, Report* report) {
  report->entries += 3;
  Random random(1);
  for (int turn = 0; turn < 150; ++turn) {
    std::vector<float> memory;
    const Quantizer line = RandomLine(&random, &memory);
    const std::ptrdiff_t stride = random.Whole(1, 3), width = random.Whole(0, 40);
    const std::ptrdiff_t rows = random.Whole(1, 4), from_row = width * stride + random.Whole(0, 2);
    auto x = random.Reals(Size(2 * rows * from_row + 1), -5.0f, 5.0f);
    if (random.Once(4)) x[Size(random.Whole(0, static_cast<std::ptrdiff_t>(x.size()) - 1))] = NAN;
    std::vector<float> got(x.size()), want(x.size());
    const auto count = static_cast<std::ptrdiff_t>(x.size());
    table.quantize(x.data(), got.data(), count, line);
    scalar.quantize(x.data(), want.data(), count, line);
    ExpectSame(got, want, std::string(table.isa) + " quantize", report);

    kernels::CopyArgs copy{};
    copy.from = x.data();
    copy.from_row = from_row;
    copy.stride = stride;
    copy.to_row = width + random.Whole(0, 2);
    copy.rows = rows;
    copy.width = width;
    copy.quantizer = random.Once(3) ? nullptr : &line;
    copy.planes = random.Whole(0, 2);
    copy.from_plane = rows * from_row;
    copy.to_plane = 3 + rows * copy.to_row + 9;
    if (random.Once(2)) {
      copy.before = 3;
      copy.size = 3 + rows * copy.to_row + 4;
    }
    got.assign(Size(2 * copy.to_plane + 20), 7.0f);
    want = got;
    copy.to = got.data() + (copy.size == 0 ? 3 : 0);
    table.copy_rows(copy);
    copy.to = want.data() + (copy.size == 0 ? 3 : 0);
    scalar.copy_rows(copy);
    ExpectSame(got, want, std::string(table.isa) + " copy_rows", report);

    Quantizer whole{0.03f, -127.0f, 127.0f, 1.0f};
    kernels::PairPackArgs pairs{};
    pairs.from[0] = x.data();
    pairs.from[1] = random.Once(3) ? nullptr : x.data() + rows * from_row;
    pairs.from_row = from_row;
    pairs.stride = stride;
    pairs.to_row = copy.to_row;
    pairs.rows = rows;
    pairs.width = width;
    pairs.second_width = random.Once(2) ? width : random.Whole(0, width);
    pairs.quantizer = &whole;
    std::vector<std::uint32_t> packed(Size(rows * pairs.to_row), 7), want_packed = packed;
    pairs.to = packed.data();
    const bool complete = table.pack_pairs(pairs);
    pairs.to = want_packed.data();
    const std::string entry = std::string(table.isa) + " pack_pairs";
    report->Expect(complete == scalar.pack_pairs(pairs), entry + ": NaN is taken otherwise");
    if (complete) ExpectSame(packed, want_packed, entry, report);
  }
}

void TestAdapter(const KernelTable& table, const KernelTable& scalar, Report* report) {
  report->entries += 4;
  Random random(2);
  for (int turn = 0; turn < 80; ++turn) {
    const std::ptrdiff_t rows = random.Whole(1, 20), depth = random.Whole(1, 50);
    const std::ptrdiff_t rank = random.Whole(1, 9), a_row = (depth + 15) / 16 * 16;
    const auto x = random.Reals(Size(rows * depth));
    std::vector<float> a(Size(rank * a_row));
    for (std::ptrdiff_t r = 0; r < rank; ++r) {
      for (std::ptrdiff_t k = 0; k < depth; ++k) {
        a[Size(r * a_row + k)] = static_cast<float>(random.Whole(-127, 127));
      }
    }
    const auto step = random.Reals(Size(rank), 10.0f, 400.0f);
    std::vector<float> got(Size(rows * rank)), want = got;
    table.rank_codes(
        {x.data(), a.data(), a_row, rows, depth, rank, 0.02f, false, step.data(), got.data()});
    scalar.rank_codes(
        {x.data(), a.data(), a_row, rows, depth, rank, 0.02f, false, step.data(), want.data()});
    ExpectSame(got, want, std::string(table.isa) + " rank_codes", report);

    got.assign(Size(depth * (rows + 2)), 7.0f);
    want = got;
    table.transpose({x.data(), depth, got.data(), rows + 2, rows, depth});
    scalar.transpose({x.data(), depth, want.data(), rows + 2, rows, depth});
    ExpectSame(got, want, std::string(table.isa) + " transpose", report);

    for (const bool by_columns : {true, false}) {
      const std::ptrdiff_t columns = random.Whole(1, 40), y_row = columns + 3;
      const std::ptrdiff_t wide = (columns + 15) / 16 * 16;
      const std::ptrdiff_t ranks = random.Whole(0, 6);
      std::vector<float> codes(Size(rows * 6 + 6 * wide));
      for (float& code : codes) code = static_cast<float>(random.Whole(-127, 127));
      const auto h = random.Reals(Size(rows * y_row)), sums = random.Reals(Size(rows * y_row));
      const auto vectors = random.Reals(Size(4 * std::max(wide, rows)));
      const float* const vector = vectors.data();
      const std::ptrdiff_t next = std::max(wide, rows);
      kernels::MergeArgs args{codes.data(),
                              6,
                              codes.data() + rows * 6,
                              wide,
                              ranks,
                              h.data(),
                              sums.data(),
                              nullptr,
                              y_row,
                              rows,
                              columns,
                              ranks > 0 ? vector : nullptr,
                              random.Once(2) ? vector + next : nullptr,
                              vector + 2 * next,
                              vector + 3 * next};
      got.assign(h.size(), 7.0f);
      want = got;
      args.y = got.data();
      (by_columns ? table.merge_columns : table.merge_rows)(args);
      args.y = want.data();
      (by_columns ? scalar.merge_columns : scalar.merge_rows)(args);
      const char* const name = by_columns ? " merge_columns" : " merge_rows";
      ExpectSame(got, want, std::string(table.isa) + name, report);
    }
  }
}

void TestReads(const KernelTable& table, const KernelTable& scalar, Report* report) {
  report->entries += 9;
  Random random(3);
  for (int turn = 0; turn < 80; ++turn) {
    const std::string isa = table.isa;
    const std::ptrdiff_t count = random.Whole(0, 50), rows = random.Whole(0, 20), row = count + 2;
    auto x = random.Reals(Size((rows + 1) * row + 1));
    if (random.Once(4)) x[Size(random.Whole(0, static_cast<std::ptrdiff_t>(x.size()) - 1))] = NAN;
    std::vector<float> got(Size(count + rows + 20), 7.0f), want = got;
    const auto compare = [&](const char* name, const auto& run) {
      std::fill(got.begin(), got.end(), 7.0f);
      std::fill(want.begin(), want.end(), 7.0f);
      run(table, got.data());
      run(scalar, want.data());
      ExpectSame(got, want, isa + " " + name, report);
    };
    compare("square", [&](const KernelTable& t, float* y) { t.square(x.data(), y, count); });
    const auto positive = random.Reals(Size(count), 0.0f, 4.0f);
    compare("root", [&](const KernelTable& t, float* y) { t.root(positive.data(), y, count); });
    compare("column_squares", [&](const KernelTable& t, float* y) {
      t.column_squares(x.data(), row, rows, y, count);
    });
    compare("row_squares",
            [&](const KernelTable& t, float* y) { t.row_squares(x.data(), row, rows, y, count); });
    const auto pairs = random.Pairs(x.size());
    const auto* const packed = reinterpret_cast<const std::uint32_t*>(pairs.data());
    compare("pair_column_squares", [&](const KernelTable& t, float* y) {
      t.pair_column_squares(packed, row, rows, y, count);
    });
    compare("pair_row_squares", [&](const KernelTable& t, float* y) {
      t.pair_row_squares(packed, row, rows, y, count);
    });
    const auto partial = random.Reals(Size(count), -9.0f, 9.0f);
    auto z = random.Uint32s(Size(count + 1));
    for (auto& draw : z) draw = (draw & 0xffff0000u) | 0x8000u;
    const auto values = random.Reals(Size(4 * (count + 1)), 0.1f, 3.0f);
    const float* const v = values.data();
    kernels::ReadArgs read{partial.data(),
                           random.Once(3) ? nullptr : z.data(),
                           v,
                           v + count,
                           random.Once(3) ? nullptr : v + 2 * count,
                           random.Once(2) ? nullptr : v + 3 * count,
                           v + count,
                           7.0f,
                           0.5f,
                           random.Once(2),
                           random.Once(2),
                           random.Once(2),
                           count,
                           nullptr};
    compare("read_columns", [&](const KernelTable& t, float* y) {
      read.y = y;
      t.read_columns(read);
    });
    compare("read_rows", [&](const KernelTable& t, float* y) {
      read.y = y;
      t.read_rows(read);
    });
    const std::ptrdiff_t z_row = (count + 15) / 16 * 16;
    std::vector<std::uint32_t> draws(Size(rows * z_row)), want_draws = draws;
    auto places = random.Uint32s(Size(z_row + 16));
    kernels::DrawArgs draw{{{1, 2}, {3, 4}},
                           static_cast<std::uint64_t>(random.Whole(0, 99)),
                           rows,
                           5,
                           random.Once(2) ? nullptr : places.data(),
                           count,
                           draws.data(),
                           z_row};
    table.draw(draw);
    draw.z = want_draws.data();
    scalar.draw(draw);
    // Vectors are written whole, and those of the scalar table are one value long.
    for (std::ptrdiff_t i = 0; i < rows * z_row; ++i) {
      if (i % z_row >= count) draws[Size(i)] = want_draws[Size(i)];
    }
    ExpectSame(draws, want_draws, isa + " draw", report);
  }
}

void TestProgramming(const KernelTable& table, const KernelTable& scalar, Report* report) {
  ++report->entries;
  Random random(4);
  std::vector<double> knots(kernels::kLawIntervals + 1);
  for (double& knot : knots) knot = random.Real(0.0f, 3.0f);
  for (int turn = 0; turn < 40; ++turn) {
    kernels::ProgramArgs args{};
    const std::ptrdiff_t count = random.Whole(0, 700);
    const auto w = random.Reals(Size(count), -1.0f, 1.0f);
    std::vector<double> columns(12);
    for (double& column : columns) column = random.Real(0.5f, 2.0f);
    args.w = w.data();
    args.first_cell = random.Whole(0, 999);
    args.count = count;
    args.steps_per_weight = args.weight_per_step = args.weight_per_us = args.w_max = columns.data();
    args.num_columns = random.Whole(1, 12);
    args.run = random.Whole(1, 9);
    args.key[0] = 5;
    args.name[1] = 6;
    kernels::CellLaw& law = args.law;
    law.g_max_us = 150.0;
    law.g_min_us = 1.0;
    law.intervals_per_us = kernels::kLawIntervals / law.g_max_us;
    law.drift_frac = random.Once(2) ? 0.2 : 0.0;
    law.reference_us = 3.0;
    law.log_time = 4.0;
    for (auto* column : {&law.programming_sigma_us, &law.mean_us, &law.drift_sigma_us, &law.nu_mean,
                         &law.nu_sigma}) {
      if (random.Once(3)) column->value = 0.05;
      if (random.Once(3)) column->knots = knots.data();
    }
    if (random.Once(2)) law.stuck_min_words = law.stuck_max_words = 1u << 28;
    law.clips = random.Once(2);
    if (random.Once(2)) {
      law.level_bits = 4;
      law.num_slices = 2;
    }
    law.devices_per_weight = static_cast<std::int32_t>(random.Whole(1, 2));
    std::vector<float> got(w.size()), want = got;
    args.w_realised = got.data();
    table.program_cells(args);
    args.w_realised = want.data();
    scalar.program_cells(args);
    ExpectSame(got, want, std::string(table.isa) + " program_cells", report);
  }
}

}  // namespace

void TestOthers(const KernelTable& table, const KernelTable& scalar, Report* report) {
  TestLines(table, scalar, report);
  TestAdapter(table, scalar, report);
  TestReads(table, scalar, report);
  TestProgramming(table, scalar, report);
}

void TestPhilox(const KernelTable& table, Report* report) {
  // Philox 4x32 of seven rounds: known answers of Random123 (Salmon et al., SC 2011).
  struct Known {
    std::uint32_t counter[4], key[2], words[4];
  };
  const Known known[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}},
  };
  for (const Known& k : known) {
    std::vector<std::uint32_t> z(Size(kernels::kDrawRows * table.lanes));
    kernels::DrawArgs args{};
    args.key = {{k.key[0], k.key[1]}, {k.counter[2], k.counter[3]}};
    args.row = std::uint64_t{k.counter[1]} * kernels::kDrawRows;
    args.rows = kernels::kDrawRows;
    args.first = k.counter[0];
    args.count = 1;
    args.z = z.data();
    args.z_row = table.lanes;
    table.draw(args);
    for (int row = 0; row < kernels::kDrawRows; ++row) {
      const std::uint32_t word = k.words[row / 2];
      const std::uint32_t want = (row % 2 == 0 ? word << 16 : word & 0xffff0000u) | 0x8000u;
      report->Expect(z[Size(row * table.lanes)] == want,
                     std::string(table.isa) + " draw: not the words of Philox 4x32-7");
    }
  }
}

}  // namespace rimc::tests
