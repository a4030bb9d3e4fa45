// SPDX-License-Identifier: Apache-2.0
//
// The execution provider: brings the operators of the domain to a session and, where a preset is
// given, runs the Conv, Gemm and MatMul nodes of an ordinary model on crossbars.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "ops/op.h"
#include "ops/register.h"
#include "provider/compiled_node.h"
#include "provider/fusion/fused_node.h"
#include "provider/fusion/group.h"
#include "provider/mapping.h"
#include "provider/options.h"
#include "rimc/ort_ep_abi.h"

namespace rimc {
namespace {

constexpr const char* kProviderName = "RimcExecutionProvider";
// ONNX Runtime puts the options of a provider among the session's entries, behind this.
constexpr const char* kOptionPrefix = "ep.rimcexecutionprovider.";

// What the calling thread's last session made of the nodes: JSON.
thread_local std::string last_mapping = "[]";

std::string Quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    constexpr const char* kHex = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      json += std::string("\\u00") + kHex[byte >> 4] + kHex[byte & 15];
    } else {
      if (c == '"' || c == '\\') json += '\\';
      json += c;
    }
  }
  return json + '"';
}

std::string ToJson(const std::vector<Decision>& decisions) {
  std::string json = "[";
  for (const Decision& d : decisions) {
    json += json.size() > 1 ? ", " : "";
    json += "{\"name\": " + Quoted(d.name) + ", \"op_type\": " + Quoted(d.op_type) +
            ", \"reason\": " + (d.mapped ? "null" : Quoted(d.reason)) + "}";
  }
  return json + "]";
}

KeyValues ReadOptions(const abi::Api* api, const abi::SessionOptions* session_options) {
  struct Handle {
    const abi::Api* api;
    abi::KeyValuePairs* pairs = nullptr;
    ~Handle() {
      if (pairs != nullptr) abi::ReleaseKeyValuePairs::Call(api, pairs);
    }
  } handle{api};
  Check(api, abi::SessionConfigEntries::Call(api, session_options, &handle.pairs));
  const char* const* keys = nullptr;
  const char* const* values = nullptr;
  std::size_t count = 0;
  abi::GetKeyValuePairs::Call(api, handle.pairs, &keys, &values, &count);
  const std::string prefix = kOptionPrefix;
  KeyValues options;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string key = keys[i];
    if (key.compare(0, prefix.size(), prefix) == 0) {
      options.emplace_back(key.substr(prefix.size()), values[i]);
    }
  }
  return options;
}

