// SPDX-License-Identifier: Apache-2.0
#include "device/table_file.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "device/sha256.h"
#include "ort/ort.h"

namespace rimc {
namespace {

constexpr std::string_view kMagic = "rimc-dev";
constexpr std::uint64_t kVersion = 1;
constexpr std::size_t kFront = 16;
constexpr std::size_t kChecksum = 32;
constexpr std::size_t kMaxTables = 64;
constexpr int kMaxKnots = 1 << 20;

// A little-endian number of `size` bytes.
std::uint64_t NumberAt(std::string_view bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = size; i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  }
  return value;
}

bool HasChecksum(std::string_view bytes) {
  const std::size_t size = bytes.size() - kChecksum;
  const auto want = Sha256(bytes.substr(0, size));
  return std::equal(want.begin(), want.end(), bytes.begin() + static_cast<std::ptrdiff_t>(size),
                    [](std::uint8_t a, char b) { return a == static_cast<std::uint8_t>(b); });
}

std::vector<double> ReadTable(std::string_view bytes) {
  std::vector<double> table;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(double)) {
    const std::uint64_t bits = NumberAt(bytes, at, sizeof(double));
    double value = 0.0;
    std::memcpy(&value, &bits, sizeof value);
    table.push_back(value);
  }
  return table;
}

}  // namespace

TableFile ReadTableFile(const std::string& where, std::string_view bytes) {
  if (bytes.size() < kFront + kChecksum || bytes.substr(0, kMagic.size()) != kMagic) {
    Refuse(where, " is no compiled device. rimc-onnx devices NAME -o FILE writes one");
  }
  const std::uint64_t version = NumberAt(bytes, 8, 4);
  if (version != kVersion) {
    Refuse(where, " is a compiled device of version ", version, ", this library reads version ",
           kVersion, ". Compile it again with the rimc-onnx that the library came with");
  }
  if (!HasChecksum(bytes)) Refuse(where, " is damaged: its checksum is not that of its bytes");

  std::string_view rest = bytes.substr(kFront, bytes.size() - kFront - kChecksum);
  const std::uint64_t header = NumberAt(bytes, 12, 4);
  if (header > rest.size()) Refuse(where, " ends within its header");
  const Json json = ParseJson(where, std::string(rest.substr(0, header)));
  rest.remove_prefix(header);
  Fields fields(where, json);
  TableFile file;
  const std::vector<double> sizes = fields.Numbers("tables");
  if (sizes.size() > kMaxTables) Refuse(where, " has ", sizes.size(), " tables");
  for (const double count : sizes) {
    if (!(count >= 1 && count <= kMaxKnots) || count != std::floor(count)) {
      Refuse(where, " has a table of ", count, " knots");
    }
    const std::size_t size = static_cast<std::size_t>(count) * sizeof(double);
    if (size > rest.size()) Refuse(where, " ends within a table");
    file.tables.push_back(
        std::make_shared<const std::vector<double>>(ReadTable(rest.substr(0, size))));
    rest.remove_prefix(size);
  }
  if (!rest.empty()) Refuse(where, " has ", rest.size(), " bytes behind its tables");
  file.values = fields.Object("values");
  fields.Finish();
  return file;
}

}  // namespace rimc
