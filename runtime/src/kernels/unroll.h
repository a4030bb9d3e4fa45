// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace rimc::kernels {

// A length for an array that may have no elements.
constexpr int AtLeastOne(int count) { return count > 0 ? count : 1; }

}  // namespace rimc::kernels

#if defined(__GNUC__) && !defined(__clang__)
#define RIMC_UNROLL _Pragma("GCC unroll 16")
#elif defined(__clang__)
#define RIMC_UNROLL _Pragma("unroll")
#else
#define RIMC_UNROLL
#endif

// Prefetches a cache line that is read soon.
#if defined(__GNUC__) || defined(__clang__)
#define RIMC_PREFETCH(address) __builtin_prefetch(address)
#else
#define RIMC_PREFETCH(address) static_cast<void>(address)
#endif

// Makes the compiler load again what is at a pointer, so that no register holds it.
#if defined(__GNUC__) || defined(__clang__)
#define RIMC_RELOAD(pointer) __asm__("" : "+r"(pointer))
#else
#define RIMC_RELOAD(pointer) static_cast<void>(pointer)
#endif

// A part of a kernel whose sums have to stay in its registers.
#if defined(__GNUC__) || defined(__clang__)
#define RIMC_INLINE inline __attribute__((always_inline))
#else
#define RIMC_INLINE inline
#endif

// A part that several kernels of a file share and that is long enough for a call: one copy of it.
#if defined(__clang__)
#define RIMC_NOINLINE __attribute__((noinline))
#elif defined(__GNUC__)
#define RIMC_NOINLINE __attribute__((noinline, noclone))
#else
#define RIMC_NOINLINE
#endif
