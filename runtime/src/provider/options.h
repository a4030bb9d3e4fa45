// SPDX-License-Identifier: Apache-2.0
//
// The options of the provider, checked.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "provider/compiled_device.h"
#include "provider/periphery_option.h"

namespace rimc {

// Mapping of a node's weights to devices.
struct ArrayMapping {
  bool by_column = false;   // one W_max per column
  double clip_sigma = 0.0;  // 0: no weight is clipped
};

// Crossbars that nodes of an ordinary model are programmed into.
struct DeviceOptions {
  CompiledDevice device;
  ArrayMapping mapping;
  std::map<std::string, ArrayMapping> node_mappings;  // of nodes that have one of their own
  std::uint64_t seed = 0;
  std::vector<std::string> keep_digital;  // patterns of node names
  PeripheryOption periphery;

  const ArrayMapping& MappingOf(const std::string& node) const;
};

using KeyValues = std::vector<std::pair<std::string, std::string>>;

// The options of a session. Nothing where there is neither preset nor device: the provider then
// claims no node of an ordinary model. Throws Error that names the option where one is unknown or
// its value is bad.
std::optional<DeviceOptions> ParseOptions(const KeyValues& options);

// `*` stands for any text, `?` for any one character (byte).
bool MatchesPattern(const std::string& pattern, const std::string& text);

}  // namespace rimc
