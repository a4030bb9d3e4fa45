// SPDX-License-Identifier: Apache-2.0
#include "crossbar/integer_cells.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace rimc {
namespace {

constexpr int kCellBits = 13;
constexpr std::int64_t kMostSum = std::numeric_limits<std::int32_t>::max();

}  // namespace

float CellStep(float w_max) {
  int exponent = 0;
  std::frexp(w_max, &exponent);
  return std::ldexp(1.0f, exponent - kCellBits);
}

void RoundCells(const std::vector<float>& w_max, Index run, std::vector<float>* w) {
  const auto count = static_cast<Index>(w->size());
  const auto columns = static_cast<Index>(w_max.size());
  for (Index begin = 0; begin < count; begin += run) {
    const float step = CellStep(w_max[static_cast<std::size_t>(begin / run % columns)]);
    // Steps below the normal numbers have no inverse; nor have such weights a use.
    if (!std::isnormal(step)) continue;
    const float inverse = 1.0f / step;
    float* const cells = w->data() + begin;
    for (Index i = 0; i < std::min(run, count - begin); ++i) {
      cells[i] = std::rint(cells[i] * inverse) * step;
    }
  }
}

Range PairLayout::OfTile(Index tile_number) const {
  const Index first = tile_number * TilePairs();
  const Index size = std::min(tile, steps - tile_number * tile);
  return {first, first + CeilDiv(size, 2)};
}

PairLayout::Pair PairLayout::At(Index pair) const {
  const Index t = pair / TilePairs();
  const Range pairs = OfTile(t);
  const Index first = t * tile + pair - pairs.begin;
  const Index second = first + pairs.size();
  return {first, second < std::min((t + 1) * tile, steps) ? second : -1};
}

std::uint32_t IntegerCells::PackPair(Index first, Index second) const {
  const auto half = [&](Index at) {
    return std::uint32_t{static_cast<std::uint16_t>(multiples[static_cast<std::size_t>(at)])};
  };
  return half(first) | (second < 0 ? 0 : half(second) << 16);
}

std::vector<float> IntegerCells::Weights(Index columns, CellOrder order) const {
  std::vector<float> w(multiples.size());
  const Index steps = static_cast<Index>(multiples.size()) / columns;
  for (Index m = 0; m < columns; ++m) {
    for (Index k = 0; k < steps; ++k) {
      const auto at = static_cast<std::size_t>(m * order.column_stride + k * order.step_stride);
      w[at] = static_cast<float>(multiples[at]) * step[static_cast<std::size_t>(m)];
    }
  }
  return w;
}

std::vector<float> IntegerCells::Scaled(const std::vector<float>& gain, float unit) const {
  std::vector<float> scaled(gain.size());
  for (std::size_t i = 0; i < gain.size(); ++i) {
    scaled[i] = gain[i] * unit * step[i % step.size()];
  }
  return scaled;
}

std::vector<float> IntegerCells::Unscaled(const std::vector<float>& deviation) const {
  std::vector<float> scaled(deviation.size());
  for (std::size_t i = 0; i < deviation.size(); ++i) scaled[i] = deviation[i] / step[i];
  return scaled;
}

std::optional<IntegerCells> FindIntegers(const Periphery& periphery, const float* w, Index columns,
                                         Index steps, Index tile_steps, CellOrder order) {
  const auto most = static_cast<std::int64_t>(periphery.pair_max);
  if (most == 0 || tile_steps > kMostSum / (most * most)) return std::nullopt;
  IntegerCells cells;
  cells.multiples.resize(static_cast<std::size_t>(columns * steps));
  std::vector<float> inverse;
  for (Index m = 0; m < columns; ++m) {
    const auto& w_max = periphery.w_max;
    cells.step.push_back(CellStep(w_max[w_max.size() == 1 ? 0 : static_cast<std::size_t>(m)]));
    inverse.push_back(1.0f / cells.step.back());
    if (!std::isnormal(cells.step.back()) || !std::isnormal(inverse.back())) return std::nullopt;
  }
  // Sums of sizes over the steps of a tile.
  std::vector<std::int64_t> sums(static_cast<std::size_t>(columns));
  const auto take = [&](Index m, Index k) {
    const auto at = static_cast<std::size_t>(m * order.column_stride + k * order.step_stride);
    const float number = w[at] * inverse[static_cast<std::size_t>(m)];
    if (!(std::fabs(number) <= 32767.0f) || std::rint(number) != number) return false;
    cells.multiples[at] = static_cast<std::int16_t>(number);
    sums[static_cast<std::size_t>(m)] += std::abs(cells.multiples[at]);
    return true;
  };
  for (Index begin = 0; begin < steps; begin += tile_steps) {
    const Index end = std::min(begin + tile_steps, steps);
    if (order.step_stride == 1) {
      for (Index m = 0; m < columns; ++m) {
        for (Index k = begin; k < end; ++k) {
          if (!take(m, k)) return std::nullopt;
        }
      }
    } else {
      for (Index k = begin; k < end; ++k) {
        for (Index m = 0; m < columns; ++m) {
          if (!take(m, k)) return std::nullopt;
        }
      }
    }
    for (std::int64_t& sum : sums) {
      if (sum > kMostSum / most) return std::nullopt;
      sum = 0;
    }
  }
  return cells;
}

}  // namespace rimc
