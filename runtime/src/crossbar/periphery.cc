// SPDX-License-Identifier: Apache-2.0
#include "crossbar/periphery.h"

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.h"
#include "ort/attributes.h"

namespace rimc {
namespace {

// Codes of more bits are not exact in fp32.
constexpr Index kMaxBits = 24;
// Codes of no more bits are looked up: what the lines carry lies on a grid.
constexpr Index kCodedBits = 8;
// Steps of the grid of a curve, over the range of a line.
constexpr float kCurveSteps = 2048.0f;
// Beyond it the terms of the curve don't suffice.
constexpr double kMaxSinh = 6.0;

void CheckBits(const char* name, Index bits, Index lowest) {
  if (bits != 0 && (bits < lowest || bits > kMaxBits)) {
    Refuse(name, " must be 0 (ideal) or ", lowest, "..", kMaxBits, ", got ", bits);
  }
}

void CheckFlag(const char* name, Index value) {
  if (value != 0 && value != 1) Refuse(name, " must be 0 or 1, got ", value);
}

void CheckRange(const char* name, float range) {
  if (!(range > 0.0f) || !std::isfinite(range)) {
    Refuse(name, " must be positive and finite, got ", range);
  }
}

// NaN fails every comparison.
void CheckWithin(const char* name, float value, double low, double high) {
  if (!(value >= low && value <= high)) {
    Refuse(name, " must be ", low, "..", high, ", got ", value);
  }
}

float TopCode(Index bits) { return static_cast<float>((Index{1} << bits) - 1); }
float PowerOfTwo(Index exponent) { return std::ldexp(1.0f, static_cast<int>(exponent)); }

Index ExpectedTiles(Index tile_rows, Index depth, Index rows_per_step) {
  if (tile_rows == 0) return 1;
  const Index steps = tile_rows / rows_per_step;
  if (steps == 0) Refuse(rows_per_step, " word lines do not fit in a tile of ", tile_rows);
  return CeilDiv(depth, std::min(steps, depth));
}

template <class Node>
void ReadTiles(const Node& node, Index depth, Index rows_per_step, Periphery* p) {
  const Index tile_rows = node.Int("tile_rows");
  if (tile_rows < 0) Refuse("tile_rows must be 0 (untiled) or more, got ", tile_rows);
  p->num_tiles = node.Int("num_tiles");
  const Index expected = ExpectedTiles(tile_rows, depth, rows_per_step);
  if (p->num_tiles != expected) {
    Refuse("num_tiles must be ", expected, " for tiles of ", tile_rows, " rows and a depth of ",
           depth, " x ", rows_per_step, ", got ", p->num_tiles);
  }
}

// sinh(K u) / sinh(K) as powers of u^2 times u, by the series of sinh in double and in the order
// written: rimc_onnx/device/iv_curve.py has the same lines.
std::vector<float> SinhCurve(double k) {
  std::array<double, kernels::kCurveTerms> terms{};
  double term = k;
  double sum = 0.0;
  for (int n = 0; n < kernels::kCurveTerms; ++n) {
    if (n > 0) term = term * (k * k) / static_cast<double>((2 * n) * (2 * n + 1));
    terms[static_cast<std::size_t>(n)] = term;
    sum = sum + term;
  }
  std::vector<float> curve;
  curve.reserve(terms.size());
  for (const double value : terms) curve.push_back(static_cast<float>(value / sum));
  return curve;
}

template <class Node>
void ReadIvTerms(const Node& node, Periphery* p) {
  const char* const names[] = {"iv_square", "iv_cube"};
  for (std::size_t term = 0; term < 2; ++term) {
    const std::vector<float> values = node.Floats(names[term]);
    if (values.size() != kIvTerms) {
      Refuse(names[term], " must have ", kIvTerms, " values, got ", values.size());
    }
    for (std::size_t i = 0; i < kIvTerms; ++i) {
      if (!std::isfinite(values[i])) Refuse(names[term], " must be finite, got ", values[i]);
      p->iv.powers[term][i] = values[i];
      p->iv.on = p->iv.on || values[i] != 0.0f;
    }
  }
  if (!p->iv.on || !p->curve.empty()) return;
  // A straight line: word lines beyond their range saturate.
  p->curve.assign(kernels::kCurveTerms, 0.0f);
  p->curve[0] = 1.0f;
}

template <class Node>
void ReadWordLines(const Node& node, Periphery* p) {
  const Index dac_signed = node.Int("dac_signed");
  CheckFlag("dac_signed", dac_signed);
  const Index dac_bits = node.Int("dac_bits");
  CheckBits("dac_bits", dac_bits, 1 + dac_signed);
  const float dac_range = node.Float("dac_range");
  CheckRange("dac_range", dac_range);
  p->line = {1.0f, 0.0f, 0.0f, 1.0f};
  p->line.quantize = dac_bits > 0;
  p->line.range = dac_range;
  p->line.unit = dac_range / kCurveSteps;
  p->is_coded = dac_bits > 0 && dac_bits <= kCodedBits;
  if (dac_bits > 0) {
    const float top = TopCode(dac_bits - dac_signed);
    const float step = dac_range / top;
    if (!std::isnormal(step)) {
      Refuse("dac_range must be larger for steps of ", dac_bits, " bits, got ", dac_range);
    }
    p->line.step = step;
    p->line.low = dac_signed == 1 ? -top : 0.0f;
    p->line.high = top;
    p->line.out = step;
  }

  const float iv_sinh = node.Float("iv_sinh");
  CheckWithin("iv_sinh", iv_sinh, 0.0, kMaxSinh);
  const float shrink = node.Float("input_shrink");
  if (!(shrink > 0.0f && shrink <= 1.0f)) {
    Refuse("input_shrink must be above 0 and at most 1, got ", shrink);
  }
  if (iv_sinh > 0.0f) {
    p->curve = SinhCurve(static_cast<double>(iv_sinh) * static_cast<double>(shrink));
    if (p->is_coded) p->line.grid = kCurveSteps;
  }
  ReadIvTerms(node, p);
  p->has_line = dac_bits > 0 || !p->curve.empty();

  const Index serial_bits = node.Int("dac_serial_bits");
  const Index magnitude_bits = dac_bits - dac_signed;
  if (serial_bits < 0 || (serial_bits > 0 && serial_bits > magnitude_bits)) {
    Refuse("dac_serial_bits must be 0 (all at once) or 1..", dac_bits == 0 ? 0 : magnitude_bits,
           " with dac_bits ", dac_bits, ", got ", serial_bits);
  }
  p->serial_bits = serial_bits;
  p->plane_shifts = {0};
  if (serial_bits > 0) {
    for (Index bit = serial_bits; bit < magnitude_bits; bit += serial_bits) {
      p->plane_shifts.push_back(bit);
    }
  }
}

// Values of a word line for each code, or each digit of a plane.
std::vector<float> TabulateCurve(const Periphery& p, kernels::Quantizer line) {
  const Index most =
      p.serial_bits > 0 ? Index{1} << p.serial_bits : static_cast<Index>(line.high) + 1;
  if (p.curve.empty() || !line.quantize || most > 256) return {};
  std::vector<float> values(most > 128 ? 256 : 128);
  for (Index i = 0; i < most; ++i) {
    values[static_cast<std::size_t>(i)] = static_cast<float>(i) * line.out;
  }
  line.quantize = false;
  ActiveKernels().quantize(values.data(), values.data(), static_cast<Index>(values.size()), line);
  return values;
}

// Word lines as integers, where they carry any.
void ReadNumbers(Periphery* p) {
  if (!p->is_coded || p->serial_bits > 0 || p->iv.on) return;
  const bool bends = !p->curve.empty();
  p->pair_max = bends ? kCurveSteps : p->line.high;
  p->pair_unit = bends ? p->line.unit : p->line.step;
  p->pair_table = TabulateCurve(*p, p->PairQuantizer());
}

// One value, or one per tile and bit line.
template <class Node>
std::vector<float> ReadConverters(const Node& node, const char* name, Index columns,
                                  Index num_tiles) {
  std::vector<float> values = node.Floats(name);
  const auto count = static_cast<Index>(values.size());
  if (count != 1 && count != num_tiles * columns) {
    Refuse(name, " must have 1 or ", num_tiles * columns, " values, got ", count);
  }
  for (const float value : values) {
    if (!std::isfinite(value)) Refuse(name, " must be finite, got ", value);
  }
  return values;
}

template <class Node>
void ReadAdc(const Node& node, Index columns, Periphery* p) {
  const Index adc_bits = node.Int("adc_bits");
  CheckBits("adc_bits", adc_bits, 2);
  const std::vector<float> adc_range = node.Floats("adc_range");
  const auto num_ranges = static_cast<Index>(adc_range.size());
  if (num_ranges != 1 && num_ranges != columns) {
    Refuse("adc_range must have 1 or ", columns, " values, got ", num_ranges);
  }
  for (const float range : adc_range) CheckRange("adc_range", range);
  const std::vector<float> gain = ReadConverters(node, "adc_gain", columns, p->num_tiles);
  for (const float value : gain) CheckRange("adc_gain", value);
  const std::vector<float> offset = ReadConverters(node, "adc_offset", columns, p->num_tiles);
  p->has_adc = adc_bits > 0;
  if (!p->has_adc) return;

  p->adc_top = TopCode(adc_bits - 1);
  const bool has_offset = offset.size() > 1 || offset[0] != 0.0f;
  const bool per_tile = gain.size() > 1 || offset.size() > 1;
  p->adc_tiles = per_tile ? p->num_tiles : 1;
  const auto at = [](const std::vector<float>& values, Index i) {
    return values[values.size() == 1 ? 0 : static_cast<std::size_t>(i)];
  };
  for (Index i = 0; i < p->adc_tiles * columns; ++i) {
    const float ideal = p->adc_top / at(adc_range, i % columns);
    p->adc_gain.push_back(ideal * at(gain, i));
    p->adc_offset.push_back(at(offset, i) * p->adc_top);
    if (!std::isfinite(p->adc_gain.back()) || !std::isfinite(p->adc_offset.back())) {
      Refuse("adc_range, adc_gain and adc_offset must give finite codes, got ",
             at(adc_range, i % columns), ", ", at(gain, i), " and ", at(offset, i));
    }
  }
  if (!has_offset) p->adc_offset.clear();
  for (Index m = 0; m < columns; ++m) p->adc_back.push_back(at(adc_range, m) / p->adc_top);
}

template <class Node>
void ReadReadNoise(const Node& node, Index columns, Periphery* p) {
  const float frac = node.Float("read_noise");
  CheckWithin("read_noise", frac, 0.0, 1.0);
  const Index relative = node.Int("read_noise_relative");
  CheckFlag("read_noise_relative", relative);
  const auto key = static_cast<std::uint64_t>(node.Int("read_key"));
  const std::vector<float> w_max = node.Floats("w_max");
  const auto count = static_cast<Index>(w_max.size());
  if (count != 1 && count != columns) {
    Refuse("w_max must have 1 or ", columns, " values, got ", count);
  }
  for (const float value : w_max) {
    if (!(value >= 0.0f) || !std::isfinite(value)) {
      Refuse("w_max must be 0 or more and finite, got ", value);
    }
  }
  p->w_max = w_max;
  if (p->iv.on) {
    for (Index m = 0; m < columns; ++m) {
      p->iv.w_max.push_back(w_max[static_cast<std::size_t>(count == 1 ? 0 : m)]);
    }
  }
  std::vector<float> curve = node.Floats("read_noise_curve");
  if (curve.size() != kNoiseKnots && !(curve.size() == 1 && curve[0] == 0.0f)) {
    Refuse("read_noise_curve must be one 0 or ", kNoiseKnots, " values, got ", curve.size());
  }
  for (const float value : curve) CheckWithin("read_noise_curve", value, 0.0, 1.0);
  if (curve.size() > 1) {
    if (relative == 1) Refuse("read_noise_relative must be 0 with a read_noise_curve");
    p->noise.curve = std::move(curve);
    for (Index m = 0; m < columns; ++m) {
      // A column of zeros: what its cells are multiplied by is below float32 once squared.
      p->noise.w_max.push_back(
          std::max(w_max[static_cast<std::size_t>(count == 1 ? 0 : m)], 1e-30f));
    }
  }
  p->noise.on = frac > 0.0f;
  p->noise.relative = relative == 1;
  p->noise.key = {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)};
  if (!p->noise.on) return;
  // Both devices of a pair add their variance: sqrt(2).
  const float both = std::sqrt(2.0f) * frac;
  for (Index m = 0; m < columns; ++m) {
    const float largest = w_max[static_cast<std::size_t>(count == 1 ? 0 : m)];
    p->noise.deviation.push_back(p->noise.by_cell() ? frac : both * largest);
    if (!std::isfinite(p->noise.deviation.back())) {
      Refuse("read_noise * w_max must be finite, got ", frac, " and ", largest);
    }
  }
}

}  // namespace

