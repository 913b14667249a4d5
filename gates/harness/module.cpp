#include "gates/harness/module.hpp"

#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

json parse_answer(const std::string& what, const std::string& text) {
  const json object = json::parse(text, nullptr, false);
  require(object.is_object(), what + " answered no JSON object: '" + printable(text, 80) + "'");
  return object;
}

}  // namespace

std::int32_t listed_dtype(const json& entry) {
  const std::string name = entry.at("dtype").get<std::string>();
  for (std::int32_t dtype = SQ_F32; dtype <= SQ_I64; ++dtype)
    if (dtype_name(dtype) == name) return dtype;
  fail("'" + printable(entry.at("name").get<std::string>()) + "' is listed with the unknown dtype '" + printable(name) + "'");
}

json ModuleTree::golden_request(std::int64_t rank) {
  json request = {{"layers",
                   {{{"name", "blocks.10.proj"}, {"in", 8}, {"out", 2}, {"bias", false}},
                    {{"name", "blocks.2.proj"}, {"in", 5}, {"out", 3}, {"bias", true}},
                    {{"name", "norm_out.linear"}, {"in", 3}, {"out", 1}, {"bias", true}}}},
                  {"others", {{{"name", "embed"}, {"kind", "embedding"}, {"shape", {100, 64}}}, {{"name", "norm"}, {"kind", "layer_norm"}, {"shape", {64}}}}},
                  {"lora", nullptr}};
  if (rank) request["lora"] = {{"rank", rank}, {"alpha", 3.0}};
  return request;
}

ModuleTree::ModuleTree(Trial& trial, const json& request) : instance_(trial.instance("module")), group_(instance_.context()->module) {
  require(group_ != nullptr, "group 'module' is described but absent");
  const std::string text = request.dump();
  std::string answer;
  call_ok("module.create", {}, [&](sq_error* e) { return group_->create(instance_.get(), text.c_str(), &id_, append_text, &answer, e); });
}

ModuleTree::~ModuleTree() { group_->destroy(instance_.get(), id_, nullptr); }

std::int64_t ModuleTree::load(const std::string& slab) {
  const std::string text = json{{"slab", slab}}.dump();
  std::string answer;
  call_ok("module.load", {}, [&](sq_error* e) { return group_->load(instance_.get(), id_, text.c_str(), append_text, &answer, e); });
  return parse_answer("module.load", answer).at("loaded").get<std::int64_t>();
}

void ModuleTree::load_refused(const std::string& slab, const std::vector<Code>& codes) {
  const std::string text = json{{"slab", slab}}.dump();
  std::string answer;
  call_refused("module.load", codes, {}, [&](sq_error* e) { return group_->load(instance_.get(), id_, text.c_str(), append_text, &answer, e); });
}

void ModuleTree::cast(const std::string& dtype, const std::string& scope) {
  const std::string text = json{{"dtype", dtype}, {"scope", scope}}.dump();
  call_ok("module.cast", {}, [&](sq_error* e) { return group_->cast(instance_.get(), id_, text.c_str(), e); });
}

void ModuleTree::cast_refused(const std::string& dtype, const std::string& scope, const std::vector<Code>& codes) {
  const std::string text = json{{"dtype", dtype}, {"scope", scope}}.dump();
  call_refused("module.cast to '" + dtype + "' of the " + scope, codes, {}, [&](sq_error* e) { return group_->cast(instance_.get(), id_, text.c_str(), e); });
}

json ModuleTree::list() {
  std::string answer;
  call_ok("module.list", {}, [&](sq_error* e) { return group_->list(instance_.get(), id_, append_text, &answer, e); });
  return parse_answer("module.list", answer);
}

Guarded ModuleTree::read(const json& entry) {
  const std::string name = entry.at("name").get<std::string>();
  Guarded out(name, Role::out, listed_dtype(entry), entry.at("shape").get<std::vector<std::int64_t>>());
  call_ok("module.read of " + name, {&out}, [&](sq_error* e) { return group_->read(instance_.get(), id_, name.c_str(), out.tensor(), e); });
  return out;
}

void ModuleTree::write(const json& entry, Guarded& value) {
  const std::string name = entry.at("name").get<std::string>();
  call_ok("module.write of " + name, {&value}, [&](sq_error* e) { return group_->write(instance_.get(), id_, name.c_str(), value.tensor(), e); });
}

void ModuleTree::forward(const std::string& layer, Guarded& x, Guarded& y) {
  call_ok("module.forward of " + layer, {&x, &y}, [&](sq_error* e) { return group_->forward(instance_.get(), id_, layer.c_str(), x.tensor(), y.tensor(), e); });
}

void ModuleTree::forward_refused(const std::string& layer, const std::vector<Code>& codes, Guarded& x, Guarded& y) {
  call_refused("module.forward of " + layer, codes, {&x, &y}, [&](sq_error* e) { return group_->forward(instance_.get(), id_, layer.c_str(), x.tensor(), y.tensor(), e); });
}

void ModuleTree::read_refused(const std::string& name, const std::vector<Code>& codes, Guarded& out) {
  const sq_error e = call_refused("module.read of " + name, codes, {&out}, [&](sq_error* error) { return group_->read(instance_.get(), id_, name.c_str(), out.tensor(), error); });
  must_name("module.read of " + name, e, {name});
}

void ModuleTree::write_refused(const std::string& name, const std::vector<Code>& codes, Guarded& in) {
  const sq_error e = call_refused("module.write of " + name, codes, {&in}, [&](sq_error* error) { return group_->write(instance_.get(), id_, name.c_str(), in.tensor(), error); });
  must_name("module.write of " + name, e, {name});
}

}  // namespace squareq::gates
