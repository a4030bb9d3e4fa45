// SPDX-License-Identifier: Apache-2.0
//
// Packing of the planes of ConvInputs: floats, int16 pairs, int8 quads.
#include <algorithm>

#include "conv/inputs.h"
#include "conv/strips.h"
#include "kernels/unroll.h"

namespace rimc {
namespace {

// Distance of a prefetch, in channels.
constexpr Index kPrefetchChannels = 2;

}  // namespace

FloatInputs::Channels FloatInputs::ChannelsOf(Index c, const float* first,
                                              Index row) const noexcept {
  return {{first + c * row}};
}

void FloatInputs::CopyRows(const Channels& channels, Index at,
                           const kernels::CopyArgs& rows) const noexcept {
  kernels::CopyArgs args = rows;
  args.from = channels.from[0] + at;
  args.quantizer = quantizer_;
  kernels_.copy_rows(args);
}

void FloatInputs::CopyPhase(const ConvItem& item, Index g, Range planes, const PhaseParts& parts,
                            float* memory) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  if (plan_.extent()[0] == 1 && parts[0].size() == 1) {
    CopyChannels(item, g, planes, parts,
                 memory + planes.begin * plan_.images_per_item() * plan_.plane());
    return;
  }
  for (Index c = planes.begin; c < planes.end; ++c) {
    if (c + kPrefetchChannels < conv.depth) {
      const Index next = (item.images.begin * conv.group + g) * conv.depth + c + kPrefetchChannels;
      PrefetchRows(parts, x_ + next * in[0] * in[1] * in[2]);
    }
    ConvInputs::CopyPhase(item, g, {c, c + 1}, parts, memory);
  }
}

// Prefetches the rows of a channel that a phase reads, of its first plane.
void FloatInputs::PrefetchRows(const PhaseParts& parts, const float* channel) const noexcept {
  constexpr Index kLine = 16;
  const Index width = plan_.shape().in[2];
  const auto& [d, h, w] = parts;
  const float* row = channel + (d.at * plan_.shape().in[1] + h.at) * width;
  for (Index i = 0; i < h.size(); ++i) {
    for (Index j = 0; j < width; j += kLine) RIMC_PREFETCH(row + j);
    row += plan_.conv().strides[1] * width;
  }
}

// A phase of several channels at once, where there is one depth.
void FloatInputs::CopyChannels(const ConvItem& item, Index g, Range planes, const PhaseParts& parts,
                               float* to) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const auto& [d, h, w] = parts;
  kernels::CopyArgs args{};
  args.from_row = conv.strides[1] * in[2];
  args.stride = conv.strides[2];
  args.to_row = plan_.extent()[2];
  args.rows = h.size();
  args.width = w.size();
  args.quantizer = quantizer_;
  args.planes = planes.size();
  args.from_plane = in[0] * in[1] * in[2];
  args.to_plane = plan_.images_per_item() * plan_.plane();
  args.before = h.low * args.to_row + w.low;
  args.size = plan_.plane();
  for (Index n = 0; n < item.images.size(); ++n) {
    const Index channel = ((item.images.begin + n) * conv.group + g) * conv.depth + planes.begin;
    args.from = x_ + channel * args.from_plane + (d.at * in[1] + h.at) * in[2] + w.at;
    args.to = to + n * plan_.plane();
    kernels_.copy_rows(args);
  }
}

void FloatInputs::CopyStrips(const StripPlan& strips, const ConvItem& item, Index g,
                             float* to) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const Axes& extent = strips.extent();
  std::array<Inside, kAxes> inside;
  for (std::size_t axis = 0; axis < kAxes; ++axis) {
    const bool is_band = axis == static_cast<std::size_t>(plan_.band_axis());
    const Index origin =
        (is_band ? item.band.begin * conv.strides[axis] : 0) - conv.pads_begin[axis];
    const Index low = std::clamp<Index>(-origin, 0, extent[axis]);
    inside[axis] = {low, std::clamp(in[axis] - origin, low, extent[axis]), origin + low};
  }
  const auto& [d, h, w] = inside;
  const Index channel = (item.images.begin * conv.group + g) * conv.depth;
  kernels::CopyArgs args{};
  args.from_row = in[2];
  args.stride = 1;
  args.to_row = extent[2];
  args.width = w.size();
  args.quantizer = quantizer_;
  args.planes = conv.depth;
  args.from_plane = in[0] * in[1] * in[2];
  args.to_plane = strips.plane();
  args.before = h.low * extent[2] + w.low;
  args.size = extent[1] * extent[2];
  for (Index i = 0; i < extent[0]; ++i) {
    const bool is_inside = d.low <= i && i < d.high;
    const Index in_d = d.at + i - d.low;
    args.rows = is_inside ? h.size() : 0;
    args.from = x_ + channel * args.from_plane;
    if (is_inside && h.size() > 0) args.from += (in_d * in[1] + h.at) * in[2] + w.at;
    args.to = to + i * args.size;
    kernels_.copy_rows(args);
  }
}