std::vector<float> ReadNoise::Cells(const float* w, Index count, Index run) const {
  std::vector<float> cells(w, w + count);
  if (curve.empty()) return cells;
  constexpr float kLast = static_cast<float>(kNoiseKnots - 1);
  const auto columns = static_cast<Index>(w_max.size());
  for (Index i = 0; i < count; ++i) {
    const float limit = w_max[static_cast<std::size_t>(i / run % columns)];
    const float at = std::sqrt(std::min(std::fabs(w[i]) / limit, 1.0f)) * kLast;
    const float knot = std::min(std::floor(at), kLast - 1.0f);
    const float* const left = curve.data() + static_cast<std::size_t>(knot);
    cells[static_cast<std::size_t>(i)] = (left[0] + (left[1] - left[0]) * (at - knot)) * limit;
  }
  return cells;
}

std::vector<float> IvTerms::Cells(int term, const float* w, Index count, Index run) const {
  const std::array<float, kIvTerms>& c = powers[static_cast<std::size_t>(term)];
  const auto columns = static_cast<Index>(w_max.size());
  std::vector<float> cells(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) {
    // A column of zeros has w_max 0, and cells of 0 whatever they are multiplied by.
    const float limit = std::max(w_max[static_cast<std::size_t>(i / run % columns)], 1e-30f);
    const float t = std::min(std::fabs(w[i]) / limit, 1.0f);
    float share = c[kIvTerms - 1];
    for (std::size_t k = kIvTerms - 1; k-- > 0;) share = share * t + c[k];
    cells[static_cast<std::size_t>(i)] = w[i] * share;
  }
  return cells;
}

