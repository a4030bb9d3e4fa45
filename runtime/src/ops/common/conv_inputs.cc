// SPDX-License-Identifier: Apache-2.0
//
// Inputs of ConvEngine::ComputeFused: which are copied, and how those of pointwise convolutions
// become panels.
#include <algorithm>

#include "ops/common/conv_engine.h"

namespace rimc {
namespace {

// Positions of an item from which on its channels are copied one by one.
constexpr Index kLongRow = 512;
constexpr Index kChannelsOfWord = 4;
// Copied inputs of which codes are made at a time: half of an L1 cache, with what they come from.
constexpr Index kPackFloats = 4096;

}  // namespace

bool ConvEngine::ReadsDirectly() const noexcept {
  const Index floats = plan_.conv().depth * plan_.shape().OutVolume();
  return plan_.is_panels() && plan_.images_per_item() == 1 && quantizer_ == nullptr &&
         code_channels_ == 0 && !copies_always_ && floats < kMaxSteps;
}

// Whether ComputeFused makes the codes of each part of the positions just before it reads them.
// Items that share their input share its codes too.
bool ConvEngine::CopiesCodesByPart() const noexcept {
  return ReadsDirectly() && plan_.sharers() == 1;
}

// The first position of an item in a group's first channel, or word of channels.
const float* ConvEngine::ChannelAt(const Place& place, Index image) const noexcept {
  const Index inputs = code_channels_ == 0 ? plan_.conv().depth : code_channels_;
  const Index group = (place.item.images.begin + image) * plan_.conv().group + place.group;
  return x_ + group * inputs * plan_.shape().OutVolume() + place.item.band.begin;
}

// The input of a group, and the codes of the branch.
void ConvEngine::CopyInputs(const Place& place, const ConvEngine* branch) const noexcept {
  if (plan_.is_panels()) {
    CopyPanels(place, branch);
    return;
  }
  const Index depth = plan_.conv().depth;
  if (branch == nullptr || branch->code_channels_ == 0 || quantizer_ != nullptr) {
    CopyInput(place.item, place.group, {0, depth}, quantizer_, place.input);
    if (branch == nullptr) return;
    branch->CopyInput(place.item, place.group, {0, branch->plan_.conv().depth}, branch->quantizer_,
                      place.codes);
    return;
  }
  // Codes are made of the copy, while it is in the cache.
  const Index words = branch->plan_.conv().depth;
  const Index step =
      std::max<Index>(1, kPackFloats / (kChannelsOfWord * plan_.scratch_floats() / depth));
  for (Index word = 0; word < words; word += step) {
    const Range part{word, std::min(word + step, words)};
    const Range channels{part.begin * kChannelsOfWord, std::min(part.end * kChannelsOfWord, depth)};
    CopyInput(place.item, place.group, channels, quantizer_, place.input);
    branch->PackInput(place, part, depth);
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
  const Index step = branch == nullptr ? depth : CeilDiv(depth, branch->plan_.conv().depth);
  for (Index c = 0; c < depth; c += step) {
    if (copies) {
      CopyPanelRows(place, {c, std::min(c + step, depth)}, {0, positions}, place.input);
    }
    if (branch != nullptr) {
      branch->CopyPanelRows(place, {c / step, c / step + 1}, {0, positions}, place.codes);
    }
  }
}

// Positions of an item, from the first of a panel on, to their panels.
void ConvEngine::CopyPanelRows(const Place& place, Range channels, Range positions,
                               float* to) const noexcept {
  const Index volume = plan_.shape().OutVolume();
  const Index depth = plan_.conv().depth;
  const Index panel = plan_.panel_row();
  const Index band = place.item.band.size();
  const Index inputs = code_channels_ == 0 ? depth : code_channels_;
  const Index each = code_channels_ == 0 ? 1 : kChannelsOfWord;
  const auto copy = [&](Index p, Index count, Range part, kernels::CopyArgs args) {
    const float* const first = ChannelAt(place, p / band) + p % band;
    Channels from{};
    for (Index j = 0; j < std::min(each, inputs - part.begin * each); ++j) {
      from.from[j] = first + (part.begin * each + j) * volume;
    }
    args.stride = 1;
    args.to = to + (p / panel * depth + part.begin) * panel + p % panel;
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
      copy(positions.begin, panel, {c, c + 1}, args);
      if (whole == positions.size()) continue;
      kernels::CopyArgs rest = args;
      rest.rows = 1;
      copy(positions.begin + whole, positions.size() - whole, {c, c + 1}, rest);
    }
    return;
  }
  // A panel, whose positions may be of several images: rows of the copy are channels, of which the
  // last word may have less than four.
  args.from_row = volume * each;
  args.to_row = panel;
  const Index full = std::min(channels.end, inputs / each);
  for (Index p = positions.begin; p < positions.end;) {
    const Index count = std::min(positions.end - p, band - p % band);
    args.rows = full - channels.begin;
    if (args.rows > 0) copy(p, count, {channels.begin, full}, args);
    args.rows = 1;
    for (Index c = full; c < channels.end; ++c) copy(p, count, {c, c + 1}, args);
    p += count;
  }
}

}  // namespace rimc
