// SPDX-License-Identifier: Apache-2.0
#include "provider/periphery_option.h"

#include <algorithm>
#include <utility>

#include "program/programming.h"

namespace rimc {
namespace {

constexpr const char* kEveryNode = "*";
constexpr const char* kReadKey = "read_key";

// What has no meaning without a range, and that range.
constexpr std::pair<const char*, const char*> kNeedsRange[] = {
    {"dac_bits", "dac_range"}, {"iv_sinh", "dac_range"}, {"iv_square", "dac_range"},
    {"iv_cube", "dac_range"},  {"adc_bits", "adc_range"},
};

bool IsZero(const Json& value) { return value.kind == Json::Kind::kNumber && value.text == "0"; }

}  // namespace

PeripheryOption::PeripheryOption(const std::string& where, const CompiledDevice& device,
                                 bool device_reads, const std::string& text)
    : device_(device.name), is_stated_(!text.empty()) {
  if (device_reads) reads_ = device.reads;
  if (!is_stated_) {
    nodes_[kEveryNode].attributes = device.ideal;
    return;
  }
  const Json json = ParseJson(where, text);
  if (json.kind != Json::Kind::kObject || json.fields.empty()) {
    Refuse(where, " must be an object of nodes' attributes");
  }
  for (const auto& [node, values] : json.fields) {
    if (values.kind != Json::Kind::kObject) {
      Refuse(where, ": '", node, "' must be an object of attributes");
    }
    Stated stated = ReadNode(where + ": '" + node + "': ", device, values);
    if (node == kEveryNode && stated.names.count(kReadKey) != 0) {
      Refuse(where, ": '*': read_key must be of one node. Leave it out: it follows from the seed");
    }
    nodes_[node] = std::move(stated);
  }
}

PeripheryOption::Stated PeripheryOption::ReadNode(const std::string& where,
                                                  const CompiledDevice& device,
                                                  const Json& values) const {
  Stated stated;
  stated.attributes = device.ideal;
  for (const auto& [name, value] : values.fields) {
    const auto type = device.types.find(name);
    if (type == device.types.end()) {
      Refuse(where, name, " is no attribute of an array's periphery");
    }
    SetAttribute(where + name, name, type->second, value, &stated.attributes);
    stated.names.insert(name);
    if (name == "input_shrink") stated.input_shrink = NumberOf(where + name, value, 0.0);
  }
  for (const auto& [name, range] : kNeedsRange) {
    const Json* const value = values.Find(name);
    if (value == nullptr || IsZero(*value)) continue;
    if (stated.names.count(range) != 0) continue;
    Refuse(where, name, " needs ", range, ". State it, or let provider_options measure it");
  }
  return stated;
}

const PeripheryOption::Stated* PeripheryOption::Find(const std::string& node) const {
  auto found = nodes_.find(node);
  if (found == nodes_.end()) found = nodes_.find(kEveryNode);
  return found == nodes_.end() ? nullptr : &found->second;
}

void PeripheryOption::SetReads(const DeviceReads& reads, const Stated& stated,
                               Attributes* attributes) const {
  const auto is_stated = [&](const auto& entry) { return stated.names.count(entry.first) != 0; };
  if (std::any_of(reads.floats.begin(), reads.floats.end(), is_stated)) return;
  for (const std::string& name : reads.needs) {
    if (stated.names.count(name) != 0) continue;
    Refuse("the ", reads.what, " of '", device_, "' needs ", name,
           " of this node. State it, or set the option device_reads to 0");
  }
  for (const auto& [name, values] : reads.floats) {
    // Inputs that use a share of the voltage range see that of the terms of u^2, and its square of
    // those of u^3.
    const double share = stated.input_shrink;
    const double factor = name == "iv_square" ? share : name == "iv_cube" ? share * share : 1.0;
    std::vector<float> rounded;
    for (const double value : values) rounded.push_back(static_cast<float>(value * factor));
    attributes->SetFloats(name, std::move(rounded));
  }
}

Periphery PeripheryOption::Of(std::uint64_t seed, const std::string& node, const ArrayShape& shape,
                              std::vector<float> w_max) const {
  if (!is_stated_ && reads_.empty()) return {};
  const Stated* const stated = Find(node);
  if (stated == nullptr) {
    Refuse("option periphery: no entry of its name, and none of '*'");
  }
  Attributes attributes = stated->attributes;
  attributes.SetFloats("w_max", std::move(w_max));
  try {
    if (stated->names.count("num_tiles") == 0) {
      const Index tile_rows = attributes.Int("tile_rows");
      const Index steps = tile_rows / shape.rows_per_step;
      attributes.SetInt("num_tiles", std::int64_t{steps <= 0 ? 1 : CeilDiv(shape.depth, steps)});
    }
    if (stated->names.count(kReadKey) == 0) attributes.SetInt(kReadKey, ReadKeyOf(seed, node));
    for (const DeviceReads& reads : reads_) SetReads(reads, *stated, &attributes);
    Periphery periphery =
        ReadPeriphery(attributes, shape.columns, shape.depth, shape.rows_per_step);
    const std::string more = attributes.Unread();
    if (!more.empty()) Refuse("this library has no attribute ", more, ". Update it");
    return periphery;
  } catch (const Error& error) {
    Refuse("option periphery: ", error.what());
  }
}

Index PeripheryOption::TileRows(const std::string& node) const {
  const Stated* const stated = Find(node);
  return stated == nullptr ? 0 : stated->attributes.Int("tile_rows");
}

}  // namespace rimc
