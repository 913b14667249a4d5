// Mutants of the group `module`. The reference has none to wrap: these hold the tensors of the asked-for tree in plain memory and do nothing
// with them, except for what each does wrong.
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

using nlohmann::json;

enum class Fault { casts_masters, scaffolds_some, trains_bias, loads_less, accepts_any_scaffold };
Fault fault;

struct Held {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<char> bytes;
  bool trainable = false;
};
std::map<std::string, Held> parameters, buffers;
std::size_t layer_count = 0;

void answer(const json& object, sq_text_sink sink, void* user) {
  const std::string text = object.dump();
  sink(user, text.data(), text.size());
}

void hold(std::map<std::string, Held>& where, const std::string& name, const std::string& dtype, std::vector<std::int64_t> shape, bool trainable) {
  std::size_t bytes = dtype == "i8" ? 1 : 4;
  for (const std::int64_t d : shape) bytes *= static_cast<std::size_t>(d);
  where[name] = {dtype, std::move(shape), std::vector<char>(bytes), trainable};
}

sq_status create(sq_context*, const char* text, std::uint64_t* module, sq_text_sink sink, void* user, sq_error*) {
  const json request = json::parse(text);
  parameters.clear();
  buffers.clear();
  layer_count = 0;
  json names = json::array();
  for (const json& l : request["layers"]) {
    if (fault == Fault::scaffolds_some && names.size() == 32) break;
    const std::string name = l["name"];
    const std::int64_t in = l["in"], out = l["out"];
    names.push_back(name);
    ++layer_count;
    hold(buffers, name + ".qweight", "i8", {out, (in + 7) / 8 * 8}, false);
    hold(buffers, name + ".scale", "f32", {out}, false);
    hold(buffers, name + ".zero_point", "f32", {out}, false);
    if (l["bias"] == true) hold(parameters, name + ".bias", "f32", {out}, fault == Fault::trains_bias);
    if (request["lora"].is_null()) continue;
    const std::int64_t rank = request["lora"]["rank"];
    hold(parameters, name + ".lora_A", "f32", {in, rank}, true);
    hold(parameters, name + ".lora_B", "f32", {rank, out}, true);
  }
  for (const json& o : request["others"]) hold(parameters, o["name"].get<std::string>() + ".weight", "f32", o["shape"], false);
  *module = 1;
  answer({{"layers", names}}, sink, user);
  return SQ_OK;
}
sq_status load(sq_context*, std::uint64_t, const char*, sq_text_sink sink, void* user, sq_error*) {
  answer({{"loaded", layer_count - (fault == Fault::loads_less ? 1 : 0)}}, sink, user);
  return SQ_OK;
}
sq_status cast(sq_context*, std::uint64_t, const char* text, sq_error*) {
  if (fault != Fault::casts_masters || json::parse(text)["dtype"] != "bf16") return SQ_OK;
  for (auto& [name, held] : parameters)
    for (std::size_t i = 0; i + 4 <= held.bytes.size(); i += 4) {
      float value = 0;
      std::memcpy(&value, held.bytes.data() + i, 4);
      value = through_bf16(value);
      std::memcpy(held.bytes.data() + i, &value, 4);
    }
  return SQ_OK;
}
sq_status list(sq_context*, std::uint64_t, sq_text_sink sink, void* user, sq_error*) {
  json object = {{"parameters", json::array()}, {"buffers", json::array()}};
  for (const auto& [name, held] : parameters) object["parameters"].push_back({{"name", name}, {"dtype", held.dtype}, {"shape", held.shape}, {"trainable", held.trainable}});
  for (const auto& [name, held] : buffers) object["buffers"].push_back({{"name", name}, {"dtype", held.dtype}, {"shape", held.shape}});
  answer(object, sink, user);
  return SQ_OK;
}
sq_status nothing(sq_context*, std::uint64_t, sq_error*) { return SQ_OK; }
Held& find(const char* name) {
  const auto at = parameters.find(name);
  return at == parameters.end() ? buffers.at(name) : at->second;
}
sq_status read(sq_context*, std::uint64_t, const char* name, const sq_tensor* out, sq_error*) {
  const Held& held = find(name);
  if (!held.bytes.empty()) std::memcpy(out->data, held.bytes.data(), held.bytes.size());
  return SQ_OK;
}
sq_status write(sq_context*, std::uint64_t, const char* name, const sq_tensor* in, sq_error*) {
  Held& held = find(name);
  if (!held.bytes.empty()) std::memcpy(held.bytes.data(), in->data, held.bytes.size());
  return SQ_OK;
}
sq_status forward(sq_context*, std::uint64_t, const char*, const sq_tensor*, const sq_tensor*, sq_error* e) {
  if (e) e->code = SQ_CALL_STATE;
  return SQ_CALL_STATE;
}

sq_status describe(sq_context* context, sq_text_sink sink, void* user, sq_error* e) {
  std::string text;
  if (const sq_status status = base().describe(context, append_text, &text, e); status != SQ_OK) return status;
  json object = json::parse(text);
  object["groups"].push_back("module");
  answer(object, sink, user);
  return SQ_OK;
}

template <Fault which>
void offer(Tables& t) {
  static const sq_module_group group = {sizeof(sq_module_group), 0, create, load, cast, list, nothing, read, write, forward, nothing};
  fault = which;
  t.implementation.module = &group;
  t.implementation.describe = describe;
}

}  // namespace

const Mutation module_mutations[] = {
    {"module_casts_masters", offer<Fault::casts_masters>},   {"module_scaffolds_32_of_203", offer<Fault::scaffolds_some>},
    {"module_trains_bias", offer<Fault::trains_bias>},       {"module_skips_a_layer", offer<Fault::loads_less>},
    {"module_accepts_any_scaffold", offer<Fault::accepts_any_scaffold>},
};
const unsigned module_mutation_count = std::size(module_mutations);

}  // namespace squareq::mutants
