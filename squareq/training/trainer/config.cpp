#include "squareq/training/trainer/config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>

#include "squareq/error.hpp"
#include "squareq/slab/file.hpp"
#include "squareq/streaming/bytes.hpp"
#include "squareq/text.hpp"
#include "squareq/training/trainer/strict_json.hpp"

namespace squareq::training {

using json = nlohmann::ordered_json;

namespace {

/// One value of the file under its full key; its accessors throw CFG_TYPE and CFG_VALUE with both sides named.
class Value {
 public:
  Value(std::string key, const json& value) : key_(std::move(key)), value_(value) {}

  const std::string& text() const {
    if (!value_.is_string()) wrong_type("a string");
    return value_.get_ref<const std::string&>();
  }

  std::string choice(const std::vector<std::string>& allowed) const {
    for (const std::string& option : allowed)
      if (text() == option) return option;
    throw Error(Code::CFG_VALUE, fmt::format("{} is '{}', expected one of {}", key_, printable(text()), fmt::join(allowed, ", ")));
  }

  bool boolean() const {
    if (!value_.is_boolean()) wrong_type("true or false");
    return value_.get<bool>();
  }

  /// Whole numbers only: 1.0 and 1e3 are refused, so that no number goes through a double.
  std::int64_t integer(std::int64_t low, std::int64_t high) const {
    if (!value_.is_number_integer()) wrong_type("a whole number");
    const bool too_big = value_.is_number_unsigned() && value_.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
    const std::int64_t number = too_big ? INT64_MAX : value_.get<std::int64_t>();
    if (too_big || number < low || number > high)
      throw Error(Code::CFG_VALUE, fmt::format("{} is {}, expected {} .. {}", key_, shown(), low, high));
    return number;
  }

  std::uint64_t seed() const {
    if (!value_.is_number_integer()) wrong_type("a whole number");
    if (!value_.is_number_unsigned()) throw Error(Code::CFG_VALUE, fmt::format("{} is {}, expected 0 .. 2^64 - 1", key_, shown()));
    return value_.get<std::uint64_t>();
  }

  /// low <= number <= high; with `above` low itself is refused.
  double number(double low, double high, bool above = false) const {
    if (!value_.is_number()) wrong_type("a number");
    const double x = value_.get<double>();
    if (!(x >= low && x <= high) || (above && x == low))
      throw Error(Code::CFG_VALUE,
                  fmt::format("{} is {}, expected {} {} .. {}", key_, shown(), above ? "more than" : "at least", low, high));
    return x;
  }

  std::array<double, 2> pair(double low, double high) const {
    if (!value_.is_array() || value_.size() != 2) wrong_type("a list of two numbers");
    return {Value(key_ + "[0]", value_[0]).number(low, high), Value(key_ + "[1]", value_[1]).number(low, high)};
  }

  std::vector<std::string> texts() const {
    std::vector<std::string> list;
    if (value_.is_string())
      list.push_back(text());
    else if (value_.is_array())
      for (std::size_t i = 0; i < value_.size(); ++i) list.push_back(Value(fmt::format("{}[{}]", key_, i), value_[i]).text());
    else
      wrong_type("a string or a list of strings");
    for (const std::string& item : list)
      if (item.empty()) throw Error(Code::CFG_VALUE, key_ + " holds an empty string");
    return list;
  }

  std::filesystem::path path() const {
    if (text().empty()) throw Error(Code::CFG_VALUE, key_ + " is empty, expected a path");
    return text();
  }

  std::uint64_t bytes() const {
    if (value_.is_string()) return streaming::parse_bytes(text(), key_);
    return static_cast<std::uint64_t>(integer(0, INT64_MAX));
  }

  bool is_null() const { return value_.is_null(); }

 private:
  [[noreturn]] void wrong_type(const char* expected) const {
    throw Error(Code::CFG_TYPE, fmt::format("{} is {} ({}), expected {}", key_, shown(), value_.type_name(), expected));
  }
  /// Input is never dumped whole: only scalars are shown.
  std::string shown() const {
    if (value_.is_string()) return "'" + printable(value_.get_ref<const std::string&>()) + "'";
    return value_.is_structured() ? value_.is_array() ? "a list" : "an object" : value_.dump();
  }

