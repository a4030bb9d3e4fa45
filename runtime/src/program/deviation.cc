// SPDX-License-Identifier: Apache-2.0
#include "program/deviation.h"

#include <cmath>

namespace rimc {
namespace {

constexpr double kSteps = 1048576.0;  // 2^20

// A whole number of 128 bits: compilers for Windows have none.
struct Wide {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  Wide& operator+=(const Wide& other) {
    low += other.low;
    high += other.high + (low < other.low ? 1 : 0);
    return *this;
  }
  Wide& operator-=(const Wide& other) {
    high -= other.high + (low < other.low ? 1 : 0);
    low -= other.low;
    return *this;
  }
  bool operator>=(const Wide& other) const {
    return high != other.high ? high > other.high : low >= other.low;
  }
  bool Bit(int i) const { return ((i < 64 ? low >> i : high >> (i - 64)) & 1) != 0; }
  // Twice the number, plus a bit.
  void Append(bool bit) {
    high = high << 1 | low >> 63;
    low = low << 1 | (bit ? 1 : 0);
  }
};

Wide Product(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t kLow = 0xffffffff;
  const std::uint64_t a0 = a & kLow, a1 = a >> 32, b0 = b & kLow, b1 = b >> 32;
  Wide sum{a1 * b1, a0 * b0};
  for (const std::uint64_t middle : {a1 * b0, a0 * b1}) sum += Wide{middle >> 32, middle << 32};
  return sum;
}

// a * b of less than 2^128.
Wide Product(const Wide& a, std::uint64_t b) {
  Wide sum = Product(a.low, b);
  sum.high += a.high * b;
  return sum;
}

// The double nearest to a / b, of b < 2^127.
double Quotient(const Wide& a, const Wide& b) {
  std::uint64_t digits = 0;  // the first 64 significant ones
  int exponent = 0;
  Wide rest;
  for (int i = 127; (digits >> 63) == 0; --i) {
    if (i < 0 && digits == 0 && rest.high == 0 && rest.low == 0) return 0.0;
    rest.Append(i >= 0 && a.Bit(i));
    const bool one = rest >= b;
    if (one) rest -= b;
    digits = digits << 1 | (one ? 1 : 0);
    exponent = i;
  }
  // A last digit that says "and more" settles a tie.
  const bool more = rest.high != 0 || rest.low != 0;
  bool lower = false;
  for (int i = 0; i < exponent; ++i) lower = lower || a.Bit(i);
  if (more || lower) digits |= 1;
  return std::ldexp(static_cast<double>(digits), exponent);
}

struct Sums {
  std::int64_t first = 0;
  Wide second;
};

}  // namespace

std::vector<double> StandardDeviations(const float* w, std::int64_t count,
                                       const std::vector<float>& w_max, std::int64_t run) {
  const auto columns = static_cast<std::int64_t>(w_max.size());
  std::vector<Sums> sums(w_max.size());
  for (std::int64_t begin = 0; begin < count; begin += run) {
    const auto c = static_cast<std::size_t>(begin / run % columns);
    const double per_weight = w_max[c] > 0.0f ? kSteps / static_cast<double>(w_max[c]) : 0.0;
    for (std::int64_t i = begin; i < begin + run && i < count; ++i) {
      const double steps = std::nearbyint(static_cast<double>(w[i]) * per_weight);
      const auto size = static_cast<std::uint64_t>(std::fabs(steps));
      sums[c].first += static_cast<std::int64_t>(steps);
      sums[c].second += Wide{0, size * size};
    }
  }
  const auto cells = static_cast<std::uint64_t>(count / columns);
  std::vector<double> deviations;
  for (std::size_t c = 0; c < sums.size(); ++c) {
    // Whole numbers to the end: n sum(q^2) - sum(q)^2 cancels nothing.
    const auto first = static_cast<std::uint64_t>(std::abs(sums[c].first));
    Wide variance = Product(sums[c].second, cells);
    variance -= Product(first, first);
    const double steps = std::sqrt(Quotient(variance, Product(cells, cells)));
    deviations.push_back(steps * (static_cast<double>(w_max[c]) / kSteps));
  }
  return deviations;
}

}  // namespace rimc
