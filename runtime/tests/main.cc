// SPDX-License-Identifier: Apache-2.0
//
// Every entry of the kernel tables that this machine can run against the scalar one, the draws
// against published ones, the plans of convolutions, and the reader of compiled devices. Needs no
// ONNX Runtime.
#include <cstdio>

#include "harness.h"
#include "kernels/dispatch.h"

namespace rimc::tests {

// A table with a wrong entry has to be noticed, and the entry named.
void TestPlanted(const kernels::KernelTable& table, Report* report) {
  kernels::KernelTable planted = table;
  planted.conv_block[1][1] = planted.conv_block[1][0];
  Report found;
  TestBlocks(planted, kernels::rimc_kernels_f32_scalar, &found);
  const std::string name = std::string(table.isa) + " conv_block[2 x 2]";
  report->Expect(found.failures > 0, name + ": planted, and not noticed");
  for (const std::string& failure : found.first) {
    report->Expect(failure.compare(0, name.size(), name) == 0, failure + ": not what was planted");
  }
}

}  // namespace rimc::tests

int main() {
  using namespace rimc;
  tests::Report report;
  const kernels::KernelTable& scalar = kernels::rimc_kernels_f32_scalar;
  for (const kernels::KernelTable* table : AvailableKernels()) {
    const int before = report.entries;
    const int failures_before = report.failures;
    tests::TestBlocks(*table, scalar, &report);
    tests::TestOthers(*table, scalar, &report);
    tests::TestPhilox(*table, &report);
    if (table->quads != nullptr) tests::TestQuads(*table, &report);
    tests::TestPlans(*table, &report);
    // What is wrong already would be found beside what is planted.
    if (report.failures == failures_before) tests::TestPlanted(*table, &report);
    std::printf("%s: %d entries\n", table->isa, report.entries - before);
  }
  tests::TestCompiledDevices(RIMC_PRESETS, &report);
  for (const std::string& failure : report.first) std::printf("FAILED %s\n", failure.c_str());
  std::printf("%d entries, %d failures\n", report.entries, report.failures);
  return report.failures == 0 ? 0 : 1;
}
