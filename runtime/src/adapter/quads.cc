// SPDX-License-Identifier: Apache-2.0
#include "adapter/quads.h"

#include <algorithm>
#include <numeric>

namespace rimc {
namespace {

// Blocks do two products in the time of one from a list, which loads more per product.
constexpr Index kListProducts = 1;
constexpr Index kBlockProducts = 2;

// The order in which indices rise; empty where they do.
std::vector<std::size_t> ByIndex(const Tensor& tensor) {
  const std::int64_t* const index = tensor.Int64s();
  const auto count = static_cast<std::size_t>(tensor.dims.Count());
  if (std::is_sorted(index, index + count)) return {};
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return index[a] < index[b]; });
  return order;
}

}  // namespace

QuadMatrix::QuadMatrix(const std::int8_t* cells, const Shape& shape)
    : shape_(shape), steps_(CeilDiv(shape.depth, kQuadChannels) * shape.window) {
  const Index columns = shape.groups * shape.columns;
  std::vector<std::uint32_t> bytes(static_cast<std::size_t>(columns * steps_));
  start_.resize(static_cast<std::size_t>(columns));
  for (Index m = 0; m < columns; ++m) {
    for (Index c = 0; c < shape.depth; ++c) {
      std::uint32_t* const to = bytes.data() + m * steps_ + c / kQuadChannels * shape.window;
      for (Index q = 0; q < shape.window; ++q) {
        const std::int8_t cell = cells[(m * shape.depth + c) * shape.window + q];
        to[q] |= std::uint32_t{static_cast<std::uint8_t>(cell)} << (8 * (c % kQuadChannels));
        start_[static_cast<std::size_t>(m)] -= 128 * cell;
      }
    }
  }
  PackBlocks(std::vector<std::int32_t>(bytes.begin(), bytes.end()));
}

QuadMatrix::QuadMatrix(const DoraTensors& adapter, const CellGrid& grid, const Shape& shape)
    : shape_(shape), steps_(CeilDiv(shape.depth, kQuadChannels) * shape.window) {
  const Index columns = shape.groups * shape.columns;
  start_.resize(static_cast<std::size_t>(columns));
  const std::vector<std::size_t> order = ByIndex(adapter[kSparseIndex]);
  const auto count = static_cast<std::size_t>(adapter[kSparseIndex].dims.Count());
  const std::int64_t* const index = adapter[kSparseIndex].Int64s();
  std::vector<std::size_t> ends(static_cast<std::size_t>(columns));
  CellPlaces places(grid);
  for (std::size_t e = 0; e < count; ++e) {
    ++ends[static_cast<std::size_t>(places.Find(index[e]).column)];
  }
  std::exclusive_scan(ends.begin(), ends.end(), ends.begin(), std::size_t{0});
  // Bytes by column, in the order of their cells.
  std::vector<std::int32_t> steps(count);
  std::vector<std::int32_t> bytes(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t e = order.empty() ? i : order[i];
    const auto [column, cell] = places.Find(index[e]);
    const std::int8_t value = adapter[kSparseValues].Int8s()[e];
    const Index channel = cell / shape.window;
    const std::size_t at = ends[static_cast<std::size_t>(column)]++;
    steps[at] =
        static_cast<std::int32_t>(channel / kQuadChannels * shape.window + cell % shape.window);
    bytes[at] = static_cast<std::int32_t>(std::uint32_t{static_cast<std::uint8_t>(value)}
                                          << (8 * (channel % kQuadChannels)));
    start_[static_cast<std::size_t>(column)] -= 128 * value;
  }
  list_starts_.push_back(0);
  std::size_t i = 0;
  for (const std::size_t end : ends) {
    const std::size_t begin = packed_.size();
    for (; i < end; ++i) AddByte(steps[i], bytes[i], begin);
    list_starts_.push_back(static_cast<std::int32_t>(packed_.size()));
  }
  const auto used = static_cast<Index>(packed_.size());
  is_lists_ = used * kBlockProducts < columns * steps_ * kListProducts;
  if (!is_lists_) {
    PackBlocks(FullQuads());
    return;
  }
  for (Index g = 0; g < shape_.groups; ++g) {
    const auto begin = list_starts_[static_cast<std::size_t>(g * shape_.columns)];
    const auto end = list_starts_[static_cast<std::size_t>((g + 1) * shape_.columns)];
    max_group_quads_ = std::max<Index>(max_group_quads_, end - begin);
  }
}

// Adds a byte to the quad of a step, in the column whose quads start at `begin`. Only quads of the
// same four channels may lie behind it.
void QuadMatrix::AddByte(std::int32_t step, std::int32_t byte, std::size_t begin) {
  std::size_t at = packed_.size();
  while (at > begin && list_steps_[at - 1] > step) --at;
  if (at > begin && list_steps_[at - 1] == step) {
    packed_[at - 1] |= byte;
    return;
  }
  packed_.insert(packed_.begin() + static_cast<std::ptrdiff_t>(at), byte);
  list_steps_.insert(list_steps_.begin() + static_cast<std::ptrdiff_t>(at), step);
}

// The quads of the lists and the zeros between them.
std::vector<std::int32_t> QuadMatrix::FullQuads() const {
  const Index columns = shape_.groups * shape_.columns;
  std::vector<std::int32_t> quads(static_cast<std::size_t>(columns * steps_));
  for (Index m = 0; m < columns; ++m) {
    const auto end = static_cast<std::size_t>(list_starts_[static_cast<std::size_t>(m + 1)]);
    for (auto i = static_cast<std::size_t>(list_starts_[static_cast<std::size_t>(m)]); i < end;
         ++i) {
      quads[static_cast<std::size_t>(m * steps_ + list_steps_[i])] = packed_[i];
    }
  }
  return quads;
}

void QuadMatrix::PackBlocks(const std::vector<std::int32_t>& quads) {
  packed_.resize(quads.size());
  PackColumnBlocks(quads.data(), shape_.groups, shape_.columns, steps_,
                   CeilDiv(shape_.columns, shape_.max_rows), packed_.data());
}

QuadCells QuadMatrix::Blocks(Index group) const {
  const Index column0 = group * shape_.columns;
  return {packed_.data() + column0 * steps_, start_.data() + column0, shape_.columns,
          CeilDiv(shape_.columns, shape_.max_rows)};
}

QuadLists QuadMatrix::Lists() const {
  return {list_starts_.data(), list_steps_.data(), packed_.data(), start_.data()};
}

}  // namespace rimc
