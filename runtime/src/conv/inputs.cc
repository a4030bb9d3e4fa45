// SPDX-License-Identifier: Apache-2.0
#include "conv/inputs.h"

#include <algorithm>
#include <cstring>

namespace rimc {
namespace {

// Channels whose phases are copied together, of a few kilobytes each.
constexpr Index kCopiedTogether = 8;

}  // namespace

ConvInputs::Inside ConvInputs::FindInside(const ConvItem& item, std::size_t axis,
                                          Index phase) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Index stride = conv.strides[axis];
  const Index extent = plan_.extent()[axis];
  const Index in = plan_.shape().in[axis];
  const bool is_band = axis == static_cast<std::size_t>(plan_.band_axis());
  const Index origin = (is_band ? item.band.begin * stride : 0) - conv.pads_begin[axis] + phase;
  const auto steps = [stride](Index n) { return stride == 1 ? n : CeilDiv(n, stride); };
  const Index low = std::min(origin < 0 ? steps(-origin) : 0, extent);
  const Index end = in > origin ? steps(in - origin) : 0;
  return {low, std::clamp(end, low, extent), origin + low * stride};
}

const float* ConvInputs::ChannelAt(const ConvItem& item, Index g, Index image) const noexcept {
  const Index group = (item.images.begin + image) * plan_.conv().group + g;
  return x_ + group * channels_ * plan_.shape().OutVolume() + item.band.begin;
}

void ConvInputs::Copy(const ConvItem& item, Index g, Range planes, float* memory) const noexcept {
  Copy(item, g, planes, FindSources(item), memory);
}

// A few planes after the other: all their phases are in the L1 cache then.
void ConvInputs::Copy(const ConvItem& item, Index g, Range planes, const Sources& sources,
                      float* memory) const noexcept {
  for (Index c = planes.begin; c < planes.end; c += kCopiedTogether) {
    CopyPhases(item, g, {c, std::min(c + kCopiedTogether, planes.end)}, sources, memory);
  }
}

void ConvInputs::CopyPhases(const ConvItem& item, Index g, Range planes, const Sources& sources,
                            float* memory) const noexcept {
  const Index phase_floats = plan_.conv().depth * plan_.images_per_item() * plan_.plane();
  const auto& phases2 = plan_.phases(2);
  const auto at = [&](std::size_t i) { return static_cast<Index>(i) * phase_floats; };
  for (const Index phase0 : plan_.phases(0)) {
    const Inside d = FindInside(item, 0, phase0);
    for (const Index phase1 : plan_.phases(1)) {
      const Inside h = FindInside(item, 1, phase1);
      for (std::size_t i = 0; i < phases2.size(); ++i) {
        if (sources.Of(i) != i) continue;
        const Inside w = i < sources.count ? sources.inside[i] : FindInside(item, 2, phases2[i]);
        CopyPhase(item, g, planes, {d, h, w}, memory + at(i));
      }
      for (std::size_t i = 0; i < sources.count; ++i) {
        const std::size_t source = sources.of[i];
        if (source == i) continue;
        ShiftPhase(memory + at(source), sources.inside[source], planes, sources.inside[i],
                   memory + at(i));
      }
      memory += at(phases2.size());
    }
  }
}

ConvInputs::Sources ConvInputs::FindSources(const ConvItem& item) const noexcept {
  const auto& phases = plan_.phases(2);
  Sources sources;
  sources.count = std::min(phases.size(), kMaxSources);
  for (std::size_t i = 0; i < sources.count; ++i) {
    sources.inside[i] = FindInside(item, 2, phases[i]);
  }
  for (std::size_t i = 0; i < sources.count; ++i) sources.of[i] = SourceOf(sources, i);
  return sources;
}

// The phase of a woven plan that has all input positions of phase i of the last axis, and is
// copied from the input: i itself, or another one of which i is the same, shifted.
std::size_t ConvInputs::SourceOf(const Sources& sources, std::size_t i) const noexcept {
  const Index stride = plan_.conv().strides[2];
  const Inside& own = sources.inside[i];
  if (!plan_.is_woven() || own.size() == 0) return i;
  std::size_t source = i;
  Index most = own.size();
  for (std::size_t j = 0; j < sources.count; ++j) {
    const Inside& w = sources.inside[j];
    if (w.size() < most || (w.size() == most && j >= source)) continue;
    const bool covers = w.at <= own.at && own.at + own.size() * stride <= w.at + w.size() * stride;
    // Their inputs are the same only where they are whole strides apart.
    if (!covers || (stride > 1 && (own.at - w.at) % stride != 0)) continue;
    source = j;
    most = w.size();
  }
  return source;
}

