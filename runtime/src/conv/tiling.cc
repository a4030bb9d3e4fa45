// SPDX-License-Identifier: Apache-2.0
#include "conv/tiling.h"

#include <algorithm>

namespace rimc {

Axes ConvTiling::BandOut(const ConvItem& item) const {
  const Axes& out = plan_.shape().out;
  // Elements one by one: a load of all three would wait for the store of one at an index.
  const auto size = [&](int axis) {
    return axis == plan_.band_axis() ? item.band.size() : out[static_cast<std::size_t>(axis)];
  };
  return plan_.is_woven() ? Axes{size(0), 1, size(1) * size(2)} : Axes{size(0), size(1), size(2)};
}

Axes ConvTiling::Extent() const {
  const Axes& extent = plan_.extent();
  return plan_.is_woven() ? Axes{extent[0], 1, extent[1] * extent[2]} : extent;
}

// Vectors of positions of an item.
Index ConvTiling::NumVecs(const ConvItem& item) const noexcept {
  const Axes out = BandOut(item);
  const Axes extent = Extent();
  if (plan_.by_rows()) return out[0] * out[1] * CeilDiv(out[2], kernels_.lanes);
  const Index positions = (item.images.size() - 1) * plan_.plane() +
                          ((out[0] - 1) * extent[1] + out[1] - 1) * extent[2] + out[2];
  return CeilDiv(positions, kernels_.lanes);
}

// Aims the vectors of a block at their inputs and at their places in the block's first column:
// in the output, or in place.local where vectors run on over rows.
void ConvTiling::SetVectorPointers(const ConvPlace& place, Range vecs, const ConvOutput& output,
                                   kernels::BlockArgs* args) const noexcept {
  const Index lanes = kernels_.lanes;
  if (!plan_.by_rows()) {
    for (Index v = 0; v < vecs.size(); ++v) {
      args->b[v] = place.input + (vecs.begin + v) * lanes;
      args->c[v] = place.local + v * lanes;
      args->lanes[v] = static_cast<int>(lanes);
    }
    args->c_row = vecs.size() * lanes;
    return;
  }
  const Axes out = BandOut(place.item);
  const Axes extent = Extent();
  // A division takes as long as dozens of products.
  const bool is_row = out[0] * out[1] == 1;
  const Index row_vecs = is_row ? 0 : CeilDiv(out[2], lanes);
  Index row = is_row ? 0 : vecs.begin / row_vecs;
  Index w = (vecs.begin - row * row_vecs) * lanes;
  for (Index v = 0; v < vecs.size(); ++v, w += lanes) {
    if (w >= out[2]) {
      w = 0;
      ++row;
    }
    const Index line = row < out[1]  ? row
                       : out[1] == 1 ? row * extent[1]
                                     : row / out[1] * extent[1] + row % out[1];
    args->b[v] = place.input + line * extent[2] + w;
    args->c[v] = output.data + row * out[2] + w;
    args->lanes[v] = static_cast<int>(std::min(lanes, out[2] - w));
  }
  args->c_row = output.column;
}

// Calls body(from, at, count) for the runs of `positions`, which go on over rows and images, that
// belong to the output: so many from positions.begin + `from` on are at `at` of an output's column.
template <class Body>
void ConvTiling::ForRuns(const ConvItem& item, Range positions, Index image,
                         const Body& body) const {
  const Axes out = BandOut(item);
  const Axes extent = Extent();
  for (Index p = positions.begin; p < positions.end;) {
    const Index line = p / extent[2];
    const Index w = p % extent[2];
    const Index next = std::min(p - w + extent[2], positions.end);
    const Index h = line % extent[1];
    const Index d = line / extent[1] % extent[0];
    const Index n = line / extent[1] / extent[0];
    if (w < out[2] && h < out[1] && d < out[0] && n < item.images.size()) {
      const Index at = n * image + (d * out[1] + h) * out[2] + w;
      body(p - positions.begin, at, std::min(next - p, out[2] - w));
    }
    p = next;
  }
}

// Copies the output positions of a block `local`, whose vectors run on over rows and images, to
// `output`, which is of the block's first column.
void ConvTiling::ScatterRuns(const ConvPlace& place, const ConvBlock& block, const float* local,
                             const ConvOutput& output) const noexcept {
  const Range positions{block.vecs.begin * kernels_.lanes, block.vecs.end * kernels_.lanes};
  ForRuns(place.item, positions, output.image, [&](Index from, Index at, Index count) {
    kernels::CopyArgs args{};
    args.from = local + from;
    args.from_row = positions.size();
    args.stride = 1;
    args.to = output.data + at;
    args.to_row = output.column;
    args.rows = block.columns.size();
    args.width = count;
    kernels_.copy_rows(args);
  });
}

// The inverse of ScatterRuns, for values laid out like the output. `from` is of the block's first
// column.
void ConvTiling::GatherRuns(const ConvPlace& place, const ConvBlock& block, const float* from,
                            const ConvOutput& output, float* local) const noexcept {
  const Range positions{block.vecs.begin * kernels_.lanes, block.vecs.end * kernels_.lanes};
  ForRuns(place.item, positions, output.image, [&](Index to, Index at, Index count) {
    kernels::CopyArgs args{};
    args.from = from + at;
    args.from_row = output.column;
    args.stride = 1;
    args.to = local + to;
    args.to_row = positions.size();
    args.rows = block.columns.size();
    args.width = count;
    kernels_.copy_rows(args);
  });
}

void ConvTiling::FillPlaces(const ConvPlace& place, Index first_image,
                            std::uint32_t* places) const noexcept {
  const ConvItem& item = place.item;
  const Axes out = BandOut(item);
  const Axes extent = Extent();
  const Index volume = plan_.shape().OutVolume();
  const Index row = plan_.by_rows() ? RoundUp(out[2], kernels_.lanes) : extent[2];
  const Index rows = plan_.by_rows() ? out[1] : extent[1];
  const Index first = (first_image + item.images.begin) * volume + plan_.BandOffset(item);
  for (Index n = 0; n < item.images.size(); ++n) {
    for (Index d = 0; d < (plan_.by_rows() ? out[0] : extent[0]); ++d) {
      for (Index h = 0; h < rows; ++h) {
        const Index at = first + n * volume + (d * out[1] + h) * out[2];
        for (Index w = 0; w < row; ++w) *places++ = static_cast<std::uint32_t>(at + w);
      }
    }
  }
}

}  // namespace rimc
