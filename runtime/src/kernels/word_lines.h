// SPDX-License-Identifier: Apache-2.0
//
// Values on word lines behind converters and devices, and copies of rows with them, over
// the SIMD type S of simd.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace rimc::kernels {

// Conversion of the values of a word line: none, the converter alone, all of Quantizer, or
// that with values from its table.
enum class Drive { kNone, kConvert, kFull, kTable128, kTable256 };

// A template so that every ISA has its own.
template <class S>
Drive DriveOf(const Quantizer* quantizer) {
  if (quantizer == nullptr) return Drive::kNone;
  const bool plain =
      quantizer->quantize && !(quantizer->base > 0.0f) && quantizer->curve == nullptr;
  if (plain) return Drive::kConvert;
  if (!S::kHasLookup || quantizer->table == nullptr) return Drive::kFull;
  return quantizer->table_size == 128 ? Drive::kTable128 : Drive::kTable256;
}

// Tables in registers, where there are some.
template <class S, Drive kDrive>
struct LineTable {
  explicit LineTable(const Quantizer&) {}
  typename S::Vec operator()(typename S::Vec magnitude) const { return magnitude; }
};
template <class S>
struct LineTable<S, Drive::kTable128> : S::template Lookup<128> {
  explicit LineTable(const Quantizer& q) : S::template Lookup<128>(q.table) {}
};
template <class S>
struct LineTable<S, Drive::kTable256> : S::template Lookup<256> {
  explicit LineTable(const Quantizer& q) : S::template Lookup<256>(q.table) {}
};

template <class S, Drive kDrive>
inline typename S::Vec DriveLine(typename S::Vec v, const Quantizer& quantizer,
                                 const LineTable<S, kDrive>& table) {
  using Vec = typename S::Vec;
  if (kDrive == Drive::kNone) return v;
  const Vec out = S::Set1(quantizer.out);
  const auto code = [&](Vec x) {
    return S::Clip(S::Rint(S::Div(x, S::Set1(quantizer.step))), S::Set1(quantizer.low),
                   S::Set1(quantizer.high));
  };
  if (kDrive == Drive::kConvert) return S::Mul(code(v), out);
  if (quantizer.quantize) {
    v = code(v);
    if (quantizer.base > 0.0f) {
      const Vec magnitude = S::Abs(v);
      const Vec upper = S::Floor(S::Mul(magnitude, S::Set1(quantizer.next)));
      const Vec digits = S::Floor(S::Mul(magnitude, S::Set1(quantizer.down)));
      v = S::CopySign(S::Sub(digits, S::Mul(S::Set1(quantizer.base), upper)), v);
    }
    if (kDrive != Drive::kFull) return S::CopySign(table(S::Abs(v)), v);
    v = S::Mul(v, out);
  }
  if (quantizer.curve == nullptr) return v;
  const Vec range = S::Set1(quantizer.range);
  const Vec u = S::Clip(S::Div(v, range), S::Set1(-1.0f), S::Set1(1.0f));
  const Vec square = S::Mul(u, u);
  Vec sum = S::Set1(quantizer.curve[kCurveTerms - 1]);
  for (int n = kCurveTerms - 2; n >= 0; --n) {
    sum = S::Add(S::Mul(sum, square), S::Set1(quantizer.curve[n]));
  }
  if (quantizer.grid > 0.0f) {
    const Vec steps = S::Rint(S::Mul(S::Mul(u, sum), S::Set1(quantizer.grid)));
    return S::Mul(steps, S::Set1(quantizer.unit));
  }
  return S::Mul(S::Mul(u, sum), range);
}

template <class S, Drive kDrive>
void QuantizeOf(const float* x, float* y, ptrdiff_t count, Quantizer quantizer) {
  const LineTable<S, kDrive> table(quantizer);
  for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
    const int lanes = count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes;
    StoreLanes<S>(y + i, lanes, DriveLine<S, kDrive>(LoadLanes<S>(x + i, lanes), quantizer, table));
  }
}

template <class S>
void Quantize(const float* x, float* y, ptrdiff_t count, const Quantizer& quantizer) {
  switch (DriveOf<S>(&quantizer)) {
    case Drive::kConvert:
      return QuantizeOf<S, Drive::kConvert>(x, y, count, quantizer);
    case Drive::kTable128:
    case Drive::kTable256:
      if constexpr (S::kHasLookup) {
        if (quantizer.table_size == 128) {
          return QuantizeOf<S, Drive::kTable128>(x, y, count, quantizer);
        }
        return QuantizeOf<S, Drive::kTable256>(x, y, count, quantizer);
      }
      [[fallthrough]];
    default:
      return QuantizeOf<S, Drive::kFull>(x, y, count, quantizer);
  }
}

template <class S>
inline void Clear(float* to, ptrdiff_t count) {
  const typename S::Vec zero = S::Set1(0.0f);
  for (ptrdiff_t i = 0; i < count; i += S::kLanes) {
    StoreLanes<S>(to + i, count - i < S::kLanes ? static_cast<int>(count - i) : S::kLanes, zero);
  }
}

