// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>

#include "base/dims.h"

namespace rimc {

// Plans of a kernel by the dimensions of its input: the last two, since the last batch of a run may
// be smaller than the batches before it. Safe to use from several threads; two threads that find no
// plan may each make one.
template <class T, class Key = Dims>
class PlanCache {
 public:
  // make() gives the T of `dims`.
  template <class Make>
  std::shared_ptr<const T> For(const Key& dims, const Make& make) const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& cached : last_) {
        if (cached != nullptr && cached->first == dims) return {cached, &cached->second};
      }
    }
    const auto made = std::make_shared<const std::pair<Key, T>>(dims, make());
    const std::lock_guard<std::mutex> lock(mutex_);
    last_[next_] = made;
    next_ = 1 - next_;
    return {made, &made->second};
  }

 private:
  mutable std::mutex mutex_;
  mutable std::array<std::shared_ptr<const std::pair<Key, T>>, 2> last_;
  mutable std::size_t next_ = 0;
};

}  // namespace rimc
