// SPDX-License-Identifier: Apache-2.0
//
// Arrays whose sums are integers: word lines of a DAC of few bits carry whole numbers, and cells
// are whole multiples of a step (rimc_onnx/crossbar/integer_grid.py).
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
struct PairSteps {
  Index steps = 0;
  Index tile = 0;  // of which a tile has so many, the last one what is left

  // first is the lower half of the word, second the upper one; -1 is none.
  struct Pair {
    Index first, second;
  };
  Index TileWords() const { return CeilDiv(tile, 2); }
  Index NumTiles() const { return CeilDiv(steps, tile); }
  // Words of a tile.
  Range Words(Index tile_number) const;
  Index NumWords() const { return Words(NumTiles() - 1).end; }
  Pair At(Index word) const;
};

// Where cell (column, step) of a crossbar lies.
struct CellOrder {
  Index column_stride;
  Index step_stride;
};

// The cells of a crossbar as numbers.
struct IntegerCells {
  std::vector<std::int16_t> numbers;  // in the order of the weights
  std::vector<float> step;            // [columns]

  // Of two cells by their places; a second one of -1 is 0.
  std::uint32_t Word(Index first, Index second) const;
  std::vector<float> Weights(Index columns, CellOrder order) const;
  // What sums are multiplied by, [M] or [tiles, M], for sums of numbers; `unit` is that of the
  // lines.
  std::vector<float> Scaled(const std::vector<float>& gain, float unit) const;
  // [M] of what goes with such sums, in steps of the cells; lines stay in units.
  std::vector<float> Unscaled(const std::vector<float>& deviation) const;
};

// Nothing where a cell is no whole multiple of its step, or a sum of `tile_steps` steps could be
// beyond an int32; or where the periphery has no numbers.
std::optional<IntegerCells> FindIntegers(const Periphery& periphery, const float* w, Index columns,
                                         Index steps, Index tile_steps, CellOrder order);

}  // namespace rimc
