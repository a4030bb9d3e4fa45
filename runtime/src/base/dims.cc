// SPDX-License-Identifier: Apache-2.0
#include "base/dims.h"

#include <algorithm>

namespace rimc {

Dims::Dims(std::initializer_list<std::int64_t> sizes) : rank(sizes.size()) {
  std::copy(sizes.begin(), sizes.end(), size.begin());
}

Index Dims::Count() const {
  Index count = 1;
  for (std::size_t i = 0; i < rank; ++i) count *= static_cast<Index>(size[i]);
  return count;
}

bool Dims::operator==(const Dims& other) const {
  return rank == other.rank && std::equal(size.begin(), size.begin() + rank, other.size.begin());
}

std::string Dims::ToString() const {
  std::string text = "[";
  for (std::size_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(size[i]);
  return text + "]";
}

}  // namespace rimc