// A phase, which is `own` inside, from one that is `w` inside and has all of it.
void ConvInputs::ShiftPhase(const float* source, const Inside& w, Range planes, const Inside& own,
                            float* to) const noexcept {
  const Index width = plan_.extent()[2];
  const Index plane_floats = plan_.images_per_item() * plan_.plane();
  const Index first = planes.begin * plane_floats;
  const Index floats = planes.size() * plane_floats;
  const Index from = w.low + (own.at - w.at) / plan_.conv().strides[2];
  // All rows as one, and then what came from the rows beside.
  kernels::CopyArgs args{};
  args.from = source + first + from;
  args.stride = 1;
  args.to = to + first + own.low;
  args.rows = 1;
  args.width = floats - std::max(from, own.low);
  kernels_.copy_rows(args);
  if (own.size() == width) return;
  float zero = 0.0f;
  std::memset(&zero, ZeroByte(), sizeof zero);
  for (float* row = to + first; row < to + first + floats; row += width) {
    for (Index j = 0; j < own.low; ++j) row[j] = zero;
    for (Index j = own.high; j < width; ++j) row[j] = zero;
  }
}

void ConvInputs::CopyPhase(const ConvItem& item, Index g, Range planes, const PhaseParts& parts,
                           float* memory) const noexcept {
  const Axes& in = plan_.shape().in;
  const Index in_plane = in[0] * in[1] * in[2];
  float* to = memory + planes.begin * plan_.images_per_item() * plan_.plane();
  for (Index c = planes.begin; c < planes.end; ++c) {
    for (Index n = 0; n < item.images.size(); ++n) {
      const Index group = (item.images.begin + n) * plan_.conv().group + g;
      const Channels from = ChannelsOf(c, x_ + group * channels_ * in_plane, in_plane);
      CopyPlane(parts, from, to + n * plan_.plane());
    }
    to += plan_.images_per_item() * plan_.plane();
  }
}

// One phase of one plane of one image.
void ConvInputs::CopyPlane(const PhaseParts& parts, const Channels& channels,
                           float* to) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const Axes& extent = plan_.extent();
  const auto& [d, h, w] = parts;
  if (d.size() < extent[0] || h.size() < extent[1] || w.size() < extent[2]) {
    std::memset(to, ZeroByte(), static_cast<std::size_t>(plan_.plane()) * sizeof(float));
  }
  kernels::CopyArgs args{};
  args.from_row = conv.strides[1] * in[2];
  args.stride = conv.strides[2];
  args.to_row = extent[2];
  args.rows = h.size();
  args.width = w.size();
  for (Index i = d.low; i < d.high; ++i) {
    const Index in_d = d.at + (i - d.low) * conv.strides[0];
    args.to = to + (i * extent[1] + h.low) * extent[2] + w.low;
    CopyRows(channels, (in_d * in[1] + h.at) * in[2] + w.at, args);
  }
}

void ConvInputs::CopyPanels(const ConvItem& item, Index g, Range planes, Range positions,
                            float* to) const noexcept {
  const Index volume = plan_.shape().OutVolume();
  const Index depth = plan_.conv().depth;
  const Index panel = plan_.panel_row();
  const Index band = item.band.size();
  const auto copy = [&](Index p, Index count, Index c, kernels::CopyArgs args) {
    const Channels from = ChannelsOf(c, ChannelAt(item, g, p / band) + p % band, volume);
    args.stride = 1;
    args.to = to + (p / panel * depth + c) * panel + p % panel;
    args.width = count;
    CopyRows(from, 0, args);
  };
  kernels::CopyArgs args{};
  if (positions.size() > panel) {
    // Channel by channel: rows of the copy are panels.
    args.from_row = panel;
    args.to_row = depth * panel;
    args.rows = positions.size() / panel;
    const Index whole = args.rows * panel;
    for (Index c = planes.begin; c < planes.end; ++c) {
      copy(positions.begin, panel, c, args);
      if (whole == positions.size()) continue;
      kernels::CopyArgs rest = args;
      rest.rows = 1;
      copy(positions.begin + whole, positions.size() - whole, c, rest);
    }
    return;
  }
  // A panel, whose positions may be of several images: rows of the copy are channels, in runs of
  // the same distance.
  args.from_row = volume * ChannelStep();
  args.to_row = panel;
  for (Index p = positions.begin; p < positions.end;) {
    const Index count = std::min(positions.end - p, band - p % band);
    for (Index c = planes.begin; c < planes.end; c += args.rows) {
      args.rows = std::min(EvenRun(c), planes.end - c);
      copy(p, count, c, args);
    }
    p += count;
  }
}

}  // namespace rimc
