// SPDX-License-Identifier: Apache-2.0
//
// Numbers and tables that rimc_onnx compiles for this library; rimc_onnx/device/table_file.py has
// the format.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "device/json.h"

namespace rimc {

struct TableFile {
  Json values;  // an object; {"table": i} stands for a table
  std::vector<std::shared_ptr<const std::vector<double>>> tables;
};

// `where` begins every Error: bytes that are no such file, of another version, or changed.
TableFile ReadTableFile(const std::string& where, std::string_view bytes);

}  // namespace rimc
