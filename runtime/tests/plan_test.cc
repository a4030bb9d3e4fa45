// SPDX-License-Identifier: Apache-2.0
//
// Plans of convolutions: their items do all of the work once, and read within scratch memory.
#include <algorithm>

#include "conv/plan.h"
#include "harness.h"

namespace rimc::tests {
namespace {

ConvAttributes RandomConv(Random* random) {
  ConvAttributes conv;
  conv.rank = 3;
  conv.group = random->Whole(1, 3);
  conv.columns = conv.group * random->Whole(1, 40);
  conv.depth = random->Whole(1, 20);
  for (std::size_t axis = 0; axis < kAxes; ++axis) {
    const Index most = axis == 0 ? 2 : 4;
    conv.kernel[axis] = random->Once(3) ? 1 : random->Whole(1, most);
    conv.strides[axis] = random->Whole(1, 3);
    conv.dilations[axis] = random->Whole(1, 2);
    conv.pads_begin[axis] = random->Whole(0, 2);
    conv.pads_end[axis] = random->Whole(0, 2);
  }
  if (random->Once(3)) {
    conv.kernel = conv.strides = conv.dilations = {1, 1, 1};
    conv.pads_begin = conv.pads_end = {0, 0, 0};
  }
  return conv;
}

ConvShape RandomShape(const ConvAttributes& conv, Random* random) {
  ConvShape shape;
  shape.batch = random->Whole(1, 9);  // an empty output needs no plan
  for (std::size_t axis = 0; axis < kAxes; ++axis) {
    const Index window = conv.dilations[axis] * (conv.kernel[axis] - 1) + 1;
    const Index pads = conv.pads_begin[axis] + conv.pads_end[axis];
    const Index least = std::max<Index>(1, window - pads);
    shape.in[axis] = least + random->Whole(0, axis == 0 ? 2 : 30);
    shape.out[axis] = (shape.in[axis] + pads - window) / conv.strides[axis] + 1;
  }
  return shape;
}

void TestPlan(const ConvPlan& plan, const std::string& entry, Report* report) {
  const Index band = plan.shape().out[static_cast<std::size_t>(plan.band_axis())];
  const Index groups = plan.conv().group, blocks = plan.num_blocks(), batch = plan.shape().batch;
  std::vector<int> done(static_cast<std::size_t>(batch * band * groups * blocks));
  bool is_within = true;
  for (Index i = 0; i < plan.num_items(); ++i) {
    const ConvItem item = plan.Item(i);
    is_within = is_within && item.images.size() <= plan.images_per_item() &&
                plan.BandSize(item) <= plan.MaxBandSize() && item.images.end <= batch &&
                item.band.end <= band && item.groups.end <= groups && item.blocks.end <= blocks;
    if (!is_within) break;
    for (Index n = item.images.begin; n < item.images.end; ++n) {
      for (Index p = item.band.begin; p < item.band.end; ++p) {
        for (Index g = item.groups.begin; g < item.groups.end; ++g) {
          for (Index b = item.blocks.begin; b < item.blocks.end; ++b) {
            ++done[static_cast<std::size_t>(((n * band + p) * groups + g) * blocks + b)];
          }
        }
      }
    }
    const ConvItem first = plan.Item(i / plan.sharers() * plan.sharers());
    const bool shares = first.images.begin == item.images.begin &&
                        first.band.begin == item.band.begin &&
                        (plan.sharers() == 1 || item.groups.size() == 1);
    report->Expect(shares, entry + ": item " + std::to_string(i) + " shares another input");
  }
  report->Expect(is_within, entry + ": an item is larger than the plan says");
  report->Expect(std::all_of(done.begin(), done.end(), [](int times) { return times == 1; }),
                 entry + ": something is done never or twice");
  const auto [least, most] =
      std::minmax_element(plan.offsets(), plan.offsets() + plan.num_offsets());
  report->Expect(*least >= 0 && *most < plan.scratch_floats(),
                 entry + ": an offset lies beyond scratch memory");
}

}  // namespace

void TestPlans(const kernels::KernelTable& table, Report* report) {
  ++report->entries;
  Random random(6);
  for (int turn = 0; turn < 300; ++turn) {
    const ConvAttributes conv = RandomConv(&random);
    const ConvShape shape = RandomShape(conv, &random);
    const ConvPlan plan(conv, shape, random.Once(2), table, random.Whole(0, 9), random.Once(2),
                        random.Once(2), random.Once(2));
    const std::string entry = std::string(table.isa) + " plan " + std::to_string(turn);
    TestPlan(plan, entry, report);
    TestPlan(plan.WithDepth(random.Whole(1, 9)), entry + " of another depth", report);
  }
}

}  // namespace rimc::tests
