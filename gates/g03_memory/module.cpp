// No float weight in a module, adapters as the only trained parameters, and casts that leave every bit alone.
#include "gates/g00_format/g00_format.hpp"
#include "gates/g03_memory/g03_memory.hpp"
#include "gates/harness/compare.hpp"
#include "gates/harness/module.hpp"

namespace squareq::gates::g03 {
namespace {

using nlohmann::json;

constexpr const char* quantized[] = {"blocks.2.proj.", "blocks.10.proj.", "norm_out.linear."};

bool is_quantized(const std::string& name) {
  for (const char* prefix : quantized)
    if (name.starts_with(prefix)) return true;
  return false;
}

bool is_adapter(const std::string& name) { return is_quantized(name) && name.find("lora") != std::string::npos; }

/// Everything that belongs to a quantized layer, with its bytes.
std::vector<std::pair<json, std::vector<std::byte>>> snapshot(ModuleTree& tree) {
  std::vector<std::pair<json, std::vector<std::byte>>> all;
  const json listed = tree.list();
  for (const char* kind : {"parameters", "buffers"})
    for (const json& entry : listed.at(kind))
      if (is_quantized(entry.at("name").get<std::string>())) all.emplace_back(entry, tree.read(entry).bytes());
  return all;
}

void run_parameters(Trial& trial, std::int64_t rank) {
  ModuleTree tree(trial, ModuleTree::golden_request(rank));
  tree.load(g00::write_pair(trial, g00::golden_pair("three_layers")).string());
  const json listed = tree.list();
  std::size_t trained = 0;
  for (const json& p : listed.at("parameters")) {
    const std::string name = p.at("name").get<std::string>();
    const bool trainable = p.at("trainable").get<bool>();
    require(trainable == is_adapter(name), "'" + name + "' is " + (trainable ? "trained although it is no adapter" : "an adapter that is not trained"));
    trained += trainable;
  }
  require(trained == (rank ? 6u : 0u), std::to_string(trained) + " trained parameters, expected " + (rank ? "6" : "0"));
  for (const char* kind : {"parameters", "buffers"})
    for (const json& entry : listed.at(kind)) {
      const std::string name = entry.at("name").get<std::string>();
      if (!is_quantized(name) || is_adapter(name)) continue;
      require(!name.ends_with(".weight"), "'" + name + "' exists: a quantized layer has no weight");
      require(entry.at("shape").size() < 2 || listed_dtype(entry) == SQ_I8, "'" + name + "' is a matrix of floats");
    }
}

void run_cast(Trial& trial, const std::string& dtype, const std::string& scope) {
  ModuleTree tree(trial, ModuleTree::golden_request(2));
  tree.load(g00::write_pair(trial, g00::golden_pair("three_layers")).string());
  // Bits that no 16-bit float holds, in the adapters too: a round trip through bf16 must show.
  Random random = trial.random("adapters");
  const json listed = tree.list();
  for (const json& p : listed.at("parameters"))
    if (is_adapter(p.at("name").get<std::string>())) {
      Guarded value(p.at("name").get<std::string>(), Role::in, SQ_F32, p.at("shape").get<std::vector<std::int64_t>>());
      value.fill([&] { return random.normal(); });
      tree.write(p, value);
    }
  const auto before = snapshot(tree);
  for (const std::string& step : {dtype, std::string("f32")}) {
    tree.cast(step, scope);
    const auto after = snapshot(tree);
    require(after.size() == before.size(), "a cast changed the number of tensors");
    for (std::size_t i = 0; i < before.size(); ++i) {
      const std::string name = before[i].first.at("name").get<std::string>();
      require(after[i].first == before[i].first, "'" + name + "' changed its dtype or shape by a cast to " + step);
      same_bytes("'" + name + "' after a cast to " + step, after[i].second, before[i].second);
    }
  }
}

}  // namespace

void add_module(Cases& cases) {
  const std::vector<std::string> needs = {"module"};
  cases.push_back({3, "module.parameters", Kind::vector, {"SQ-MOD-011"}, needs, "bias, norm or embedding left trainable; a float weight kept", [](Trial& t) { run_parameters(t, 0); }});
  cases.push_back({3, "module.parameters_lora", Kind::vector, {"SQ-MOD-011"}, needs, "anything but adapters trained", [](Trial& t) { run_parameters(t, 2); }});
  for (const char* dtype : {"bf16", "f16", "f64"})
    for (const char* scope : {"module", "parent"})
      cases.push_back({3, std::string("module.cast.") + dtype + "." + scope, Kind::vector, {"SQ-MOD-005"}, needs, "scales or adapters sent through 16 bits and back",
                       [=](Trial& t) { run_cast(t, dtype, scope); }});
}

}  // namespace squareq::gates::g03
