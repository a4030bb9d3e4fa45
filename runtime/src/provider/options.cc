// SPDX-License-Identifier: Apache-2.0
#include "provider/options.h"

#include <cmath>
#include <limits>
#include <locale>
#include <sstream>

#include "ops/common/ort.h"

namespace rimc {
namespace {

constexpr const char* kKnown[] = {
    "preset",     "time_s",      "drift_frac",         "drift_mean_frac",
    "g_max_us",   "g_min_us",    "stuck_min_frac",     "stuck_max_frac",
    "level_bits", "num_slices",  "devices_per_weight", "scaling",
    "seed",       "keep_digital"};

template <class Names, class NameOf>
std::string List(const Names& names, const NameOf& name_of) {
  std::string list;
  for (const auto& entry : names) list += (list.empty() ? "" : ", ") + std::string(name_of(entry));
  return list;
}

// A decimal number and nothing else, whatever the locale.
double Number(const std::string& name, const std::string& text, double least, double most) {
  std::istringstream in(text);
  in.imbue(std::locale::classic());
  double value = 0.0;
  const bool plain = text.find_first_not_of("+-.0123456789eE") == std::string::npos;
  if (!plain || !(in >> value) || in.peek() != std::istringstream::traits_type::eof() ||
      !std::isfinite(value)) {
    Refuse("provider option ", name, " must be a number, got '", text, "'");
  }
  if (value < least || value > most) {
    Refuse("provider option ", name, " must lie in ", least, "..", most, ", got ", text);
  }
  return value;
}

std::uint64_t Seed(const std::string& text) {
  constexpr std::uint64_t kMost =
      static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t value = 0;
  bool good = !text.empty();
  for (const char c : text) {
    const auto digit = static_cast<std::uint64_t>(c - '0');
    good = good && c >= '0' && c <= '9' && value <= (kMost - digit) / 10;
    if (!good) break;
    value = 10 * value + digit;
  }
  if (!good) Refuse("provider option seed must lie in 0..2^63-1, got '", text, "'");
  return value;
}

int Whole(const std::string& name, const std::string& text, int least, int most) {
  const double value = Number(name, text, least, most);
  if (value != std::floor(value)) {
    Refuse("provider option ", name, " must be a whole number, got ", text);
  }
  return static_cast<int>(value);
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
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ';');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

// What the options say of the devices; others are left alone.
void SetModel(const std::string& name, const std::string& value, DeviceModel* model) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (name == "drift_frac") model->drift_frac = Number(name, value, 0.0, 1.0);
  if (name == "drift_mean_frac") model->drift_mean_frac = Number(name, value, -1.0, 1.0);
  if (name == "g_max_us") model->g_max_us = Number(name, value, 0.0, kMost);
  if (name == "g_min_us") model->g_min_us = Number(name, value, 0.0, kMost);
  if (name == "stuck_min_frac") model->stuck_min_frac = Number(name, value, 0.0, 1.0);
  if (name == "stuck_max_frac") model->stuck_max_frac = Number(name, value, 0.0, 1.0);
  if (name == "level_bits") model->level_bits = Whole(name, value, 1, 12);
  if (name == "num_slices") model->num_slices = Whole(name, value, 1, 8);
  if (name == "devices_per_weight") model->devices_per_weight = Whole(name, value, 1, 64);
}

// What the numbers have to be together: as DeviceConfig checks it.
void CheckModel(const DeviceModel& model) {
  if (model.g_min_us >= model.g_max_us) {
    Refuse("provider options g_min_us and g_max_us must be 0 <= g_min_us < g_max_us, got ",
           model.g_min_us, " and ", model.g_max_us);
  }
  if (model.programming_sigma_us && (model.drift_frac != 0.0 || model.drift_mean_frac != 0.0)) {
    Refuse("provider options drift_frac and drift_mean_frac must be 0 with preset '", model.name,
           "', whose error is measured");
  }
  if (model.g_range_us) {
    const auto [low, high] = *model.g_range_us;
    const double top = model.g_min_us + model.g_max_us;
    const double slack = 1e-9 * high;
    if (model.g_min_us < low - slack || top > high + slack) {
      Refuse("provider options g_min_us and g_max_us: the law of '", model.name, "' holds for ",
             low, " .. ", high, " microsiemens, but devices would be set to ", model.g_min_us,
             " .. ", top);
    }
  }
  if (model.stuck_min_frac + model.stuck_max_frac > 1.0) {
    Refuse("provider options stuck_min_frac + stuck_max_frac must be 1 or less, got ",
           model.stuck_min_frac, " and ", model.stuck_max_frac);
  }
  if (model.num_slices > 1 && model.level_bits == 0) {
    Refuse("provider option num_slices needs level_bits: the bits that one device holds");
  }
  if (model.level_bits * model.num_slices > 24) {
    Refuse("provider options num_slices * level_bits must be 24 or less, got ", model.num_slices,
           " * ", model.level_bits);
  }
}

// The time that the law is read at: `text`, or the first one.
double ResolveTime(const DeviceModel& model, const std::string* text) {
  constexpr double kMostS = 1e12;
  const auto range = TimeRange(model);
  if (text == nullptr) return range ? range->first : 0.0;
  const double time_s = RoundTime(Number("time_s", *text, 0.0, kMostS));
  if (!range) Refuse("provider option time_s: preset '", model.name, "' has no time axis");
  if (time_s < range->first || time_s > range->second) {
    Refuse("provider option time_s: the law of '", model.name, "' holds for ", range->first, " .. ",
           range->second, " seconds, got ", *text);
  }
  return time_s;
}

}  // namespace

std::optional<DeviceOptions> ParseOptions(const KeyValues& options) {
  const std::string* preset_name = nullptr;
  const std::string* time_text = nullptr;
  for (const auto& [name, value] : options) {
    bool known = false;
    for (const char* candidate : kKnown) known = known || name == candidate;
    if (!known) {
      Refuse("provider option '", name,
             "' is not known. Known: ", List(kKnown, [](const char* n) { return n; }));
    }
    if (name == "preset") preset_name = &value;
    if (name == "time_s") time_text = &value;
  }
  if (preset_name == nullptr) {
    if (options.empty()) return std::nullopt;
    Refuse("provider option ", options.front().first, " needs the option preset");
  }

  DeviceModel model = FindPreset(*preset_name);
  DeviceOptions device;
  for (const auto& [name, value] : options) {
    SetModel(name, value, &model);
    if (name == "seed") device.seed = Seed(value);
    if (name == "keep_digital") device.keep_digital = Split(value);
    if (name == "scaling") {
      if (value != "node" && value != "column") {
        Refuse("provider option scaling must be node or column, got '", value, "'");
      }
      device.by_column = value == "column";
    }
  }
  CheckModel(model);
  device.timed = MakeLaw(model, ResolveTime(model, time_text));
  device.has_error = HasError(model);
  return device;
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
