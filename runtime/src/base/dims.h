// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/ranges.h"

namespace rimc {

// Dimensions of a tensor.
struct Dims {
  static constexpr std::size_t kMaxRank = 12;
  std::array<std::int64_t, kMaxRank> size{};
  std::size_t rank = 0;

  Dims() = default;
  Dims(std::initializer_list<std::int64_t> sizes);
  std::int64_t operator[](std::size_t axis) const { return size[axis]; }
  Index Count() const;
  bool operator==(const Dims& other) const;
  std::string ToString() const;  // "[2, 3]"
};

}  // namespace rimc
