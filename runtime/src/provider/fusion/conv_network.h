// SPDX-License-Identifier: Apache-2.0
//
// Convolutions that read one another as one node, in depth-first batch tiles: a few images go
// through several convolutions before the next images do, so that the values between two
// convolutions stay in the cache.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/plan_cache.h"
#include "provider/fusion/fused_conv.h"

namespace rimc {

class ConvNetwork {
 public:
  // Values are numbered: the inputs of the node, its outputs, then the intermediate values.
  struct Step {
    std::string label;  // errors of the step begin with it
    std::unique_ptr<FusedConv> group;
    std::size_t x;
    std::optional<std::size_t> residual;
    std::size_t y;
  };

  // `steps` in an order in which each finds what it reads.
  ConvNetwork(std::vector<Step> steps, std::size_t num_inputs, std::size_t num_outputs);
  void Compute(const Context& context) const;

 private:
  // Steps that a batch tile of `images` images goes through before the next tile does.
  struct Pass {
    Range steps;
    Index images;
  };
  // Plans for inputs of some dimensions.
  struct Layout {
    std::vector<Dims> dims;  // of every value, for all images
    std::vector<Pass> passes;
    std::vector<Index> images;  // of every value that memory holds at a time
    std::vector<Index> places;  // in scratch memory
    Index floats = 0;           // of it
  };

  Layout LayOut(const std::vector<Dims>& inputs) const;
  std::vector<Pass> PlanPasses(const std::vector<Dims>& dims) const;
  Index ImagesFor(Range steps, const std::vector<Dims>& dims) const;
  void PlaceValues(Layout* layout) const;
  bool IsBetween(std::size_t value) const { return value >= num_inputs_ + num_outputs_; }
  void RunStep(const Context& context, const Step& step, std::uint64_t number, const Layout& layout,
               Range images, const std::vector<float*>& data) const;

  std::vector<Step> steps_;
  std::size_t num_inputs_;
  std::size_t num_outputs_;
  std::size_t num_values_ = 0;
  // Of every value, the steps from the one that makes it to the last that reads it.
  std::vector<Range> lifetimes_;
  PlanCache<Layout, std::vector<Dims>> layout_;
};

}  // namespace rimc
