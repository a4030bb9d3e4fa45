// SPDX-License-Identifier: Apache-2.0
#include "provider/periphery_option.h"

#include <cstdint>
#include <limits>
#include <utility>

#include "device/json.h"
#include "device/values.h"

namespace rimc {
namespace {

constexpr const char* kInts[] = {"tile_rows",       "num_tiles", "dac_bits",           "dac_signed",
                                 "dac_serial_bits", "adc_bits",  "read_noise_relative"};
constexpr const char* kFloats[] = {"dac_range", "iv_sinh", "input_shrink", "read_noise"};
constexpr const char* kLists[] = {"adc_range", "adc_gain", "adc_offset",
                                  "iv_square", "iv_cube",  "read_noise_curve"};
constexpr const char* kReadKey = "read_key";

template <class Names>
bool IsOneOf(const Names& names, const std::string& name) {
  for (const char* candidate : names) {
    if (name == candidate) return true;
  }
  return false;
}

// Everything ideal, one array of any height.
Attributes Ideal() {
  Attributes ideal;
  for (const char* name : kInts) ideal.SetInt(name, std::int64_t{0});
  ideal.SetInt("dac_signed", std::int64_t{1});
  ideal.SetInt(kReadKey, std::int64_t{0});
  ideal.SetFloats("dac_range", {1.0f});
  ideal.SetFloats("iv_sinh", {0.0f});
  ideal.SetFloats("input_shrink", {1.0f});
  ideal.SetFloats("iv_square", std::vector<float>(kIvTerms, 0.0f));
  ideal.SetFloats("iv_cube", std::vector<float>(kIvTerms, 0.0f));
  ideal.SetFloats("read_noise", {0.0f});
  ideal.SetFloats("read_noise_curve", {0.0f});
  ideal.SetFloats("adc_range", {1.0f});
  ideal.SetFloats("adc_gain", {1.0f});
  ideal.SetFloats("adc_offset", {0.0f});
  return ideal;
}

float ReadFloat(const std::string& where, const Json& json) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (json.kind != Json::Kind::kNumber) Refuse(where, " must be a number");
  return static_cast<float>(ReadNumber(where, json.text, -kMost, kMost));
}

// Two words, as an attribute of a file has them: a number of 64 bits with a sign.
std::int64_t ReadKey(const std::string& where, const Json& json) {
  const bool negative = json.text.compare(0, 1, "-") == 0;
  std::uint64_t size = 0;
  const std::uint64_t most = (std::uint64_t{1} << 63) - (negative ? 0 : 1);
  if (json.kind != Json::Kind::kNumber ||
      !ReadDigits(json.text.substr(negative ? 1 : 0), most, &size)) {
    Refuse(where, " must be a whole number of 64 bits with a sign");
  }
  return static_cast<std::int64_t>(negative ? std::uint64_t{0} - size : size);
}

void SetAttribute(const std::string& where, const std::string& name, const Json& json,
                  Attributes* attributes) {
  if (IsOneOf(kInts, name)) {
    if (json.kind != Json::Kind::kNumber) Refuse(where, " must be a number");
    constexpr int kMost = std::numeric_limits<int>::max();
    attributes->SetInt(name, std::int64_t{ReadWhole(where, json.text, 0, kMost)});
  } else if (name == kReadKey) {
    attributes->SetInt(name, ReadKey(where, json));
  } else if (IsOneOf(kFloats, name) ||
             (IsOneOf(kLists, name) && json.kind == Json::Kind::kNumber)) {
    attributes->SetFloats(name, {ReadFloat(where, json)});
  } else if (IsOneOf(kLists, name)) {
    if (json.kind != Json::Kind::kList || json.items.empty()) {
      Refuse(where, " must be a number or a list of them");
    }
    std::vector<float> values;
    for (const Json& item : json.items) values.push_back(ReadFloat(where, item));
    attributes->SetFloats(name, std::move(values));
  } else {
    Refuse(where, " is no attribute of an array's periphery");
  }
}

const StatedPeriphery* Find(const PeripheryOption& option, const std::string& node) {
  auto found = option.find(node);
  if (found == option.end()) found = option.find("*");
  return found == option.end() ? nullptr : &found->second;
}

void NoteStated(const std::string& name, const Json& value, StatedPeriphery* stated) {
  stated->has_range = stated->has_range || name == "dac_range";
  stated->has_noise = stated->has_noise || name == "read_noise" || name == "read_noise_curve";
  stated->has_key = stated->has_key || name == kReadKey;
  stated->has_curve =
      stated->has_curve || name == "iv_sinh" || name == "iv_square" || name == "iv_cube";
  if (name == "input_shrink" && value.kind == Json::Kind::kNumber) {
    stated->input_shrink = ReadNumber(name, value.text, 0.0, std::numeric_limits<float>::max());
  }
}

// The I-V curve of the device, as attributes.
void SetCurve(const DeviceReads& reads, const StatedPeriphery& stated, Attributes* attributes) {
  if (!stated.has_range) {
    Refuse("the I-V curve of '", reads.model,
           "' needs dac_range, the range of this node's inputs. State it, or set the option "
           "device_reads to 0");
  }
  if (!reads.iv_polynomial) {
    attributes->SetFloats("iv_sinh", {static_cast<float>(reads.iv_sinh)});
    return;
  }
  if (reads.num_slices > 1) {
    Refuse("the iv_polynomial of '", reads.model,
           "' needs whole weights on a pair of devices, got num_slices ", reads.num_slices);
  }
  IvCurves curves = WeightCurves(reads, stated.input_shrink);
  attributes->SetFloats("iv_square", std::move(curves.square));
  attributes->SetFloats("iv_cube", std::move(curves.cube));
}

}  // namespace

