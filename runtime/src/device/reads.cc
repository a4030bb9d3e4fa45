// SPDX-License-Identifier: Apache-2.0
#include "device/reads.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "device/programming.h"
#include "ort/ort.h"

namespace rimc {
namespace {

constexpr std::size_t kTerms = 8;
constexpr std::size_t kNoiseKnots = 65;
constexpr double kLn10 = 2.302585092994046;
// (1 - cos((2 i + 1) pi / 16)) / 2: where a polynomial of degree 7 meets a curve on 0 .. 1 best.
constexpr std::array<double, kTerms> kNodes = {
    0.009607359798384785, 0.08426519384872738, 0.2222148834901989, 0.40245483899193585,
    0.5975451610080641,   0.7777851165098011,  0.9157348061512727, 0.9903926402016152};
constexpr std::uint32_t kPurposeRead = 32;  // rimc_onnx.device.Purpose.READ

double Horner(const std::vector<double>& coefficients, double x) {
  double value = 0.0;
  for (auto c = coefficients.rbegin(); c != coefficients.rend(); ++c) value = value * x + *c;
  return value;
}

// N2 and N3 at a conductance.
std::array<double, 2> TermsAt(const IvPolynomial& curve, double g_us) {
  const double log_g = ExactLog(g_us * 1e-6) / kLn10;
  return {Horner(curve.square, log_g), Horner(curve.cube, log_g)};
}

// Powers of t of the polynomial with `values` at the nodes, by divided differences.
std::vector<float> Interpolate(std::array<double, kTerms> difference) {
  for (std::size_t order = 1; order < kTerms; ++order) {
    for (std::size_t i = kTerms - 1; i >= order; --i) {
      difference[i] = (difference[i] - difference[i - 1]) / (kNodes[i] - kNodes[i - order]);
    }
  }
  std::array<double, kTerms> powers{};
  for (std::size_t i = kTerms; i-- > 0;) {
    // powers * (t - node) + difference
    for (std::size_t k = kTerms; k-- > 0;) {
      powers[k] = (k == 0 ? 0.0 : powers[k - 1]) - kNodes[i] * powers[k];
    }
    powers[0] += difference[i];
  }
  std::vector<float> rounded;
  for (const double power : powers) rounded.push_back(static_cast<float>(power));
  return rounded;
}

// Words 0 and 1 of Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).
std::array<std::uint32_t, 2> PhiloxWords(std::array<std::uint32_t, 4> counter, std::uint32_t key0,
                                         std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {counter[0], counter[1]};
}

// The target whose mean is g_us after time_s, by halving the range that devices are set to.
double ProgrammedAt(const DeviceModel& model, double g_us, double time_s) {
  constexpr int kHalvings = 60;
  double low = 0.0 + model.g_min_us;
  double high = low + model.g_max_us;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) * 0.5;
    const bool is_below = MeanPath(model, middle, time_s) < g_us;
    low = is_below ? middle : low;
    high = is_below ? high : middle;
  }
  return high;
}

// Read noise of a device that has the conductance g_us after time_s.
double SigmaAt(const DeviceModel& model, double g_us, double time_s) {
  const ReadNoiseCurve& noise = *model.read_noise_curve;
  const double at = noise.is_frac ? ProgrammedAt(model, g_us, time_s) : g_us;
  const double value = std::max(ValueAt(noise.sigma, at), 0.0);
  const double sigma = noise.is_frac ? g_us * value : value;
  if (noise.t_read_s == 0.0) return sigma;
  const double spread = ExactLog((time_s + noise.t_read_s) / (2.0 * noise.t_read_s));
  return sigma * std::sqrt(std::max(spread, 0.0));
}

// Of a pair whose smaller device is where the law's mean has one of target g_min_us.
std::vector<double> NoiseCurveOf(const DeviceModel& model, double time_s) {
  const double low_us = std::max(MeanPath(model, model.g_min_us, time_s), 0.0);
  const double low = SigmaAt(model, low_us, time_s);
  std::vector<double> pairs;
  for (std::size_t i = 0; i < kNoiseKnots; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(kNoiseKnots - 1);
    const double sigma = SigmaAt(model, low_us + model.g_max_us * (share * share), time_s);
    pairs.push_back(std::sqrt(sigma * sigma + low * low) / model.g_max_us);
  }
  return pairs;
}

