// SPDX-License-Identifier: Apache-2.0
//
// Multiply-adds a cycle of the blocks that most time goes into, one core, inputs in its caches:
//
//   rimc_speed [TURNS]      RIMC_ISA names an instruction set; 20 turns by default
//
// The best of the turns is printed: on a busy machine it is the one that had the core. No test.
// Two units of fused multiply-adds make 16 float32 a cycle at most with AVX2, 32 with AVX-512; int16
// pairs twice as many. The clock is that of a chain of operations of one cycle each.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "harness.h"
#include "kernels/dispatch.h"

namespace rimc {
namespace {

using kernels::BlockArgs;
using kernels::BlockFunction;
using kernels::KernelTable;

constexpr double kTurnSeconds = 0.005;

double Seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// The most multiply-adds a second of `run`, which does `products` of them.
template <class Run>
double Best(int turns, double products, const Run& run) {
  double best = 0.0;
  for (int turn = 0; turn < turns; ++turn) {
    int runs = 0;
    const double start = Seconds();
    double taken = 0.0;
    for (; taken < kTurnSeconds; ++runs) {
      run();
      taken = Seconds() - start;
    }
    best = std::max(best, products * runs / taken);
  }
  return best;
}

// Cycles a second: shift and exclusive or wait for each other.
double Clock(int turns) {
  constexpr int kSteps = 1 << 16;
  volatile std::uint64_t seed = 1;
  return Best(turns, 2.0 * kSteps, [&] {
    std::uint64_t state = seed;
    for (int i = 0; i < kSteps; ++i) state ^= state << 13;
    seed = state | 1;
  });
}

// Calls of one kernel, `rows` x `vecs` sums each or more_blocks + 1 times as many; operands and
// sums of a call lie `step` behind those of the call before.
struct Calls {
  BlockFunction kernel;
  std::ptrdiff_t rows, vecs, more_blocks, count;
  std::ptrdiff_t a_step, b_step, c_step;
  std::ptrdiff_t width;    // of b and c
  std::ptrdiff_t columns;  // of the crossbar
};

double Speed(const KernelTable& table, int turns, std::ptrdiff_t depth, const Calls& calls,
             bool has_pairs, bool has_adc) {
  tests::Random random(7);
  const auto values = [&](std::ptrdiff_t count) {
    const auto size = static_cast<std::size_t>(count);
    return has_pairs ? random.Pairs(size) : random.Reals(size);
  };
  const std::ptrdiff_t rows = calls.rows * (calls.more_blocks + 1);
  const auto a = values(depth * rows + (calls.count - 1) * calls.a_step);
  const auto b = values(depth * calls.width);
  std::vector<float> c(
      static_cast<std::size_t>(rows * calls.width + (calls.count - 1) * calls.c_step));
  std::vector<std::int32_t> offsets;
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    offsets.push_back(static_cast<std::int32_t>(k * calls.width));
  }
  const std::vector<float> of_column(static_cast<std::size_t>(calls.columns), 0.01f);
  BlockArgs args{};
  args.a_row = depth;
  args.a_block = depth * calls.rows;
  args.more_blocks = calls.more_blocks;
  args.b_offset = offsets.data();
  args.depth = depth;
  args.c_row = calls.width;
  std::fill_n(args.lanes, calls.vecs, table.lanes);
  if (has_adc) {
    args.gain = args.back = of_column.data();
    args.top = 127.0f;
    args.first = args.last = true;
  }
  const auto run = [&] {
    for (std::ptrdiff_t i = 0; i < calls.count; ++i) {
      args.a = a.data() + i * calls.a_step;
      for (std::ptrdiff_t v = 0; v < calls.vecs; ++v) {
        args.b[v] = b.data() + i * calls.b_step + v * table.lanes;
        args.c[v] = c.data() + i * calls.c_step + v * table.lanes;
      }
      calls.kernel(args);
    }
  };
  const std::ptrdiff_t sums = calls.count * rows * calls.vecs * table.lanes;
  return Best(turns, static_cast<double>(depth * sums) * (has_pairs ? 2 : 1), run);
}

// A convolution of `depth` word lines, `columns` and `positions`.
double ConvSpeed(const KernelTable& table, int turns, std::ptrdiff_t depth, std::ptrdiff_t columns,
                 std::ptrdiff_t positions, bool has_pairs, bool has_adc) {
  Calls calls{};
  calls.rows = table.max_rows;
  calls.vecs = std::min<std::ptrdiff_t>(table.max_accumulators / calls.rows, kernels::kMaxVecs);
  calls.kernel =
      (has_pairs ? table.pairs.conv_block : table.conv_block)[calls.rows - 1][calls.vecs - 1];
  calls.more_blocks = columns / calls.rows - 1;
  calls.b_step = calls.c_step = calls.vecs * table.lanes;
  calls.count = std::max<std::ptrdiff_t>(positions / calls.b_step, 1);
  calls.width = calls.count * calls.b_step;
  calls.columns = columns;
  return Speed(table, turns, depth, calls, has_pairs, has_adc);
}

// A product of rows with one panel of columns.
double PanelSpeed(const KernelTable& table, int turns, std::ptrdiff_t depth, bool has_pairs) {
  Calls calls{};
  calls.vecs = table.panel_vecs;
  calls.rows = table.PanelRows(calls.vecs);
  calls.kernel =
      (has_pairs ? table.pairs.matmul_block : table.matmul_block)[calls.rows - 1][calls.vecs - 1];
  calls.count = 16;
  calls.width = calls.columns = calls.vecs * table.lanes;
  calls.a_step = calls.rows * depth;
  calls.c_step = calls.rows * calls.width;
  return Speed(table, turns, depth, calls, has_pairs, has_pairs);
}

}  // namespace
}  // namespace rimc

int main(int argc, char** argv) {
  using namespace rimc;
  const int turns = argc > 1 ? std::atoi(argv[1]) : 20;
  const KernelTable& table = ActiveKernels();
  const double clock = Clock(turns);
  std::printf("%s, multiply-adds a cycle (%.2f GHz), best of %d turns\n", table.isa, clock * 1e-9,
              turns);
  std::printf("word lines, columns, positions     float32  int16 pairs  pairs, tile of 128, ADC\n");
  struct Shape {
    std::ptrdiff_t depth, columns, positions;
  };
  // 3 x 3 kernels of ResNet-20 and ResNet-50, 1 x 1 of ResNet-50.
  for (const Shape& s : {Shape{144, 16, 1024}, Shape{288, 32, 256}, Shape{576, 64, 64},
                         Shape{1152, 128, 96}, Shape{256, 64, 192}, Shape{64, 256, 192}}) {
    const double sums = ConvSpeed(table, turns, s.depth, s.columns, s.positions, false, false);
    const double pairs = ConvSpeed(table, turns, s.depth / 2, s.columns, s.positions, true, false);
    const double tile = ConvSpeed(table, turns, 64, s.columns, s.positions, true, true);
    std::printf("%6td, %4td, %5td %25.1f %12.1f %12.1f\n", s.depth, s.columns, s.positions,
                sums / clock, pairs / clock, tile / clock);
  }
  for (const std::ptrdiff_t depth : {64, 384}) {
    std::printf("%6td, a panel of a product %10.1f %12.1f\n", depth,
                PanelSpeed(table, turns, depth, false) / clock,
                PanelSpeed(table, turns, depth / 2, true) / clock);
  }
  return 0;
}
