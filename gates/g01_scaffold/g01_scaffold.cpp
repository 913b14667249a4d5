// Gate 1: from a float model to quantized modules: every layer and no other, nothing allocated, nothing guessed.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "gates/g00_format/g00_format.hpp"
#include "gates/harness/compare.hpp"
#include "gates/harness/module.hpp"
#include "gates/harness/registry.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

json layer(const std::string& name, std::int64_t in, std::int64_t out, bool bias) { return {{"name", name}, {"in", in}, {"out", out}, {"bias", bias}}; }

/// 203 layers under names of the FLUX.2 kind, between modules that are no Linear.
json large_request(std::int64_t width) {
  json layers = json::array(), others = json::array();
  for (int b = 0; b < 24; ++b)
    for (const char* part : {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "ff_context.linear_in", "ff_context.linear_out"})
      layers.push_back(layer("transformer_blocks." + std::to_string(b) + "." + part, width, width, b % 2 == 0));
  for (int i = 0; i < 11; ++i) layers.push_back(layer("embedders." + std::to_string(i), width, width, true));
  for (int b = 0; b < 24; ++b) others.push_back({{"name", "transformer_blocks." + std::to_string(b) + ".norm1"}, {"kind", "layer_norm"}, {"shape", {64}}});
  others.push_back({{"name", "pos_embed"}, {"kind", "embedding"}, {"shape", {100, 64}}});
  others.push_back({{"name", "conv_in"}, {"kind", "conv2d"}, {"shape", {8, 4, 3, 3}}});
  others.push_back({{"name", "norm_out"}, {"kind", "rms_norm"}, {"shape", {64}}});
  return {{"layers", layers}, {"others", others}, {"lora", nullptr}};
}

std::vector<std::string> create(Trial& trial, const json& request, std::uint64_t& id, Instance*& instance) {
  instance = &trial.instance("module");
  const sq_module_group& group = *(*instance).context()->module;
  const std::string text = request.dump();
  std::string answer;
  call_ok("module.create", {}, [&](sq_error* e) { return group.create(instance->get(), text.c_str(), &id, append_text, &answer, e); });
  const json object = json::parse(answer, nullptr, false);
  require(object.is_object() && object.contains("layers"), "module.create answers no layers");
  auto names = object["layers"].get<std::vector<std::string>>();
  std::sort(names.begin(), names.end());
  return names;
}

std::set<std::string> names_of(const json& list) {
  std::set<std::string> names;
  for (const json& e : list) require(names.insert(e.at("name").get<std::string>()).second, "two tensors are called " + e.at("name").dump());
  return names;
}

/// Layers asked for, layers replaced, and buffers present are one set; everything else stays as it was.
void run_bijection(Trial& trial, std::int64_t rank) {
  json request = large_request(16);
  if (rank) request["lora"] = {{"rank", rank}, {"alpha", 2.0}};
  std::uint64_t id = 0;
  Instance* instance = nullptr;
  const auto replaced = create(trial, request, id, instance);
  std::vector<std::string> wanted;
  std::set<std::string> buffers, parameters;
  for (const json& l : request["layers"]) {
    const std::string name = l["name"].get<std::string>();
    wanted.push_back(name);
    for (const char* part : {".qweight", ".scale", ".zero_point"}) buffers.insert(name + part);
    if (l["bias"] == true) parameters.insert(name + ".bias");
    if (rank)
      for (const char* part : {".lora_A", ".lora_B"}) parameters.insert(name + part);
  }
  for (const json& o : request["others"]) parameters.insert(o["name"].get<std::string>() + ".weight");
  std::sort(wanted.begin(), wanted.end());
  require(replaced.size() == 203, std::to_string(replaced.size()) + " of 203 layers were replaced");
  require(replaced == wanted, "the layers replaced are not those asked for");
  std::string answer;
  call_ok("module.list", {}, [&](sq_error* e) { return instance->context()->module->list(instance->get(), id, append_text, &answer, e); });
  const json listed = json::parse(answer);
  require(names_of(listed.at("buffers")) == buffers, "the buffers are not qweight, scale and zero_point of every layer");
  require(names_of(listed.at("parameters")) == parameters, "the parameters are not the biases, the adapters and the weights of the other modules");
  call_ok("module.destroy", {}, [&](sq_error* e) { return instance->context()->module->destroy(instance->get(), id, e); });
  call_refused("module.list of a destroyed module", {Code::CALL_STATE}, {}, [&](sq_error* e) { return instance->context()->module->list(instance->get(), id, append_text, &answer, e); });
}

