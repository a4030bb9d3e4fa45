// SPDX-License-Identifier: Apache-2.0
#include "ops/common/periphery.h"

#include <cmath>

namespace rimc {
namespace {

// Codes of more bits are not exact in fp32.
constexpr Index kMaxBits = 24;

void CheckBits(const char* name, Index bits, Index lowest) {
  if (bits != 0 && (bits < lowest || bits > kMaxBits)) {
    Refuse(name, " must be 0 (ideal) or ", lowest, "..", kMaxBits, ", got ", bits);
  }
}

void CheckRange(const char* name, float range) {
  if (!(range > 0.0f) || !std::isfinite(range)) {
    Refuse(name, " must be positive and finite, got ", range);
  }
}

float TopCode(Index bits) { return static_cast<float>((Index{1} << bits) - 1); }

Index ExpectedTiles(Index tile_rows, Index depth, Index rows_per_step) {
  if (tile_rows == 0) return 1;
  const Index steps = tile_rows / rows_per_step;
  if (steps == 0) Refuse(rows_per_step, " word lines do not fit in a tile of ", tile_rows);
  return CeilDiv(depth, steps);
}

}  // namespace

Periphery ReadPeriphery(const NodeInfo& node, Index columns, Index depth, Index rows_per_step) {
  Periphery p;
  const Index tile_rows = node.Int("tile_rows");
  if (tile_rows < 0) Refuse("tile_rows must be 0 (untiled) or more, got ", tile_rows);
  p.num_tiles = node.Int("num_tiles");
  const Index expected = ExpectedTiles(tile_rows, depth, rows_per_step);
  if (p.num_tiles != expected) {
    Refuse("num_tiles must be ", expected, " for tiles of ", tile_rows, " rows and a depth of ",
           depth, " x ", rows_per_step, ", got ", p.num_tiles);
  }

  const Index dac_signed = node.Int("dac_signed");
  if (dac_signed != 0 && dac_signed != 1) Refuse("dac_signed must be 0 or 1, got ", dac_signed);
  const Index dac_bits = node.Int("dac_bits");
  CheckBits("dac_bits", dac_bits, 1 + dac_signed);
  const float dac_range = node.Float("dac_range");
  CheckRange("dac_range", dac_range);
  p.has_dac = dac_bits > 0;
  if (p.has_dac) {
    const float top = TopCode(dac_bits - dac_signed);
    const float step = dac_range / top;
    p.dac = {step, dac_signed == 1 ? -top : 0.0f, top, step};
  }

  const Index adc_bits = node.Int("adc_bits");
  CheckBits("adc_bits", adc_bits, 2);
  const std::vector<float> adc_range = node.Floats("adc_range");
  const auto num_ranges = static_cast<Index>(adc_range.size());
  if (num_ranges != 1 && num_ranges != columns) {
    Refuse("adc_range must have 1 or ", columns, " values, got ", num_ranges);
  }
  for (const float range : adc_range) CheckRange("adc_range", range);
  p.has_adc = adc_bits > 0;
  if (p.has_adc) {
    p.adc_top = TopCode(adc_bits - 1);
    for (Index m = 0; m < columns; ++m) {
      const float range = adc_range[static_cast<std::size_t>(num_ranges == 1 ? 0 : m)];
      p.adc_gain.push_back(p.adc_top / range);
      p.adc_back.push_back(range / p.adc_top);
    }
  }
  return p;
}

}  // namespace rimc
