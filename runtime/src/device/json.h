// SPDX-License-Identifier: Apache-2.0
//
// JSON as options of a session hold it: device models, and what surrounds arrays.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace rimc {

// A value as it was written. A number keeps its text, so that each reader rounds it once.
struct Json {
  enum class Kind { kNull, kTrue, kFalse, kNumber, kText, kList, kObject };

  Kind kind = Kind::kNull;
  std::string text;                                  // of a number, or a text itself
  std::vector<Json> items;                           // of a list
  std::vector<std::pair<std::string, Json>> fields;  // of an object, as written

  // The field of an object, null where there is none.
  const Json* Find(const std::string& name) const;
};

// Throws Error where `text` is not JSON (RFC 8259), repeats the name of a field or is nested deeper
// than 16; `where` says whose text it is.
Json ParseJson(const std::string& where, const std::string& text);

}  // namespace rimc
