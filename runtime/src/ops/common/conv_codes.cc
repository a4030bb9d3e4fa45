// SPDX-License-Identifier: Apache-2.0
#include "ops/common/conv_codes.h"

#include <algorithm>

namespace rimc {
namespace {

// Blocks do two products in the time of one from a list, which loads more per product.
constexpr Index kListProducts = 1;
constexpr Index kBlockProducts = 2;

}  // namespace

ConvWords::ConvWords(const std::int8_t* cells, const Shape& shape, bool may_be_lists)
    : shape_(shape), steps_(CeilDiv(shape.depth, kWordChannels) * shape.window) {
  const Index columns = shape.groups * shape.columns;
  std::vector<std::uint32_t> bytes(static_cast<std::size_t>(columns * steps_));
  start_.resize(static_cast<std::size_t>(columns));
  for (Index m = 0; m < columns; ++m) {
    for (Index c = 0; c < shape.depth; ++c) {
      std::uint32_t* const to = bytes.data() + m * steps_ + c / kWordChannels * shape.window;
      for (Index q = 0; q < shape.window; ++q) {
        const std::int8_t cell = cells[(m * shape.depth + c) * shape.window + q];
        to[q] |= std::uint32_t{static_cast<std::uint8_t>(cell)} << (8 * (c % kWordChannels));
        start_[static_cast<std::size_t>(m)] -= 128 * cell;
      }
    }
  }
  const std::vector<std::int32_t> words(bytes.begin(), bytes.end());
  const auto used = static_cast<Index>(words.size()) - std::count(words.begin(), words.end(), 0);
  is_lists_ =
      may_be_lists && used * kBlockProducts < static_cast<Index>(words.size()) * kListProducts;
  if (is_lists_) {
    PackLists(words);
    return;
  }
  packed_.resize(words.size());
  PackConvWeights(words.data(), shape.groups, shape.columns, steps_,
                  CeilDiv(shape.columns, shape.max_rows), packed_.data());
}

void ConvWords::PackLists(const std::vector<std::int32_t>& words) {
  const Index columns = shape_.groups * shape_.columns;
  list_starts_.push_back(0);
  for (Index m = 0; m < columns; ++m) {
    for (Index k = 0; k < steps_; ++k) {
      const std::int32_t word = words[static_cast<std::size_t>(m * steps_ + k)];
      if (word == 0) continue;
      packed_.push_back(word);
      list_steps_.push_back(static_cast<std::int32_t>(k));
    }
    list_starts_.push_back(static_cast<std::int32_t>(packed_.size()));
  }
  for (Index g = 0; g < shape_.groups; ++g) {
    const auto begin = list_starts_[static_cast<std::size_t>(g * shape_.columns)];
    const auto end = list_starts_[static_cast<std::size_t>((g + 1) * shape_.columns)];
    max_group_words_ = std::max<Index>(max_group_words_, end - begin);
  }
}

CodeCells ConvWords::Blocks(Index group) const {
  const Index column0 = group * shape_.columns;
  return {packed_.data() + column0 * steps_, start_.data() + column0, shape_.columns,
          CeilDiv(shape_.columns, shape_.max_rows)};
}

CodeLists ConvWords::Lists() const {
  return {list_starts_.data(), list_steps_.data(), packed_.data(), start_.data()};
}

}  // namespace rimc
