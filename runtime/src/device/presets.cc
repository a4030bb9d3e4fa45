// SPDX-License-Identifier: Apache-2.0
#include "device/law.h"
#include "device/model_json.h"

namespace rimc {

std::vector<DeviceModel> Presets() {
  // Each as a file records it. rimc_onnx.device has the sources of the numbers.
  constexpr const char* kPresets[] = {
#include "device/presets.inc"
  };
  std::vector<DeviceModel> models;
  for (const char* text : kPresets) models.push_back(ReadModel("preset", text));
  return models;
}

}  // namespace rimc
