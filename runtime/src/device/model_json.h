// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "device/law.h"

namespace rimc {

// The device model that rimc_onnx.device.DeviceConfig.to_json wrote, or somebody by hand. `where`
// begins every Error: text that is no JSON, a field that is not known or missing, a value that is
// no such thing. Ranges and what values have to be together: see CheckModel.
DeviceModel ReadModel(const std::string& where, const std::string& text);

// Sets the field of a number; false where there is no such field. Throws Error where it is out of
// its range.
bool SetNumber(const std::string& where, const std::string& name, const std::string& text,
               DeviceModel* model);

// What the numbers have to be together, as DeviceConfig checks it. Throws Error.
void CheckModel(const std::string& where, const DeviceModel& model);

}  // namespace rimc