// The provider of one session.
class Provider : public abi::Ep {
 public:
  Provider(const abi::Api* api, const abi::Logger* logger, std::optional<DeviceOptions> device)
      : abi::Ep{}, api_(api), logger_(logger), device_(std::move(device)) {
    version = abi::kEpApiVersion;
    GetName = [](const abi::Ep*) { return kProviderName; };
    GetCapability = [](abi::Ep* ep, const abi::Graph* graph, abi::EpGraphSupportInfo* info) {
      auto& self = *static_cast<Provider*>(ep);
      return Guard(self.api_, [&] { self.Claim(graph, info); });
    };
    Compile = [](abi::Ep* ep, const abi::Graph** graphs, const abi::Node**, std::size_t count,
                 abi::NodeComputeInfo** infos, abi::Node**) {
      auto& self = *static_cast<Provider*>(ep);
      return Guard(self.api_, [&] { self.CompileAll(graphs, count, infos); });
    };
    ReleaseNodeComputeInfos = [](abi::Ep*, abi::NodeComputeInfo** infos, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) delete static_cast<CompiledNode*>(infos[i]);
    };
  }

 private:
  void Claim(const abi::Graph* graph, abi::EpGraphSupportInfo* info) {
    const abi::Node* parent = nullptr;
    Check(api_, abi::GraphParentNode::Call(api_, graph, &parent));
    const std::vector<const abi::Node*> nodes = NodesOf(api_, graph);
    if (parent != nullptr) {  // bodies of control flow stay digital, as in a conversion
      for (const abi::Node* node : nodes) {
        auto decision = device_ ? Decide(api_, node, parent, *device_) : std::nullopt;
        if (decision) inside_.push_back(std::move(*decision));
      }
      return;
    }
    if (!device_) {
      AddFusedNodes(nodes, CrossbarsOf(nodes), info);
      last_mapping = "[]";
      return;
    }
    for (const abi::Node* node : nodes) {
      if (DomainOf(api_, node) == kDomain) {
        // ONNX Runtime logs an error of this function and goes on; one of Compile ends the
        // session, so there has to be something to compile.
        converted_ = true;
        AddNodes({node}, info);
        return;
      }
    }
    // ONNX Runtime shows the bodies before the graph that they are in.
    std::vector<Decision> decisions = std::exchange(inside_, {});
    Starts mapped;
    for (const abi::Node* node : nodes) {
      auto decision = Decide(api_, node, nullptr, *device_);
      if (!decision) continue;
      if (decision->mapped) mapped.insert(node);
      decisions.push_back(std::move(*decision));
    }
    for (const Decision& decision : decisions) {
      if (!decision.mapped) Log(decision);
    }
    AddFusedNodes(nodes, mapped, info);
    Remember(std::move(decisions));
    last_mapping = ToJson(decisions_);
  }

  // ONNX Runtime asks again once it has inlined functions: nodes that were claimed before are in
  // the graph no more, all others are shown again.
  void Remember(std::vector<Decision> shown) {
    std::set<std::string> names;
    for (const Decision& d : shown) names.insert(d.name);
    const auto gone = [&](const Decision& d) { return !d.mapped || names.count(d.name) > 0; };
    decisions_.erase(std::remove_if(decisions_.begin(), decisions_.end(), gone), decisions_.end());
    for (Decision& d : shown) {
      d.mapped = d.mapped ? std::optional<MappedNode>(MappedNode()) : std::nullopt;  // no weights
      decisions_.push_back(std::move(d));
    }
  }

  // Nodes that start a group: crossbars, or nodes that go to one.
  using Starts = std::set<const abi::Node*>;

  // Of a converted model.
  Starts CrossbarsOf(const std::vector<const abi::Node*>& nodes) const {
    Starts crossbars;
    for (const abi::Node* node : nodes) {
      if (DomainOf(api_, node) != kDomain) continue;
      const std::string op_type = OperatorOf(api_, node);
      if (op_type == RramConv::kName || op_type == RramMatMul::kName) crossbars.insert(node);
    }
    return crossbars;
  }

  // A crossbar alone stays with the CPU provider, which has the
  // operators.
  std::vector<FusedNode> FusedNodesOf(const std::vector<const abi::Node*>& nodes,
                                      const Starts& starts) const {
    return FindFusedNodes(api_, nodes, starts, device_ ? 1 : 2);
  }

  void AddFusedNodes(const std::vector<const abi::Node*>& nodes, const Starts& starts,
                     abi::EpGraphSupportInfo* info) const {
    for (const FusedNode& fused_node : FusedNodesOf(nodes, starts)) {
      std::vector<const abi::Node*> together;
      for (const FusionGroup& group : fused_node) {
        together.insert(together.end(), group.nodes.begin(), group.nodes.end());
      }
      AddNodes(together, info);
    }
  }

  void AddNodes(const std::vector<const abi::Node*>& nodes, abi::EpGraphSupportInfo* info) const {
    const abi::EpApi* const ep_api = abi::GetEpApi::Call(api_);
    const abi::NodeFusionOptions fusion{abi::kEpApiVersion, true};
    Check(api_, abi::AddNodesToFuse::Call(ep_api, info, nodes.data(), nodes.size(), &fusion));
  }

  void CompileAll(const abi::Graph** graphs, std::size_t count,
                  abi::NodeComputeInfo** infos) const {
    if (converted_) {
      Refuse("provider option preset is for ordinary models, but this one has ", kDomain,
             " nodes, whose arrays are programmed already. Leave the options out");
    }
    std::vector<std::unique_ptr<CompiledNode>> compiled;
    for (std::size_t i = 0; i < count; ++i) compiled.push_back(CompileOne(graphs[i]));
    for (std::size_t i = 0; i < count; ++i) infos[i] = compiled[i].release();
  }

  std::unique_ptr<CompiledNode> CompileOne(const abi::Graph* graph) const {
    const std::vector<const abi::Node*> nodes = NodesOf(api_, graph);
    std::map<const abi::Node*, Decision> decisions;  // of an ordinary model's crossbars
    Starts starts = device_ ? Starts() : CrossbarsOf(nodes);
    for (const abi::Node* node : nodes) {
      auto decision = device_ ? Decide(api_, node, nullptr, *device_) : std::nullopt;
      if (!decision || !decision->mapped) continue;
      decisions.emplace(node, std::move(*decision));
      starts.insert(node);
    }
    std::vector<FusedNode> fused_nodes = FusedNodesOf(nodes, starts);
    std::vector<CompiledGroup> groups;
    std::size_t num_nodes = 0;
    for (FusionGroup& group : fused_nodes.at(0)) {
      num_nodes += group.nodes.size();
      const auto decision = decisions.find(group.crossbar);
      const bool is_mapped = decision != decisions.end();
      const std::string name = is_mapped ? decision->second.name : NameOf(api_, group.crossbar);
      std::string label = Labelled(name, group.crossbar);
      if (group.adapter != nullptr) {
        label += " with " + Labelled(NameOf(api_, group.adapter), group.adapter);
      }
      groups.push_back({std::move(group), std::move(label),
                        is_mapped ? std::move(decision->second.mapped) : std::nullopt});
    }
    if (num_nodes != nodes.size()) {
      throw Error(abi::kFail, "ONNX Runtime asks for nodes that were not claimed together");
    }
    kernels_created += static_cast<std::int64_t>(groups.size());
    return std::make_unique<CompiledNode>(api_, graph, std::move(groups),
                                          device_ ? &*device_ : nullptr);
  }

  // As messages have it.
  std::string Labelled(const std::string& name, const abi::Node* node) const {
    return "node '" + name + "' (" + OperatorOf(api_, node) + ")";
  }

  void Log(const Decision& decision) const {
#if defined(_WIN32)
    constexpr const wchar_t* kFile = L"provider.cc";
#else
    constexpr const char* kFile = "provider.cc";
#endif
    const std::string line =
        "node '" + decision.name + "' (" + decision.op_type + ") stays digital: " + decision.reason;
    Check(api_, abi::LoggerMessage::Call(api_, logger_, abi::kLogInfo, line.c_str(), kFile,
                                         __LINE__, "Claim"));
  }

  const abi::Api* api_;
  const abi::Logger* logger_;
  std::optional<DeviceOptions> device_;
  std::vector<Decision> decisions_;
  std::vector<Decision> inside_;  // of bodies, before the graph that they are in is shown
  bool converted_ = false;  // a preset was given for a converted model
};