  std::string key_;
  const json& value_;
};

constexpr std::int64_t many = 1'000'000'000'000;

std::vector<std::filesystem::path> paths(const Value& value) {
  std::vector<std::filesystem::path> list;
  for (const std::string& text : value.texts()) list.emplace_back(text);
  return list;
}

LoraInit parse_init(const std::string& name) {
  return name == "squareq" ? LoraInit::squareq : name == "gaussian" ? LoraInit::gaussian : LoraInit::peft;
}

const std::map<std::string, std::function<void(RunConfig&, const Value&)>>& fields() {
  using C = RunConfig&;
  using V = const Value&;
  // clang-format off: one line per key
  static const std::map<std::string, std::function<void(C, V)>> table = {
      {"model.slab", [](C c, V v) { c.model.slab = v.path(); }},
      {"model.base", [](C c, V v) { c.model.base = v.is_null() ? std::nullopt : std::optional(v.path()); }},
      {"data.train", [](C c, V v) { c.data.train = paths(v); }},
      {"data.validation", [](C c, V v) { c.data.validation = v.is_null() ? std::vector<std::filesystem::path>{} : paths(v); }},
      {"data.caption_dropout", [](C c, V v) { c.data.caption_dropout = v.number(0, 1); }},
      {"data.height", [](C c, V v) { c.data.height = v.integer(0, 1 << 20); }},
      {"data.width", [](C c, V v) { c.data.width = v.integer(0, 1 << 20); }},
      {"lora.rank", [](C c, V v) { c.lora.rank = v.integer(1, 1 << 16); }},
      {"lora.alpha", [](C c, V v) { c.lora.alpha = v.number(0, 1e6, true); }},
      {"lora.targets", [](C c, V v) { c.lora.targets = v.texts(); }},
      {"lora.init", [](C c, V v) { c.lora.init = parse_init(v.choice({"peft", "squareq", "gaussian"})); }},
      {"lora.dropout", [](C c, V v) { c.lora.dropout = v.number(0, 0.99); }},
      {"lora.start", [](C c, V v) { c.lora.start = v.is_null() ? std::nullopt : std::optional(v.path()); }},
      {"optimizer.name", [](C c, V v) { c.optimizer.name = v.choice({"adamw"}); }},
      {"optimizer.lr", [](C c, V v) { c.optimizer.lr = v.number(0, 10, true); }},
      {"optimizer.betas", [](C c, V v) { c.optimizer.betas = v.pair(0, 0.999999999); }},
      {"optimizer.eps", [](C c, V v) { c.optimizer.eps = v.number(0, 1, true); }},
      {"optimizer.weight_decay", [](C c, V v) { c.optimizer.weight_decay = v.number(0, 100); }},
      {"schedule.name", [](C c, V v) { c.schedule.name = v.choice({"constant", "linear", "cosine"}); }},
      {"schedule.warmup", [](C c, V v) { c.schedule.warmup = v.integer(0, many); }},
      {"train.steps", [](C c, V v) { c.train.steps = v.integer(1, many); }},
      {"train.batch", [](C c, V v) { c.train.batch = v.integer(1, 1 << 20); }},
      {"train.accumulation", [](C c, V v) { c.train.accumulation = v.integer(1, 1 << 20); }},
      {"train.checkpointing", [](C c, V v) { c.train.checkpointing = v.boolean(); }},
      {"train.dtype", [](C c, V v) { c.train.dtype = v.choice({"auto", "f32", "bf16", "f16"}); }},
      {"train.compute", [](C c, V v) { c.train.compute = v.choice({"w8a16", "w8a8"}); }},
      {"train.deterministic", [](C c, V v) { c.train.deterministic = v.boolean(); }},
      {"train.timesteps", [](C c, V v) { c.train.timesteps.sampling = parse_timestep_sampling(v.text()); }},
      {"train.timestep_mean", [](C c, V v) { c.train.timesteps.mean = v.number(-100, 100); }},
      {"train.timestep_std", [](C c, V v) { c.train.timesteps.std = v.number(0, 100, true); }},
      {"train.timestep_shift", [](C c, V v) { c.train.timesteps.shift = v.number(0, 1000, true); }},
      {"train.guidance", [](C c, V v) { c.train.guidance = v.number(0, 1000); }},
      {"train.seed", [](C c, V v) { c.train.seed = v.seed(); }},
      {"train.clip", [](C c, V v) { c.train.clip = v.number(0, 1e9); }},
      {"train.max_skipped", [](C c, V v) { c.train.max_skipped = v.integer(1, 1 << 20); }},
      {"train.draws", [](C c, V v) { c.train.draws = v.is_null() ? std::nullopt : std::optional(v.path()); }},
      {"memory.budget", [](C c, V v) { c.memory.budget = v.bytes(); }},
      {"memory.vram", [](C c, V v) { c.memory.vram = v.bytes(); }},
      {"memory.resident_blocks", [](C c, V v) { c.memory.resident_blocks = v.integer(0, 1 << 20); }},
      {"memory.threads", [](C c, V v) { c.memory.threads = static_cast<unsigned>(v.integer(0, 4096)); }},
      {"output.dir", [](C c, V v) { c.output.dir = v.path(); }},
      {"output.save_every", [](C c, V v) { c.output.save_every = v.integer(0, many); }},
      {"output.sample_every", [](C c, V v) { c.output.sample_every = v.integer(0, many); }},
      {"sample.prompts", [](C c, V v) { c.sample.prompts = v.is_null() ? std::nullopt : std::optional(v.path()); }},
      {"sample.count", [](C c, V v) { c.sample.count = v.integer(1, 1 << 20); }},
      {"sample.steps", [](C c, V v) { c.sample.steps = v.integer(1, 10000); }},
      {"sample.guidance", [](C c, V v) { c.sample.guidance = v.number(0, 1000); }},
      {"sample.seed", [](C c, V v) { c.sample.seed = v.seed(); }},
  };
  // clang-format on
  return table;
}

[[noreturn]] void unknown_key(const std::string& key) {
  std::vector<std::string> known;
  for (const auto& [name, setter] : fields()) {
    known.push_back(name);
    const std::string section = name.substr(0, name.find('.'));
    if (known.end() == std::find(known.begin(), known.end(), section)) known.push_back(section);
  }
  std::string hint = nearest(key, known);
  // "rank" at the top, or "train.lr": a right word in the wrong section.
  const std::string leaf = key.substr(key.rfind('.') + 1);
  if (hint.empty() || !hint.ends_with("." + leaf))
    for (const auto& [name, setter] : fields())
      if (name.ends_with("." + leaf)) hint = name;
  throw Error(Code::CFG_KEY, fmt::format("unknown key '{}'{}", printable(key), hint.empty() ? "" : "; did you mean '" + hint + "'?"));
}

bool is_section(const std::string& name) {
  const auto at = fields().lower_bound(name + ".");
  return at != fields().end() && at->first.starts_with(name + ".");
}

/// "section.key=value" into the document; the value is JSON, or else text.
void apply_override(json& root, const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) throw Error(Code::CFG_FLAG, fmt::format("--set {}: expected key=value", printable(text)));
  const std::string key = text.substr(0, equals), value = text.substr(equals + 1);
  if (!fields().contains(key)) unknown_key(key);
  const std::size_t dot = key.find('.');
  json parsed = value;
  if (value.find('\0') == std::string::npos && json::accept(value)) {
    const json candidate = json::parse(value);
    // Paths and names may look like numbers only where a number is meant; objects are never a value.
    if (!candidate.is_object()) parsed = candidate;
  }
  root[key.substr(0, dot)][key.substr(dot + 1)] = parsed;
}

void check_together(const RunConfig& c) {
  const auto require = [](bool set, const char* key) {
    if (!set) throw Error(Code::CFG_VALUE, fmt::format("{} is required and not set", key));
  };
  require(!c.model.slab.empty(), "model.slab");
  require(!c.data.train.empty(), "data.train");
  require(c.train.steps > 0, "train.steps");
  require(!c.output.dir.empty(), "output.dir");
  if ((c.data.height == 0) != (c.data.width == 0))
    throw Error(Code::CFG_VALUE, fmt::format("data.height is {} and data.width is {}: set both or neither", c.data.height, c.data.width));
  if (c.schedule.warmup > c.train.steps)
    throw Error(Code::CFG_VALUE, fmt::format("schedule.warmup is {}, more than train.steps {}", c.schedule.warmup, c.train.steps));
  if (c.output.sample_every > 0 && !c.sample.prompts)
    throw Error(Code::CFG_VALUE,
                fmt::format("output.sample_every is {}, but sample.prompts names no cache of prompts", c.output.sample_every));
  if (c.memory.vram > 0 && c.memory.vram < c.memory.budget)
    throw Error(Code::CFG_VALUE, fmt::format("memory.vram is {} bytes, less than memory.budget {}", c.memory.vram, c.memory.budget));
}

}  // namespace

