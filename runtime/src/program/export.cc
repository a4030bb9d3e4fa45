// SPDX-License-Identifier: Apache-2.0
//
// Programming of crossbars as a C function, for conversion.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

#include "device/cell_law.h"
#include "device/table_file.h"
#include "kernels/dispatch.h"
#include "ort/ort.h"
#include "program/programming.h"
#include "rimc/ort_abi.h"

extern "C" {

// One call. The caller writes its own sizeof into `size`.
struct RimcProgramJob {
  std::uint32_t size;
  std::int32_t max_threads;  // 0: as many as the machine has
  const float* w;            // [count]
  float* w_realised;         // [count], may be w
  std::int64_t first_cell;
  std::int64_t count;
  const float* w_max;  // [num_columns]
  std::int64_t num_columns;
  std::int64_t run;  // cells from one column to the next
  std::uint64_t seed;
  const char* node;  // UTF-8
  const char* law;   // a table file (table_file.h) whose values are a law
  std::uint64_t law_size;
};
}
static_assert(sizeof(void*) != 8 || sizeof(RimcProgramJob) == 96, "layout of the ctypes twin");

// Null, or why nothing was programmed: one line, which lives until the thread's next call.
RIMC_EXPORT const char* RimcProgramCells(const RimcProgramJob* job) {
  thread_local std::string failure;
  constexpr std::int64_t kMaxCells = std::int64_t{1} << 34;
  try {
    if (job->size != sizeof(RimcProgramJob)) {
      rimc::Refuse("the job has ", job->size, " bytes, expected ", sizeof(RimcProgramJob),
                   ". Library and package are of different versions: reinstall rimc-onnx");
    }
    if (job->count < 0 || job->first_cell < 0 || job->first_cell > kMaxCells - job->count) {
      rimc::Refuse("node '", job->node, "': cells lie outside 0..2^34-1");
    }
    if (job->run < 1 || job->num_columns < 1) {
      rimc::Refuse("node '", job->node, "': run and num_columns must be 1 or more");
    }
    const std::string where = std::string("node '") + job->node + "': its law";
    const rimc::TableFile file = rimc::ReadTableFile(where, {job->law, job->law_size});
    const rimc::TimedLaw timed = rimc::ReadLaw(where, file, file.values);
    const rimc::CellRun cells{job->first_cell,  job->run,  job->w_max,
                              job->num_columns, job->seed, rimc::NameWords(job->node),
                              timed.law};
    rimc::ProgramWeights(rimc::ActiveKernels(), cells, job->w, job->w_realised, job->count,
                         job->max_threads);
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
  } catch (...) {
    failure = "unknown error";
  }
  return failure.c_str();
}