/// 203 layers of 4096 x 4096 are 13.6 GB of floats and 3.4 GB of codes: scaffolding takes none of it.
void run_no_allocation(Trial& trial) {
  std::uint64_t id = 0;
  Instance* instance = nullptr;
  create(trial, large_request(16), id, instance);  // whatever the first call sets up
  const json request = large_request(4096);
  const ResidentPeak peak;
  create(trial, request, id, instance);
  // Bookkeeping of 203 modules; a single layer would be 16 MiB of codes.
  trial.margin(static_cast<double>(peak.growth()) / (8.0 * 1024 * 1024));
}

/// Modules that are no Linear keep kind, shape and values through scaffold and load.
void run_others_kept(Trial& trial) {
  json request = ModuleTree::golden_request(2);
  request["others"].push_back({{"name", "conv_in"}, {"kind", "conv2d"}, {"shape", {2, 3, 1, 1}}});
  ModuleTree tree(trial, request);
  Random random = trial.random("values");
  std::map<std::string, std::vector<std::byte>> before;
  const json listed = tree.list();
  const auto is_other = [](const json& p) { return p.at("name") == "embed.weight" || p.at("name") == "norm.weight"; };
  for (const json& p : listed.at("parameters"))
    if (is_other(p)) {
      Guarded value(p.at("name").get<std::string>(), Role::in, listed_dtype(p), p.at("shape").get<std::vector<std::int64_t>>());
      value.fill([&] { return random.normal(); });
      tree.write(p, value);
      before[p.at("name").get<std::string>()] = value.bytes();
    }
  require(before.size() == 2, "embedding or norm is not listed");
  tree.load(g00::write_pair(trial, g00::golden_pair("three_layers")).string());
  const json after = tree.list();
  for (const json& p : after.at("parameters")) {
    const std::string name = p.at("name").get<std::string>();
    if (is_other(p)) same_bytes(name + " after loading", tree.read(p).bytes(), before.at(name));
    if (name == "conv_in.weight") require(p.at("shape") == json({2, 3, 1, 1}), "conv_in has another shape");
  }
}

/// A scaffold that does not fit the model is refused, the layer named, and no module is made.
void run_refused(Trial& trial) {
  Instance& instance = trial.instance("module");
  const sq_module_group& group = *instance.context()->module;
  const auto refuse = [&](const std::string& what, const json& layers, const json& others, const std::vector<std::string_view>& names) {
    const std::string text = json{{"layers", layers}, {"others", others}, {"lora", nullptr}}.dump();
    std::uint64_t id = 4711;
    std::string answer;
    const sq_error e = call_refused("scaffold of " + what, {Code::MD_LAYER}, {}, [&](sq_error* error) { return group.create(instance.get(), text.c_str(), &id, append_text, &answer, error); });
    must_name("scaffold of " + what, e, names);
    require(id == 4711 && answer.empty(), "scaffold of " + what + ": refused, but answered as well");
  };
  const json linear = {{"name", "b.fc"}, {"kind", "linear"}, {"shape", {6, 4}}, {"bias", true}};
  const auto one = [](const json& element) { return json::array({element}); };
  const auto other = [&](const char* kind, std::vector<std::int64_t> shape) { return one({{"name", "b.fc"}, {"kind", kind}, {"shape", std::move(shape)}}); };
  const json twice = json::array({layer("b.fc", 4, 6, true), layer("b.fc", 4, 6, true)});
  refuse("a layer given twice", twice, json::array(), {"b.fc"});
  refuse("a layer given twice over a module", twice, one(linear), {"b.fc"});
  refuse("another input width", one(layer("b.fc", 5, 6, true)), one(linear), {"b.fc", "5", "4"});
  refuse("another output width", one(layer("b.fc", 4, 7, true)), one(linear), {"b.fc", "7", "6"});
  refuse("a bias that the module lacks", one(layer("b.fc", 4, 6, false)), one(linear), {"b.fc", "bias"});
  refuse("an embedding", one(layer("b.fc", 64, 100, false)), other("embedding", {100, 64}), {"b.fc", "embedding"});
  refuse("a convolution", one(layer("b.fc", 4, 6, false)), other("conv2d", {6, 4, 1, 1}), {"b.fc", "conv2d"});
  refuse("a norm", one(layer("b.fc", 64, 64, false)), other("layer_norm", {64}), {"b.fc", "norm"});
}

