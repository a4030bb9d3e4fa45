// SPDX-License-Identifier: Apache-2.0
//
// Converters, word lines, tiles and read noise of an RRAM node, read from its attributes and
// checked.
#pragma once

#include <array>
#include <vector>

#include "kernels/kernels.h"
#include "ort/ort.h"

namespace rimc {

// Values of read_noise_curve, at |w| = w_max (i / 64)^2.
constexpr std::size_t kNoiseKnots = 65;

// Noise of the devices, drawn anew at every read.
struct ReadNoise {
  bool on = false;
  bool relative = false;             // each device by its own conductance; else all by G_max
  std::vector<float> curve;          // or pairs by their weight: kNoiseKnots of them; or none
  std::vector<float> w_max;          // [M], with a curve; above 0
  std::array<std::uint32_t, 2> key;  // of the draws
  // [M] standard deviation of y is this times sqrt(sum x^2) (absolute), or sqrt(sum x^2 q^2) with
  // q of Cells
  std::vector<float> deviation;

  // True where each cell has its own variance.
  bool by_cell() const { return on && (relative || !curve.empty()); }
  // q of `count` cells: w, or what the curve says of it; `run` cells of a column follow each other.
  std::vector<float> Cells(const float* w, Index count, Index run) const;
};

// An I-V curve that follows the conductance: a cell adds w P(t) to its product with u^2 and w Q(t)
// to that with u^3, t = min(|w| / w_max, 1).
constexpr std::size_t kIvTerms = 8;
struct IvTerms {
  bool on = false;
  std::array<std::array<float, kIvTerms>, 2> powers{};  // of t, lowest first: P, Q
  std::vector<float> w_max;                             // [M]

  // w P(t) or w Q(t) (`term` 0 or 1) of `count` cells; `run` cells of a column follow each other.
  std::vector<float> Cells(int term, const float* w, Index count, Index run) const;
};

struct Periphery {
  Index num_tiles = 1;
  Index columns = 0;  // M

  std::vector<float> w_max;  // [1] or [M], the largest weight of a bit line

  bool has_line = false;               // word lines change x
  bool is_coded = false;               // a DAC of few bits: cells lie on a grid (integer_cells.h)
  std::vector<float> curve;            // of the word lines, kCurveTerms or none
  std::vector<float> curve_table;      // what it makes of codes or digits; none if these are many
  kernels::Quantizer line{};           // of all bits at once; see Line()
  std::vector<Index> plane_shifts{0};  // bits below each plane of the codes; one plane if parallel
  Index serial_bits = 0;               // bits of a plane, 0 is all of them
  // The largest integer on a word line, in units of pair_unit; 0 where word lines carry no
  // integers.
  float pair_max = 0.0f;
  float pair_unit = 1.0f;
  std::vector<float> pair_table;  // as curve_table

  bool has_adc = false;
  float adc_top = 0.0f;
  Index adc_tiles = 1;            // tiles with a gain and offset of their own, or 1
  std::vector<float> adc_gain;    // [adc_tiles, M] codes per unit of partial sum
  std::vector<float> adc_offset;  // [adc_tiles, M] codes, empty if all are 0
  std::vector<float> adc_back;    // [M] units per code

  ReadNoise noise;
  IvTerms iv;

  Index num_planes() const { return static_cast<Index>(plane_shifts.size()); }
  // From x to the word lines for plane `i` of the codes; points into this object.
  kernels::Quantizer Line(Index plane) const;
  // Line(0) in integers.
  kernels::Quantizer PairQuantizer() const;
  // From what is on the word lines of a plane to the inputs of the cells of `iv`: x u and x u^2,
  // u = x / range of Line(plane). `square` and `cube` may not overlap.
  void DriveTerms(Index plane, const float* x, Index count, float* square, float* cube) const;
  // Weight of a plane's codes.
  float PlaneWeight(Index plane) const;
  // Gains and offsets [M] of a tile, null without ADC or offset.
  const float* Gain(Index tile) const;
  const float* Offset(Index tile) const;
  // Tiles that are read one by one.
  Index num_reads() const { return has_adc ? num_tiles : 1; }
  // Draws of a read of one tile and plane in run `run` of the session.
  kernels::DrawKey Draws(std::uint64_t run, Index plane, Index tile) const;
  // True where sums have to be stored before they are read.
  bool stored_sums() const { return noise.on || iv.on || num_planes() > 1; }
};

// `columns` bit lines [M]; `depth` steps of `rows_per_step` word lines each (opset.num_tiles).
// Throws where an attribute is missing, out of range, or does not fit the others. Node is NodeInfo
// or Attributes.
template <class Node>
Periphery ReadPeriphery(const Node& node, Index columns, Index depth, Index rows_per_step);

}  // namespace rimc