// Rows as they are, of one plane that is not cleared. The last vector of a row reaches back into
// the one before it.
template <class S>
void CopyPlainRows(const CopyArgs& args) {
  const bool joined = args.from_row == args.width && args.to_row == args.width;
  const ptrdiff_t width = joined ? args.width * args.rows : args.width;
  const ptrdiff_t rows = joined ? (width > 0 ? 1 : 0) : args.rows;
  const ptrdiff_t last = width - S::kLanes;
  const float* from = args.from;
  float* to = args.to;
  for (ptrdiff_t r = 0; r < rows; ++r) {
    if (last >= 0) {
      for (ptrdiff_t i = 0; i < last; i += S::kLanes) S::Store(to + i, S::Load(from + i));
      S::Store(to + last, S::Load(from + last));
    } else {
      const int lanes = static_cast<int>(width);
      S::StoreN(to, lanes, S::LoadN(from, lanes));
    }
    from += args.from_row;
    to += args.to_row;
  }
}

// Rows that a vector holds together with what is cleared after them, of planes that are cleared:
// what is cleared too much, the next row puts right.
template <class S>
void CopyShortRows(const CopyArgs& args) {
  using Vec = typename S::Vec;
  const int width = static_cast<int>(args.width);
  for (ptrdiff_t p = 0; p < args.planes; ++p) {
    const float* from = args.from + p * args.from_plane;
    float* to = args.to + p * args.to_plane;
    float* const end = to + args.size;
    Clear<S>(to, args.before);
    to += args.before;
    ptrdiff_t r = 0;
    for (; r + 1 < args.rows && end - to >= S::kLanes; ++r) {
      const Vec v = S::LoadN(from, width);
      S::Store(to, v);
      from += args.from_row;
      to += args.to_row;
    }
    for (; r < args.rows; ++r) {
      S::StoreN(to, width, S::LoadN(from, width));
      const bool is_last = r + 1 == args.rows;
      Clear<S>(to + width, (is_last ? end : to + args.to_row) - (to + width));
      from += args.from_row;
      to += args.to_row;
    }
  }
}

template <class S, Drive kDrive, int kStride>
void CopyRowsOf(const CopyArgs& args) {
  using Vec = typename S::Vec;
  const Quantizer none{1.0f, 0.0f, 0.0f, 1.0f};
  const Quantizer quantizer = kDrive == Drive::kNone ? none : *args.quantizer;
  const LineTable<S, kDrive> table(quantizer);
  const ptrdiff_t stride = args.stride;
  ptrdiff_t width = args.width;
  ptrdiff_t rows = width > 0 ? args.rows : 0;
  const bool clears = args.size > 0;
  if (stride == 1 && args.from_row == width && args.to_row == width && rows > 0) {
    width *= rows;
    rows = 1;
  }
  const ptrdiff_t planes = args.planes > 0 ? args.planes : 1;
  for (ptrdiff_t p = 0; p < planes; ++p) {
    const float* from = args.from + p * args.from_plane;
    float* to = args.to + p * args.to_plane;
    float* const end = to + args.size;
    if (clears) {
      float* const first = rows > 0 ? to + args.before : end;
      Clear<S>(to, first - to);
      to = first;
    }
    for (ptrdiff_t r = 0; r < rows; ++r) {
      for (ptrdiff_t i = 0; i < width; i += S::kLanes) {
        const int lanes = width - i < S::kLanes ? static_cast<int>(width - i) : S::kLanes;
        Vec v;
        if constexpr (kStride == 1) {
          v = LoadLanes<S>(from + i, lanes);
        } else if constexpr (kStride == 2) {
          v = S::LoadEven(from + 2 * i, lanes);
        } else {
          float picked[S::kLanes];
          for (int lane = 0; lane < lanes; ++lane) picked[lane] = from[(i + lane) * stride];
          v = S::LoadN(picked, lanes);
        }
        StoreLanes<S>(to + i, lanes, DriveLine<S, kDrive>(v, quantizer, table));
      }
      from += args.from_row;
      const bool is_last = r + 1 == rows;
      float* const next = is_last ? end : to + args.to_row;
      const ptrdiff_t gap = next - (to + width);
      if (clears && gap <= S::kLanes && !is_last && width >= S::kLanes) {
        // The next row overwrites what is cleared too much.
        S::Store(to + width, S::Set1(0.0f));
      } else if (clears) {
        Clear<S>(to + width, gap);
      }
      to = next;
    }
  }
}

template <class S, Drive kDrive>
void CopyRowsStride(const CopyArgs& args) {
  if (args.stride == 1) {
    CopyRowsOf<S, kDrive, 1>(args);
  } else if (args.stride == 2) {
    CopyRowsOf<S, kDrive, 2>(args);
  } else {
    CopyRowsOf<S, kDrive, 0>(args);
  }
}

template <class S>
void CopyRows(const CopyArgs& args) {
  switch (DriveOf<S>(args.quantizer)) {
    case Drive::kNone:
      if (args.stride == 1 && args.size == 0 && args.planes <= 1) return CopyPlainRows<S>(args);
      if (args.stride == 1 && args.size > 0 && args.planes > 0 && args.rows > 0 && args.width > 0 &&
          args.width < args.to_row && args.to_row <= S::kLanes) {
        return CopyShortRows<S>(args);
      }
      return CopyRowsStride<S, Drive::kNone>(args);
    case Drive::kConvert:
      return CopyRowsStride<S, Drive::kConvert>(args);
    case Drive::kTable128:
    case Drive::kTable256:
      if constexpr (S::kHasLookup) {
        if (args.quantizer->table_size == 128) return CopyRowsStride<S, Drive::kTable128>(args);
        return CopyRowsStride<S, Drive::kTable256>(args);
      }
      [[fallthrough]];
    case Drive::kFull:
      return CopyRowsStride<S, Drive::kFull>(args);
  }
}

}  // namespace rimc::kernels
