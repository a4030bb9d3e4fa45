// SPDX-License-Identifier: Apache-2.0
//
// A device model at one time since programming, as rimc_onnx.crossbar.compiled_device writes it:
// what the provider knows of a device.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/cell_law.h"
#include "ort/attributes.h"

namespace rimc {

enum class AttributeType { kInt, kFloat, kFloats };

// Effects of the devices in every read, as attributes that go together: a node that states
// one of them has none of them of the device.
struct DeviceReads {
  std::string what;                // read noise, or I-V curve
  std::vector<std::string> needs;  // attributes that a node has to state with it
  std::vector<std::pair<std::string, std::vector<double>>> floats;
};

struct CompiledDevice {
  std::string name;  // of the device model
  TimedLaw timed;
  bool has_error = true;    // else devices hold their targets exactly
  bool by_column = false;   // one W_max per column
  double clip_sigma = 0.0;  // 0: no weight is clipped
  // Attributes of a crossbar's periphery, with their types and what they are where all is ideal.
  std::map<std::string, AttributeType> types;
  Attributes ideal;
  std::vector<DeviceReads> reads;
};

// Throws Error that begins with `where`.
CompiledDevice ReadCompiledDevice(const std::string& where, std::string_view bytes);

// Sets an attribute to a value of its type. Throws Error that begins with `where`.
void SetAttribute(const std::string& where, const std::string& name, AttributeType type,
                  const Json& value, Attributes* attributes);

}  // namespace rimc
