// SPDX-License-Identifier: Apache-2.0
//
// The reader of compiled devices on the presets and on mutated bytes. Catches a count, an index or
// a name of the file that is trusted: what is read beyond the bytes, memory without bound, an
// exception that is no Error, a message without the file's name or of several lines.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>

#include "base/errors.h"
#include "device/sha256.h"
#include "harness.h"
#include "provider/compiled_device.h"

namespace rimc::tests {
namespace {

constexpr std::size_t kFront = 16;
constexpr std::size_t kLength = 12;  // of the header, where it is
constexpr std::size_t kChecksum = 32;
constexpr int kMutations = 400;  // of each preset
const char* const kPresets[] = {"cmo-hfox-2025-2pct", "gaussian-absolute", "milo2021",
                                "pcm-natcomm2020",    "retention-power",   "wan2022-crosssim"};

std::string BytesOf(const std::string& path) {
  std::string bytes;
  if (std::FILE* const file = std::fopen(path.c_str(), "rb")) {
    char part[4096];
    for (std::size_t n = 0; (n = std::fread(part, 1, sizeof part, file)) > 0;) {
      bytes.append(part, n);
    }
    std::fclose(file);
  }
  return bytes;
}

// With the length of its header, which is `grown` longer, and its checksum.
std::string Sealed(std::string body, std::ptrdiff_t grown) {
  std::size_t length = 0;
  for (std::size_t i = 4; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(body[kLength + i]);
  }
  length += static_cast<std::size_t>(grown);
  for (std::size_t i = 0; i < 4; ++i) {
    body[kLength + i] = static_cast<char>(length >> (8 * i) & 255);
  }
  for (const std::uint8_t byte : Sha256(body)) body.push_back(static_cast<char>(byte));
  return body;
}

// What the reader makes of bytes: "" where it takes them, or its message.
std::string Read(const std::string& bytes, const std::string& entry, Report* report) {
  try {
    ReadCompiledDevice("a.rimcdev", bytes);
    return "";
  } catch (const Error& error) {
    std::string message = error.what();
    report->Expect(message.compare(0, 9, "a.rimcdev") == 0, entry + ": no name in " + message);
    report->Expect(message.find('\n') == std::string::npos, entry + ": several lines");
    return message;
  } catch (const std::exception& error) {
    report->Fail(entry + ": " + error.what());
    return "";
  }
}

// Another byte, a few less, a few once more, or a number in place of a digit.
std::string Mutated(const std::string& body, Random* random) {
  static const std::string kTelling = "0123456789-+.eE\"[]{},:\\\n";
  std::string changed = body;
  const auto last = static_cast<std::ptrdiff_t>(body.size()) - 1;
  const auto most = random->Once(4) ? last : std::min<std::ptrdiff_t>(last, 2000);
  const auto at = static_cast<std::size_t>(random->Whole(kFront, most));
  const auto count = static_cast<std::size_t>(random->Whole(1, 12));
  switch (random->Whole(0, 4)) {
    case 0:
      changed[at] = static_cast<char>(random->Next());
      break;
    case 1:
      changed[at] = kTelling[static_cast<std::size_t>(
          random->Whole(0, static_cast<std::ptrdiff_t>(kTelling.size()) - 1))];
      break;
    case 2:
      changed.erase(at, count);
      break;
    case 3:
      changed.insert(at, body.substr(at, count));
      break;
    default:
      changed.insert(at, random->Once(2) ? "9999999999" : "-1e308");
  }
  return changed;
}

}  // namespace

void TestCompiledDevices(const std::string& folder, Report* report) {
  Random random(5);
  for (const char* const preset : kPresets) {
    ++report->entries;
    const std::string entry = std::string("compiled device ") + preset;
    const std::string bytes = BytesOf(folder + "/" + preset + ".rimcdev");
    if (bytes.size() <= kFront + kChecksum) {
      report->Fail(entry + ": is not there");
      continue;
    }
    report->Expect(Read(bytes, entry, report).empty(), entry + ": is refused");
    const std::string body = bytes.substr(0, bytes.size() - kChecksum);
    report->Expect(Sealed(body, 0) == bytes, entry + ": another checksum");
    int refused = 0;
    for (int i = 0; i < kMutations; ++i) {
      std::string damaged = bytes;
      const auto at =
          static_cast<std::size_t>(random.Whole(0, static_cast<std::ptrdiff_t>(bytes.size()) - 1));
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.Whole(0, 7)));
      report->Expect(!Read(damaged, entry, report).empty(), entry + ": damage is not noticed");
      report->Expect(!Read(bytes.substr(0, at), entry, report).empty(), entry + ": end is missed");
      const std::string changed = Mutated(body, &random);
      const auto grown =
          static_cast<std::ptrdiff_t>(changed.size()) - static_cast<std::ptrdiff_t>(body.size());
      refused += !Read(Sealed(changed, grown), entry, report).empty();
    }
    // Digits of values may be others; most of the rest may not.
    report->Expect(refused > kMutations / 3, entry + ": takes what is no device");
  }
}

}  // namespace rimc::tests
