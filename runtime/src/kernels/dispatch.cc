// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/errors.h"

#ifdef RIMC_HAVE_X86_KERNELS
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace rimc {
namespace {

#if defined(RIMC_HAVE_X86_KERNELS) || defined(RIMC_HAVE_NEON_KERNELS)
// A table with kernels of int8 quads, and with int16 pairs by their instruction set.
kernels::KernelTable WithQuads(const kernels::KernelTable& table, const char* isa,
                               const kernels::QuadTable& quads) {
  kernels::KernelTable both = table;
  both.isa = isa;
  both.quads = &quads;
  both.pairs = quads.pairs;
  return both;
}
#endif

#ifdef RIMC_HAVE_X86_KERNELS
struct Registers {
  std::uint32_t eax, ebx, ecx, edx;
};

Registers CpuId(std::uint32_t leaf, std::uint32_t subleaf = 0) {
#if defined(_MSC_VER)
  std::array<int, 4> r{};
  __cpuidex(r.data(), static_cast<int>(leaf), static_cast<int>(subleaf));
  return {static_cast<std::uint32_t>(r[0]), static_cast<std::uint32_t>(r[1]),
          static_cast<std::uint32_t>(r[2]), static_cast<std::uint32_t>(r[3])};
#else
  Registers r{};
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
  return r;
#endif
}

// Register state that the operating system saves (XCR0).
std::uint64_t SavedState() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

void AddX86(std::vector<const kernels::KernelTable*>& tables) {
  constexpr std::uint32_t kOsxsave = 1u << 27, kAvx = 1u << 28, kFma = 1u << 12;
  constexpr std::uint32_t kAvx2 = 1u << 5, kAvx512 = 1u << 16 | 1u << 30;  // F and BW
  constexpr std::uint64_t kYmmState = 0x6, kZmmState = 0xe6;
  constexpr std::uint32_t kLeaf1 = kOsxsave | kAvx | kFma;
  if (CpuId(0).eax < 7 || (CpuId(1).ecx & kLeaf1) != kLeaf1) return;
  const Registers leaf7 = CpuId(7);
  const std::uint64_t saved = SavedState();
  if ((leaf7.ebx & kAvx2) == 0 || (saved & kYmmState) != kYmmState) return;
  static const kernels::KernelTable avx2 =
      WithQuads(kernels::rimc_kernels_f32_avx2, "avx2", kernels::rimc_kernels_i8_avx2);
  tables.push_back(&avx2);
#ifdef RIMC_HAVE_VNNI_KERNELS
  constexpr std::uint32_t kAvxVnni = 1u << 4;
  if (leaf7.eax >= 1 && (CpuId(7, 1).eax & kAvxVnni) != 0) {
    static const kernels::KernelTable avx2vnni =
        WithQuads(kernels::rimc_kernels_f32_avx2, "avx2vnni", kernels::rimc_kernels_i8_avx2vnni);
    tables.push_back(&avx2vnni);
  }
#endif
  if ((leaf7.ebx & kAvx512) != kAvx512 || (saved & kZmmState) != kZmmState) return;
  tables.push_back(&kernels::rimc_kernels_f32_avx512);
#ifdef RIMC_HAVE_VNNI_KERNELS
  constexpr std::uint32_t kAvx512Vnni = 1u << 11;
  if ((leaf7.ecx & kAvx512Vnni) != 0) {
    static const kernels::KernelTable avx512vnni = WithQuads(
        kernels::rimc_kernels_f32_avx512, "avx512vnni", kernels::rimc_kernels_i8_avx512vnni);
    tables.push_back(&avx512vnni);
  }
#endif
}
#endif

const kernels::KernelTable& Choose() {
  const auto& tables = AvailableKernels();
  const char* wanted = std::getenv("RIMC_ISA");
  if (wanted == nullptr || *wanted == '\0') return *tables.back();
  for (const auto* table : tables) {
    if (std::string(wanted) == table->isa) return *table;
  }
  throw Error(kInvalidArgument, "RIMC_ISA must be one of " + AvailableIsasJson() +
                                    " on this machine, got '" + wanted + "'");
}

}  // namespace

const std::vector<const kernels::KernelTable*>& AvailableKernels() {
  static const auto tables = [] {
    std::vector<const kernels::KernelTable*> found{&kernels::rimc_kernels_f32_scalar};
#ifdef RIMC_HAVE_X86_KERNELS
    AddX86(found);
#endif
#ifdef RIMC_HAVE_NEON_KERNELS
    static const kernels::KernelTable neon =
        WithQuads(kernels::rimc_kernels_f32_neon, "neon", kernels::rimc_kernels_i8_neon);
    found.push_back(&neon);
#endif
    return found;
  }();
  return tables;
}

const kernels::KernelTable& ActiveKernels() {
  static const kernels::KernelTable& table = Choose();
  return table;
}

std::string AvailableIsasJson() {
  std::string json = "[";
  for (const auto* table : AvailableKernels()) {
    if (json.size() > 1) json += ", ";
    json += std::string("\"") + table->isa + "\"";
  }
  return json + "]";
}

}  // namespace rimc