// Makes providers. Holds nothing of a session or of a registration, and is never freed: a session
// that outlives its registration still finds it.
class Factory : public abi::EpFactory {
 public:
  explicit Factory(const abi::Api* api) : abi::EpFactory{}, api_(api) {
    version = abi::kEpApiVersion;
    GetName = [](const abi::EpFactory*) { return kProviderName; };
    GetVendor = [](const abi::EpFactory*) { return "rimc-onnx"; };
    GetVendorId = [](const abi::EpFactory*) -> std::uint32_t { return 0; };
    GetVersion = [](const abi::EpFactory*) { return RIMC_VERSION; };
    GetSupportedDevices = [](abi::EpFactory* factory, const abi::HardwareDevice* const* devices,
                             std::size_t count, abi::EpDevice** out, std::size_t most,
                             std::size_t* made) {
      auto& self = *static_cast<Factory*>(factory);
      return Guard(self.api_, [&] { self.MakeDevices(devices, count, out, most, made); });
    };
    CreateEp = [](abi::EpFactory* factory, const abi::HardwareDevice* const*,
                  const abi::KeyValuePairs* const*, std::size_t, const abi::SessionOptions* options,
                  const abi::Logger* logger, abi::Ep** ep) {
      const auto& self = *static_cast<const Factory*>(factory);
      return Guard(self.api_, [&] {
        ActiveKernels();  // a wrong RIMC_ISA is refused here
        *ep = new Provider(self.api_, logger, ParseOptions(ReadOptions(self.api_, options)));
      });
    };
    ReleaseEp = [](abi::EpFactory*, abi::Ep* ep) { delete static_cast<Provider*>(ep); };
    CreateDataTransfer = [](abi::EpFactory*, abi::DataTransferImpl** out) -> abi::Status* {
      *out = nullptr;
      return nullptr;
    };
    GetNumCustomOpDomains = [](abi::EpFactory*, std::size_t* count) -> abi::Status* {
      *count = 1;
      return nullptr;
    };
    GetCustomOpDomains = [](abi::EpFactory* factory, abi::CustomOpDomain** out, std::size_t count) {
      const auto& self = *static_cast<const Factory*>(factory);
      return Guard(self.api_, [&] {
        if (count > 0) out[0] = Domain(self.api_);
      });
    };
  }