void Periphery::DriveTerms(Index plane, const float* x, Index count, float* square,
                           float* cube) const {
  const float range = Line(plane).range;
  for (Index i = 0; i < count; ++i) {
    const float u = x[i] / range;
    square[i] = x[i] * u;
    cube[i] = square[i] * u;
  }
}

kernels::Quantizer Periphery::Line(Index plane) const {
  kernels::Quantizer q = line;
  if (!curve.empty()) q.curve = curve.data();
  if (!curve_table.empty()) {
    q.table = curve_table.data();
    q.table_size = static_cast<int>(curve_table.size());
  }
  if (serial_bits == 0) return q;
  const Index shift = plane_shifts[static_cast<std::size_t>(plane)];
  q.base = PowerOfTwo(serial_bits);
  q.down = PowerOfTwo(-shift);
  q.next = PowerOfTwo(-shift - serial_bits);
  q.range = (q.base - 1.0f) * q.step;  // what the largest digit stands for
  q.unit = q.range / kCurveSteps;
  return q;
}

kernels::Quantizer Periphery::PairQuantizer() const {
  kernels::Quantizer q = Line(0);
  q.unit = 1.0f;
  if (curve.empty()) q.out = 1.0f;
  q.table = pair_table.empty() ? nullptr : pair_table.data();
  return q;
}

