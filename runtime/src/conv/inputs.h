// SPDX-License-Identifier: Apache-2.0
//
// Input packing of a convolution: phases of a group's channels, or panels of a pointwise one, in
// scratch memory. ConvInputs has the layout; its subclasses pack floats, int16 pairs or int8 quads.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "conv/plan.h"
#include "crossbar/integer_cells.h"
#include "kernels/kernels.h"

namespace rimc {

class StripPlan;

// `plan`: its convolution has a depth of as many planes as are packed. All arguments have to
// outlive the object.
class ConvInputs {
 public:
  ConvInputs(const ConvPlan& plan, const kernels::KernelTable& kernels, Index channels,
             const float* x)
      : plan_(plan), kernels_(kernels), channels_(channels), x_(x) {}
  virtual ~ConvInputs() = default;
  ConvInputs(const ConvInputs&) = delete;
  ConvInputs& operator=(const ConvInputs&) = delete;

  // Indices [low, high) of a phase along an axis that lie inside the input, at `at` and on.
  struct Inside {
    Index low, high, at;
    Index size() const { return high - low; }
  };
  // Of the phases of the last axis: which one each is made from (itself beyond kMaxSources), and
  // what is inside.
  static constexpr std::size_t kMaxSources = 32;
  struct Sources {
    std::array<std::size_t, kMaxSources> of;
    std::array<Inside, kMaxSources> inside;
    std::size_t count;
    std::size_t Of(std::size_t phase) const { return phase < count ? of[phase] : phase; }
  };

  const ConvPlan& plan() const { return plan_; }
  const float* x() const { return x_; }
  // The first position of an item in a group's first channel.
  const float* ChannelAt(const ConvItem& item, Index g, Index image) const noexcept;
  // Whether a plane is a channel as x has it.
  virtual bool is_plain() const { return false; }
  // Whether PackCopied makes planes from the copy of plain ones, in less time than from x.
  virtual bool packs_copies() const { return false; }
  // `planes` from a copy of a group's channels.
  virtual void PackCopied(const float* /*copied*/, Range /*planes*/, const Sources& /*sources*/,
                          float* /*memory*/) const noexcept {}
  // True after a NaN, where that can't be packed: what was computed is then of no use.
  bool has_nan() const { return has_nan_.load(); }

  // All phases of some of a group's planes, to `memory` of the group.
  void Copy(const ConvItem& item, Index g, Range planes, float* memory) const noexcept;
  void Copy(const ConvItem& item, Index g, Range planes, const Sources& sources,
            float* memory) const noexcept;
  Sources FindSources(const ConvItem& item) const noexcept;
  // Positions of an item, from the first of a panel on, to their panels.
  void CopyPanels(const ConvItem& item, Index g, Range planes, Range positions,
                  float* to) const noexcept;

 protected:
  static constexpr Index kMaxChannels = 4;
  // The channels of one plane; null where there are fewer.
  struct Channels {
    const float* from[kMaxChannels];
  };
  using PhaseParts = std::array<Inside, kAxes>;

  // The channels of plane `c`, which are `row` apart from `first` on.
  virtual Channels ChannelsOf(Index c, const float* first, Index row) const noexcept = 0;
  // Planes from `c` on whose channels are as many, and as far from those of the plane before: how
  // many, and how many channels these are apart.
  virtual Index EvenRun(Index c) const noexcept = 0;
  virtual Index ChannelStep() const noexcept = 0;
  // Rows of a plane, from `at` of its channels on; `rows` says where to and how many.
  virtual void CopyRows(const Channels& channels, Index at,
                        const kernels::CopyArgs& rows) const noexcept = 0;
  // The byte that fills the padding.
  virtual int ZeroByte() const noexcept { return 0; }
  // One phase of some planes.
  virtual void CopyPhase(const ConvItem& item, Index g, Range planes, const PhaseParts& parts,
                         float* memory) const noexcept;

