// SPDX-License-Identifier: Apache-2.0
//
// Device models, and their laws at one time since programming: the C++ twin of rimc_onnx/device
// (config, curves, time_laws, law_table, exact), operation by operation, so that tables have the
// same bits. Conductances are in microsiemens, times in seconds.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/kernels.h"

namespace rimc {

// Sum of coefficients[i] * (G / g_ref_us)^i.
struct Polynomial {
  std::vector<double> coefficients;
  double g_ref_us = 1.0;
};

// amplitude * (1 - exp(-G / g_scale_us)), 0 below zero conductance.
struct Saturating {
  double amplitude = 0.0;
  double g_scale_us = 1.0;
};

// offset + slope * ln(G / g_ref_us), held between low and high.
struct Logarithmic {
  double offset = 0.0;
  double slope = 0.0;
  double low = 0.0;
  double high = 0.0;
  double g_ref_us = 1.0;
};

// amplitude * (G / g_ref_us)^exponent, held between low and high.
struct Power {
  double amplitude = 0.0;
  double exponent = 0.0;
  double low = 0.0;
  double high = 0.0;
  double g_ref_us = 1.0;
};

// Straight lines between measured points, their ends' values beyond.
struct Points {
  std::vector<double> g_us;
  std::vector<double> values;
};

using Curve = std::variant<Polynomial, Saturating, Logarithmic, Power, Points>;

// Whole deviations measured at rising times, interpolated in mean and variance.
struct SigmaAtTimes {
  double t0_s = 0.0;
  bool log_axis = true;  // linear in ln t, else in t
  std::vector<double> times_s;
  std::vector<Curve> sigma_us;  // one for each of times_s
  std::vector<Curve> mean_us;   // the same, or none
};

// mean_us_per_ln * L and sigma_us + sigma_us_per_ln * L, L = ln(t / t0).
struct LogRelaxation {
  double t0_s = 0.0;
  double t_max_s = 0.0;
  double mean_us_per_ln = 0.0;
  double sigma_us = 0.0;
  double sigma_us_per_ln = 0.0;
};

// G (t / t0)^-nu, nu = |nu_mean + nu_sigma z|.
struct PowerDecay {
  double t0_s = 0.0;
  double t_max_s = 0.0;
  Curve nu_mean;
  Curve nu_sigma;
};

using TimeLaw = std::variant<std::monostate, SigmaAtTimes, LogRelaxation, PowerDecay>;

// I = G V + N2 V^2 + N3 V^3, N2 and N3 polynomials in log10(G in siemens), lowest power first.
struct IvPolynomial {
  double v_max_v = 0.0;  // at the end of the input range
  std::vector<double> square;
  std::vector<double> cube;
  std::pair<double, double> g_range_us;
};

// Standard deviation of a device from one read to the next: `sigma` of today's conductance, in
// microsiemens, or as a fraction of it and of the conductance as programmed.
struct ReadNoiseCurve {
  Curve sigma;
  bool is_frac = false;
  double t_read_s = 0.0;  // 0: the noise doesn't grow with time
};

enum class Reference { kTarget, kGMax };

// rimc_onnx.device.DeviceConfig.
struct DeviceModel {
  std::string name;
  Reference reference = Reference::kTarget;  // of the drift
  double drift_frac = 0.0;
  double drift_mean_frac = 0.0;
  double g_max_us = 40.0;
  double g_min_us = 0.0;
  std::optional<Curve> programming_sigma_us;  // in place of the drift
  TimeLaw time_law;
  std::optional<std::pair<double, double>> g_range_us;
  double stuck_min_frac = 0.0;
  double stuck_max_frac = 0.0;
  double clip_sigma = 0.0;  // 0: no weight is clipped
  int level_bits = 0;
  int num_slices = 1;
  int devices_per_weight = 1;
  bool by_column = false;        // one W_max per column
  double read_noise_frac = 0.0;  // 0: none is stated
  std::optional<ReadNoiseCurve> read_noise_curve;
  double iv_sinh = 0.0;  // 0: none is stated
  std::optional<IvPolynomial> iv_polynomial;
};

// First and last time that the law of a model reaches; nothing without a time axis.
std::optional<std::pair<double, double>> TimeRange(const DeviceModel& model);

// ln x of a positive, normal number, the same bits on every machine.
double ExactLog(double x);

// A curve at a conductance.
double ValueAt(const Curve& curve, double g_us);

// Where the mean of the model's law has a device of the target g_us after time_s.
double MeanPath(const DeviceModel& model, double g_us, double time_s);

// A time as files hold it: the nearest float32.
double RoundTime(double time_s);

// False for a model whose devices hold their targets exactly.
bool HasError(const DeviceModel& model);

// A law at one time, with the tables that it points to.
struct TimedLaw {
  kernels::CellLaw law;
  std::vector<std::shared_ptr<const std::vector<double>>> tables;
};

// Pre: time_s lies in the model's range, and the model's numbers in those of DeviceConfig.
TimedLaw MakeLaw(const DeviceModel& model, double time_s);

// The presets of rimc_onnx.device, which has the sources of their numbers.
std::vector<DeviceModel> Presets();

}  // namespace rimc
