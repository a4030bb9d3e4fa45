// SPDX-License-Identifier: Apache-2.0
#include "device/values.h"

#include <cmath>
#include <fstream>
#include <locale>
#include <sstream>
#include <vector>

#include "ort/ort.h"

namespace rimc {

double ReadNumber(const std::string& where, const std::string& text, double least, double most) {
  std::istringstream in(text);
  in.imbue(std::locale::classic());
  double value = 0.0;
  const bool plain = text.find_first_not_of("+-.0123456789eE") == std::string::npos;
  if (!plain || !(in >> value) || in.peek() != std::istringstream::traits_type::eof() ||
      !std::isfinite(value)) {
    Refuse(where, " must be a number, got '", text, "'");
  }
  if (value < least || value > most) {
    Refuse(where, " must lie in ", least, "..", most, ", got ", text);
  }
  return value + 0.0;  // one spelling of zero
}

int ReadWhole(const std::string& where, const std::string& text, int least, int most) {
  const double value = ReadNumber(where, text, least, most);
  if (value != std::floor(value)) Refuse(where, " must be a whole number, got ", text);
  return static_cast<int>(value);
}

bool ReadDigits(const std::string& text, std::uint64_t most, std::uint64_t* value) {
  *value = 0;
  for (const char c : text) {
    const auto digit = static_cast<std::uint64_t>(c - '0');
    if (c < '0' || c > '9' || *value > (most - digit) / 10) return false;
    *value = 10 * *value + digit;
  }
  return !text.empty();
}

std::string ReadFile(const std::string& where, const std::string& path, std::size_t most) {
  std::ifstream file(path, std::ios::binary);
  std::string content;
  std::vector<char> chunk(std::size_t{1} << 16);
  while (file && content.size() <= most) {
    file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    content.append(chunk.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (content.size() > most) {
    Refuse(where, ": the file '", path, "' has more than ", most, " bytes");
  }
  if (!file.eof()) Refuse(where, ": the file '", path, "' can't be read");
  return content;
}

}  // namespace rimc
