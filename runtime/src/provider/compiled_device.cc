// SPDX-License-Identifier: Apache-2.0
#include "provider/compiled_device.h"

#include <cstdint>
#include <limits>

#include "device/values.h"

namespace rimc {
namespace {

float FloatOf(const std::string& where, const Json& json) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(NumberOf(where, json, -kMost, kMost));
}

std::int64_t WholeOf(const std::string& where, const Json& json) {
  const bool negative = json.text.compare(0, 1, "-") == 0;
  std::uint64_t size = 0;
  const std::uint64_t most = (std::uint64_t{1} << 63) - (negative ? 0 : 1);
  if (json.kind != Json::Kind::kNumber ||
      !ReadDigits(json.text.substr(negative ? 1 : 0), most, &size)) {
    Refuse(where, " must be a whole number of 64 bits with a sign");
  }
  return static_cast<std::int64_t>(negative ? std::uint64_t{0} - size : size);
}

AttributeType TypeOf(const std::string& where, const std::string& text) {
  if (text == "int") return AttributeType::kInt;
  if (text == "float") return AttributeType::kFloat;
  if (text == "floats") return AttributeType::kFloats;
  Refuse(where, " has the unknown type '", text, "'");
}

DeviceReads ReadReads(const std::string& where, const CompiledDevice& device, const Json& json) {
  Fields fields(where, json);
  DeviceReads reads;
  reads.what = fields.Text("what");
  for (const auto& [name, value] : fields.Object("attributes").fields) {
    const auto type = device.types.find(name);
    if (type == device.types.end() || type->second == AttributeType::kInt) {
      Refuse(fields.Where(name), " is no attribute that a device can bring");
    }
    std::vector<double> values;
    if (value.kind != Json::Kind::kList) values.push_back(NumberOf(fields.Where(name), value));
    for (const Json& item : value.items) values.push_back(NumberOf(fields.Where(name), item));
    reads.floats.emplace_back(name, std::move(values));
  }
  const Json& needs = fields.Get("needs");
  for (const Json& name : needs.items) reads.needs.push_back(name.text);
  fields.Finish();
  return reads;
}

}  // namespace

void SetAttribute(const std::string& where, const std::string& name, AttributeType type,
                  const Json& value, Attributes* attributes) {
  if (type == AttributeType::kInt) {
    attributes->SetInt(name, WholeOf(where, value));
  } else if (type == AttributeType::kFloat || value.kind == Json::Kind::kNumber) {
    attributes->SetFloats(name, {FloatOf(where, value)});
  } else if (value.kind == Json::Kind::kList && !value.items.empty()) {
    std::vector<float> values;
    for (const Json& item : value.items) values.push_back(FloatOf(where, item));
    attributes->SetFloats(name, std::move(values));
  } else {
    Refuse(where, " must be a number or a list of them");
  }
}

CompiledDevice ReadCompiledDevice(const std::string& where, std::string_view bytes) {
  const TableFile file = ReadTableFile(where, bytes);
  Fields fields(where, file.values);
  CompiledDevice device;
  device.name = fields.Text("device");
  fields.Number("time_s");  // for people
  device.has_error = fields.Flag("has_error");
  const std::string& scaling = fields.Text("scaling");
  if (scaling != "node" && scaling != "column") {
    Refuse(fields.Where("scaling"), " '", scaling, "' is not known");
  }
  device.by_column = scaling == "column";
  device.clip_sigma = fields.Number("clip_sigma", 0.0);
  device.timed = ReadLaw(fields.Where("law"), file, fields.Get("law"));
  for (const auto& [name, attribute] : fields.Object("attributes").fields) {
    if (attribute.fields.size() != 1) Refuse(fields.Where(name), " must have one type");
    const auto& [type, value] = attribute.fields.front();
    device.types[name] = TypeOf(fields.Where(name), type);
    SetAttribute(fields.Where(name), name, device.types[name], value, &device.ideal);
  }
  for (const Json& reads : fields.Get("reads").items) {
    device.reads.push_back(ReadReads(fields.Where("reads"), device, reads));
  }
  fields.Finish();
  return device;
}

}  // namespace rimc
