// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the kernels share: random data, a comparison of bits, and the name of the entry
// that a failure is of.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace rimc::tests {

// Counts of a run, and the first failures.
struct Report {
  int entries = 0;
  int failures = 0;
  std::vector<std::string> first;

  void Fail(const std::string& what) {
    if (++failures <= 40) first.push_back(what);
  }
  void Expect(bool holds, const std::string& what) {
    if (!holds) Fail(what);
  }
};

// SplitMix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // least .. most
  std::ptrdiff_t Whole(std::ptrdiff_t least, std::ptrdiff_t most) {
    return least +
           static_cast<std::ptrdiff_t>(Next() % static_cast<std::uint64_t>(most - least + 1));
  }
  bool Once(int in) { return Whole(1, in) == 1; }
  float Real(float low, float high) {
    return low + (high - low) * static_cast<float>(Next() >> 40) * 0x1p-24f;
  }
  std::vector<float> Reals(std::size_t count, float low = -2.0f, float high = 2.0f) {
    std::vector<float> values(count);
    for (float& value : values) value = Real(low, high);
    return values;
  }
  // Small int16 pairs.
  std::vector<float> Pairs(std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) {
      const auto pair = static_cast<std::uint32_t>(Whole(-99, 99) & 0xffff) |
                        static_cast<std::uint32_t>(Whole(-99, 99) & 0xffff) << 16;
      std::memcpy(&value, &pair, sizeof pair);
    }
    return values;
  }
  std::vector<std::uint32_t> Uint32s(std::size_t count) {
    std::vector<std::uint32_t> values(count);
    for (auto& value : values) value = static_cast<std::uint32_t>(Next());
    return values;
  }
  // int8 quads of inputs: bytes of codes plus 128.
  std::vector<std::uint32_t> Quads(std::size_t count) {
    std::vector<std::uint32_t> quads(count);
    for (auto& quad : quads) {
      for (int byte = 0; byte < 4; ++byte) {
        quad |= static_cast<std::uint32_t>(Whole(1, 255)) << (8 * byte);
      }
    }
    return quads;
  }

 private:
  std::uint64_t state_;
};

// The initial sum that cancels the 128 of the codes in products with the bytes of `cell`.
inline std::int32_t StartOf(std::int32_t cell) {
  std::int32_t start = 0;
  for (int byte = 0; byte < 4; ++byte) {
    start -= 128 * static_cast<std::int8_t>(static_cast<std::uint32_t>(cell) >> (8 * byte) & 255);
  }
  return start;
}

inline std::uint32_t BitsOf(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The same bits, or NaN both.
inline bool IsSame(float a, float b) {
  return BitsOf(a) == BitsOf(b) || (std::isnan(a) && std::isnan(b));
}
inline bool IsSame(std::uint32_t a, std::uint32_t b) { return a == b; }
inline bool IsSame(std::uint8_t a, std::uint8_t b) { return a == b; }

// With all digits of a float, so that a difference in the last bit can be read.
inline std::string TextOf(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return text;
}
template <class Whole>
std::string TextOf(Whole value) {
  return std::to_string(value);
}

template <class T>
void ExpectSame(const std::vector<T>& got, const std::vector<T>& want, const std::string& entry,
                Report* report) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (IsSame(got[i], want[i])) continue;
    report->Fail(entry + ": value " + std::to_string(i) + " is " + TextOf(got[i]) + ", not " +
                 TextOf(want[i]));
    return;
  }
}

void TestBlocks(const kernels::KernelTable& table, const kernels::KernelTable& scalar,
                Report* report);
void TestQuads(const kernels::KernelTable& table, Report* report);
void TestOthers(const kernels::KernelTable& table, const kernels::KernelTable& scalar,
                Report* report);
void TestPhilox(const kernels::KernelTable& table, Report* report);
void TestPlans(const kernels::KernelTable& table, Report* report);
// `folder`: of the compiled presets.
void TestCompiledDevices(const std::string& folder, Report* report);

}  // namespace rimc::tests
