// SPDX-License-Identifier: Apache-2.0
//
// Inputs of a ConvEngine: which are copied, and how they become phases, or panels of a pointwise
// convolution.
#include <algorithm>
#include <cstring>

#include "conv/engine.h"
#include "kernels/unroll.h"

namespace rimc {
namespace {

// Positions of an item from which on its channels are copied one by one.
constexpr Index kLongRow = 512;
// Copied inputs of which codes are made at a time: half of an L1 cache, with what they come from.
constexpr Index kPackFloats = 4096;

// Channels whose phases are copied together, of a few kilobytes each.
constexpr Index kCopiedTogether = 8;
// Distance of a prefetch, in channels.
constexpr Index kChannelsAhead = 2;

}  // namespace

ConvEngine::Inside ConvEngine::FindInside(const ConvItem& item, std::size_t axis,
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

void ConvEngine::CopyInput(const ConvItem& item, Index g, Range channels,
                           const kernels::Quantizer* quantizer, float* memory) const noexcept {
  CopyInTurn(item, g, channels, quantizer, FindSources(item), memory);
}

// A few channels after the other: all their phases are in the L1 cache then.
void ConvEngine::CopyInTurn(const ConvItem& item, Index g, Range channels,
                            const kernels::Quantizer* quantizer, const Sources& sources,
                            float* memory) const noexcept {
  for (Index c = channels.begin; c < channels.end; c += kCopiedTogether) {
    const Range few{c, std::min(c + kCopiedTogether, channels.end)};
    CopyPhases(item, g, few, quantizer, sources, memory);
  }
}

void ConvEngine::CopyPhases(const ConvItem& item, Index g, Range channels,
                            const kernels::Quantizer* quantizer, const Sources& sources,
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
        CopyPhase(item, g, channels, {d, h, w}, quantizer, memory + at(i));
      }
      for (std::size_t i = 0; i < sources.count; ++i) {
        const std::size_t source = sources.of[i];
        if (source == i) continue;
        ShiftPhase(memory + at(source), sources.inside[source], channels, sources.inside[i],
                   memory + at(i));
      }
      memory += at(phases2.size());
    }
  }
}

