// SPDX-License-Identifier: Apache-2.0
#include "device/law.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace rimc {
namespace {

using Values = std::vector<double>;
constexpr double kLn2 = 0.6931471805599453;

// ln x of positive, normal numbers.
double Log(double x) {
  constexpr double kSqrtHalf = 0.7071067811865476;
  constexpr double kAtanh[] = {2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13,
                               2.0 / 11, 2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3};
  int k = 0;
  double m = std::frexp(x, &k);
  if (m < kSqrtHalf) {
    m = m + m;
    --k;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double series = 0.0;
  for (const double coefficient : kAtanh) series = (series + coefficient) * s2;
  return k * kLn2 + s * (series + 2.0);
}

// e^x for -700 <= x <= 700.
double Exp(double x) {
  constexpr double kLn2High = 0.6931471803691238, kLn2Low = 1.9082149292705877e-10;
  constexpr double kInverseFactorials[] = {1.0 / 6227020800.0,
                                           1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           1.0 / 2.0,
                                           1.0};
  const double k = std::nearbyint(x * (1.0 / kLn2));
  double r = x - k * kLn2High;
  r = r - k * kLn2Low;
  double series = 0.0;
  for (const double coefficient : kInverseFactorials) series = (series + coefficient) * r;
  return std::ldexp(series + 1.0, static_cast<int>(k));
}

struct At {
  double g_us;

  double operator()(const Polynomial& curve) const {
    const double x = g_us / curve.g_ref_us;
    double value = 0.0;
    for (auto c = curve.coefficients.rbegin(); c != curve.coefficients.rend(); ++c) {
      value = value * x + *c;
    }
    return value;
  }
  double operator()(const Saturating& curve) const {
    const double x = std::min(std::max(g_us, 0.0) / curve.g_scale_us, 700.0);
    return curve.amplitude - curve.amplitude * Exp(-x);
  }
  double operator()(const Logarithmic& curve) const {
    const double x = std::max(g_us / curve.g_ref_us, 1e-12);
    return std::min(std::max(curve.offset + curve.slope * Log(x), curve.low), curve.high);
  }
  double operator()(const Power& curve) const {
    const double x = std::min(std::max(g_us / curve.g_ref_us, 1e-12), 1e12);
    const double value = curve.amplitude * Exp(curve.exponent * Log(x));
    return std::min(std::max(value, curve.low), curve.high);
  }
  double operator()(const Points& curve) const {
    double value = 0.0 + curve.values[0];
    for (std::size_t i = 0; i + 1 < curve.g_us.size(); ++i) {
      const double a = curve.g_us[i];
      const double share = std::min(std::max((g_us - a) / (curve.g_us[i + 1] - a), 0.0), 1.0);
      value = value + share * (curve.values[i + 1] - curve.values[i]);
    }
    return value;
  }
};

double Evaluate(const Curve& curve, double g_us) { return std::visit(At{g_us}, curve); }

double ProgrammingSigma(const DeviceModel& model, double g_us) {
  if (model.programming_sigma_us) {
    return std::max(Evaluate(*model.programming_sigma_us, g_us), 0.0);
  }
  const double reference_us = model.reference == Reference::kTarget ? g_us : model.g_max_us;
  return reference_us * model.drift_frac;
}

// What a time law adds at a target whose devices were programmed with a deviation of sigma_us.
struct Drift {
  double mean_us = 0.0;
  double sigma_us = 0.0;
};

Drift DriftOf(const SigmaAtTimes& law, double g_us, double sigma_us, double time_s) {
  double mean_before = 0.0, variance_before = sigma_us * sigma_us, t_before = law.t0_s;
  for (std::size_t i = 0; i < law.times_s.size(); ++i) {
    const double t = law.times_s[i];
    const double mean = law.mean_us.empty() ? 0.0 : Evaluate(law.mean_us[i], g_us);
    const double sigma = std::max(Evaluate(law.sigma_us[i], std::max(g_us + mean, 0.0)), 0.0);
    const double variance = sigma * sigma;
    if (time_s <= t) {
      const double a = law.log_axis ? Log(time_s / t_before) / Log(t / t_before)
                                    : (time_s - t_before) / (t - t_before);
      const double variance_now = (1.0 - a) * variance_before + a * variance;
      return {(1.0 - a) * mean_before + a * mean,
              std::sqrt(std::max(variance_now - sigma_us * sigma_us, 0.0))};
    }
    mean_before = mean;
    variance_before = variance;
    t_before = t;
  }
  return {};
}

Drift DriftOf(const LogRelaxation& law, double time_s) {
  const double log_time = Log(time_s / law.t0_s);
  return {law.mean_us_per_ln * log_time, law.sigma_us + law.sigma_us_per_ln * log_time};
}

// Nothing for zeros, a number for a constant, else the knots.
kernels::LawColumn Column(Values knots, TimedLaw* timed) {
  const double first = knots.empty() ? 0.0 : knots[0];
  kernels::LawColumn column;
  if (std::all_of(knots.begin(), knots.end(), [&](double k) { return k == first; })) {
    column.value = first;
    return column;
  }
  timed->tables.push_back(std::make_shared<const Values>(std::move(knots)));
  column.knots = timed->tables.back()->data();
  return column;
}

template <class Function>
Values Knots(const DeviceModel& model, const Function& value_at) {
  Values knots;
  for (int i = 0; i <= kernels::kLawIntervals; ++i) {
    knots.push_back(value_at(model.g_min_us + i * (model.g_max_us / kernels::kLawIntervals)));
  }
  return knots;
}

std::uint64_t StuckWords(double frac) { return static_cast<std::uint64_t>(frac * 4294967296.0); }

// The columns of a law that shifts and widens.
template <class Function>
void AddDriftColumns(const DeviceModel& model, const Function& drift_at, TimedLaw* timed) {
  const auto mean = [&](double g_us) { return drift_at(g_us).mean_us; };
  const auto sigma = [&](double g_us) { return drift_at(g_us).sigma_us; };
  timed->law.mean_us = Column(Knots(model, mean), timed);
  timed->law.drift_sigma_us = Column(Knots(model, sigma), timed);
}

}  // namespace

double ExactLog(double x) { return Log(x); }

double ValueAt(const Curve& curve, double g_us) { return Evaluate(curve, g_us); }

double MeanPath(const DeviceModel& model, double g_us, double time_s) {
  if (const auto* law = std::get_if<PowerDecay>(&model.time_law)) {
    return g_us * Exp(-(Evaluate(law->nu_mean, g_us) * Log(time_s / law->t0_s)));
  }
  if (const auto* law = std::get_if<SigmaAtTimes>(&model.time_law)) {
    return g_us + DriftOf(*law, g_us, ProgrammingSigma(model, g_us), time_s).mean_us;
  }
  if (const auto* law = std::get_if<LogRelaxation>(&model.time_law)) {
    return g_us + DriftOf(*law, time_s).mean_us;
  }
  return g_us;
}

double RoundTime(double time_s) { return static_cast<double>(static_cast<float>(time_s)); }

std::optional<std::pair<double, double>> TimeRange(const DeviceModel& model) {
  if (const auto* law = std::get_if<SigmaAtTimes>(&model.time_law)) {
    return std::pair(law->t0_s, law->times_s.empty() ? law->t0_s : law->times_s.back());
  }
  if (const auto* law = std::get_if<LogRelaxation>(&model.time_law)) {
    return std::pair(law->t0_s, law->t_max_s);
  }
  if (const auto* law = std::get_if<PowerDecay>(&model.time_law)) {
    return std::pair(law->t0_s, law->t_max_s);
  }
  return std::nullopt;
}

bool HasError(const DeviceModel& model) {
  return model.drift_frac != 0.0 || model.drift_mean_frac != 0.0 || model.programming_sigma_us ||
         TimeRange(model) || model.stuck_min_frac != 0.0 || model.stuck_max_frac != 0.0;
}

TimedLaw MakeLaw(const DeviceModel& model, double time_s) {
  TimedLaw timed;
  kernels::CellLaw& law = timed.law;
  law.drift_frac = model.drift_frac;
  law.drift_mean_frac = model.drift_mean_frac;
  law.reference_slope = model.reference == Reference::kTarget ? 1.0 : 0.0;
  law.reference_us = model.reference == Reference::kTarget ? 0.0 : model.g_max_us;
  law.g_max_us = model.g_max_us;
  law.g_min_us = model.g_min_us;
  law.intervals_per_us = kernels::kLawIntervals / model.g_max_us;
  law.stuck_min_words = StuckWords(model.stuck_min_frac);
  law.stuck_max_words = StuckWords(model.stuck_max_frac);
  law.clips = model.clip_sigma > 0.0 ? 1 : 0;
  law.level_bits = model.level_bits;
  law.num_slices = model.num_slices;
  law.devices_per_weight = model.devices_per_weight;
  const auto sigma_us = [&](double g_us) { return ProgrammingSigma(model, g_us); };
  if (model.programming_sigma_us) {
    law.programming_sigma_us = Column(Knots(model, sigma_us), &timed);
  }
  if (const auto* time_law = std::get_if<SigmaAtTimes>(&model.time_law)) {
    const auto drift = [&](double g_us) {
      return DriftOf(*time_law, g_us, sigma_us(g_us), time_s);
    };
    AddDriftColumns(model, drift, &timed);
  }
  if (const auto* time_law = std::get_if<LogRelaxation>(&model.time_law)) {
    AddDriftColumns(model, [&](double) { return DriftOf(*time_law, time_s); }, &timed);
  }
  if (const auto* time_law = std::get_if<PowerDecay>(&model.time_law)) {
    law.log_time = Log(time_s / time_law->t0_s);
    if (law.log_time != 0.0) {
      const auto mean = [&](double g_us) { return Evaluate(time_law->nu_mean, g_us); };
      const auto spread = [&](double g_us) { return Evaluate(time_law->nu_sigma, g_us); };
      law.nu_mean = Column(Knots(model, mean), &timed);
      law.nu_sigma = Column(Knots(model, spread), &timed);
    }
  }
  return timed;
}

}  // namespace rimc