  void ShiftPhase(const float* source, const Inside& w, Range planes, const Inside& own,
                  float* to) const noexcept;
  void CopyPlane(const PhaseParts& parts, const Channels& channels, float* to) const noexcept;
  void NoteNan() const noexcept { has_nan_.store(true, std::memory_order_relaxed); }

  const ConvPlan& plan_;
  const kernels::KernelTable& kernels_;
  const Index channels_;  // of a group
  const float* const x_;

 private:
  Inside FindInside(const ConvItem& item, std::size_t axis, Index phase) const noexcept;
  std::size_t SourceOf(const Sources& sources, std::size_t i) const noexcept;
  void CopyPhases(const ConvItem& item, Index g, Range planes, const Sources& sources,
                  float* memory) const noexcept;

  mutable std::atomic<bool> has_nan_{false};
};

// Channels one by one, through a quantizer or as they are (null).
class FloatInputs final : public ConvInputs {
 public:
  FloatInputs(const ConvPlan& plan, const kernels::KernelTable& kernels,
              const kernels::Quantizer* quantizer, const float* x)
      : ConvInputs(plan, kernels, plan.conv().depth, x), quantizer_(quantizer) {}
  bool is_plain() const override { return quantizer_ == nullptr; }
  // The input of a group with its padding, for strips.
  void CopyStrips(const StripPlan& strips, const ConvItem& item, Index g, float* to) const noexcept;

 private:
  Channels ChannelsOf(Index c, const float* first, Index row) const noexcept override;
  Index EvenRun(Index c) const noexcept override { return plan_.conv().depth - c; }
  Index ChannelStep() const noexcept override { return 1; }
  void CopyRows(const Channels& channels, Index at,
                const kernels::CopyArgs& rows) const noexcept override;
  void CopyPhase(const ConvItem& item, Index g, Range planes, const PhaseParts& parts,
                 float* memory) const noexcept override;
  void CopyChannels(const ConvItem& item, Index g, Range planes, const PhaseParts& parts,
                    float* to) const noexcept;
  void PrefetchRows(const PhaseParts& parts, const float* channel) const noexcept;

  const kernels::Quantizer* const quantizer_;
};

// int16 pairs: two channels, whose integers the quantizer gives.
class PairInputs final : public ConvInputs {
 public:
  PairInputs(const ConvPlan& plan, const kernels::KernelTable& kernels, const PairLayout& pairs,
             const kernels::Quantizer& quantizer, const float* x)
      : ConvInputs(plan, kernels, pairs.steps, x), pairs_(pairs), quantizer_(quantizer) {}

 private:
  Channels ChannelsOf(Index c, const float* first, Index row) const noexcept override;
  Index EvenRun(Index c) const noexcept override;
  Index ChannelStep() const noexcept override { return 1; }
  void CopyRows(const Channels& channels, Index at,
                const kernels::CopyArgs& rows) const noexcept override;

  const PairLayout pairs_;
  const kernels::Quantizer& quantizer_;
};

// int8 quads: the codes of four channels.
class QuadInputs final : public ConvInputs {
 public:
  QuadInputs(const ConvPlan& plan, const kernels::KernelTable& kernels, Index channels,
             const kernels::Divisor& divisor, const float* x)
      : ConvInputs(plan, kernels, channels, x), divisor_(divisor) {}
  bool packs_copies() const override { return true; }
  void PackCopied(const float* copied, Range planes, const Sources& sources,
                  float* memory) const noexcept override;

 private:
  Channels ChannelsOf(Index c, const float* first, Index row) const noexcept override;
  Index EvenRun(Index c) const noexcept override;
  Index ChannelStep() const noexcept override { return kMaxChannels; }
  void CopyRows(const Channels& channels, Index at,
                const kernels::CopyArgs& rows) const noexcept override;
  int ZeroByte() const noexcept override { return 128; }  // the code 0

  const kernels::Divisor divisor_;
};

}  // namespace rimc