RunConfig parse_config(const std::string& text, const std::vector<std::string>& overrides, const std::string& name) {
  json root = parse_strict(text, name, Code::CFG_JSON);
  if (!root.is_object()) throw Error(Code::CFG_TYPE, fmt::format("{}: is a list, expected an object", name), name);
  for (const auto& [section, content] : root.items()) {
    if (!is_section(section)) unknown_key(section);
    if (!content.is_object())
      throw Error(Code::CFG_TYPE, fmt::format("{} is a {}, expected an object", section, content.type_name()), name);
  }
  for (const std::string& item : overrides) apply_override(root, item);

  RunConfig config;
  for (const auto& [section, content] : root.items()) {
    for (const auto& [key, value] : content.items()) {
      const std::string full = section + "." + key;
      const auto field = fields().find(full);
      if (field == fields().end()) unknown_key(full);
      field->second(config, Value(full, value));
    }
  }
  if (!root.contains("lora") || !root["lora"].contains("alpha")) config.lora.alpha = static_cast<double>(config.lora.rank);
  check_together(config);
  return config;
}

RunConfig read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  return parse_config(read_text(file, 1 << 20, Code::CFG_VALUE), overrides, printable_path(file));
}

std::string effective_config(const RunConfig& c) {
  const auto texts = [](const std::vector<std::filesystem::path>& list) {
    json out = json::array();
    for (const auto& path : list) out.push_back(path.string());
    return out;
  };
  const auto optional = [](const std::optional<std::filesystem::path>& path) { return path ? json(path->string()) : json(nullptr); };
  constexpr const char* init_names[] = {"peft", "squareq", "gaussian"};
  json root;
  root["model"] = {{"slab", c.model.slab.string()}, {"base", optional(c.model.base)}};
  root["data"] = {{"train", texts(c.data.train)},
                  {"validation", c.data.validation.empty() ? json(nullptr) : texts(c.data.validation)},
                  {"caption_dropout", c.data.caption_dropout},
                  {"height", c.data.height},
                  {"width", c.data.width}};
  root["lora"] = {{"rank", c.lora.rank},       {"alpha", c.lora.alpha},
                  {"targets", c.lora.targets}, {"init", init_names[static_cast<int>(c.lora.init)]},
                  {"dropout", c.lora.dropout}, {"start", optional(c.lora.start)}};
  root["optimizer"] = {{"name", c.optimizer.name},
                       {"lr", c.optimizer.lr},
                       {"betas", c.optimizer.betas},
                       {"eps", c.optimizer.eps},
                       {"weight_decay", c.optimizer.weight_decay}};
  root["schedule"] = {{"name", c.schedule.name}, {"warmup", c.schedule.warmup}};
  const TimestepOptions& t = c.train.timesteps;
  root["train"] = {{"steps", c.train.steps},
                   {"batch", c.train.batch},
                   {"accumulation", c.train.accumulation},
                   {"checkpointing", c.train.checkpointing},
                   {"dtype", c.train.dtype},
                   {"compute", c.train.compute},
                   {"deterministic", c.train.deterministic},
                   {"timesteps", timestep_sampling_name(t.sampling)},
                   {"timestep_mean", t.mean},
                   {"timestep_std", t.std},
                   {"timestep_shift", t.shift},
                   {"guidance", c.train.guidance},
                   {"seed", c.train.seed},
                   {"clip", c.train.clip},
                   {"max_skipped", c.train.max_skipped},
                   {"draws", optional(c.train.draws)}};
  root["memory"] = {
      {"budget", c.memory.budget}, {"vram", c.memory.vram}, {"resident_blocks", c.memory.resident_blocks}, {"threads", c.memory.threads}};
  root["output"] = {{"dir", c.output.dir.string()}, {"save_every", c.output.save_every}, {"sample_every", c.output.sample_every}};
  root["sample"] = {{"prompts", optional(c.sample.prompts)},
                    {"count", c.sample.count},
                    {"steps", c.sample.steps},
                    {"guidance", c.sample.guidance},
                    {"seed", c.sample.seed}};
  return root.dump(2, ' ', false, json::error_handler_t::replace);
}

}  // namespace squareq::training
