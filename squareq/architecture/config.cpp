#include <nlohmann/json.hpp>

#include <numeric>
#include <set>

#include "squareq/architecture/data.hpp"
#include "squareq/text.hpp"

namespace squareq::architecture_detail {
namespace {

using nlohmann::json;

constexpr std::size_t max_config_bytes = 1u << 20;
constexpr int max_config_depth = 64;

std::int64_t* integer_field(ArchitectureConfig& c, const std::string& name) {
  if (name == "hidden") return &c.hidden;
  if (name == "heads") return &c.heads;
  if (name == "head_dim") return &c.head_dim;
  if (name == "mlp_hidden") return &c.mlp_hidden;
  if (name == "in_channels") return &c.in_channels;
  if (name == "out_channels") return &c.out_channels;
  if (name == "context_dim") return &c.context_dim;
  if (name == "pooled_dim") return &c.pooled_dim;
  if (name == "patch_size") return &c.patch_size;
  if (name.starts_with("depths.")) return &c.depths[name.substr(7)];
  return nullptr;
}

[[noreturn]] void contradiction(const std::string& key, const std::string& stated, const std::string& found) {
  throw Error(Code::MD_ARCH, "config.json says " + key + " = " + stated + ", the tensors say " + found);
}

void apply_axes(const std::string& key, const json& value, ArchitectureConfig& config) {
  std::vector<std::int64_t> axes;
  if (value.is_array())
    for (const json& axis : value)
      if (axis.is_number_unsigned() && axis.get<std::uint64_t>() > 0 && axis.get<std::uint64_t>() <= 65536 &&
          axis.get<std::uint64_t>() % 2 == 0)
        axes.push_back(axis.get<std::int64_t>());
  if (!value.is_array() || axes.size() != value.size() || axes.empty())
    throw Error(Code::MD_ARCH, "config.json: " + key + " is not an array of positive even integers");
  const std::int64_t sum = std::accumulate(axes.begin(), axes.end(), std::int64_t{0});
  if (sum != config.head_dim) contradiction("sum of " + key, std::to_string(sum), "head size " + std::to_string(config.head_dim));
  config.rope_axes = std::move(axes);
}

void apply_field(const std::string& key, const std::string& field, const json& value, ArchitectureConfig& config) {
  if (field == "rope_axes") {
    apply_axes(key, value, config);
  } else if (field == "rope_theta") {
    if (!value.is_number() || value.get<double>() <= 1) throw Error(Code::MD_ARCH, "config.json: " + key + " is not a number above 1");
    config.rope_theta = value.get<double>();
  } else if (field == "guidance") {
    if (!value.is_boolean()) throw Error(Code::MD_ARCH, "config.json: " + key + " is not true or false");
    if (value.get<bool>() != config.guidance) contradiction(key, value.get<bool>() ? "true" : "false", config.guidance ? "true" : "false");
  } else {
    const std::int64_t found = *integer_field(config, field);
    if (!value.is_number_unsigned()) throw Error(Code::MD_ARCH, "config.json: " + key + " is not a non-negative integer");
    if (value.get<std::uint64_t>() != static_cast<std::uint64_t>(found))
      contradiction(key, std::to_string(value.get<std::uint64_t>()), std::to_string(found));
  }
}

}  // namespace

json parse_strict(std::string_view text, const std::string& what) {
  const auto bad = [&](const std::string& why) { return Error(Code::MD_ARCH, what + " " + why); };
  if (text.size() > max_config_bytes) throw bad("is over 1 MiB");
  if (text.find('\0') != std::string_view::npos) throw bad("holds a NUL byte");
  std::vector<std::set<std::string>> keys;
  std::string problem;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > max_config_depth) problem = "nests deeper than 64 levels";
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      problem = "holds the key '" + printable(value.get<std::string>()) + "' twice";
    return problem.empty();
  };
  json parsed;
  try {
    parsed = json::parse(text, watch);
  } catch (const json::exception&) {  // its text quotes raw bytes of the input
    throw bad(problem.empty() ? "is not valid JSON" : problem);
  }
  if (!problem.empty()) throw bad(problem);
  if (!parsed.is_object()) throw bad("is not a JSON object");
  return parsed;
}

void configure(const Bindings& bindings, Architecture::Data& data) {
  ArchitectureConfig& c = data.config;
  const json& rules = bindings.family->config;
  for (const auto& [name, rule] : rules.items())
    if (std::int64_t* field = integer_field(c, name)) {
      const std::uint64_t value = evaluate(rule.get<std::string>(), bindings.dims);
      if (value > INT64_MAX) throw Error(Code::MD_TENSOR, "model size " + name + " = " + std::to_string(value) + " is out of range");
      *field = static_cast<std::int64_t>(value);
    }
  for (const auto& [name, count] : bindings.counts) c.depths[name] = static_cast<std::int64_t>(count);
  const auto flag = [&](const char* name) { return bindings.flags.contains(name) && bindings.flags.at(name); };
  c.guidance = flag("guidance");
  c.qk_norm = rules.value("qk_norm", false) || flag("qk_norm");
  c.rope_theta = rules.value("rope_theta", 0.0);
  if (rules.contains("rope_axes")) {
    const auto known = rules["rope_axes"].find(std::to_string(c.head_dim));
    if (known != rules["rope_axes"].end()) c.rope_axes = known->get<std::vector<std::int64_t>>();
  }
}

void apply_config_json(const Family& family, std::string_view text, Architecture::Data& data) {
  const json stated = parse_strict(text, "config.json");
  const std::string expected = family.config_json.at("class");
  if (const auto name = stated.find("_class_name"); name != stated.end() && *name != expected)
    throw Error(Code::MD_ARCH, "config.json is of class " +
                                   (name->is_string() ? printable(name->get<std::string>()) : std::string("(not a string)")) +
                                   ", the tensors are those of " + expected);
  for (const auto& [key, field] : family.config_json.at("fields").items())
    if (const auto value = stated.find(key); value != stated.end() && !value->is_null()) apply_field(key, field, *value, data.config);
}

}  // namespace squareq::architecture_detail
