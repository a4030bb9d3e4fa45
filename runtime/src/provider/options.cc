// SPDX-License-Identifier: Apache-2.0
#include "provider/options.h"

#include <cmath>
#include <limits>
#include <locale>
#include <sstream>

#include "ops/common/ort.h"

namespace rimc {
namespace {

enum class Law { kRelative, kAbsolute };

// rimc_onnx/device/presets.py has the sources of the numbers.
struct Preset {
  const char* name;
  Law law;
  double drift_frac;
};
constexpr Preset kPresets[] = {
    {"gaussian-relative", Law::kRelative, 0.20},
    {"gaussian-absolute", Law::kAbsolute, 0.08},
};
constexpr double kGMaxUs = 40.0;
constexpr double kGMinUs = 0.0;

constexpr const char* kKnown[] = {"preset",   "drift_frac",  "drift_mean_frac",
                                  "g_max_us", "g_min_us",    "scaling",
                                  "seed",     "keep_digital"};

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

const Preset& FindPreset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return preset;
  }
  Refuse("provider option preset must be one of ",
         List(kPresets, [](const Preset& p) { return p.name; }), ", got '", name, "'");
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ';');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

}  // namespace

std::optional<DeviceOptions> ParseOptions(const KeyValues& options) {
  const std::string* preset_name = nullptr;
  for (const auto& [name, value] : options) {
    bool known = false;
    for (const char* candidate : kKnown) known = known || name == candidate;
    if (!known) {
      Refuse("provider option '", name,
             "' is not known. Known: ", List(kKnown, [](const char* n) { return n; }));
    }
    if (name == "preset") preset_name = &value;
  }
  if (preset_name == nullptr) {
    if (options.empty()) return std::nullopt;
    Refuse("provider option ", options.front().first, " needs the option preset");
  }

  const Preset& preset = FindPreset(*preset_name);
  DeviceOptions device;
  device.law.drift_frac = preset.drift_frac;
  device.law.g_max_us = kGMaxUs;
  device.law.g_min_us = kGMinUs;
  for (const auto& [name, value] : options) {
    constexpr double kMost = std::numeric_limits<float>::max();
    if (name == "drift_frac") device.law.drift_frac = Number(name, value, 0.0, 1.0);
    if (name == "drift_mean_frac") device.law.drift_mean_frac = Number(name, value, -1.0, 1.0);
    if (name == "g_max_us") device.law.g_max_us = Number(name, value, 0.0, kMost);
    if (name == "g_min_us") device.law.g_min_us = Number(name, value, 0.0, kMost);
    if (name == "seed") device.seed = Seed(value);
    if (name == "keep_digital") device.keep_digital = Split(value);
    if (name == "scaling") {
      if (value != "node" && value != "column") {
        Refuse("provider option scaling must be node or column, got '", value, "'");
      }
      device.by_column = value == "column";
    }
  }
  if (device.law.g_min_us >= device.law.g_max_us) {
    Refuse("provider options g_min_us and g_max_us must be 0 <= g_min_us < g_max_us, got ",
           device.law.g_min_us, " and ", device.law.g_max_us);
  }
  device.law.reference_slope = preset.law == Law::kRelative ? 1.0 : 0.0;
  device.law.reference_us = preset.law == Law::kRelative ? 0.0 : device.law.g_max_us;
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