ConvEngine::Sources ConvEngine::FindSources(const ConvItem& item) const noexcept {
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
std::size_t ConvEngine::SourceOf(const Sources& sources, std::size_t i) const noexcept {
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
void ConvEngine::ShiftPhase(const float* source, const Inside& w, Range channels, const Inside& own,
                            float* to) const noexcept {
  const Index width = plan_.extent()[2];
  const Index channel_floats = plan_.images_per_item() * plan_.plane();
  const Index first = channels.begin * channel_floats;
  const Index floats = channels.size() * channel_floats;
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
  ClearPlanes(&zero, 1);
  for (float* row = to + first; row < to + first + floats; row += width) {
    for (Index j = 0; j < own.low; ++j) row[j] = zero;
    for (Index j = own.high; j < width; ++j) row[j] = zero;
  }
}

void ConvEngine::ClearPlanes(float* to, Index floats) const noexcept {
  // The code 0 is the byte 128.
  std::memset(to, is_codes() ? 128 : 0, static_cast<std::size_t>(floats) * sizeof(float));
}

ConvEngine::Channels ConvEngine::ChannelsOf(Index c, const float* first, Index row) const noexcept {
  Channels from{};
  if (is_pairs()) {
    const PairSteps::Pair pair = pairs_.At(c);
    from.from[0] = first + pair.first * row;
    if (pair.second >= 0) from.from[1] = first + pair.second * row;
    return from;
  }
  const Index count = std::min(word_channels_, channels_ - word_channels_ * c);
  for (Index j = 0; j < count; ++j) from.from[j] = first + (word_channels_ * c + j) * row;
  return from;
}

void ConvEngine::CopyPhase(const ConvItem& item, Index g, Range channels, const PhaseParts& parts,
                           const kernels::Quantizer* quantizer, float* memory) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const Index in_plane = in[0] * in[1] * in[2];
  float* to = memory + channels.begin * plan_.images_per_item() * plan_.plane();
  if (word_channels_ == 1 && plan_.extent()[0] == 1 && parts[0].size() == 1) {
    CopyChannels(item, g, channels, parts, quantizer, to);
    return;
  }
  for (Index c = channels.begin; c < channels.end; ++c) {
    if (word_channels_ == 1 && c + kChannelsAhead < conv.depth) {
      const Index first = (item.images.begin * conv.group + g) * conv.depth + c + kChannelsAhead;
      PrefetchRows(parts, x_ + first * in_plane);
    }
    for (Index n = 0; n < item.images.size(); ++n) {
      const Index group = (item.images.begin + n) * conv.group + g;
      const Channels from = ChannelsOf(c, x_ + group * channels_ * in_plane, in_plane);
      CopyPlane(parts, from, quantizer, to + n * plan_.plane());
    }
    to += plan_.images_per_item() * plan_.plane();
  }
}

// Prefetches the rows of a channel that a phase reads, of its first plane.
void ConvEngine::PrefetchRows(const PhaseParts& parts, const float* channel) const noexcept {
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
void ConvEngine::CopyChannels(const ConvItem& item, Index g, Range channels,
                              const PhaseParts& parts, const kernels::Quantizer* quantizer,
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
  args.quantizer = quantizer;
  args.planes = channels.size();
  args.from_plane = in[0] * in[1] * in[2];
  args.to_plane = plan_.images_per_item() * plan_.plane();
  args.before = h.low * args.to_row + w.low;
  args.size = plan_.plane();
  for (Index n = 0; n < item.images.size(); ++n) {
    const Index channel = ((item.images.begin + n) * conv.group + g) * conv.depth + channels.begin;
    args.from = x_ + channel * args.from_plane + (d.at * in[1] + h.at) * in[2] + w.at;
    args.to = to + n * plan_.plane();
    kernels_.copy_rows(args);
  }
}

// Rows of one channel, or of some as words, from `at` on; `rows` says where to and how many.
void ConvEngine::CopyRows(const Channels& channels, Index at, const kernels::Quantizer* quantizer,
                          const kernels::CopyArgs& rows) const noexcept {
  if (word_channels_ == 1) {
    kernels::CopyArgs args = rows;
    args.from = channels.from[0] + at;
    args.quantizer = quantizer;
    kernels_.copy_rows(args);
    return;
  }
  if (is_pairs()) {
    kernels::PairArgs args{};
    args.from[0] = channels.from[0] + at;
    if (channels.from[1] != nullptr) args.from[1] = channels.from[1] + at;
    args.from_row = rows.from_row;
    args.stride = rows.stride;
    args.to = reinterpret_cast<std::uint32_t*>(rows.to);
    args.to_row = rows.to_row;
    args.rows = rows.rows;
    args.width = args.second_width = rows.width;
    args.quantizer = quantizer;
    if (!kernels_.pack_pairs(args)) has_nan_.store(true, std::memory_order_relaxed);
    return;
  }
  kernels::PackArgs args{};
  for (Index j = 0; j < kWordCodes; ++j) {
    if (channels.from[j] != nullptr) args.from[j] = channels.from[j] + at;
  }
  args.from_row = rows.from_row;
  args.stride = rows.stride;
  args.to = reinterpret_cast<std::uint32_t*>(rows.to);
  args.to_row = rows.to_row;
  args.rows = rows.rows;
  args.width = rows.width;
  args.divisor = code_divisor_;
  if (!kernels_.quads->pack_quads(args)) has_nan_.store(true, std::memory_order_relaxed);
}

// One phase of one channel of one image, or of some as words.
void ConvEngine::CopyPlane(const PhaseParts& parts, const Channels& channels,
                           const kernels::Quantizer* quantizer, float* to) const noexcept {
  const ConvAttributes& conv = plan_.conv();
  const Axes& in = plan_.shape().in;
  const Axes& extent = plan_.extent();
  const auto& [d, h, w] = parts;
  if (d.size() < extent[0] || h.size() < extent[1] || w.size() < extent[2]) {
    ClearPlanes(to, plan_.plane());
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
    CopyRows(channels, (in_d * in[1] + h.at) * in[2] + w.at, quantizer, args);
  }
}

bool ConvEngine::ReadsDirectly() const noexcept {
  const Index floats = plan_.conv().depth * plan_.shape().OutVolume();
  return plan_.is_panels() && plan_.images_per_item() == 1 && quantizer_ == nullptr &&
         word_channels_ == 1 && !copies_always_ && floats < kMaxSteps;
}

// Whether ComputeFused makes the codes of each part of the positions just before it reads them.
// Items that share their input share its codes too.
bool ConvEngine::CopiesCodesByPart() const noexcept {
  return ReadsDirectly() && plan_.sharers() == 1;
}

// The first position of an item in a group's first channel, or word of channels.
const float* ConvEngine::ChannelAt(const Place& place, Index image) const noexcept {
  const Index group = (place.item.images.begin + image) * plan_.conv().group + place.group;
  return x_ + group * channels_ * plan_.shape().OutVolume() + place.item.band.begin;
}

// The input of a group, and the codes of the branch.
void ConvEngine::CopyInputs(const Place& place, const ConvEngine* branch) const noexcept {
  if (plan_.is_panels()) {
    CopyPanels(place, branch);
    return;
  }
  const Index depth = plan_.conv().depth;
  if (strips_ != nullptr || branch == nullptr || !branch->is_codes() || quantizer_ != nullptr) {
    if (strips_ != nullptr) {
      CopyStrips(place);
    } else {
      CopyInput(place.item, place.group, {0, depth}, quantizer_, place.input);
    }
    if (branch == nullptr) return;
    branch->CopyInput(place.item, place.group, {0, branch->plan_.conv().depth}, branch->quantizer_,
                      place.codes);
    return;
  }
  // Codes are made of the copy, while it is in the cache.
  const Index words = branch->plan_.conv().depth;
  const Sources sources = FindSources(place.item);
  const Index step =
      std::max<Index>(1, kPackFloats / (kWordCodes * plan_.scratch_floats() / depth));
  for (Index word = 0; word < words; word += step) {
    const Range part{word, std::min(word + step, words)};
    const Range channels{part.begin * kWordCodes, std::min(part.end * kWordCodes, depth)};
    CopyInTurn(place.item, place.group, channels, quantizer_, sources, place.input);
    branch->PackInput(place, part, depth, sources);
  }
}

void ConvEngine::CopyPanels(const Place& place, const ConvEngine* branch) const noexcept {
  const Index depth = plan_.conv().depth;
  const Index positions = place.item.images.size() * place.item.band.size();
  const Index panel = plan_.panel_row();
  const bool copies = !ReadsDirectly();
  if (!copies && positions % kernels_.lanes != 0) {
    const Range last{(positions - 1) / panel * panel, positions};
    CopyPanelRows(place, {0, depth}, last, place.input);
  }
  if (!copies && (branch == nullptr || CopiesCodesByPart())) return;
  if (positions < kLongRow || place.item.images.size() > 1) {
    // Whole panels, whose rows are near each other in the input.
    for (Index p = 0; p < positions; p += panel) {
      const Range part{p, std::min(p + panel, positions)};
      if (copies) CopyPanelRows(place, {0, depth}, part, place.input);
      if (branch == nullptr) continue;
      branch->CopyPanelRows(place, {0, branch->plan_.conv().depth}, part, place.codes);
    }
    return;
  }
  // Few channels at a time, of which the codes are made while they are in the cache.
  const Index parts = branch == nullptr ? 1 : branch->plan_.conv().depth;
  for (Index i = 0; i < parts; ++i) {
    if (copies) CopyPanelRows(place, Part(depth, parts, i), {0, positions}, place.input);
    if (branch != nullptr) branch->CopyPanelRows(place, {i, i + 1}, {0, positions}, place.codes);
  }
}

// Planes from `c` on whose channels are as many, and all as far from those of the one before.
Index ConvEngine::EvenRun(Index c) const noexcept {
  if (is_pairs()) {
    // To the end of a tile, whose last word may have one channel.
    const Range words = pairs_.Words(c / pairs_.TileWords());
    const Index full = pairs_.At(words.end - 1).second < 0 ? words.end - 1 : words.end;
    return c < full ? full - c : 1;
  }
  return std::max<Index>(channels_ / word_channels_ - c, 1);
}

// Positions of an item, from the first of a panel on, to their panels.
void ConvEngine::CopyPanelRows(const Place& place, Range channels, Range positions,
                               float* to) const noexcept {
  const Index volume = plan_.shape().OutVolume();
  const Index depth = plan_.conv().depth;
  const Index panel = plan_.panel_row();
  const Index band = place.item.band.size();
  const auto copy = [&](Index p, Index count, Index c, kernels::CopyArgs args) {
    const Channels from = ChannelsOf(c, ChannelAt(place, p / band) + p % band, volume);
    args.stride = 1;
    args.to = to + (p / panel * depth + c) * panel + p % panel;
    args.width = count;
    CopyRows(from, 0, quantizer_, args);
  };
  kernels::CopyArgs args{};
  if (positions.size() > panel) {
    // Channel by channel: rows of the copy are panels.
    args.from_row = panel;
    args.to_row = depth * panel;
    args.rows = positions.size() / panel;
    const Index whole = args.rows * panel;
    for (Index c = channels.begin; c < channels.end; ++c) {
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
  args.from_row = is_pairs() ? volume : volume * word_channels_;
  args.to_row = panel;
  for (Index p = positions.begin; p < positions.end;) {
    const Index count = std::min(positions.end - p, band - p % band);
    for (Index c = channels.begin; c < channels.end; c += args.rows) {
      args.rows = std::min(EvenRun(c), channels.end - c);
      copy(p, count, c, args);
    }
    p += count;
  }
}

}  // namespace rimc
