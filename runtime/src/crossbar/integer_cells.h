// SPDX-License-Identifier: Apache-2.0
//
// Arrays whose sums are integers: word lines of a DAC of few bits carry integers, and cells are
// integer multiples of a step (rimc_onnx/crossbar/integer_grid.py).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "crossbar/periphery.h"
#include "ort/ort.h"

namespace rimc {

// Step of the cells of a bit line: 2^-13 of the power of two above w_max.
float CellStep(float w_max);

// Cells as multiples of their steps: rint, ties to even. `w_max` is [1] or [columns]; `run` cells
// of a column follow each other.
void RoundCells(const std::vector<float>& w_max, Index run, std::vector<float>* w);

// int16 pairs of word lines, or of channels: line i of a tile's first half is paired with line i of
// its second half.
struct PairLayout {
  Index steps = 0;
  Index tile = 0;  // steps of a tile; the last tile may have fewer

  // Lines of the lower and the upper half; -1 is none.
  struct Pair {
    Index first, second;
  };
  Index TilePairs() const { return CeilDiv(tile, 2); }
  Index NumTiles() const { return CeilDiv(steps, tile); }
  // Pairs of a tile.
  Range OfTile(Index tile_number) const;
  Index NumPairs() const { return OfTile(NumTiles() - 1).end; }
  Pair At(Index pair) const;
};

// Strides of the cells (column, step) of a crossbar.
struct CellOrder {
  Index column_stride;
  Index step_stride;
};

// The cells of a crossbar as integer multiples of their steps.
struct IntegerCells {
  std::vector<std::int16_t> multiples;  // in the order of the weights
  std::vector<float> step;              // [columns]

  // The int16 pair of two cells; the upper half is 0 where `second` is -1.
  std::uint32_t PackPair(Index first, Index second) const;
  std::vector<float> Weights(Index columns, CellOrder order) const;
  // A factor of sums, [M] or [tiles, M], as a factor of integer sums; `unit` is that of the word
  // lines.
  std::vector<float> Scaled(const std::vector<float>& gain, float unit) const;
  // A deviation of sums, [M], as one of sums in steps of the cells; word lines stay in units.
  std::vector<float> Unscaled(const std::vector<float>& deviation) const;
};

// Nothing where a cell is no integer multiple of its step, or a sum of `tile_steps` steps could be
// beyond an int32, or where word lines carry no integers.
std::optional<IntegerCells> FindIntegers(const Periphery& periphery, const float* w, Index columns,
                                         Index steps, Index tile_steps, CellOrder order);

}  // namespace rimc
