// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ranges.h"

namespace rimc {

constexpr std::size_t kAlignment = 64;

// The first aligned place from `memory` on.
inline float* AlignUp(void* memory) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
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
