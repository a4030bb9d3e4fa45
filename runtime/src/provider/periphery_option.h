// SPDX-License-Identifier: Apache-2.0
//
// What surrounds the arrays of an ordinary model's nodes: the attributes that crossbars of a
// converted model have, by the name of the node.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "crossbar/periphery.h"
#include "provider/compiled_device.h"

namespace rimc {

// A node's array: its bit lines, and `depth` steps of `rows_per_step` word lines each.
struct ArrayShape {
  Index columns;
  Index depth;
  Index rows_per_step;
};

class PeripheryOption {
 public:
  PeripheryOption() = default;
  // `text` is the JSON object {node: {attribute: value}}, where "*" is every node that is not
  // named; empty: everything is ideal, but for the reads of the device, unless they are to be ideal
  // too. Throws Error that begins with `where` where it is something else.
  PeripheryOption(const std::string& where, const CompiledDevice& device, bool device_reads,
                  const std::string& text);

  // The periphery of a node whose W_max is `w_max`. What the option does not state of the device's
  // reads is the device's, as in a conversion. Throws Error as ReadPeriphery, and where the node
  // has no entry, or reads of the device need what its entry does not state.
  Periphery Of(std::uint64_t seed, const std::string& node, const ArrayShape& shape,
               std::vector<float> w_max) const;

  // Word lines of a node's tiles, 0 where they have no limit.
  Index TileRows(const std::string& node) const;

 private:
  // What is stated of one node; the other attributes are ideal.
  struct Stated {
    Attributes attributes;
    std::set<std::string> names;
    double input_shrink = 1.0;  // before it is an attribute, a float
  };

  Stated ReadNode(const std::string& where, const CompiledDevice& device, const Json& values) const;
  const Stated* Find(const std::string& node) const;
  void SetReads(const DeviceReads& reads, const Stated& stated, Attributes* attributes) const;

  std::string device_;  // name of the device model
  std::vector<DeviceReads> reads_;
  std::map<std::string, Stated> nodes_;
  bool is_stated_ = false;
};

}  // namespace rimc