PairInputs::Channels PairInputs::ChannelsOf(Index c, const float* first, Index row) const noexcept {
  const PairLayout::Pair pair = pairs_.At(c);
  return {{first + pair.first * row, pair.second < 0 ? nullptr : first + pair.second * row}};
}

// To the end of a tile, whose last pair may have one channel.
Index PairInputs::EvenRun(Index c) const noexcept {
  const Range pairs = pairs_.OfTile(c / pairs_.TilePairs());
  const Index full = pairs_.At(pairs.end - 1).second < 0 ? pairs.end - 1 : pairs.end;
  return c < full ? full - c : 1;
}

void PairInputs::CopyRows(const Channels& channels, Index at,
                          const kernels::CopyArgs& rows) const noexcept {
  kernels::PairPackArgs args{};
  args.from[0] = channels.from[0] + at;
  if (channels.from[1] != nullptr) args.from[1] = channels.from[1] + at;
  args.from_row = rows.from_row;
  args.stride = rows.stride;
  args.to = reinterpret_cast<std::uint32_t*>(rows.to);
  args.to_row = rows.to_row;
  args.rows = rows.rows;
  args.width = args.second_width = rows.width;
  args.quantizer = &quantizer_;
  if (!kernels_.pack_pairs(args)) NoteNan();
}

QuadInputs::Channels QuadInputs::ChannelsOf(Index c, const float* first, Index row) const noexcept {
  Channels from{};
  const Index count = std::min(kMaxChannels, channels_ - kMaxChannels * c);
  for (Index j = 0; j < count; ++j) from.from[j] = first + (kMaxChannels * c + j) * row;
  return from;
}

Index QuadInputs::EvenRun(Index c) const noexcept {
  return std::max<Index>(channels_ / kMaxChannels - c, 1);
}

void QuadInputs::CopyRows(const Channels& channels, Index at,
                          const kernels::CopyArgs& rows) const noexcept {
  kernels::QuadPackArgs args{};
  for (Index j = 0; j < kMaxChannels; ++j) {
    if (channels.from[j] != nullptr) args.from[j] = channels.from[j] + at;
  }
  args.from_row = rows.from_row;
  args.stride = rows.stride;
  args.to = reinterpret_cast<std::uint32_t*>(rows.to);
  args.to_row = rows.to_row;
  args.rows = rows.rows;
  args.width = rows.width;
  args.divisor = divisor_;
  if (!kernels_.quads->pack_quads(args)) NoteNan();
}

void QuadInputs::PackCopied(const float* copied, Range planes, const Sources& sources,
                            float* memory) const noexcept {
  const Index depth = channels_;
  const Index channel = plan_.images_per_item() * plan_.plane();
  const Index word_phase = plan_.conv().depth * channel;
  const auto pack = [&](Index phase, Range part, Index channels) {
    kernels::QuadPackArgs args{};
    const float* const from = copied + (phase * depth + part.begin * kMaxChannels) * channel;
    for (Index j = 0; j < channels; ++j) args.from[j] = from + j * channel;
    args.from_row = kMaxChannels * channel;
    args.stride = 1;
    args.to = reinterpret_cast<std::uint32_t*>(memory + phase * word_phase) + part.begin * channel;
    args.to_row = channel;
    args.rows = part.size();
    args.width = channel;
    args.divisor = divisor_;
    if (part.size() > 0 && !kernels_.quads->pack_quads(args)) {
      NoteNan();
    }
  };
  const auto num_phases = plan_.phases(2).size();
  const Index full = std::min(planes.end, depth / kMaxChannels);
  const auto rows = static_cast<Index>(plan_.phases(0).size() * plan_.phases(1).size());
  for (Index row = 0; row < rows; ++row) {
    const Index phase0 = row * static_cast<Index>(num_phases);
    for (std::size_t i = 0; i < num_phases; ++i) {
      if (sources.Of(i) != i) continue;
      const Index phase = phase0 + static_cast<Index>(i);
      pack(phase, {planes.begin, full}, kMaxChannels);
      if (full < planes.end) pack(phase, {full, planes.end}, depth % kMaxChannels);
    }
    float* const codes = memory + phase0 * word_phase;
    for (std::size_t i = 0; i < sources.count; ++i) {
      const std::size_t source = sources.of[i];
      if (source == i) continue;
      ShiftPhase(codes + static_cast<Index>(source) * word_phase, sources.inside[source], planes,
                 sources.inside[i], codes + static_cast<Index>(i) * word_phase);
    }
  }
}

}  // namespace rimc
