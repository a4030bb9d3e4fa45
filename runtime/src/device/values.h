// SPDX-License-Identifier: Apache-2.0
//
// Numbers and whole files out of texts that people write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace rimc {

// A decimal number and nothing else, whatever the locale, of least .. most. Throws Error that
// begins with `where`.
double ReadNumber(const std::string& where, const std::string& text, double least, double most);

// The same without a fraction.
int ReadWhole(const std::string& where, const std::string& text, int least, int most);

// Digits of a number of 0 .. 2^64-1 where `text` is that.
bool ReadDigits(const std::string& text, std::uint64_t most, std::uint64_t* value);

// The contents of a file of at most `most` bytes.
std::string ReadFile(const std::string& where, const std::string& path, std::size_t most);

}  // namespace rimc