float Periphery::PlaneWeight(Index plane) const {
  return PowerOfTwo(plane_shifts[static_cast<std::size_t>(plane)]);
}

const float* Periphery::Gain(Index tile) const {
  return has_adc ? adc_gain.data() + (adc_tiles == 1 ? 0 : tile * columns) : nullptr;
}

const float* Periphery::Offset(Index tile) const {
  if (adc_offset.empty()) return nullptr;
  return adc_offset.data() + (adc_tiles == 1 ? 0 : tile * columns);
}

kernels::DrawKey Periphery::Draws(std::uint64_t run, Index plane, Index tile) const {
  return {
      {noise.key[0], noise.key[1] ^ static_cast<std::uint32_t>(run >> 32)},
      {static_cast<std::uint32_t>(plane * num_reads() + tile), static_cast<std::uint32_t>(run)}};
}

template <class Node>
Periphery ReadPeriphery(const Node& node, Index columns, Index depth, Index rows_per_step) {
  Periphery p;
  p.columns = columns;
  ReadTiles(node, depth, rows_per_step, &p);
  ReadWordLines(node, &p);
  ReadAdc(node, columns, &p);
  ReadReadNoise(node, columns, &p);
  // Without ADC or noise the planes of a linear word line add up to the whole.
  if (!p.has_adc && !p.noise.on && p.curve.empty()) {
    p.serial_bits = 0;
    p.plane_shifts = {0};
  }
  p.curve_table = TabulateCurve(p, p.Line(0));
  ReadNumbers(&p);
  return p;
}

template Periphery ReadPeriphery(const NodeInfo&, Index, Index, Index);
template Periphery ReadPeriphery(const Attributes&, Index, Index, Index);

}  // namespace rimc
