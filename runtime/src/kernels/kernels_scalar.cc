// SPDX-License-Identifier: Apache-2.0
//
// The reference: one value per "vector", so every operation is the one that C++ names. Built
// without auto-vectorisation.
#include <math.h>
#include <string.h>

#include "kernels/microkernel.h"

namespace rimc::kernels {
namespace {

struct Scalar {
  using Vec = float;
  static constexpr int kLanes = 1;
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxAccumulators = 16;
  static constexpr int kPanelVecs = 4;
  static constexpr bool kUnrolls = false;
  static constexpr bool kHasLookup = false;

  static Vec Load(const float* p) { return *p; }
  static Vec LoadN(const float* p, int n) { return n > 0 ? *p : 0.0f; }
  static Vec LoadEven(const float* p, int n) { return LoadN(p, n); }
  static void Store(float* p, Vec v) { *p = v; }
  static void StoreN(float* p, int n, Vec v) {
    if (n > 0) *p = v;
  }
  static Vec Set1(float x) { return x; }
  static Vec Fma(Vec a, Vec b, Vec c) { return ::fmaf(a, b, c); }
  static Vec Add(Vec a, Vec b) { return a + b; }
  static Vec Mul(Vec a, Vec b) { return a * b; }
  static Vec Div(Vec a, Vec b) { return a / b; }
  static Vec Rint(Vec v) { return ::rintf(v); }
  static Vec Clip(Vec v, Vec low, Vec high) {
    v = v < low ? low : v;
    return v > high ? high : v;
  }
  static float Sum(Vec v) { return v; }
  static float SumHalves(Vec v) { return v; }
  static void Transpose(Vec*) {}
  static Vec Sub(Vec a, Vec b) { return a - b; }
  static Vec Sqrt(Vec v) { return ::sqrtf(v); }
  static Vec Floor(Vec v) { return ::floorf(v); }
  static Vec Abs(Vec v) { return ::fabsf(v); }
  static Vec CopySign(Vec magnitude, Vec sign) { return ::copysignf(magnitude, sign); }
  static Vec FlipSign(Vec v, Vec sign) { return FloatBits(sign) >> 31 != 0 ? -v : v; }

  using Int = uint32_t;
  static Int LoadInt(const uint32_t* p) { return *p; }
  static void StoreInt(uint32_t* p, Int a) { *p = a; }
  static Int Count(uint32_t first) { return first; }
  static Int Xor(Int a, Int b, uint32_t scalar) { return a ^ b ^ scalar; }
  static Int AndOr(Int a, uint32_t b, uint32_t c) { return (a & b) | c; }
  template <int kBits>
  static Int ShiftLeft(Int a) {
    return a << kBits;
  }
  template <int kBits>
  static Int ShiftRight(Int a) {
    return a >> kBits;
  }
  static Vec ToFloat(Int a) {
    int32_t number;
    ::memcpy(&number, &a, sizeof(number));
    return static_cast<float>(number);
  }
  static Int FloatBits(Vec v) {
    Int bits;
    ::memcpy(&bits, &v, sizeof(bits));
    return bits;
  }

  static Int ToInt(Vec v) {
    const int32_t number = v == v ? static_cast<int32_t>(v) : 0;
    Int bits;
    ::memcpy(&bits, &number, sizeof(bits));
    return bits;
  }
  static Int SetInt(uint32_t x) { return x; }
  static Int LoadInts(const uint32_t* p, int n) { return n > 0 ? *p : 0; }
  static void StoreInts(uint32_t* p, int n, Int a) {
    if (n > 0) *p = a;
  }
  static Int PackHalves(Int low, Int high) { return (low & 0xffffu) | high << 16; }
  using Sums = uint32_t;
  static Sums ZeroSums() { return 0; }
  static Sums LoadSums(const uint32_t* p, int n) { return LoadInts(p, n); }
  static void StoreSums(uint32_t* p, int n, Sums sums) { StoreInts(p, n, sums); }
  static Vec SumsToFloat(Sums sums) { return ToFloat(sums); }
  static int32_t Half(Int pair) { return static_cast<int16_t>(static_cast<uint16_t>(pair)); }
  static Sums DotPairs(Sums sums, Int a, Int b) {
    const int32_t low = Half(a) * Half(b);
    const int32_t high = Half(a >> 16) * Half(b >> 16);
    return sums + static_cast<uint32_t>(low) + static_cast<uint32_t>(high);
  }

  struct Lookup16 {
    const float* table;
    explicit Lookup16(const float* from) : table(from) {}
    Vec operator()(Int index) const { return table[index & 15u]; }
  };

  using Wide = uint64_t;
  static Wide Widen(Int a) { return a; }
  static Wide MulWide(Wide a, uint32_t scalar) { return uint64_t{Narrow(a)} * scalar; }
  static Wide UpperWide(Wide a) { return a >> 32; }
  static Wide XorWide(Wide a, uint32_t scalar) { return a ^ scalar; }
  static Wide XorWide(Wide a, Wide b, uint32_t scalar) { return a ^ b ^ scalar; }
  static Int Narrow(Wide a) { return static_cast<uint32_t>(a); }
  static Int NarrowUpper(Wide a) { return static_cast<uint32_t>(a >> 32); }
};

}  // namespace

extern const KernelTable rimc_kernels_f32_scalar;
const KernelTable rimc_kernels_f32_scalar = MakeTable<Scalar>("scalar");

}  // namespace rimc::kernels
