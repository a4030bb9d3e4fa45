// SPDX-License-Identifier: Apache-2.0
#include "program/programming.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <system_error>
#include <thread>

#include "device/sha256.h"
#include "program/deviation.h"

namespace rimc {
namespace {

// Fewer cells are done before a thread has started.
constexpr std::int64_t kThreadCells = std::int64_t{1} << 16;

constexpr std::uint32_t kPurposeRead = 32;  // rimc_onnx.device.Purpose.READ

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

}  // namespace

std::array<std::uint32_t, 2> NameWords(std::string_view node) {
  const auto digest = Sha256(node);
  std::array<std::uint32_t, 2> words{};
  for (std::size_t i = 0; i < 8; ++i) {
    words[i / 4] |= static_cast<std::uint32_t>(digest[i]) << (8 * (i % 4));
  }
  return words;
}

std::int64_t ReadKeyOf(std::uint64_t seed, const std::string& node) {
  const std::array<std::uint32_t, 2> name = NameWords(node);
  const std::array<std::uint32_t, 2> words =
      PhiloxWords({0, kPurposeRead << 16, name[0], name[1]}, static_cast<std::uint32_t>(seed),
                  static_cast<std::uint32_t>(seed >> 32));
  return static_cast<std::int64_t>(words[0] | std::uint64_t{words[1]} << 32);
}

void ProgramWeights(const kernels::KernelTable& kernels, const CellRun& cells, const float* w,
                    float* w_realised, std::int64_t count, int max_threads) {
  const kernels::CellLaw& law = cells.law;
  const int bits = law.level_bits * law.num_slices;
  const double most_steps = bits == 0 ? law.g_max_us : std::ldexp(1.0, bits) - 1.0;
  std::vector<double> w_max(cells.w_max, cells.w_max + cells.num_columns);
  std::vector<double> steps_per_weight;
  std::vector<double> weight_per_step;
  std::vector<double> weight_per_us;
  for (const double w : w_max) {
    steps_per_weight.push_back(w > 0.0 ? most_steps / w : 0.0);
    weight_per_step.push_back(w / most_steps);
    weight_per_us.push_back(w / law.g_max_us);
  }
  const auto program = [&](std::int64_t begin, std::int64_t end) {
    kernels::ProgramArgs args{};
    args.w = w + begin;
    args.w_realised = w_realised + begin;
    args.first_cell = cells.first_cell + begin;
    args.count = end - begin;
    args.steps_per_weight = steps_per_weight.data();
    args.weight_per_step = weight_per_step.data();
    args.weight_per_us = weight_per_us.data();
    args.w_max = w_max.data();
    args.num_columns = cells.num_columns;
    args.run = cells.run;
    args.key[0] = static_cast<std::uint32_t>(cells.seed);
    args.key[1] = static_cast<std::uint32_t>(cells.seed >> 32);
    args.name[0] = cells.name[0];
    args.name[1] = cells.name[1];
    args.law = law;
    kernels.program_cells(args);
  };

  if (max_threads < 1) {
    max_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  const std::int64_t parts = std::clamp<std::int64_t>(count / kThreadCells, 1, max_threads);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(parts));
  std::int64_t part = 1;
  try {
    for (; part < parts; ++part) {
      threads.emplace_back(program, count * part / parts, count * (part + 1) / parts);
    }
  } catch (const std::system_error&) {
    // No more threads to be had: what is left is done here.
  }
  program(0, count / parts);
  if (part < parts) program(count * part / parts, count);
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> LargestWeights(const float* w, std::int64_t count, std::int64_t num_columns,
                                  std::int64_t run, double clip_sigma) {
  std::vector<float> largest(static_cast<std::size_t>(num_columns), 0.0f);
  for (std::int64_t begin = 0; begin < count; begin += run) {
    const std::int64_t end = std::min(begin + run, count);
    float& most = largest[static_cast<std::size_t>(begin / run % num_columns)];
    for (std::int64_t i = begin; i < end; ++i) {
      const float size = std::fabs(w[i]);
      if (!(size <= most)) most = size;  // a NaN, too
      if (!std::isfinite(size)) return largest;
    }
  }
  if (clip_sigma > 0.0) {
    const std::vector<double> deviations = StandardDeviations(w, count, largest, run);
    for (std::size_t c = 0; c < largest.size(); ++c) {
      largest[c] = std::min(largest[c], static_cast<float>(clip_sigma * deviations[c]));
    }
  }
  return largest;
}

}  // namespace rimc
