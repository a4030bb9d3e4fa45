// SPDX-License-Identifier: Apache-2.0
#include "provider/options.h"

#include <limits>

#include "device/json.h"
#include "device/model_json.h"
#include "device/values.h"
#include "ort/ort.h"

namespace rimc {
namespace {

constexpr const char* kKnown[] = {"preset",
                                  "device",
                                  "time_s",
                                  "drift_frac",
                                  "drift_mean_frac",
                                  "g_max_us",
                                  "g_min_us",
                                  "clip_sigma",
                                  "stuck_min_frac",
                                  "stuck_max_frac",
                                  "level_bits",
                                  "num_slices",
                                  "devices_per_weight",
                                  "scaling",
                                  "mapping",
                                  "seed",
                                  "keep_digital",
                                  "device_reads",
                                  "periphery"};
constexpr const char* kWhere = "provider option ";

template <class Names, class NameOf>
std::string List(const Names& names, const NameOf& name_of) {
  std::string list;
  for (const auto& entry : names) list += (list.empty() ? "" : ", ") + std::string(name_of(entry));
  return list;
}

std::uint64_t Seed(const std::string& text) {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t value = 0;
  if (!ReadDigits(text, kMost, &value)) {
    Refuse("provider option seed must lie in 0..2^63-1, got '", text, "'");
  }
  return value;
}

DeviceModel FindPreset(const std::string& name) {
  const std::vector<DeviceModel> presets = Presets();
  for (const DeviceModel& preset : presets) {
    if (name == preset.name) return preset;
  }
  Refuse("provider option preset must be one of ",
         List(presets, [](const DeviceModel& p) { return p.name; }), ", got '", name, "'");
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(';', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool IsByColumn(const std::string& where, const std::string& scaling) {
  if (scaling != "node" && scaling != "column") {
    Refuse(where, "scaling must be node or column, got '", scaling, "'");
  }
  return scaling == "column";
}

// The JSON object {node: {"scaling": .., "clip_sigma": ..}}; what is left out is of `all`.
std::map<std::string, ArrayMapping> NodeMappings(const std::string& where, const std::string& text,
                                                 const ArrayMapping& all) {
  const Json json = ParseJson(where, text);
  if (json.kind != Json::Kind::kObject) Refuse(where, " must be an object of nodes' mappings");
  std::map<std::string, ArrayMapping> mappings;
  for (const auto& [node, values] : json.fields) {
    const std::string of_node = where + ": '" + node + "': ";
    if (values.kind != Json::Kind::kObject) Refuse(of_node, "must be an object");
    ArrayMapping mapping = all;
    for (const auto& [name, value] : values.fields) {
      if (name == "scaling") {
        mapping.by_column = IsByColumn(of_node, value.text);
      } else if (name == "clip_sigma" && value.kind == Json::Kind::kNull) {
        mapping.clip_sigma = 0.0;
      } else if (name == "clip_sigma" && value.kind == Json::Kind::kNumber) {
        constexpr double kLeast = std::numeric_limits<double>::min();
        constexpr double kMost = std::numeric_limits<float>::max();
        mapping.clip_sigma = ReadNumber(of_node + name, value.text, kLeast, kMost);
      } else {
        Refuse(of_node, name, " is no scaling and no number or null of clip_sigma");
      }
    }
    mappings.emplace(node, mapping);
  }
  return mappings;
}

// The time that the law is read at: `text`, or the first one.
double ResolveTime(const DeviceModel& model, const std::string* text) {
  constexpr double kMostS = 1e12;
  const auto range = TimeRange(model);
  if (text == nullptr) return range ? range->first : 0.0;
  const double time_s = RoundTime(ReadNumber("provider option time_s", *text, 0.0, kMostS));
  if (!range) Refuse("provider option time_s: preset '", model.name, "' has no time axis");
  if (time_s < range->first || time_s > range->second) {
    Refuse("provider option time_s: the law of '", model.name, "' holds for ", range->first, " .. ",
           range->second, " seconds, got ", *text);
  }
  return time_s;
}

}  // namespace

std::optional<DeviceOptions> ParseOptions(const KeyValues& options) {
  for (const auto& [name, value] : options) {
    bool known = false;
    for (const char* candidate : kKnown) known = known || name == candidate;
    if (!known) {
      Refuse(kWhere, "'", name,
             "' is not known. Known: ", List(kKnown, [](const char* n) { return n; }));
    }
  }
  const auto find = [&](const char* wanted) -> const std::string* {
    for (const auto& [name, value] : options) {
      if (name == wanted) return &value;
    }
    return nullptr;
  };
  const std::string* const preset = find("preset");
  const std::string* const model_json = find("device");
  if (preset == nullptr && model_json == nullptr) {
    if (options.empty()) return std::nullopt;
    Refuse(kWhere, options.front().first, " needs the option preset");
  }
  if (preset != nullptr && model_json != nullptr) {
    Refuse("provider options preset and device exclude each other");
  }

  DeviceModel model = preset != nullptr
                          ? FindPreset(*preset)
                          : ReadModel("provider option device",
                                      ReadTextOrFile("provider option device", *model_json));
  DeviceOptions device;
  bool device_reads = true;
  for (const auto& [name, value] : options) {
    SetNumber(kWhere, name, value, &model);
    if (name == "seed") device.seed = Seed(value);
    if (name == "keep_digital") device.keep_digital = Split(value);
    if (name == "periphery") {
      const std::string where = kWhere + name;
      device.periphery = ReadPeripheryOption(where, ReadTextOrFile(where, value));
    }
    if (name == "device_reads") {
      if (value != "0" && value != "1") {
        Refuse(kWhere, "device_reads must be 0 or 1, got '", value, "'");
      }
      device_reads = value == "1";
    }
    if (name == "scaling") model.by_column = IsByColumn(kWhere, value);
  }
  CheckModel("provider options ", model);
  const double time_s = ResolveTime(model, find("time_s"));
  device.timed = MakeLaw(model, time_s);
  device.has_error = HasError(model);
  device.mapping = {model.by_column, model.clip_sigma};
  if (const std::string* const mapping = find("mapping")) {
    const std::string where = std::string(kWhere) + "mapping";
    device.node_mappings = NodeMappings(where, ReadTextOrFile(where, *mapping), device.mapping);
  }
  if (device_reads) device.reads = ReadsOf(model, time_s);
  return device;
}

const ArrayMapping& DeviceOptions::MappingOf(const std::string& node) const {
  const auto found = node_mappings.find(node);
  return found == node_mappings.end() ? mapping : found->second;
}

bool MatchesPattern(const std::string& pattern, const std::string& text) {
  // The last star takes as little as it can; what comes before it is settled.
  std::size_t p = 0, t = 0;
  std::size_t star = std::string::npos, taken = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      taken = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string::npos) {
      p = star + 1;
      t = ++taken;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace rimc