/// lora_A is uniform up to its bound and no further, lora_B is zero; shapes and dtypes are those of the masters.
void run_adapters(Trial& trial, const std::string& init) {
  json request = {{"layers", {layer("wide", 400, 30, false), layer("narrow", 9, 40, true)}}, {"others", json::array()}, {"lora", {{"rank", 8}, {"alpha", 4.0}, {"init", init}}}};
  ModuleTree tree(trial, request);
  const json after = tree.list();
  for (const json& p : after.at("parameters")) {
    const std::string name = p.at("name").get<std::string>();
    const std::int64_t in = name.starts_with("wide") ? 400 : 9, out = name.starts_with("wide") ? 30 : 40;
    if (name.ends_with(".bias")) continue;
    require(listed_dtype(p) == SQ_F32, name + " is no F32 master");
    require(p.at("trainable") == true, name + " is not trained");
    const bool a = name.ends_with("lora_A");
    require(p.at("shape") == (a ? json({in, 8}) : json({8, out})), name + " has the shape " + p.at("shape").dump());
    const std::vector<double> values = tree.read(p).values();
    double largest = 0, sum = 0;
    for (const double v : values) largest = std::max(largest, std::fabs(v)), sum += v * v;
    if (!a) {
      require(largest == 0, name + " does not start at zero");
      continue;
    }
    const double bound = init == "peft" ? 1 / std::sqrt(static_cast<double>(in)) : std::sqrt(6.0 / 8.0);
    require(largest <= bound * (1 + 0x1p-22), name + " leaves its bound: " + std::to_string(largest) + " > " + std::to_string(bound));
    // U(-b, b) has variance b^2 / 3; n values give it to 1 part in sqrt(5 n / 4), six of those are allowed.
    const double n = static_cast<double>(values.size()), ratio = sum / n / (bound * bound / 3);
    require(std::fabs(ratio - 1) < 6 / std::sqrt(1.25 * n), name + " is not uniform up to its bound: variance " + std::to_string(ratio) + " of what it should be");
  }
}

}  // namespace

void add_g01_scaffold(Cases& cases) {
  const std::vector<std::string> needs = {"module"};
  cases.push_back({1, "scaffold.bijection", Kind::vector, {"SQ-MOD-011", "SQ-MOD-012"}, needs, "32 of 203 layers matched and nobody told", [](Trial& t) { run_bijection(t, 0); }});
  cases.push_back({1, "scaffold.bijection_lora", Kind::vector, {"SQ-MOD-011", "SQ-MOD-012"}, needs, "layers without their adapter", [](Trial& t) { run_bijection(t, 4); }});
  cases.push_back({1, "scaffold.no_allocation", Kind::property, {"SQ-MOD-020"}, needs, "a float model allocated in order to be thrown away", run_no_allocation});
  cases.push_back({1, "scaffold.others_kept", Kind::vector, {"SQ-MOD-009", "SQ-MOD-012"}, needs, "collateral damage to norms, embeddings, convolutions", run_others_kept});
  cases.push_back({1, "scaffold.refused", Kind::vector, {"SQ-MOD-009", "SQ-CNV-003"}, needs, "a module of other kind or size replaced", run_refused});
  for (const char* init : {"peft", "squareq"})
    cases.push_back({1, std::string("scaffold.adapters.") + init, Kind::property, {"SQ-MOD-011", "SQ-TRN-043"}, needs, "a start of another size, a B that is not zero", [=](Trial& t) { run_adapters(t, init); }});
}

}  // namespace squareq::gates
