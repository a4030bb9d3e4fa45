// SPDX-License-Identifier: Apache-2.0
//
// Multiply-adds a second of the blocks that most time goes into, one core, inputs in its caches:
//
//   rimc_speed [TURNS]      RIMC_ISA names an instruction set; 20 turns by default
//
// The best of the turns is printed: on a busy machine it is the one that had the core. No test.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "harness.h"
#include "kernels/dispatch.h"

namespace rimc {
namespace {

using kernels::BlockArgs;
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

// What a block does beside its sums.
struct Epilogue {
  std::vector<float> of_column;
  explicit Epilogue(std::ptrdiff_t columns) : of_column(static_cast<std::size_t>(columns), 0.01f) {}

  void Convert(BlockArgs* args) const {
    args->gain = args->back = of_column.data();
    args->top = 127.0f;
    args->first = args->last = true;
  }
};

// A convolution of `depth` word lines, `columns` and `positions`.
double ConvSpeed(const KernelTable& table, int turns, std::ptrdiff_t depth, std::ptrdiff_t columns,
                 std::ptrdiff_t positions, bool has_pairs, bool has_adc) {
  const std::ptrdiff_t rows = table.max_rows;
  const std::ptrdiff_t vecs =
      std::min<std::ptrdiff_t>(table.max_accumulators / rows, kernels::kMaxVecs);
  const std::ptrdiff_t part = vecs * table.lanes;
  const std::ptrdiff_t parts = std::max<std::ptrdiff_t>(positions / part, 1);
  const std::ptrdiff_t plane = parts * part;
  const auto floats = [](std::ptrdiff_t count) { return static_cast<std::size_t>(count); };
  tests::Random random(7);
  const auto a = has_pairs ? random.Pairs(floats(depth * columns))
                           : random.Reals(floats(depth * columns));
  const auto b =
      has_pairs ? random.Pairs(floats(depth * plane)) : random.Reals(floats(depth * plane));
  std::vector<float> c(floats(columns * plane));
  std::vector<std::int32_t> offsets;
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    offsets.push_back(static_cast<std::int32_t>(k * plane));
  }
  const Epilogue epilogue(columns);
  BlockArgs args{};
  args.b_offset = offsets.data();
  args.depth = depth;
  args.a = a.data();
  args.a_block = depth * rows;
  args.more_blocks = columns / rows - 1;
  args.c_row = plane;
  if (has_adc) epilogue.Convert(&args);
  const auto kernel =
      has_pairs ? table.PairConvBlock(rows, vecs) : table.conv_block[rows - 1][vecs - 1];
  const auto run = [&] {
    for (std::ptrdiff_t p = 0; p < parts; ++p) {
      for (std::ptrdiff_t v = 0; v < vecs; ++v) {
        args.b[v] = b.data() + p * part + v * table.lanes;
        args.c[v] = c.data() + p * part + v * table.lanes;
        args.lanes[v] = table.lanes;
      }
      kernel(args);
    }
  };
  const auto products = static_cast<double>(depth * columns * plane) * (has_pairs ? 2 : 1);
  return Best(turns, products, run);
}

// A product of rows with one panel of columns.
double PanelSpeed(const KernelTable& table, int turns, std::ptrdiff_t depth, bool has_pairs) {
  const std::ptrdiff_t vecs = table.panel_vecs;
  const std::ptrdiff_t rows = table.PanelRows(vecs);
  const std::ptrdiff_t columns = vecs * table.lanes;
  constexpr std::ptrdiff_t kBlocks = 16;
  tests::Random random(7);
  const auto values = [&](std::ptrdiff_t count) {
    const auto floats = static_cast<std::size_t>(count);
    return has_pairs ? random.Pairs(floats) : random.Reals(floats);
  };
  const auto a = values(depth * rows * kBlocks);
  const auto b = values(depth * columns);
  std::vector<float> c(static_cast<std::size_t>(columns * rows * kBlocks));
  const Epilogue epilogue(columns);
  BlockArgs args{};
  args.a_row = depth;
  args.depth = depth;
  args.b[0] = b.data();
  args.c_row = columns;
  if (has_pairs) epilogue.Convert(&args);
  const auto kernel =
      has_pairs ? table.PairMatMulBlock(rows, vecs) : table.matmul_block[rows - 1][vecs - 1];
  const auto run = [&] {
    for (std::ptrdiff_t i = 0; i < kBlocks; ++i) {
      args.a = a.data() + i * rows * depth;
      for (std::ptrdiff_t v = 0; v < vecs; ++v) {
        args.c[v] = c.data() + i * rows * columns + v * table.lanes;
        args.lanes[v] = table.lanes;
      }
      kernel(args);
    }
  };
  const auto products = static_cast<double>(depth * columns * rows * kBlocks);
  return Best(turns, products * (has_pairs ? 2 : 1), run);
}

}  // namespace
}  // namespace rimc

int main(int argc, char** argv) {
  using namespace rimc;
  const int turns = argc > 1 ? std::atoi(argv[1]) : 20;
  const KernelTable& table = ActiveKernels();
  std::printf("%s, 10^9 multiply-adds a second, best of %d turns\n", table.isa, turns);
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
                sums * 1e-9, pairs * 1e-9, tile * 1e-9);
  }
  for (const std::ptrdiff_t depth : {64, 384}) {
    std::printf("%6td, a panel of a product %10.1f %12.1f\n", depth,
                PanelSpeed(table, turns, depth, false) * 1e-9,
                PanelSpeed(table, turns, depth / 2, true) * 1e-9);
  }
  return 0;
}
