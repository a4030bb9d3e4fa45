// SPDX-License-Identifier: Apache-2.0
#include "ops/rram_conv.h"

#include "dispatch.h"

namespace rimc {
RramConv::RramConv(const NodeInfo& node) : kernels_(ActiveKernels()) {
  const auto w = node.Constant(1);
  if (!w) Refuse("input w must be an initializer or a constant: crossbars are written once");
  conv_ = ResolveConv(ReadConvNode(node), "w", w->dims, 1);
  periphery_ = ReadPeriphery(node, conv_.columns, conv_.depth, conv_.Window());
  const Index tile_group = node.Int("tile_group");
  if (tile_group != conv_.group * periphery_.num_tiles) {
    Refuse("tile_group must be group * num_tiles = ", conv_.group * periphery_.num_tiles, ", got ",
           tile_group);
  }
  Pack(w->Floats());
}

RramConv::RramConv(const ConvNode& conv, const Tensor& w)
    : kernels_(ActiveKernels()), conv_(ResolveConv(conv, "w", w.dims, 1)) {
  Pack(w.Floats());
}

void RramConv::Pack(const float* w) {
  const Index steps = conv_.depth * conv_.Window();
  packed_ = AlignedFloats(conv_.columns * steps);
  PackConvWeights(w, conv_.group, conv_.GroupColumns(), steps,
                  CeilDiv(conv_.GroupColumns(), kernels_.max_rows), packed_.data());
  const Index num_tiles = periphery_.has_adc ? periphery_.num_tiles : 1;
  const Index tile = CeilDiv(conv_.depth, num_tiles) * conv_.Window();
  for (Index k = 0; k < steps; k += tile) {
    readout_.tiles.push_back({{k, std::min(k + tile, steps)}, k == 0, k + tile >= steps});
  }
  if (periphery_.has_adc) {
    readout_.top = periphery_.adc_top;
    readout_.gain = periphery_.adc_gain.data();
    readout_.back = periphery_.adc_back.data();
  }
}

Output RramConv::Compute(const Context& context) const {
  const Tensor x = context.Input(0);
  Dims y_dims;
  const ConvShape shape = ShapeOf(conv_, x, &y_dims);
  float* const y = context.Output(0, y_dims);
  if (shape.batch == 0) return {y, y_dims};

  const ConvPlan plan(conv_, shape, true, kernels_);
  const ConvEngine engine(plan, kernels_, periphery_.has_dac ? &periphery_.dac : nullptr,
                          x.Floats());
  const Index volume = shape.OutVolume();
  engine.Run(context, 0, [&](const ConvEngine::Place& place) {
    const Index column0 = place.group * plan.columns();
    const Index image0 = place.item.images.begin;
    float* const data =
        y + (image0 * conv_.columns + column0) * volume + plan.BandOffset(place.item);
    const ConvCells cells{packed_.data() + column0 * plan.num_offsets(), plan.columns(),
                          plan.num_blocks()};
    engine.Compute(place, cells, place.item.blocks, readout_, column0,
                   {data, volume, conv_.columns * volume});
  });
  return {y, y_dims};
}

}  // namespace rimc