 private:
  void MakeDevices(const abi::HardwareDevice* const* devices, std::size_t count,
                   abi::EpDevice** out, std::size_t most, std::size_t* made) {
    *made = 0;
    const abi::EpApi* const ep_api = abi::GetEpApi::Call(api_);
    for (std::size_t i = 0; i < count && *made < most; ++i) {
      if (abi::DeviceType::Call(api_, devices[i]) != abi::kCpuDevice) continue;
      Check(api_,
            abi::CreateEpDevice::Call(ep_api, this, devices[i], nullptr, nullptr, &out[*made]));
      ++*made;
    }
  }

  const abi::Api* api_;
};

}  // namespace
}  // namespace rimc

// Entry points that ONNX Runtime calls when an application registers the library as a provider.
RIMC_EXPORT rimc::abi::Status* RIMC_ORT_CALL
CreateEpFactories(const char*, const rimc::abi::ApiBase* base, const rimc::abi::Logger*,
                  rimc::abi::EpFactory** factories, std::size_t most, std::size_t* made) {
  using namespace rimc;
  const char* version = base->GetVersionString();
  const abi::Api* api =
      IsOlderThan(version, abi::kEpApiVersion) ? nullptr : base->GetApi(abi::kEpApiVersion);
  if (api == nullptr) {
    const abi::Api* oldest = base->GetApi(1);
    if (oldest == nullptr) std::abort();  // no status can be made: not an ONNX Runtime at all
    return Guard(oldest, [&] {
      Refuse("RimcExecutionProvider needs ONNX Runtime 1.24 or newer, got ",
             version ? version : "unknown",
             ". Update onnxruntime, or register the library for its custom ops");
    });
  }
  return Guard(api, [&] {
    if (most < 1) Refuse("no room for a factory");
    static Factory factory(api);
    factories[0] = &factory;
    *made = 1;
  });
}

RIMC_EXPORT rimc::abi::Status* RIMC_ORT_CALL ReleaseEpFactory(rimc::abi::EpFactory*) {
  return nullptr;
}

// What the last session of the calling thread with a preset made of its nodes: a JSON list of
// {name, op_type, reason}, reason null where the node went to a crossbar. Never null.
RIMC_EXPORT const char* RimcLastMapping() { return rimc::last_mapping.c_str(); }
