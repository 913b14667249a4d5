#include "squareq/architecture/registry.hpp"

#include "squareq/error.hpp"

namespace squareq::architecture_detail {
namespace {

using nlohmann::json;

Kind kind_of(const std::string& name) {
  if (name == "linear") return Kind::linear;
  if (name == "conv") return Kind::conv;
  if (name == "norm") return Kind::norm;
  if (name == "table") return Kind::table;
  throw Error(Code::INTERNAL, "architecture registry: unknown kind '" + name + "'");
}

Module parse_module(const json& j) {
  Module m;
  m.kind = kind_of(j.at("kind"));
  m.diffusers = j.at("diffusers");
  m.native = j.at("native");
  m.shape = j.at("shape").get<std::vector<std::string>>();
  m.bias = j.value("bias", false);
  m.swap_halves = j.value("swap_halves", false);
  if (j.contains("rows")) {
    m.first_row = j["rows"].at(0);
    m.last_row = j["rows"].at(1);
  }
  m.when = j.value("when", std::vector<std::string>{});
  m.native_parameters = j.value("native_parameters", std::vector<std::string>{"weight"});
  return m;
}

Template parse_template(const json& j) {
  Template t;
  t.block = j.value("block", std::string());
  t.flags = j.value("flags", std::map<std::string, std::string>{});
  for (const json& m : j.at("modules")) t.modules.push_back(parse_module(m));
  return t;
}

Instance parse_instance(const json& j) {
  return {j.at("template"),
          j.at("diffusers"),
          j.at("native"),
          j.value("count", std::string()),
          j.value("dims", std::map<std::string, std::string>{}),
          j.value("flags", std::map<std::string, bool>{})};
}

Variant parse_variant(const json& j) {
  using Numbers = std::map<std::string, std::uint64_t, std::less<>>;
  return {j.at("id"), j.at("flags").get<std::map<std::string, bool>>(), j.value("block_flags", std::map<std::string, std::uint64_t>{}),
          j.at("dims").get<Numbers>(), j.at("counts").get<Numbers>()};
}

Family parse_family(const json& j) {
  if (j.at("schema") != 1) throw Error(Code::INTERNAL, "architecture registry: schema is not 1");
  Family f;
  f.name = j.at("family");
  f.native_scheme = j.at("native_scheme");
  for (const auto& [scheme, value] : j.at("schemes").items()) f.detect[scheme] = value.at("detect").get<std::vector<std::string>>();
  for (const auto& [name, value] : j.at("dims").items())
    f.dims[name] = {value.value("tensor", std::string()), value.value("axis", std::size_t{0}), value.value("absent", std::uint64_t{0})};
  f.flags = j.at("flags").get<std::map<std::string, std::string>>();
  for (const auto& [name, value] : j.at("templates").items()) f.templates[name] = parse_template(value);
  for (const json& i : j.at("instances")) f.instances.push_back(parse_instance(i));
  f.config = j.at("config");
  f.config_json = j.at("config_json");
  for (const json& v : j.at("variants")) f.variants.push_back(parse_variant(v));
  return f;
}

}  // namespace

const std::vector<Family>& registry() {
  static const std::vector<Family> families = [] {
    std::vector<Family> all;
    for (const auto& [name, text] : registry_texts()) {
      try {
        all.push_back(parse_family(json::parse(text)));
      } catch (const json::exception& e) {
        throw Error(Code::INTERNAL, "architecture registry file " + std::string(name) + ": " + e.what());
      }
    }
    return all;
  }();
  return families;
}

}  // namespace squareq::architecture_detail
