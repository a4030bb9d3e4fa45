// SPDX-License-Identifier: Apache-2.0
#include "adapter/sparse.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <vector>

namespace rimc {
namespace {

// A full matrix does about three products in the time that a listed cell takes.
constexpr Index kDenseRatio = 3;

void CheckIndices(const Tensor& index, const CellGrid& grid) {
  const std::int64_t* const begin = index.Int64s();
  const std::int64_t* const end = begin + index.dims.Count();
  for (const std::int64_t* i = begin; i < end; ++i) {
    if (*i < 0 || *i >= grid.Count()) {
      Refuse("input sparse_index must be 0..", grid.Count() - 1, ", got ", *i);
    }
  }
  if (std::adjacent_find(begin, end, std::greater_equal<>()) == end) return;
  std::vector<std::int64_t> sorted(begin, end);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    Refuse("input sparse_index must name a cell once, got ", *twice, " more than once");
  }
}

}  // namespace

Index CheckSparse(const DoraTensors& adapter, const CellGrid& grid) {
  const Tensor& values = adapter[kSparseValues];
  const Tensor& index = adapter[kSparseIndex];
  if (values.dims.rank != 1) {
    Refuse("input sparse_values must have one dimension, got ", values.dims);
  }
  CheckDims("sparse_index", index, values.dims);
  CheckVector(adapter, kSparseScale, grid.columns, true);
  const Index count = values.dims.Count();
  if (count > std::numeric_limits<std::int32_t>::max()) {
    Refuse("input sparse_values must have fewer than 2^31 values, got ", count);
  }
  CheckIndices(index, grid);
  std::vector<Index> sums(static_cast<std::size_t>(grid.columns));
  CellPlaces places(grid);
  for (Index e = 0; e < count; ++e) {
    const Index column = places.Find(index.Int64s()[e]).column;
    Index& sum = sums[static_cast<std::size_t>(column)];
    sum += std::abs(int{values.Int8s()[e]});
    if (sum > kMaxCodeSum) {
      Refuse("the sum of |sparse_values| of bit line ", column, " must be ", kMaxCodeSum,
             " at most, got ", sum, " or more: beyond it the branch is not exact in fp32");
    }
  }
  return count;
}

bool IsDense(Index count, const CellGrid& grid) { return count > grid.Count() / kDenseRatio; }

Index SparseFloats(Index columns, Index count) { return columns + 1 + 2 * count; }

SparseColumns SparseIn(const float* memory, Index columns, Index count) {
  const auto* const starts = reinterpret_cast<const std::int32_t*>(memory);
  return {starts, starts + columns + 1, memory + columns + 1 + count};
}

void PackSparse(const DoraTensors& adapter, const CellGrid& grid, Index step_factor,
                float* memory) {
  const std::int64_t* const index = adapter[kSparseIndex].Int64s();
  const Index count = adapter[kSparseIndex].dims.Count();
  auto* const starts = reinterpret_cast<std::int32_t*>(memory);
  auto* const steps = starts + grid.columns + 1;
  float* const values = memory + grid.columns + 1 + count;
  std::fill_n(starts, grid.columns + 1, 0);
  CellPlaces places(grid);
  for (Index e = 0; e < count; ++e) ++starts[places.Find(index[e]).column];
  // Ends of the columns; filling each from its end leaves the starts.
  for (Index m = 0; m < grid.columns; ++m) starts[m + 1] += starts[m];
  for (Index e = count - 1; e >= 0; --e) {
    const auto [column, step] = places.Find(index[e]);
    const std::int32_t at = --starts[column];
    steps[at] = static_cast<std::int32_t>(step * step_factor);
    values[at] = static_cast<float>(adapter[kSparseValues].Int8s()[e]);
  }
}

}  // namespace rimc
