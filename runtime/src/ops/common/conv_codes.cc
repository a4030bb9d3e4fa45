// SPDX-License-Identifier: Apache-2.0
#include "ops/common/conv_codes.h"

#include <algorithm>

namespace rimc {
namespace {

// Blocks do two products in the time of one from a list, which loads more per product.
constexpr Index kListProducts = 1;
constexpr Index kBlockProducts = 2;

}  // namespace

ConvWords::ConvWords(const std::int8_t* cells, const Shape& shape)
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
  PackBlocks(std::vector<std::int32_t>(bytes.begin(), bytes.end()));
}

ConvWords::ConvWords(const DoraTensors& adapter, const CellGrid& grid, const Shape& shape)
    : shape_(shape), steps_(CeilDiv(shape.depth, kWordChannels) * shape.window) {
  const Index columns = shape.groups * shape.columns;
  start_.resize(static_cast<std::size_t>(columns));
  std::vector<Word> words;
  for (Index e = 0; e < adapter[kSparseIndex].dims.Count(); ++e) {
    const std::int64_t index = adapter[kSparseIndex].Int64s()[e];
    const std::int8_t cell = adapter[kSparseValues].Int8s()[e];
    if (cell == 0) continue;
    const Index column = grid.Column(index);
    const Index channel = grid.Step(index) / shape.window;
    const Index step = channel / kWordChannels * shape.window + grid.Step(index) % shape.window;
    const std::uint32_t byte = std::uint32_t{static_cast<std::uint8_t>(cell)}
                               << (8 * (channel % kWordChannels));
    words.push_back({column * steps_ + step, static_cast<std::int32_t>(byte)});
    start_[static_cast<std::size_t>(column)] -= 128 * cell;
  }
  std::sort(words.begin(), words.end(),
            [](const Word& a, const Word& b) { return a.place < b.place; });
  std::size_t used = 0;
  for (const Word& word : words) {
    if (used > 0 && words[used - 1].place == word.place) {
      words[used - 1].word |= word.word;
    } else {
      words[used++] = word;
    }
  }
  words.resize(used);
  is_lists_ = static_cast<Index>(used) * kBlockProducts < columns * steps_ * kListProducts;
  if (is_lists_) {
    PackLists(words);
    return;
  }
  std::vector<std::int32_t> all(static_cast<std::size_t>(columns * steps_));
  for (const Word& word : words) all[static_cast<std::size_t>(word.place)] = word.word;
  PackBlocks(all);
}

void ConvWords::PackBlocks(const std::vector<std::int32_t>& words) {
  packed_.resize(words.size());
  PackConvWeights(words.data(), shape_.groups, shape_.columns, steps_,
                  CeilDiv(shape_.columns, shape_.max_rows), packed_.data());
}

void ConvWords::PackLists(const std::vector<Word>& words) {
  const Index columns = shape_.groups * shape_.columns;
  list_starts_.assign(static_cast<std::size_t>(columns + 1), 0);
  for (const Word& word : words) {
    ++list_starts_[static_cast<std::size_t>(word.place / steps_ + 1)];
    packed_.push_back(word.word);
    list_steps_.push_back(static_cast<std::int32_t>(word.place % steps_));
  }
  for (std::size_t m = 1; m < list_starts_.size(); ++m) list_starts_[m] += list_starts_[m - 1];
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
