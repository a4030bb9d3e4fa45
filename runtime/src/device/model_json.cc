// SPDX-License-Identifier: Apache-2.0
#include "device/model_json.h"

#include <algorithm>
#include <limits>

#include "device/json.h"
#include "device/values.h"
#include "ort/ort.h"

namespace rimc {
namespace {

constexpr double kMostFloat = std::numeric_limits<float>::max();
constexpr double kMostDouble = std::numeric_limits<double>::max();

// Smallest number above 0.
constexpr double kAboveZero = std::numeric_limits<double>::denorm_min();

double NumberOf(const std::string& where, const Json& json, double least = -kMostDouble,
                double most = kMostDouble) {
  if (json.kind != Json::Kind::kNumber) Refuse(where, " must be a number");
  return ReadNumber(where, json.text, least, most);
}

std::vector<double> NumbersOf(const std::string& where, const Json& json) {
  if (json.kind != Json::Kind::kList) Refuse(where, " must be a list of numbers");
  std::vector<double> numbers;
  for (const Json& item : json.items) numbers.push_back(NumberOf(where, item));
  return numbers;
}

// An object whose fields are asked for by name; none may be left over.
class Fields {
 public:
  Fields(std::string where, const Json& json) : where_(std::move(where)), json_(json) {
    if (json.kind != Json::Kind::kObject) Refuse(where_, " must be an object");
  }

  std::string Where(const char* name) const { return where_ + ": " + name; }

  const Json* Optional(const char* name) {
    asked_.emplace_back(name);
    return json_.Find(name);
  }
  const Json& Get(const char* name) {
    const Json* value = Optional(name);
    if (value == nullptr) Refuse(where_, " lacks ", name);
    return *value;
  }
  double Number(const char* name, double least = -kMostDouble, double most = kMostDouble) {
    return NumberOf(Where(name), Get(name), least, most);
  }
  double Number(const char* name, double otherwise, double least, double most) {
    const Json* value = Optional(name);
    return value == nullptr ? otherwise : NumberOf(Where(name), *value, least, most);
  }
  std::vector<double> Numbers(const char* name) { return NumbersOf(Where(name), Get(name)); }
  std::string Text(const char* name) {
    const Json& value = Get(name);
    if (value.kind != Json::Kind::kText) Refuse(Where(name), " must be a text");
    return value.text;
  }
  [[noreturn]] void NotKnown(const char* name, const std::string& value) const {
    Refuse(Where(name), " '", value, "' is not known");
  }
  void Finish() const {
    for (const auto& [name, value] : json_.fields) {
      if (std::find(asked_.begin(), asked_.end(), name) == asked_.end()) {
        Refuse(where_, " has no field '", name, "'");
      }
    }
  }

