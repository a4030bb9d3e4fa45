// SPDX-License-Identifier: Apache-2.0
#include <arm_neon.h>

#include <string.h>

#include "kernels/microkernel.h"
#include "kernels/quads.h"

namespace rimc::kernels {
namespace {

struct Neon {
  using Vec = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kMaxRows = 8;
  static constexpr int kMaxAccumulators = 24;
  static constexpr int kPanelVecs = 3;
  static constexpr bool kHasFewRegisters = false;
  static constexpr bool kPairsNeedRegister = false;
  static constexpr bool kUnrolls = true;
  static constexpr bool kHasLookup = true;

  static Vec Load(const float* p) { return vld1q_f32(p); }
  static Vec LoadN(const float* p, int n) {
    float lanes[kLanes] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
  }
  static Vec LoadEven(const float* p, int n) {
    if (n == kLanes) {
      // p[0] .. p[6] and nothing beyond.
      const Vec first = vld1q_f32(p);
      const Vec second = vld1q_f32(p + 3);
      return vcombine_f32(vget_low_f32(vuzp1q_f32(first, first)),
                          vget_low_f32(vuzp2q_f32(second, second)));
    }
    float lanes[kLanes] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; ++i) lanes[i] = p[2 * i];
    return vld1q_f32(lanes);
  }
  static void Store(float* p, Vec v) { vst1q_f32(p, v); }
  static void StoreN(float* p, int n, Vec v) {
    float lanes[kLanes];
    vst1q_f32(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static Vec Set1(float x) { return vdupq_n_f32(x); }
  static Vec Fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static constexpr bool kHasLanes = true;
  template <int kLane>
  static Vec FmaLane(Vec a, Vec b, Vec c) {
    return vfmaq_laneq_f32(c, a, b, kLane);
  }
  static Vec Add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec Mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec Div(Vec a, Vec b) { return vdivq_f32(a, b); }
  static Vec Rint(Vec v) { return vrndnq_f32(v); }
  // Not vmaxq and vminq: they order the two zeros, which the other ISAs do not.
  static Vec Clip(Vec v, Vec low, Vec high) {
    v = vbslq_f32(vcltq_f32(v, low), low, v);
    return vbslq_f32(vcgtq_f32(v, high), high, v);
  }
  static float Sum(Vec v) { return vaddvq_f32(v); }
  static float SumHalves(Vec v) {
    const float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static void Transpose(Vec* v) {
    const Vec even01 = vtrn1q_f32(v[0], v[1]);
    const Vec odd01 = vtrn2q_f32(v[0], v[1]);
    const Vec even23 = vtrn1q_f32(v[2], v[3]);
    const Vec odd23 = vtrn2q_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(even01), vget_low_f32(even23));
    v[1] = vcombine_f32(vget_low_f32(odd01), vget_low_f32(odd23));
    v[2] = vcombine_f32(vget_high_f32(even01), vget_high_f32(even23));
    v[3] = vcombine_f32(vget_high_f32(odd01), vget_high_f32(odd23));
  }
  static Vec Sub(Vec a, Vec b) { return vsubq_f32(a, b); }
  static Vec Sqrt(Vec v) { return vsqrtq_f32(v); }
  static Vec Floor(Vec v) { return vrndmq_f32(v); }
  static Vec Abs(Vec v) { return vabsq_f32(v); }
  static Vec CopySign(Vec magnitude, Vec sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
  }
  static Vec FlipSign(Vec v, Vec sign) {
    return vreinterpretq_f32_u32(
        veorq_u32(FloatBits(v), vandq_u32(FloatBits(sign), vdupq_n_u32(0x80000000u))));
  }

  using Int = uint32x4_t;
  static Int LoadInt(const uint32_t* p) { return vld1q_u32(p); }
  static void StoreInt(uint32_t* p, Int a) { vst1q_u32(p, a); }
  static Int Count(uint32_t first) {
    const uint32_t lanes[kLanes] = {0, 1, 2, 3};
    return vaddq_u32(vdupq_n_u32(first), vld1q_u32(lanes));
  }
  static Int Xor(Int a, Int b, uint32_t scalar) {
    return veorq_u32(veorq_u32(a, b), vdupq_n_u32(scalar));
  }
  static Int AndOr(Int a, uint32_t b, uint32_t c) {
    return vorrq_u32(vandq_u32(a, vdupq_n_u32(b)), vdupq_n_u32(c));
  }
  template <int kBits>
  static Int ShiftLeft(Int a) {
    return vshlq_n_u32(a, kBits);
  }
  template <int kBits>
  static Int ShiftRight(Int a) {
    return vshrq_n_u32(a, kBits);
  }
  static Vec ToFloat(Int a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
  static Int FloatBits(Vec v) { return vreinterpretq_u32_f32(v); }

  static Int SetInt(uint32_t x) { return vdupq_n_u32(x); }
  static Int ToInt(Vec v) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(v)); }
  static Int LoadInts(const uint32_t* p, int n) {
    uint32_t lanes[kLanes] = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_u32(lanes);
  }
  static void StoreInts(uint32_t* p, int n, Int a) {
    if (n == kLanes) return vst1q_u32(p, a);
    uint32_t lanes[kLanes];
    vst1q_u32(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static Int PackHalves(Int low, Int high) { return vsliq_n_u32(low, high, 16); }
  // Of lanes 0, 1 and 2, 3: the products of lower and upper halves apart.
  struct Sums {
    int32x4_t low, high;
  };
  static Sums ZeroSums() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Sums LoadSums(const uint32_t* p, int n) {
    const int32x4_t sums = vreinterpretq_s32_u32(LoadInts(p, n));
    const int32x4_t zero = vdupq_n_s32(0);
    return {vzip1q_s32(sums, zero), vzip2q_s32(sums, zero)};
  }
  static int32x4_t Together(Sums sums) { return vpaddq_s32(sums.low, sums.high); }
  static void StoreSums(uint32_t* p, int n, Sums sums) {
    StoreInts(p, n, vreinterpretq_u32_s32(Together(sums)));
  }
  static Vec SumsToFloat(Sums sums) { return vcvtq_f32_s32(Together(sums)); }
  static Sums DotPairs(Sums sums, Int a, Int b) {
    const int16x8_t first = vreinterpretq_s16_u32(a);
    const int16x8_t second = vreinterpretq_s16_u32(b);
    return {vmlal_s16(sums.low, vget_low_s16(first), vget_low_s16(second)),
            vmlal_high_s16(sums.high, first, second)};
  }

  // Scalar loads: there is no gather.
  template <int kSize>
  struct Lookup {
    const float* table;
    explicit Lookup(const float* from) : table(from) {}
    Vec operator()(Vec magnitude) const {
      uint32_t at[kLanes];
      vst1q_u32(at, vminq_u32(ToInt(magnitude), vdupq_n_u32(kSize - 1)));
      const float found[kLanes] = {table[at[0]], table[at[1]], table[at[2]], table[at[3]]};
      return vbslq_f32(vceqq_f32(magnitude, magnitude), vld1q_f32(found), magnitude);
    }
  };

  // Of int8 quads; codes are signed, so sums start from 0. Two products, of |a| up to 128 and |b|
  // up to 127, are no more than an int16.
  static constexpr int kMaxQuadSums = 16;
  static constexpr uint32_t kBias = 0x80808080u;
  static Int AddInt(Int a, Int b) { return vaddq_u32(a, b); }
  static Int LoadCodes(const uint32_t* p) { return veorq_u32(LoadInt(p), vdupq_n_u32(kBias)); }
  static int32_t StartOf(int32_t) { return 0; }
  static Int Dot(Int sum, Int b, Int a) {
    const int8x16_t codes = vreinterpretq_s8_u32(b);
    const int8x16_t cells = vreinterpretq_s8_u32(a);
    const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(cells));
    const int16x8_t twos = vpaddq_s16(low, vmull_high_s8(codes, cells));
    return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), twos));
  }
  // A conversion saturates, and makes 0 of a NaN.
  static Int ToInt32(Vec v) {
    const Int inside = vcaltq_f32(v, vdupq_n_f32(0x1p31f));
    return vbslq_u32(inside, ToInt(v), vdupq_n_u32(0x80000000u));
  }
  static int32_t Sum32(Int v) { return vaddvq_s32(vreinterpretq_s32_u32(v)); }
  static int16x8_t Narrowed(Int a, Int b) {
    return vqmovn_high_s32(vqmovn_s32(vreinterpretq_s32_u32(a)), vreinterpretq_s32_u32(b));
  }
  static Int PackInt8(const Int* v, bool* is_beyond) {
    const int16x8_t low = Narrowed(v[0], v[1]);
    const int16x8_t high = Narrowed(v[2], v[3]);
    *is_beyond = vminvq_s16(vminq_s16(low, high)) == -32768;
    const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(low), high);
    return vreinterpretq_u32_s8(vmaxq_s8(bytes, vdupq_n_s8(-127)));
  }
  static Int InterleaveBytes(Int v) {
    const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t bytes = vqtbl1q_u8(vreinterpretq_u8_u32(v), vld1q_u8(order));
    return veorq_u32(vreinterpretq_u32_u8(bytes), vdupq_n_u32(kBias));
  }
  static Vec Min(Vec v, Vec high) { return vbslq_f32(vcgtq_f32(v, high), high, v); }
  static void StoreBytes(uint8_t* p, Int v) {
    const uint16x4_t halves = vmovn_u32(v);
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(halves, halves));
    const uint32_t quad = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &quad, sizeof quad);
  }
  static unsigned NanMask(Vec v) { return vminvq_u32(vceqq_f32(v, v)) == 0; }

  struct Lookup16 {
    uint8x16x4_t table;
    explicit Lookup16(const float* from) {
      for (int i = 0; i < 4; ++i) table.val[i] = vreinterpretq_u8_f32(vld1q_f32(from + 4 * i));
    }
    Vec operator()(Int index) const {
      // Places of the four bytes of each value.
      const Int number = vandq_u32(index, vdupq_n_u32(15));
      const Int places = vmlaq_u32(vdupq_n_u32(0x03020100u), number, vdupq_n_u32(0x04040404u));
      return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(places)));
    }
  };

  // Lanes 0, 1 and 2, 3.
  struct Wide {
    uint64x2_t low, high;
  };
  static Wide Widen(Int a) { return {vmovl_u32(vget_low_u32(a)), vmovl_u32(vget_high_u32(a))}; }
  static Wide MulWide(Wide a, uint32_t scalar) {
    const uint32x2_t factor = vdup_n_u32(scalar);
    return {vmull_u32(vmovn_u64(a.low), factor), vmull_u32(vmovn_u64(a.high), factor)};
  }
  static Wide UpperWide(Wide a) { return {vshrq_n_u64(a.low, 32), vshrq_n_u64(a.high, 32)}; }
  static Wide XorWide(Wide a, uint32_t scalar) {
    const uint64x2_t second = vdupq_n_u64(scalar);
    return {veorq_u64(a.low, second), veorq_u64(a.high, second)};
  }
  static Wide XorWide(Wide a, Wide b, uint32_t scalar) {
    return XorWide(Wide{veorq_u64(a.low, b.low), veorq_u64(a.high, b.high)}, scalar);
  }
  static Int Narrow(Wide a) { return vcombine_u32(vmovn_u64(a.low), vmovn_u64(a.high)); }
  static Int NarrowUpper(Wide a) {
    return vcombine_u32(vshrn_n_u64(a.low, 32), vshrn_n_u64(a.high, 32));
  }
};

}  // namespace

const KernelTable rimc_kernels_f32_neon = MakeTable<Neon>("neon");
const QuadTable rimc_kernels_i8_neon = MakeQuadTable<Neon>();

}  // namespace rimc::kernels
