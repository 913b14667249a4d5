// Loading a slab into modules: the file's bits, the whole set or nothing, and a forward on them.
#include <functional>

#include "gates/g00_format/g00_format.hpp"
#include "gates/g02_loading/g02_loading.hpp"
#include "gates/harness/bounds.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/module.hpp"
#include "gates/harness/tensor_file.hpp"

namespace squareq::gates::g02 {
namespace {

using nlohmann::json;

/// Every tensor of the slab is in the tree under its own name, bit for bit.
void same_as_slab(ModuleTree& tree, const std::string& slab) {
  const json listed = tree.list();
  const auto tensors = read_tensors(slab);
  for (const auto& [name, tensor] : tensors) {
    const json* entry = nullptr;
    for (const char* kind : {"buffers", "parameters"})
      for (const json& e : listed.at(kind))
        if (e.at("name") == name) entry = &e;
    require(entry != nullptr, "'" + name + "' of the slab is not in the module");
    require(entry->at("shape").get<std::vector<std::int64_t>>() == tensor.shape, "'" + name + "' has another shape than in the slab");
    require(listed_dtype(*entry) == contract_dtype(tensor.dtype), "'" + name + "' has another dtype than in the slab");
    same_bytes(name, tree.read(*entry).bytes(), tensor.bytes);
  }
}

void run_round_trip(Trial& trial, std::int64_t rank) {
  const g00::Pair pair = g00::golden_pair("three_layers");
  const std::string slab = g00::write_pair(trial, pair).string();
  ModuleTree tree(trial, ModuleTree::golden_request(rank));
  for (int i = 0; i < 2; ++i) {
    const std::int64_t loaded = tree.load(slab);
    require(loaded == 3, "load number " + std::to_string(i + 1) + " reports " + std::to_string(loaded) + " layers of 3");
    same_as_slab(tree, pair.slab);
  }
}

/// A tree that lacks a layer of the slab, has one more, or one of another shape or bias: refused, nothing loaded.
void run_mismatch(Trial& trial) {
  const std::string slab = g00::write_pair(trial, g00::golden_pair("three_layers")).string();
  const auto refuse = [&](const std::function<void(json&)>& change) {
    json request = ModuleTree::golden_request(0);
    change(request["layers"]);
    ModuleTree tree(trial, request);
    tree.load_refused(slab, {Code::MD_LAYER});
    Guarded x("x", Role::in, SQ_F32, {1, 8}), y("y", Role::out, SQ_F32, {1, 2});
    tree.forward_refused("blocks.10.proj", {Code::CALL_STATE}, x, y);
  };
  refuse([](json& layers) { layers.erase(1); });
  refuse([](json& layers) { layers.push_back({{"name", "blocks.3.proj"}, {"in", 5}, {"out", 3}, {"bias", true}}); });
  refuse([](json& layers) { layers[1]["in"] = 6; });
  refuse([](json& layers) { layers[1]["bias"] = false; });
}

void run_before_load(Trial& trial) {
  ModuleTree tree(trial, ModuleTree::golden_request(2));
  Guarded x("x", Role::in, SQ_F32, {2, 5}), y("y", Role::out, SQ_F32, {2, 3});
  tree.forward_refused("blocks.2.proj", {Code::CALL_STATE}, x, y);
  const json listed = tree.list();
  for (const json& buffer : listed.at("buffers"))
    for (const std::string layer : {"blocks.2.proj", "blocks.10.proj", "norm_out.linear"})
      if (buffer.at("name").get<std::string>().starts_with(layer + ".")) {
        std::int64_t count = 1;
        for (const json& d : buffer.at("shape")) count *= d.get<std::int64_t>();
        require(count == 0, "before loading '" + buffer.at("name").get<std::string>() + "' holds " + std::to_string(count) + " elements");
      }
}

/// The layer's output against the oracle; the module rounds once, to bf16 unless it was made otherwise.
void run_forward(Trial& trial) {
  const g00::Pair pair = g00::golden_pair("three_layers");
  ModuleTree tree(trial, ModuleTree::golden_request(0));
  tree.load(g00::write_pair(trial, pair).string());
  const auto tensors = read_tensors(pair.slab);
  Problem p(4, Layer("blocks.2.proj", 3, 5, 8, true), SQ_F32);
  p.layer.qweight.set_bytes(tensors.at("blocks.2.proj.qweight").bytes);
  p.layer.scale.set_bytes(tensors.at("blocks.2.proj.scale").bytes);
  p.layer.bias.set_bytes(tensors.at("blocks.2.proj.bias").bytes);
  Random random = trial.random("x");
  p.x.fill([&] { return random.normal(); });
  Guarded y("y", Role::out, SQ_F32, {4, 3});
  tree.forward("blocks.2.proj", p.x, y);
  p.y_dtype = SQ_BF16;
  compare(trial, y, oracle_forward(p).y);
}

}  // namespace

void add_module(Cases& cases) {
  const std::vector<std::string> needs = {"module"};
  cases.push_back({2, "module.load.round_trip", Kind::vector, {"SQ-MOD-012"}, needs, "layers skipped while loading; a second load that differs", [](Trial& t) { run_round_trip(t, 0); }});
  cases.push_back({2, "module.load.round_trip_lora", Kind::vector, {"SQ-MOD-012"}, needs, "layers with adapters skipped while loading", [](Trial& t) { run_round_trip(t, 2); }});
  cases.push_back({2, "module.load.mismatch", Kind::vector, {"SQ-MOD-012"}, needs, "a module missing in the tree, or in the slab, passed over in silence", run_mismatch});
  cases.push_back({2, "module.before_load", Kind::vector, {"SQ-MOD-006", "SQ-MOD-020"}, needs, "zeros computed with before anything was loaded", run_before_load});
  cases.push_back({2, "module.forward", Kind::vector, {"SQ-MOD-008"}, needs, "padding, bias or scale lost between file and module", run_forward});
}

}  // namespace squareq::gates::g02
