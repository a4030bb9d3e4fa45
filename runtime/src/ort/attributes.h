// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <set>
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

  Index Int(const std::string& name) const { return static_cast<Index>(Find(ints_, name)); }
  float Float(const std::string& name) const { return Find(floats_, name).at(0); }
  std::vector<float> Floats(const std::string& name) const { return Find(floats_, name); }

  // An attribute that nobody has read, or nothing.
  std::string Unread() const {
    for (const auto& [name, values] : floats_) {
      if (read_.count(name) == 0) return name;
    }
    for (const auto& [name, value] : ints_) {
      if (read_.count(name) == 0) return name;
    }
    return "";
  }

 private:
  template <class T>
  const T& Find(const std::map<std::string, T>& values, const std::string& name) const {
    const auto found = values.find(name);
    if (found == values.end()) Refuse("attribute ", name, " is missing");
    read_.insert(name);
    return found->second;
  }

  std::map<std::string, std::vector<float>> floats_;
  std::map<std::string, std::int64_t> ints_;
  mutable std::set<std::string> read_;
};

}  // namespace rimc
