// SPDX-License-Identifier: Apache-2.0
//
// Packing of int16 pairs of word lines, and sums of their squares, over the SIMD type S of simd.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/unroll.h"
#include "kernels/word_lines.h"

namespace rimc::kernels {

// The first `lanes` values of a word line as int16; a NaN among them makes `nans` NaN.
template <class S, Drive kDrive, int kStride>
inline typename S::Int NumbersOf(const float* from, ptrdiff_t stride, int lanes,
                                 const Quantizer& quantizer, const LineTable<S, kDrive>& table,
                                 typename S::Vec* nans) {
  typename S::Vec v;
  if constexpr (kStride == 1) {
    v = LoadLanes<S>(from, lanes);
  } else if constexpr (kStride == 2) {
    v = S::LoadEven(from, lanes);
  } else {
    float picked[S::kLanes];
    for (int lane = 0; lane < lanes; ++lane) picked[lane] = from[lane * stride];
    v = S::LoadN(picked, lanes);
  }
  v = DriveLine<S, kDrive>(v, quantizer, table);
  *nans = S::Add(*nans, v);
  return S::ToInt(v);
}

template <class S, Drive kDrive, int kStride>
bool PackPairsOf(const PairPackArgs& args) {
  const Quantizer quantizer = *args.quantizer;
  const LineTable<S, kDrive> table(quantizer);
  const float* first = args.from[0];
  const float* second = args.from[1];
  const ptrdiff_t stride = args.stride;
  ptrdiff_t width = args.width;
  ptrdiff_t second_width = second == nullptr ? 0 : args.second_width;
  ptrdiff_t rows = width > 0 ? args.rows : 0;
  if (stride == 1 && args.from_row == width && args.to_row == width && rows > 0 &&
      (second_width == width || second_width == 0)) {
    width *= rows;
    second_width *= rows;
    rows = 1;
  }
  uint32_t* to = args.to;
  typename S::Vec nans = S::Set1(0.0f);
  for (ptrdiff_t r = 0; r < rows; ++r) {
    for (ptrdiff_t i = 0; i < width; i += S::kLanes) {
      const auto lanes_of = [i](ptrdiff_t end) {
        return end - i < S::kLanes ? static_cast<int>(end - i) : S::kLanes;
      };
      const int lanes = lanes_of(width);
      const auto low =
          NumbersOf<S, kDrive, kStride>(first + i * stride, stride, lanes, quantizer, table, &nans);
      auto high = S::SetInt(0);
      if (i < second_width) {
        high = NumbersOf<S, kDrive, kStride>(second + i * stride, stride, lanes_of(second_width),
                                             quantizer, table, &nans);
      }
      if (lanes == S::kLanes) {
        S::StoreInt(to + i, S::PackHalves(low, high));
      } else {
        S::StoreInts(to + i, lanes, S::PackHalves(low, high));
      }
    }
    first += args.from_row;
    if (second != nullptr) second += args.from_row;
    to += args.to_row;
  }
  const float sum = S::Sum(nans);
  return sum == sum;
}

template <class S, Drive kDrive>
bool PackPairsStride(const PairPackArgs& args) {
  if (args.stride == 1) return PackPairsOf<S, kDrive, 1>(args);
  if (args.stride == 2) return PackPairsOf<S, kDrive, 2>(args);
  return PackPairsOf<S, kDrive, 0>(args);
}

template <class S>
bool PackPairs(const PairPackArgs& args) {
  switch (DriveOf<S>(args.quantizer)) {
    case Drive::kConvert:
      return PackPairsStride<S, Drive::kConvert>(args);
    case Drive::kTable128:
    case Drive::kTable256:
      if constexpr (S::kHasLookup) {
        if (args.quantizer->table_size == 128) return PackPairsStride<S, Drive::kTable128>(args);
        return PackPairsStride<S, Drive::kTable256>(args);
      }
      [[fallthrough]];
    default:
      return PackPairsStride<S, Drive::kFull>(args);
  }
}

// Several vectors at a time, since a chain of sums waits for the latency of each step.
template <class S, int kVecs>
inline void PairColumnSquaresOf(const uint32_t* x, ptrdiff_t x_row, ptrdiff_t rows, float* y,
                                int lanes) {
  typename S::Sums sums[kVecs];
  RIMC_UNROLL
  for (int v = 0; v < kVecs; ++v) sums[v] = S::ZeroSums();
  for (ptrdiff_t r = 0; r < rows; ++r) {
    RIMC_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const uint32_t* const from = x + r * x_row + v * S::kLanes;
      const auto values =
          v + 1 < kVecs || lanes == S::kLanes ? S::LoadInt(from) : S::LoadInts(from, lanes);
      sums[v] = S::DotPairs(sums[v], values, values);
    }
  }
  RIMC_UNROLL
  for (int v = 0; v + 1 < kVecs; ++v) S::Store(y + v * S::kLanes, S::SumsToFloat(sums[v]));
  StoreLanes<S>(y + (kVecs - 1) * S::kLanes, lanes, S::SumsToFloat(sums[kVecs - 1]));
}

template <class S>
void PairColumnSquares(const uint32_t* x, ptrdiff_t x_row, ptrdiff_t rows, float* y,
                       ptrdiff_t count) {
  constexpr int kMany = 4;
  ptrdiff_t i = 0;
  for (; i + kMany * S::kLanes <= count; i += kMany * S::kLanes) {
    PairColumnSquaresOf<S, kMany>(x + i, x_row, rows, y + i, S::kLanes);
  }
  for (; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    PairColumnSquaresOf<S, 1>(x + i, x_row, rows, y + i, lanes);
  }
}

template <class S>
void PairRowSquares(const uint32_t* x, ptrdiff_t x_row, ptrdiff_t rows, float* y, ptrdiff_t count) {
  for (ptrdiff_t r = 0; r < rows; ++r) {
    const uint32_t* const row = x + r * x_row;
    auto sums = S::ZeroSums();
    for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
      const auto values = count - i < S::kLanes ? S::LoadInts(row + i, static_cast<int>(count - i))
                                                : S::LoadInt(row + i);
      sums = S::DotPairs(sums, values, values);
    }
    uint32_t lanes[S::kLanes];
    S::StoreSums(lanes, S::kLanes, sums);
    uint32_t total = 0;
    for (int lane = 0; lane < S::kLanes; ++lane) total += lanes[lane];
    y[r] = static_cast<float>(total);
  }
}

}  // namespace rimc::kernels
