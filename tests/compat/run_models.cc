// SPDX-License-Identifier: Apache-2.0
//
// Runs models with the native library, where there is no Python: see run_arm.sh.
//
// Usage: run_models libonnxruntime.so librimc_ops.so FOLDER TAG
// FOLDER/list.txt has a line per model: MODEL KIND NUM_INPUTS {NAME RANK SIZE...}..., KIND custom
// (operators), simulated, aged or read (the provider, on the device FOLDER/KIND.rimcdev).
// Inputs are float32 in FOLDER/MODEL.NAME; the output y goes to FOLDER/MODEL.y.TAG.
#include <sstream>

#include "../../samples/apps/digits_app.h"

namespace {

using namespace app;

using ElementCount = abi::Slot<64, abi::Status*, const abi::Shape*, std::size_t*>;

constexpr const char* kSeed = "12345678901";
constexpr const char* kReads = "{\"*\": {\"dac_range\": 2, \"read_noise\": 0.01}}";

struct Machine {
  const abi::Api* api;
  Env* env;
  const char* library;
  const EpDevice* device;
};

Machine Load(const char* runtime_path, const char* library) {
  const abi::Api* api = LoadRuntime(runtime_path, kProviderApi, "1.24");
  Env* env = nullptr;
  Check(api, CreateEnv::Call(api, kErrorsOnly, "run_models", &env));
  return {api, env, library, AddProvider(api, env, library).back()};
}

void RunModel(const Machine& machine, const std::string& folder, const std::string& line,
              const std::string& tag) {
  const abi::Api* api = machine.api;
  std::istringstream words(line);
  std::string model, kind;
  std::size_t num_inputs = 0;
  words >> model >> kind >> num_inputs;
  abi::SessionOptions* options = nullptr;
  Session* session = nullptr;
  Check(api, CreateSessionOptions::Call(api, &options));
  if (kind == "custom") {
    Check(api, RegisterLibrary::Call(api, options, machine.library));
  } else {
    const std::string device = "@" + folder + "/" + kind + ".rimcdev";
    std::vector<const char*> keys = {"device", "seed"};
    std::vector<const char*> values = {device.c_str(), kSeed};
    if (kind == "read") {
      keys.push_back("periphery");
      values.push_back(kReads);
    }
    Check(api, AppendProvider::Call(api, options, machine.env, &machine.device, 1, keys.data(),
                                    values.data(), keys.size()));
  }
  const std::string path = folder + "/" + model;
  Check(api, CreateSession::Call(api, machine.env, path.c_str(), options, &session));

  abi::MemoryInfo* memory = nullptr;
  Check(api, abi::CreateCpuMemoryInfo::Call(api, 0, 0, &memory));
  std::vector<std::string> names(num_inputs);
  std::vector<std::vector<char>> data(num_inputs);
  std::vector<const char*> name_pointers;
  std::vector<const abi::Value*> values;
  for (std::size_t i = 0; i < num_inputs; ++i) {
    std::size_t rank = 0;
    words >> names[i] >> rank;
    std::vector<std::int64_t> dims(rank);
    for (std::int64_t& dim : dims) words >> dim;
    std::ifstream file(path + "." + names[i], std::ios::binary);
    data[i].assign(std::istreambuf_iterator<char>(file), {});
    abi::Value* value = nullptr;
    Check(api, CreateTensor::Call(api, memory, data[i].data(), data[i].size(), dims.data(), rank,
                                  abi::kFloat, &value));
    values.push_back(value);
    name_pointers.push_back(names[i].c_str());
  }
  const char* const output_name = "y";
  abi::Value* output = nullptr;
  Check(api, Run::Call(api, session, nullptr, name_pointers.data(), values.data(), num_inputs,
                       &output_name, 1, &output));
  abi::Shape* shape = nullptr;
  std::size_t count = 0;
  void* floats = nullptr;
  Check(api, abi::GetTensorShape::Call(api, output, &shape));
  Check(api, ElementCount::Call(api, shape, &count));
  Check(api, abi::GetTensorMutableData::Call(api, output, &floats));
  std::ofstream out(path + ".y." + tag, std::ios::binary);
  out.write(static_cast<const char*>(floats), static_cast<std::streamsize>(count * sizeof(float)));
  if (!out) Fail(path + ".y." + tag + ": can't be written");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) Fail("usage: run_models libonnxruntime.so librimc_ops.so FOLDER TAG");
  const Machine machine = Load(argv[1], argv[2]);
  const std::string folder = argv[3];
  std::ifstream list(folder + "/list.txt");
  int count = 0;
  for (std::string line; std::getline(list, line); ++count)
    RunModel(machine, folder, line, argv[4]);
  std::printf("%s: %d models\n", argv[4], count);
  return 0;
}
