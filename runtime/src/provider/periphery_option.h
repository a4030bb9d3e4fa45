// SPDX-License-Identifier: Apache-2.0
//
// What surrounds the arrays of an ordinary model's nodes: the attributes that crossbars of a
// converted model have, by the name of the node.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "crossbar/periphery.h"
#include "device/reads.h"
#include "ort/attributes.h"

namespace rimc {

// What is stated of one node's periphery; the other attributes have their ideal values.
struct StatedPeriphery {
  Attributes attributes;
  double input_shrink = 1.0;  // before it is an attribute, a float
  bool has_range = false;     // dac_range
  bool has_noise = false;     // read_noise or read_noise_curve
  bool has_key = false;       // read_key
  bool has_curve = false;     // iv_sinh, iv_square or iv_cube
};

// Of each node; "*" is every node that is not named. Empty: ideal, but for the reads of the device.
using PeripheryOption = std::map<std::string, StatedPeriphery>;

// The JSON object {node: {attribute: value}}. Throws Error where it is something else.
PeripheryOption ReadPeripheryOption(const std::string& where, const std::string& text);

// A node's array: its bit lines, and `depth` steps of `rows_per_step` word lines each.
struct ArrayShape {
  Index columns;
  Index depth;
  Index rows_per_step;
};

// The periphery of a node whose W_max is `w_max`. What the option does not state of read noise and
// I-V curve is that of the device, as in a conversion. Throws Error as ReadPeriphery, and where the
// node has no entry, or a curve of the device and no range.
Periphery PeripheryOf(const PeripheryOption& option, const DeviceReads& reads, std::uint64_t seed,
                      const std::string& node, const ArrayShape& shape, std::vector<float> w_max);

// False where the node's window has more word lines than a tile: it then stays digital.
bool FitsTiles(const PeripheryOption& option, const std::string& node, Index rows_per_step);

}  // namespace rimc