// Pairs that share a weight add their variances: sum of share^2.
double SquaredShares(const DeviceModel& model) {
  const int bits = model.level_bits * model.num_slices;
  const double top = bits == 0 ? 1.0 : std::ldexp(1.0, bits) - 1.0;
  const double digit_top = bits == 0 ? 1.0 : std::ldexp(1.0, model.level_bits) - 1.0;
  double sum = 0.0;
  for (int s = 0; s < model.num_slices; ++s) {
    const double significance = std::ldexp(digit_top, s * model.level_bits) / top;
    const double share = significance / model.devices_per_weight;
    for (int i = 0; i < model.devices_per_weight; ++i) sum = sum + share * share;
  }
  return sum;
}

}  // namespace

DeviceReads ReadsOf(const DeviceModel& model, double time_s) {
  DeviceReads reads;
  reads.model = model.name;
  reads.squared_shares = SquaredShares(model);
  reads.read_noise = model.read_noise_frac * std::sqrt(reads.squared_shares);
  if (model.read_noise_curve) reads.noise_curve = NoiseCurveOf(model, time_s);
  reads.iv_sinh = model.iv_sinh;
  reads.iv_polynomial = model.iv_polynomial;
  reads.g_min_us = model.g_min_us;
  reads.g_max_us = model.g_max_us;
  reads.num_slices = model.num_slices;
  return reads;
}

NoiseAttributes NoiseOf(const DeviceReads& reads) {
  if (reads.noise_curve.empty()) return {static_cast<float>(reads.read_noise), {0.0f}};
  if (reads.num_slices > 1) {
    Refuse("the read_noise_curve of '", reads.model,
           "' needs whole weights on a pair of devices, got num_slices ", reads.num_slices);
  }
  const double top = *std::max_element(reads.noise_curve.begin(), reads.noise_curve.end());
  if (!(top > 0.0 && top <= 1.0)) {
    Refuse("the read noise of the read_noise_curve of '", reads.model,
           "' must be above 0 and at most g_max_us, got ", top, " of it");
  }
  NoiseAttributes noise{static_cast<float>(top * std::sqrt(reads.squared_shares)), {}};
  for (const double value : reads.noise_curve) {
    noise.curve.push_back(static_cast<float>(value / top));
  }
  return noise;
}

IvCurves WeightCurves(const DeviceReads& reads, double input_shrink) {
  const IvPolynomial& curve = *reads.iv_polynomial;
  const double volts = curve.v_max_v * input_shrink;
  const std::array<double, 2> factors = {volts, volts * volts};
  const std::array<double, 2> bottom = TermsAt(curve, reads.g_min_us);
  std::array<std::array<double, kTerms>, 2> values{};
  for (std::size_t k = 0; k < kTerms; ++k) {
    const double g_us = reads.g_max_us * kNodes[k];
    const std::array<double, 2> at = TermsAt(curve, reads.g_min_us + g_us);
    for (std::size_t i = 0; i < 2; ++i) {
      values[i][k] = factors[i] * (at[i] - bottom[i]) / (g_us * 1e-6);
    }
  }
  return {Interpolate(values[0]), Interpolate(values[1])};
}

std::int64_t ReadKeyOf(std::uint64_t seed, const std::string& node) {
  const std::array<std::uint32_t, 2> name = NameWords(node);
  const std::array<std::uint32_t, 2> words =
      PhiloxWords({0, kPurposeRead << 16, name[0], name[1]}, static_cast<std::uint32_t>(seed),
                  static_cast<std::uint32_t>(seed >> 32));
  return static_cast<std::int64_t>(words[0] | std::uint64_t{words[1]} << 32);
}

}  // namespace rimc
