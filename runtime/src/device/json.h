// SPDX-License-Identifier: Apache-2.0
//
// JSON as options of a session and compiled devices hold it.
#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace rimc {

constexpr double kMostDouble = std::numeric_limits<double>::max();

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

// A finite number of least .. most, else an Error that begins with `where`.
double NumberOf(const std::string& where, const Json& json, double least = -kMostDouble,
                double most = kMostDouble);

// An object whose fields are asked for by name. Where one is missing or is something else, the
// Error begins with `where`.
class Fields {
 public:
  // `json` has to outlive this.
  Fields(std::string where, const Json& json);

  std::string Where(const std::string& name) const { return where_ + ": " + name; }
  const Json& Get(const std::string& name);
  double Number(const std::string& name, double least = -kMostDouble, double most = kMostDouble);
  int Whole(const std::string& name, int least, int most);
  std::vector<double> Numbers(const std::string& name);
  bool Flag(const std::string& name);
  const std::string& Text(const std::string& name);
  const Json& Object(const std::string& name);
  // Throws Error where a field was not asked for.
  void Finish() const;

 private:
  std::string where_;
  const Json& json_;
  std::vector<std::string> asked_;
};

}  // namespace rimc
