// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ort/ort.h"

namespace rimc {

// Attributes of an operator that no node of a graph has, read as those of NodeInfo.
class Attributes {
 public:
  void SetFloats(const std::string& name, std::vector<float> values) {
    floats_[name] = std::move(values);
  }
  void SetInt(const std::string& name, std::int64_t value) { ints_[name] = value; }
  bool Has(const std::string& name) const {
    return floats_.count(name) != 0 || ints_.count(name) != 0;
  }

  Index Int(const char* name) const { return static_cast<Index>(ints_.at(name)); }
  float Float(const char* name) const { return floats_.at(name).at(0); }
  std::vector<float> Floats(const char* name) const { return floats_.at(name); }

 private:
  std::map<std::string, std::vector<float>> floats_;
  std::map<std::string, std::int64_t> ints_;
};

}  // namespace rimc
