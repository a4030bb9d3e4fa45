// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace rimc {

using Index = std::ptrdiff_t;

constexpr Index RoundUp(Index value, Index step) { return (value + step - 1) / step * step; }
constexpr Index CeilDiv(Index a, Index b) { return (a + b - 1) / b; }

// Part `i` of `parts` of 0 .. count, sizes differing by one at most: {first, last + 1}.
struct Range {
  Index begin;
  Index end;
  Index size() const { return end - begin; }
};
constexpr Range Part(Index count, Index parts, Index i) {
  return {count * i / parts, count * (i + 1) / parts};
}

}  // namespace rimc
