// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace rimc {

// SHA-256 (FIPS 180-4) of `text`.
std::array<std::uint8_t, 32> Sha256(std::string_view text);

}  // namespace rimc
