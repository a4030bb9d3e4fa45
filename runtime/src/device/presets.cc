// SPDX-License-Identifier: Apache-2.0
//
// The presets of rimc_onnx/device/presets.py and measured_presets.py, where the sources of the
// numbers are. A test holds them together, weight by weight.
#include <iterator>

#include "device/law.h"

namespace rimc {
namespace {

constexpr double kDayS = 86400.0;
constexpr double kYearS = 365.25 * kDayS;

DeviceModel Measured(std::string name, Curve programming_sigma_us, double g_min_us, double g_max_us,
                     double g_most_us) {
  DeviceModel model;
  model.name = std::move(name);
  model.reference = Reference::kGMax;
  model.g_max_us = g_max_us;
  model.g_min_us = g_min_us;
  model.programming_sigma_us = std::move(programming_sigma_us);
  model.g_range_us = {g_min_us, g_most_us};
  return model;
}

DeviceModel Gaussian(std::string name, Reference reference, double drift_frac) {
  DeviceModel model;
  model.name = std::move(name);
  model.reference = reference;
  model.drift_frac = drift_frac;
  return model;
}

DeviceModel WanAihwkit() {
  DeviceModel model =
      Measured("wan2022-aihwkit", Polynomial{{0.348, 16.030, -43.853, 45.393, -16.815}, 40.0}, 0.0,
               40.0, 40.0);
  SigmaAtTimes law;
  law.t0_s = 1.0;
  law.times_s = {kDayS, 2 * kDayS};
  law.sigma_us = {Polynomial{{0.701, 22.086, -50.773, 47.095, -16.458}, 40.0},
                  Polynomial{{0.782, 20.274, -43.507, 37.062, -11.934}, 40.0}};
  model.time_law = std::move(law);
  return model;
}

DeviceModel WanCrossSim() {
  DeviceModel model = Measured(
      "wan2022-crosssim", Polynomial{{1.053, 2.374e-1, -1.167e-2, 1.536e-4}}, 0.0, 39.26, 39.26);
  SigmaAtTimes law;
  law.t0_s = 1.0;
  model.time_law = std::move(law);
  return model;
}

DeviceModel Cmo(std::string name, double offset_us, double slope) {
  DeviceModel model = Measured(std::move(name), Polynomial{{offset_us, slope}}, 9.0, 79.2, 88.2);
  LogRelaxation law;
  law.t0_s = 1.0;
  law.t_max_s = RoundTime(10 * kYearS);
  law.mean_us_per_ln = -0.08900206;
  law.sigma_us = 0.41183342;
  law.sigma_us_per_ln = 0.04201137;
  model.time_law = law;
  return model;
}

DeviceModel Pcm() {
  DeviceModel model =
      Measured("pcm-natcomm2020", Polynomial{{0.26348, 1.9650, -1.1731}, 25.0}, 0.0, 25.0, 25.0);
  PowerDecay law;
  law.t0_s = 20.0;
  law.t_max_s = RoundTime(kYearS);
  law.nu_mean = Logarithmic{0.0244, -0.0155, 0.049, 0.1, 25.0};
  law.nu_sigma = Logarithmic{-0.0059, -0.0125, 0.008, 0.045, 25.0};
  model.time_law = std::move(law);
  return model;
}

DeviceModel Retention() {
  DeviceModel model = Gaussian("retention-power", Reference::kTarget, 0.0);
  PowerDecay law;
  law.t0_s = 1.0;
  law.t_max_s = RoundTime(10 * kYearS);
  law.nu_mean = Polynomial{{0.1}};
  law.nu_sigma = Polynomial{{0.0}};
  model.time_law = std::move(law);
  return model;
}

// Fits over currents in nA at 0.1 V.
constexpr double kSonosNaUs = 0.01;

Curve SonosSpread(double amplitude_na, double scale_na) {
  return Saturating{amplitude_na * kSonosNaUs, scale_na * kSonosNaUs};
}

Curve SonosMean(std::vector<double> coefficients_na) {
  for (double& c : coefficients_na) c *= kSonosNaUs;
  return Polynomial{std::move(coefficients_na), kSonosNaUs};
}

DeviceModel Sonos() {
  DeviceModel model = Measured("sonos-40nm", SonosSpread(19.88665, 176.3115), 0.0, 16.0, 16.0);
  SigmaAtTimes law;
  law.t0_s = 0.0;
  law.log_axis = false;
  law.times_s = {kDayS, 2 * kDayS, 3 * kDayS, 4 * kDayS, 5 * kDayS};
  law.sigma_us = {SonosSpread(25.59102, 186.85544), SonosSpread(28.72753, 193.56834),
                  SonosSpread(31.04318, 198.90332), SonosSpread(33.76214, 204.77023),
                  SonosSpread(34.57909, 207.34309)};
  law.mean_us = {
      SonosMean({6.83650e-01, 6.51250e-03, -4.03163e-04, 3.37944e-06, -1.87435e-08, 5.88902e-11,
                 -1.07685e-13, 1.17751e-16, -7.60016e-20, 2.67255e-23, -3.94954e-27}),
      SonosMean({6.60925e-01, 8.60627e-03, -1.72936e-04, 7.44096e-07, -5.94866e-09, 2.36734e-11,
                 -4.83740e-14, 5.56072e-17, -3.65397e-20, 1.28405e-23, -1.87450e-27}),
      SonosMean({1.15821e00, 1.96116e-02, -4.70807e-04, 3.67510e-06, -2.08786e-08, 6.59752e-11,
                 -1.19499e-13, 1.28435e-16, -8.11574e-20, 2.78802e-23, -4.02057e-27}),
      SonosMean({8.72216e-01, 1.70926e-02, -2.23370e-04, 1.57526e-06, -1.32779e-08, 5.08256e-11,
                 -1.01251e-13, 1.14633e-16, -7.46124e-20, 2.60559e-23, -3.78724e-27}),
      SonosMean({1.15294e00, 1.03149e-02, -6.05199e-05, 1.76086e-08, -6.46690e-09, 3.39044e-11,
                 -7.53872e-14, 8.98185e-17, -6.00346e-20, 2.12615e-23, -3.11099e-27})};
  model.time_law = std::move(law);
  return model;
}

}  // namespace

std::vector<DeviceModel> Presets() {
  DeviceModel models[] = {
      Gaussian("gaussian-relative", Reference::kTarget, 0.20),
      Gaussian("gaussian-absolute", Reference::kGMax, 0.08),
      WanAihwkit(),
      WanCrossSim(),
      Measured("milo2021", Polynomial{{4.782321, -0.009107}}, 50.0, 175.0, 225.0),
      Cmo("cmo-hfox-2025-0.2pct", 0.00081107, 0.00106879),
      Cmo("cmo-hfox-2025-2pct", 0.0112185391, 0.01129027418),
      Pcm(),
      Sonos(),
      Retention(),
  };
  return {std::make_move_iterator(std::begin(models)), std::make_move_iterator(std::end(models))};
}

}  // namespace rimc
