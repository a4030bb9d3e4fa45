// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "ops/common/ort.h"

namespace rimc {

// What a kernel works out from the dimensions of its input, kept for the next run with the same
// ones. Safe to use from several threads; of those that find nothing, each makes its own.
template <class T>
class Kept {
 public:
  // make() gives the T of `dims`.
  template <class Make>
  std::shared_ptr<const T> For(const Dims& dims, const Make& make) const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (last_ != nullptr && last_->first == dims) return {last_, &last_->second};
    }
    const auto made = std::make_shared<const std::pair<Dims, T>>(dims, make());
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = made;
    return {made, &made->second};
  }

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const std::pair<Dims, T>> last_;
};

}  // namespace rimc
