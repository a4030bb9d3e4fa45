// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/ranges.h"

namespace rimc {

constexpr std::size_t kAlignment = 64;

// The first aligned address from `memory` on.
inline float* AlignUp(void* memory) {
  std::size_t space = kAlignment;
  return static_cast<float*>(std::align(kAlignment, 0, memory, space));
}

// Floats aligned to 64 bytes, zero at first: what kernels pack their constants into.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(Index count)
      : storage_(static_cast<std::size_t>(count) + kAlignment / sizeof(float)),
        data_(AlignUp(storage_.data())),
        size_(count) {}
  AlignedFloats(AlignedFloats&&) = default;
  AlignedFloats& operator=(AlignedFloats&&) = default;
  float* data() { return data_; }
  const float* data() const { return data_; }
  Index size() const { return size_; }

 private:
  std::vector<float> storage_;
  float* data_ = nullptr;
  Index size_ = 0;
};

}  // namespace rimc
