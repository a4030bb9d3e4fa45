// SPDX-License-Identifier: Apache-2.0
#include "provider/options.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <limits>
#include <sstream>

#include "device/json.h"
#include "device/values.h"
#include "ort/ort.h"

namespace rimc {
namespace {

constexpr const char* kWhere = "provider option ";
constexpr const char* kKnown = "preset, device, mapping, seed, keep_digital, device_reads, periphery";
constexpr std::size_t kMostDeviceBytes = std::size_t{1} << 24;
constexpr std::size_t kMostText = std::size_t{1} << 30;

bool IsKnown(const std::string& name) {
  std::istringstream known(kKnown);
  for (std::string word; std::getline(known >> std::ws, word, ',');) {
    if (word == name) return true;
  }
  return false;
}

std::uint64_t Seed(const std::string& text) {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t value = 0;
  if (!ReadDigits(text, kMost, &value)) {
    Refuse("provider option seed must lie in 0..2^63-1, got '", text, "'");
  }
  return value;
}

// The folder that this library was loaded from, with a separator behind it.
std::string LibraryFolder() {
  static const char kHere = 0;
  std::string path;
#if defined(_WIN32)
  constexpr DWORD kWanted =
      GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  HMODULE library = nullptr;
  char name[MAX_PATH] = {};
  if (GetModuleHandleExA(kWanted, &kHere, &library) != 0) {
    path.assign(name, GetModuleFileNameA(library, name, MAX_PATH));
  }
#else
  Dl_info library{};
  if (dladdr(&kHere, &library) != 0 && library.dli_fname != nullptr) path = library.dli_fname;
#endif
  const std::size_t last = path.find_last_of("/\\");
  return last == std::string::npos ? "" : path.substr(0, last + 1);
}

// A compiled device beside the library.
CompiledDevice FindPreset(const std::string& name) {
  const std::string where = kWhere + std::string("preset");
  if (name.empty() || name.find_first_of("/\\") != std::string::npos) {
    Refuse(where, " must be the name of a device model, got '", name, "'");
  }
  const std::string path = LibraryFolder() + "devices/" + name + ".rimcdev";
  std::string bytes;
  try {
    bytes = ReadFile(where, path, kMostDeviceBytes);
  } catch (const Error&) {
    Refuse(where, ": no device '", name, "' lies beside the library ('", path,
           "'). rimc-onnx devices lists the presets; -o FILE compiles one of your own for "
           "device=@FILE");
  }
  return ReadCompiledDevice(where + ": '" + path + "'", bytes);
}

CompiledDevice ReadDevice(const std::string& text) {
  const std::string where = kWhere + std::string("device");
  if (text.compare(0, 1, "@") != 0) {
    Refuse(where, " must be @ and the path of a compiled device. rimc-onnx devices NAME -o FILE ",
           "writes one");
  }
  const std::string path = text.substr(1);
  return ReadCompiledDevice(where + ": '" + path + "'", ReadFile(where, path, kMostDeviceBytes));
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

}  // namespace

std::optional<DeviceOptions> ParseOptions(const KeyValues& options) {
  for (const auto& [name, value] : options) {
    if (!IsKnown(name)) {
      Refuse(kWhere, "'", name, "' is not known. Known: ", kKnown,
             ". Parameters of a device and its time are those of a compiled one: ",
             "rimc-onnx devices NAME --time TIME -o FILE");
    }
  }
  const auto find = [&](const char* wanted) -> const std::string* {
    for (const auto& [name, value] : options) {
      if (name == wanted) return &value;
    }
    return nullptr;
  };
  const std::string* const preset = find("preset");
  const std::string* const compiled = find("device");
  if (preset == nullptr && compiled == nullptr) {
    if (options.empty()) return std::nullopt;
    Refuse(kWhere, options.front().first, " needs the option preset");
  }
  if (preset != nullptr && compiled != nullptr) {
    Refuse("provider options preset and device exclude each other");
  }
  DeviceOptions device;
  device.device = preset != nullptr ? FindPreset(*preset) : ReadDevice(*compiled);
  device.mapping = {device.device.by_column, device.device.clip_sigma};
  if (const std::string* seed = find("seed")) device.seed = Seed(*seed);
  if (const std::string* patterns = find("keep_digital")) device.keep_digital = Split(*patterns);
  if (const std::string* mapping = find("mapping")) {
    const std::string where = kWhere + std::string("mapping");
    device.node_mappings = NodeMappings(
        where, mapping->compare(0, 1, "@") == 0 ? ReadFile(where, mapping->substr(1), kMostText)
                                                : *mapping,
        device.mapping);
  }
  const std::string* const reads = find("device_reads");
  if (reads != nullptr && *reads != "0" && *reads != "1") {
    Refuse(kWhere, "device_reads must be 0 or 1, got '", *reads, "'");
  }
  const std::string where = kWhere + std::string("periphery");
  const std::string* const stated = find("periphery");
  std::string periphery = stated == nullptr ? "" : *stated;
  if (periphery.compare(0, 1, "@") == 0) {
    periphery = ReadFile(where, periphery.substr(1), kMostText);
  }
  if (stated != nullptr && periphery.empty()) Refuse(where, " is empty");
  device.periphery =
      PeripheryOption(where, device.device, reads == nullptr || *reads == "1", periphery);
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
