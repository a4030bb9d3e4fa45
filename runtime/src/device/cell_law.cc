// SPDX-License-Identifier: Apache-2.0
#include "device/cell_law.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ort/ort.h"

namespace rimc {
namespace {

using kernels::CellLaw;

constexpr double kMost = std::numeric_limits<double>::max();

template <class T>
struct Member {
  const char* name;
  T CellLaw::* at;
};

template <class T>
struct Bounded {
  const char* name;
  T CellLaw::* at;
  double least;
  double most;
};

constexpr Bounded<double> kNumbers[] = {
    {"drift_frac", &CellLaw::drift_frac, -kMost, kMost},
    {"drift_mean_frac", &CellLaw::drift_mean_frac, -kMost, kMost},
    {"reference_slope", &CellLaw::reference_slope, -kMost, kMost},
    {"reference_us", &CellLaw::reference_us, -kMost, kMost},
    {"g_max_us", &CellLaw::g_max_us, 1e-300, kMost},
    {"g_min_us", &CellLaw::g_min_us, 0.0, kMost},
    {"log_time", &CellLaw::log_time, -kMost, kMost},
};
constexpr Member<kernels::LawColumn> kColumns[] = {
    {"programming_sigma_us", &CellLaw::programming_sigma_us},
    {"mean_us", &CellLaw::mean_us},
    {"drift_sigma_us", &CellLaw::drift_sigma_us},
    {"nu_mean", &CellLaw::nu_mean},
    {"nu_sigma", &CellLaw::nu_sigma},
};
constexpr Bounded<std::uint64_t> kWords[] = {
    {"stuck_min_words", &CellLaw::stuck_min_words, 0.0, 4294967296.0},
    {"stuck_max_words", &CellLaw::stuck_max_words, 0.0, 4294967296.0},
};
constexpr Bounded<std::int32_t> kCounts[] = {
    {"clips", &CellLaw::clips, 0, 1},
    {"level_bits", &CellLaw::level_bits, 0, 24},
    {"num_slices", &CellLaw::num_slices, 1, 8},
    {"devices_per_weight", &CellLaw::devices_per_weight, 1, 64},
};

kernels::LawColumn ReadColumn(const std::string& where, const TableFile& file, const Json& json) {
  kernels::LawColumn column;
  if (json.kind == Json::Kind::kNull) return column;
  if (json.kind != Json::Kind::kObject) {
    column.value = NumberOf(where, json);
    return column;
  }
  Fields fields(where, json);
  const int index = fields.Whole("table", 0, static_cast<int>(file.tables.size()) - 1);
  fields.Finish();
  const std::vector<double>& knots = *file.tables[static_cast<std::size_t>(index)];
  if (knots.size() != kernels::kLawIntervals + 1) {
    Refuse(where, " must have ", kernels::kLawIntervals + 1, " knots, got ", knots.size());
  }
  if (!std::all_of(knots.begin(), knots.end(), [](double k) { return std::isfinite(k); })) {
    Refuse(where, " has a knot that is not finite");
  }
  column.knots = knots.data();
  return column;
}

}  // namespace

TimedLaw ReadLaw(const std::string& where, const TableFile& file, const Json& values) {
  TimedLaw timed;
  timed.tables = file.tables;
  CellLaw& law = timed.law;
  Fields fields(where, values);
  for (const auto& [name, at, least, most] : kNumbers) law.*at = fields.Number(name, least, most);
  for (const auto& [name, at] : kColumns) {
    law.*at = ReadColumn(fields.Where(name), file, fields.Get(name));
  }
  for (const auto& [name, at, least, most] : kWords) {
    law.*at = static_cast<std::uint64_t>(fields.Number(name, least, most));
  }
  for (const auto& [name, at, least, most] : kCounts) {
    law.*at = fields.Whole(name, static_cast<int>(least), static_cast<int>(most));
  }
  fields.Finish();
  if (law.level_bits * law.num_slices > 24 || (law.level_bits == 0 && law.num_slices > 1)) {
    Refuse(where, ": a weight can't have ", law.num_slices, " slices of ", law.level_bits, " bits");
  }
  law.intervals_per_us = kernels::kLawIntervals / law.g_max_us;
  return timed;
}

}  // namespace rimc