 private:
  std::string where_;
  const Json& json_;
  std::vector<std::string> asked_;
};

void CheckRising(const std::string& where, const std::vector<double>& numbers) {
  if (std::adjacent_find(numbers.begin(), numbers.end(),
                         [](double a, double b) { return a >= b; }) != numbers.end()) {
    Refuse(where, " must rise");
  }
}

Curve ReadCurve(const std::string& where, const Json& json) {
  if (json.kind == Json::Kind::kNumber) return Polynomial{{NumberOf(where, json)}};
  Fields fields(where, json);
  const std::string kind = fields.Text("kind");
  Curve curve;
  if (kind == "polynomial") {
    Polynomial found{fields.Numbers("coefficients"),
                     fields.Number("g_ref_us", 1.0, kAboveZero, kMostDouble)};
    if (found.coefficients.empty()) Refuse(fields.Where("coefficients"), " has no values");
    curve = std::move(found);
  } else if (kind == "saturating") {
    curve = Saturating{fields.Number("amplitude"), fields.Number("g_scale_us", kAboveZero)};
  } else if (kind == "logarithmic") {
    Logarithmic found{fields.Number("offset"), fields.Number("slope"), fields.Number("low"),
                      fields.Number("high"),
                      fields.Number("g_ref_us", 1.0, kAboveZero, kMostDouble)};
    if (found.low > found.high) Refuse(where, ": low must be high or less");
    curve = found;
  } else if (kind == "power") {
    Power found{fields.Number("amplitude"), fields.Number("exponent", -8.0, 8.0),
                fields.Number("low"), fields.Number("high"),
                fields.Number("g_ref_us", 1.0, kAboveZero, kMostDouble)};
    if (found.low > found.high) Refuse(where, ": low must be high or less");
    curve = found;
  } else if (kind == "points") {
    Points found{fields.Numbers("g_us"), fields.Numbers("values")};
    if (found.g_us.empty() || found.g_us.size() != found.values.size()) {
      Refuse(where, " needs as many g_us as values, and one or more");
    }
    CheckRising(fields.Where("g_us"), found.g_us);
    curve = std::move(found);
  } else {
    fields.NotKnown("kind", kind);
  }
  fields.Finish();
  return curve;
}

std::vector<Curve> ReadCurves(const std::string& where, const Json* json) {
  std::vector<Curve> curves;
  if (json == nullptr) return curves;
  if (json->kind != Json::Kind::kList) Refuse(where, " must be a list of curves");
  for (const Json& item : json->items) curves.push_back(ReadCurve(where, item));
  return curves;
}

// First and last time, of a law that has both.
template <class Law>
void ReadTimes(Fields* fields, Law* law) {
  law->t0_s = RoundTime(fields->Number("t0_s", kAboveZero));
  law->t_max_s = RoundTime(fields->Number("t_max_s"));
  if (!(law->t0_s > 0.0 && law->t0_s <= law->t_max_s)) {
    Refuse(fields->Where("t_max_s"), " must be t0_s or more, and both above 0");
  }
}

SigmaAtTimes ReadSigmaAtTimes(Fields* fields) {
  SigmaAtTimes law;
  law.t0_s = RoundTime(fields->Number("t0_s"));
  if (const Json* axis = fields->Optional("axis")) {
    if (axis->text != "log" && axis->text != "linear") fields->NotKnown("axis", axis->text);
    law.log_axis = axis->text == "log";
  }
  std::vector<double> times{law.t0_s};
  if (const Json* list = fields->Optional("times_s")) {
    for (const double t : NumbersOf(fields->Where("times_s"), *list)) {
      law.times_s.push_back(RoundTime(t));
      times.push_back(law.times_s.back());
    }
  }
  CheckRising(fields->Where("t0_s and times_s"), times);
  law.sigma_us = ReadCurves(fields->Where("sigma_us"), fields->Optional("sigma_us"));
  law.mean_us = ReadCurves(fields->Where("mean_us"), fields->Optional("mean_us"));
  const std::size_t count = law.times_s.size();
  if (law.sigma_us.size() != count || (!law.mean_us.empty() && law.mean_us.size() != count)) {
    Refuse(fields->Where("sigma_us"),
           " must have a curve for each of times_s, mean_us too or none");
  }
  if (law.log_axis && !(law.t0_s > 0.0)) Refuse(fields->Where("t0_s"), " must be above 0");
  return law;
}

TimeLaw ReadTimeLaw(const std::string& where, const Json& json) {
  Fields fields(where, json);
  const std::string kind = fields.Text("kind");
  TimeLaw law;
  if (kind == "sigma-at-times") {
    law = ReadSigmaAtTimes(&fields);
  } else if (kind == "log-relaxation") {
    LogRelaxation found;
    ReadTimes(&fields, &found);
    found.mean_us_per_ln = fields.Number("mean_us_per_ln", 0.0, -kMostDouble, kMostDouble);
    found.sigma_us = fields.Number("sigma_us", 0.0, 0.0, kMostDouble);
    found.sigma_us_per_ln = fields.Number("sigma_us_per_ln", 0.0, 0.0, kMostDouble);
    law = found;
  } else if (kind == "power-decay") {
    PowerDecay found;
    ReadTimes(&fields, &found);
    found.nu_mean = ReadCurve(fields.Where("nu_mean"), fields.Get("nu_mean"));
    found.nu_sigma = ReadCurve(fields.Where("nu_sigma"), fields.Get("nu_sigma"));
    law = std::move(found);
  } else {
    fields.NotKnown("kind", kind);
  }
  fields.Finish();
  return law;
}

IvPolynomial ReadIvPolynomial(const std::string& where, const Json& json) {
  Fields fields(where, json);
  IvPolynomial curve;
  curve.v_max_v = fields.Number("v_max_v", kAboveZero, 10.0);
  curve.square = fields.Numbers("square");
  curve.cube = fields.Numbers("cube");
  const std::vector<double> range = fields.Numbers("g_range_us");
  CheckRising(fields.Where("g_range_us"), range);
  if (range.size() != 2 || !(range[0] > 0.0)) {
    Refuse(fields.Where("g_range_us"), " must be two numbers above 0");
  }
  curve.g_range_us = {range[0], range[1]};
  fields.Finish();
  return curve;
}

ReadNoiseCurve ReadReadNoiseCurve(const std::string& where, const Json& json) {
  Fields fields(where, json);
  ReadNoiseCurve noise;
  const Json* const sigma_us = fields.Optional("sigma_us");
  const Json* const sigma_frac = fields.Optional("sigma_frac");
  if ((sigma_us == nullptr) == (sigma_frac == nullptr)) {
    Refuse(where, " must have one of sigma_us and sigma_frac");
  }
  noise.is_frac = sigma_frac != nullptr;
  const char* const name = noise.is_frac ? "sigma_frac" : "sigma_us";
  noise.sigma = ReadCurve(fields.Where(name), noise.is_frac ? *sigma_frac : *sigma_us);
  if (const Json* t_read_s = fields.Optional("t_read_s")) {
    noise.t_read_s = NumberOf(fields.Where("t_read_s"), *t_read_s, 1e-12, 1.0);
  }
  fields.Finish();
  return noise;
}

// What goes with the model in every read.
void ReadReads(Fields* fields, DeviceModel* model) {
  constexpr double kMostSinh = 6.0;
  if (const Json* noise = fields->Optional("read_noise_frac")) {
    model->read_noise_frac = NumberOf(fields->Where("read_noise_frac"), *noise, kAboveZero, 1.0);
  }
  if (const Json* curve = fields->Optional("read_noise_curve")) {
    model->read_noise_curve = ReadReadNoiseCurve(fields->Where("read_noise_curve"), *curve);
  }
  if (const Json* sinh = fields->Optional("iv_sinh")) {
    model->iv_sinh = NumberOf(fields->Where("iv_sinh"), *sinh, kAboveZero, kMostSinh);
  }
  if (const Json* curve = fields->Optional("iv_polynomial")) {
    model->iv_polynomial = ReadIvPolynomial(fields->Where("iv_polynomial"), *curve);
  }
}

}  // namespace

bool SetNumber(const std::string& where, const std::string& name, const std::string& text,
               DeviceModel* model) {
  const auto number = [&](double least, double most) {
    return ReadNumber(where + name, text, least, most);
  };
  const auto whole = [&](int most) { return ReadWhole(where + name, text, 1, most); };
  if (name == "drift_frac") {
    model->drift_frac = number(0.0, 1.0);
  } else if (name == "drift_mean_frac") {
    model->drift_mean_frac = number(-1.0, 1.0);
  } else if (name == "g_max_us") {
    model->g_max_us = number(0.0, kMostFloat);
  } else if (name == "g_min_us") {
    model->g_min_us = number(0.0, kMostFloat);
  } else if (name == "stuck_min_frac") {
    model->stuck_min_frac = number(0.0, 1.0);
  } else if (name == "stuck_max_frac") {
    model->stuck_max_frac = number(0.0, 1.0);
  } else if (name == "clip_sigma") {
    model->clip_sigma = number(kAboveZero, kMostFloat);
  } else if (name == "level_bits") {
    model->level_bits = whole(12);
  } else if (name == "num_slices") {
    model->num_slices = whole(8);
  } else if (name == "devices_per_weight") {
    model->devices_per_weight = whole(64);
  } else {
    return false;
  }
  return true;
}

void CheckModel(const std::string& where, const DeviceModel& model) {
  if (model.g_min_us >= model.g_max_us) {
    Refuse(where, "g_min_us and g_max_us must be 0 <= g_min_us < g_max_us, got ", model.g_min_us,
           " and ", model.g_max_us);
  }
  if (model.programming_sigma_us && (model.drift_frac != 0.0 || model.drift_mean_frac != 0.0)) {
    Refuse(where, "drift_frac and drift_mean_frac must be 0 with preset '", model.name,
           "', whose error is measured");
  }
  if (model.g_range_us) {
    const auto [low, high] = *model.g_range_us;
    const double top = model.g_min_us + model.g_max_us;
    const double slack = 1e-9 * high;
    if (model.g_min_us < low - slack || top > high + slack) {
      Refuse(where, "g_min_us and g_max_us: the law of '", model.name, "' holds for ", low, " .. ",
             high, " microsiemens, but devices would be set to ", model.g_min_us, " .. ", top);
    }
  }
  if (model.iv_polynomial) {
    if (model.iv_sinh > 0.0) Refuse(where, "iv_sinh and iv_polynomial are two curves, give one");
    const auto [low, high] = model.iv_polynomial->g_range_us;
    const double top = model.g_min_us + model.g_max_us;
    if (!(low * (1 - 1e-9) <= model.g_min_us && top <= high * (1 + 1e-9))) {
      Refuse(where, "g_min_us and g_max_us: the iv_polynomial of '", model.name, "' holds for ",
             low, " .. ", high, " microsiemens, but devices would be set to ", model.g_min_us,
             " .. ", top);
    }
  }
  if (model.read_noise_curve) {
    if (model.read_noise_frac > 0.0) {
      Refuse(where, "read_noise_frac and read_noise_curve are two laws, give one");
    }
    const auto range = TimeRange(model);
    const double first_s = range ? range->first : 0.0;
    if (model.read_noise_curve->t_read_s > 0.0 && first_s <= model.read_noise_curve->t_read_s) {
      Refuse(where, "the read_noise_curve of '", model.name, "' grows from t_read_s on, so it ",
             "needs a time_law whose first time is above ", model.read_noise_curve->t_read_s,
             " s, got ", first_s);
    }
  }
  if (model.stuck_min_frac + model.stuck_max_frac > 1.0) {
    Refuse(where, "stuck_min_frac + stuck_max_frac must be 1 or less, got ", model.stuck_min_frac,
           " and ", model.stuck_max_frac);
  }
  if (model.num_slices > 1 && model.level_bits == 0) {
    Refuse(where, "num_slices needs level_bits: the bits that one device holds");
  }
  if (model.level_bits * model.num_slices > 24) {
    Refuse(where, "num_slices * level_bits must be 24 or less, got ", model.num_slices, " * ",
           model.level_bits);
  }
}

DeviceModel ReadModel(const std::string& where, const std::string& text) {
  const Json json = ParseJson(where, text);
  Fields fields(where, json);
  DeviceModel model;
  model.name = fields.Text("preset");
  const std::string law = fields.Text("law");
  if (law != "gaussian-relative" && law != "gaussian-absolute" && law != "measured") {
    fields.NotKnown("law", law);
  }
  model.reference = law == "gaussian-relative" ? Reference::kTarget : Reference::kGMax;
  const std::string scaling = fields.Text("scaling");
  if (scaling != "node" && scaling != "column") fields.NotKnown("scaling", scaling);
  model.by_column = scaling == "column";
  for (const char* name : {"drift_frac", "drift_mean_frac", "g_max_us", "g_min_us"}) {
    fields.Get(name);
  }
  for (const auto& [name, value] : json.fields) {
    const bool is_number = value.kind == Json::Kind::kNumber;
    if (SetNumber(where + ": ", name, is_number ? value.text : "", &model)) {
      fields.Optional(name.c_str());
    }
  }
  if (const Json* sigma = fields.Optional("programming_sigma_us")) {
    model.programming_sigma_us = ReadCurve(fields.Where("programming_sigma_us"), *sigma);
  }
  if ((law == "measured") != model.programming_sigma_us.has_value()) {
    Refuse(where, ": programming_sigma_us goes with the law measured and no other");
  }
  if (const Json* time_law = fields.Optional("time_law")) {
    model.time_law = ReadTimeLaw(fields.Where("time_law"), *time_law);
  }
  if (const Json* range = fields.Optional("g_range_us")) {
    const std::vector<double> pair = NumbersOf(fields.Where("g_range_us"), *range);
    CheckRising(fields.Where("g_range_us"), pair);
    if (pair.size() != 2) Refuse(fields.Where("g_range_us"), " must be two numbers");
    model.g_range_us = {pair[0], pair[1]};
  }
  ReadReads(&fields, &model);
  fields.Optional("source");
  fields.Finish();
  CheckModel(where + ": ", model);
  return model;
}

}  // namespace rimc
