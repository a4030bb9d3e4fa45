// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>

namespace rimc {

// Hands out numbers 0 .. 63, the lowest free one first: a thread that returns a number and asks
// again gets the same one, whose memory it has in its cache. More than 64 at once must not be asked
// for.
class SlotPool {
 public:
  int Take() noexcept {
    std::uint64_t taken = taken_.load(std::memory_order_relaxed);
    for (;;) {
      int slot = 0;
      while ((taken >> slot & 1) != 0) ++slot;
      if (taken_.compare_exchange_weak(taken, taken | std::uint64_t{1} << slot,
                                       std::memory_order_acquire, std::memory_order_relaxed)) {
        return slot;
      }
    }
  }
  void Return(int slot) noexcept {
    taken_.fetch_and(~(std::uint64_t{1} << slot), std::memory_order_release);
  }

 private:
  std::atomic<std::uint64_t> taken_{0};
};

}  // namespace rimc
