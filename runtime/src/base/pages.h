// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace rimc {

// Lets the system page out weights that were packed: ONNX Runtime holds them to the end, mapped
// where they are external data, but nothing reads them again. Their contents stay. Does nothing for
// small weights and before Linux 5.4.
inline void PageOut(const void* data, std::size_t bytes) {
#if defined(__linux__)
  constexpr int kPageOut = 21;  // MADV_PAGEOUT, which older headers lack
  constexpr std::size_t kSmall = std::size_t{4} << 20;
  if (bytes < kSmall) return;
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + bytes) / page * page;
  if (begin >= end) return;
  char* const first = static_cast<char*>(const_cast<void*>(data)) + (begin - address);
  madvise(first, end - begin, kPageOut);
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

}  // namespace rimc
