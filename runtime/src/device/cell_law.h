// SPDX-License-Identifier: Apache-2.0
//
// The law of a device at one time, as rimc_onnx.device.CellLaw compiles it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device/table_file.h"
#include "kernels/kernels.h"

namespace rimc {

// A law, with the tables that it points to.
struct TimedLaw {
  kernels::CellLaw law;
  std::vector<std::shared_ptr<const std::vector<double>>> tables;
};

// The law in the object `values` of a file. Throws Error that begins with `where` where a field is
// missing or not known, or has a value that the kernel does not take.
TimedLaw ReadLaw(const std::string& where, const TableFile& file, const Json& values);

}  // namespace rimc