PeripheryOption ReadPeripheryOption(const std::string& where, const std::string& text) {
  const Json json = ParseJson(where, text);
  if (json.kind != Json::Kind::kObject || json.fields.empty()) {
    Refuse(where, " must be an object of nodes' attributes");
  }
  PeripheryOption option;
  for (const auto& [node, values] : json.fields) {
    if (values.kind != Json::Kind::kObject) {
      Refuse(where, ": '", node, "' must be an object of attributes");
    }
    StatedPeriphery stated{Ideal()};
    for (const auto& [name, value] : values.fields) {
      SetAttribute(where + ": '" + node + "': " + name, name, value, &stated.attributes);
      NoteStated(name, value, &stated);
    }
    if (stated.has_key && node == "*") {
      Refuse(where, ": '*': read_key must be of one node. Leave it out: it follows from the seed");
    }
    option.emplace(node, std::move(stated));
  }
  return option;
}

Periphery PeripheryOf(const PeripheryOption& option, const DeviceReads& reads, std::uint64_t seed,
                      const std::string& node, const ArrayShape& shape, std::vector<float> w_max) {
  if (option.empty() && !reads.Any()) return {};
  const StatedPeriphery ideal{Ideal()};
  const StatedPeriphery* const found = option.empty() ? &ideal : Find(option, node);
  if (found == nullptr) {
    Refuse("option periphery: no entry of its name, and none of '*'");
  }
  Attributes attributes = found->attributes;
  attributes.SetFloats("w_max", std::move(w_max));
  if (attributes.Int("num_tiles") == 0) {
    const Index steps = attributes.Int("tile_rows") / shape.rows_per_step;
    attributes.SetInt("num_tiles", std::int64_t{steps == 0 ? 1 : CeilDiv(shape.depth, steps)});
  }
  try {
    if (reads.HasNoise() && !found->has_noise) {
      NoiseAttributes noise = NoiseOf(reads);
      attributes.SetFloats("read_noise", {noise.read_noise});
      attributes.SetFloats("read_noise_curve", std::move(noise.curve));
      attributes.SetInt("read_noise_relative", std::int64_t{0});
    }
    if (!found->has_key) attributes.SetInt(kReadKey, ReadKeyOf(seed, node));
    if (reads.HasCurve() && !found->has_curve) SetCurve(reads, *found, &attributes);
    return ReadPeriphery(attributes, shape.columns, shape.depth, shape.rows_per_step);
  } catch (const Error& error) {
    Refuse("option periphery: ", error.what());
  }
}

bool FitsTiles(const PeripheryOption& option, const std::string& node, Index rows_per_step) {
  const StatedPeriphery* const found = Find(option, node);
  const Index tile_rows = found == nullptr ? 0 : found->attributes.Int("tile_rows");
  return tile_rows == 0 || tile_rows >= rows_per_step;
}

}  // namespace rimc
