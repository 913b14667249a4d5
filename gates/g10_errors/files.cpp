// What files and requests are refused with: the code, and in its message the layer and both values. Nothing that was loaded before changes.
#include <algorithm>
#include <cmath>

#include "gates/g00_format/damage.hpp"
#include "gates/g10_errors/g10_errors.hpp"
#include "gates/harness/compare.hpp"
#include "gates/harness/module.hpp"

namespace squareq::gates::g10 {
namespace {

using nlohmann::json;
using g00::Damage;

struct BadFile {
  const char* slug;
  const char* code;
  const char* requirement;
  std::vector<std::string_view> names;  // in the problem's message, layer or tensor
  Damage damage;
};

const std::vector<BadFile>& bad_files() {
  static const std::string scale = "blocks.2.proj.scale", q = "blocks.2.proj.qweight", zero = "blocks.2.proj.zero_point";
  static const std::vector<BadFile> all = {
      {"count", "MF_COUNT", "SQ-FMT-046", {"4", "3"}, g00::top("layer_count", 4)},
      {"bytes", "MF_BYTES", "SQ-FMT-046", {"49", "48"}, g00::top("total_qweight_bytes", 49)},
      {"abi", "MF_ABI", "SQ-FMT-045", {"999", "1"}, g00::top("kernel_abi_version", 999)},
      {"version", "MF_VERSION", "SQ-FMT-045", {"squareq_bp8_v1", "squareq_bp8_v2"}, g00::top("quant_version", "squareq_bp8_v1")},
      {"runtime", "MF_RUNTIME", "SQ-FMT-045", {"0.2.0", "0.1.0"}, g00::top("min_runtime_version", "0.2.0")},
      {"bits", "MF_QUANT", "SQ-FMT-053", {"blocks.2.proj", "4", "8"}, g00::layer("quant_bits", 4)},
      {"packed", "MF_PACK", "SQ-FMT-052", {"blocks.2.proj", "16", "8"}, g00::layer("packed_shape", {3, 16})},
      {"absent", "MF_KEY_ABSENT", "SQ-FMT-060", {"blocks.2.proj", "blocks.2.proj.codes"}, g00::layer("qweight_key", "blocks.2.proj.codes")},
      {"shape", "MF_SHAPE", "SQ-FMT-062", {"blocks.2.proj", "[3, 1]|[3,1]|3x1|(3, 1)"}, g00::header_text("\"blocks.2.proj.scale\":{\"dtype\":\"F32\",\"shape\":[3]", "\"blocks.2.proj.scale\":{\"dtype\":\"F32\",\"shape\":[3,1]")},
      {"dtype", "MF_DTYPE", "SQ-FMT-061", {"blocks.2.proj", "U8", "I8"}, g00::header_text("\"blocks.2.proj.qweight\":{\"dtype\":\"I8\"", "\"blocks.2.proj.qweight\":{\"dtype\":\"U8\"")},
      {"scale_nan", "DT_SCALE_NONFINITE", "SQ-FMT-067", {"blocks.2.proj", "1"}, g00::data(scale, 4, g00::f32(NAN))},
      {"scale_zero", "DT_SCALE_NONPOS", "SQ-FMT-067", {"blocks.2.proj", "2"}, g00::data(scale, 8, g00::f32(0.f))},
      {"zero_point", "DT_ZP_NONZERO", "SQ-FMT-069", {"blocks.2.proj", "1"}, g00::data(zero, 4, g00::f32(1.f))},
      {"code", "DT_Q_MIN128", "SQ-FMT-071", {"blocks.2.proj", "-128"}, g00::data(q, 11, "\x80")},
      {"padding", "DT_PAD_NONZERO", "SQ-FMT-071", {"blocks.2.proj"}, g00::data(q, 15, "\x01")},
  };
  return all;
}

void run_bad_file(Trial& trial, const BadFile& bad) {
  g00::Pair pair = g00::golden_pair("three_layers");
  bad.damage(pair);
  const json answer = g00::call_format(trial, "validate", {{"slab", g00::write_pair(trial, pair).string()}});
  g00::problem_codes(answer);
  for (const json& p : answer["problems"]) {
    if (p["code"] != bad.code) continue;
    sq_error told = make_error();
    const std::string text = p["message"].get<std::string>() + " | " + p.value("layer", json()).dump() + " | " + p.value("tensor", json()).dump();
    std::copy_n(text.data(), std::min(text.size(), sizeof told.message - 1), told.message);
    must_name(std::string("the problem ") + bad.code, told, bad.names);
    require(p.contains("file") && p["file"].is_string(), std::string("the problem ") + bad.code + " names no file");
    return;
  }
  fail(std::string("expected ") + bad.code + " among the problems: " + answer["problems"].dump());
}

/// A slab that must not be loaded: the modules keep what they had, bit for bit, and still compute.
void run_load_keeps_state(Trial& trial, const char* code, const Damage& damage) {
  ModuleTree tree(trial, ModuleTree::golden_request(2));
  const g00::Pair good = g00::golden_pair("three_layers");
  tree.load(g00::write_pair(trial, good).string());
  const json listed = tree.list();
  std::vector<std::vector<std::byte>> before;
  for (const json& b : listed.at("buffers")) before.push_back(tree.read(b).bytes());
  Guarded x("x", Role::in, SQ_F32, {2, 5}), y("y", Role::out, SQ_F32, {2, 3}), again("y", Role::out, SQ_F32, {2, 3});
  x.fill([n = 0]() mutable { return 0.25 * n++; });
  tree.forward("blocks.2.proj", x, y);
  g00::Pair bad = good;
  damage(bad);
  std::vector<Code> wanted = {Code::MD_LAYER};
  for (int number = 100; number < 1000; ++number)
    if (code_name(static_cast<Code>(number)) == code) wanted.push_back(static_cast<Code>(number));
  tree.load_refused(g00::write_pair(trial, bad).string(), wanted);
  for (std::size_t i = 0; i < before.size(); ++i) same_bytes(listed["buffers"][i]["name"].get<std::string>() + " after a refused load", tree.read(listed["buffers"][i]).bytes(), before[i]);
  tree.forward("blocks.2.proj", x, again);
  same_bits("y after a refused load", again, y);
}

/// Requests of the group format: wrong keys, types and texts, each by its code, the key named.
void run_format_requests(Trial& trial) {
  Instance& instance = trial.instance("format");
  const sq_format_group& group = *instance.context()->format;
  const std::string slab = g00::write_pair(trial, g00::golden_pair("three_layers")).string();
  struct Request {
    decltype(sq_format_group::build) call;
    std::string text;
    std::vector<Code> codes;
    std::vector<std::string_view> names;
  };
  const Request requests[] = {
      {group.validate, json{{"slab", slab}, {"colour", 1}}.dump(), {Code::CFG_KEY}, {"colour"}},
      {group.report, json{{"slab", slab}, {"colour", 1}}.dump(), {Code::CFG_KEY}, {"colour"}},
      {group.build, json{{"model", slab}, {"out", "."}, {"name", "n"}, {"colour", 1}}.dump(), {Code::CFG_KEY}, {"colour"}},
      {group.build, json{{"model", slab}, {"out", "."}}.dump(), {Code::CFG_KEY}, {"name"}},
      {group.build, json{{"model", slab}, {"out", "."}, {"name", 3}}.dump(), {Code::CFG_TYPE}, {"name"}},
      {group.build, json{{"model", slab}, {"out", "."}, {"name", "n"}, {"pack_k", -1}}.dump(), {Code::CFG_TYPE, Code::CFG_VALUE}, {"pack_k"}},
      {group.validate, json::object().dump(), {Code::CFG_KEY}, {"slab"}},
      {group.validate, json{{"slab", slab}, {"container", slab}}.dump(), {Code::CFG_KEY}, {"slab", "container"}},
      {group.validate, json{{"slab", slab}, {"quick", "yes"}}.dump(), {Code::CFG_TYPE}, {"quick"}},
      {group.report, "[]", {Code::CFG_JSON}, {}},
      {group.report, "{", {Code::CFG_JSON}, {}},
      {group.report, json{{"slab", slab + ".gone"}}.dump(), {Code::IO_MISSING, Code::MF_MISSING}, {"gone"}},
  };
  for (const Request& r : requests) {
    std::string answer;
    const std::string what = "the request " + r.text;
    const sq_error e = call_refused(what, r.codes, {}, [&](sq_error* error) { return r.call(instance.get(), r.text.c_str(), append_text, &answer, error); });
    must_name(what, e, r.names);
    require(answer.empty(), what + ": refused, but answered as well");
  }
  std::string answer;
  call_refused("a null request", {Code::CALL_NULL}, {}, [&](sq_error* e) { return group.report(instance.get(), nullptr, append_text, &answer, e); });
}

/// Requests of the group module.
void run_module_requests(Trial& trial) {
  Instance& instance = trial.instance("module");
  const sq_module_group& group = *instance.context()->module;
  const auto refuse_create = [&](const std::string& what, const std::function<void(json&)>& change, const std::vector<Code>& codes, const std::vector<std::string_view>& names) {
    json request = ModuleTree::golden_request(2);
    change(request);
    const std::string text = request.dump();
    std::string answer;
    std::uint64_t id = 4711;
    const sq_error e = call_refused("module.create with " + what, codes, {}, [&](sq_error* error) { return group.create(instance.get(), text.c_str(), &id, append_text, &answer, error); });
    must_name("module.create with " + what, e, names);
    require(id == 4711 && answer.empty(), "module.create with " + what + ": refused, but answered as well");
  };
  refuse_create("an unknown kind", [](json& r) { r["others"][0]["kind"] = "attention"; }, {Code::CALL_VALUE}, {"embed", "attention"});
  refuse_create("an unknown init", [](json& r) { r["lora"]["init"] = "orthogonal"; }, {Code::CALL_VALUE}, {"orthogonal"});
  refuse_create("an unknown key", [](json& r) { r["colour"] = 1; }, {Code::CALL_VALUE, Code::CFG_KEY}, {"colour"});
  refuse_create("an unknown key of a layer", [](json& r) { r["layers"][0]["dtype"] = "bf16"; }, {Code::CALL_VALUE, Code::CFG_KEY}, {"dtype"});
  refuse_create("an unknown key of lora", [](json& r) { r["lora"]["scale"] = 2; }, {Code::CALL_VALUE, Code::CFG_KEY}, {"scale"});
  refuse_create("a layer without its size", [](json& r) { r["layers"][0].erase("in"); }, {Code::CALL_VALUE, Code::CFG_KEY}, {"in"});
  refuse_create("a size that is text", [](json& r) { r["layers"][0]["in"] = "8"; }, {Code::CALL_VALUE, Code::CFG_TYPE}, {});
  refuse_create("a rank of 0", [](json& r) { r["lora"]["rank"] = 0; }, {Code::CALL_VALUE}, {"0"});
  refuse_create("a negative size", [](json& r) { r["layers"][0]["in"] = -8; }, {Code::CALL_VALUE, Code::MD_LAYER}, {"-8"});

  ModuleTree tree(trial, ModuleTree::golden_request(2));
  tree.load(g00::write_pair(trial, g00::golden_pair("three_layers")).string());
  Guarded half("x", Role::inout, SQ_F16, {5, 2}), wide("x", Role::inout, SQ_F32, {5, 3}), adapter("x", Role::inout, SQ_F32, {5, 2}), codes("x", Role::inout, SQ_I8, {3, 8}), scale("x", Role::inout, SQ_F32, {3});
  tree.read_refused("blocks.2.proj.lora_A", {Code::CALL_DTYPE}, half);
  tree.read_refused("blocks.2.proj.lora_A", {Code::CALL_SHAPE}, wide);
  tree.read_refused("blocks.2.proj.weight", {Code::CALL_VALUE}, wide);
  tree.write_refused("blocks.2.proj.lora_A", {Code::CALL_DTYPE}, half);
  tree.write_refused("blocks.2.proj.lora_A", {Code::CALL_SHAPE}, wide);
  tree.write_refused("blocks.2.proj.qweight", {Code::CALL_VALUE}, codes);
  tree.write_refused("blocks.2.proj.scale", {Code::CALL_VALUE}, scale);
  tree.write_refused("blocks.3.proj.lora_A", {Code::CALL_VALUE}, adapter);
  Guarded x("x", Role::in, SQ_F32, {2, 5}), y("y", Role::out, SQ_F32, {2, 3}), narrow("x", Role::in, SQ_F32, {2, 4}), integer("x", Role::in, SQ_I8, {2, 5}), tall("y", Role::out, SQ_F32, {3, 3});
  tree.forward_refused("blocks.2.proj", {Code::CALL_SHAPE}, narrow, y);
  tree.forward_refused("blocks.2.proj", {Code::CALL_SHAPE}, x, tall);
  tree.forward_refused("blocks.2.proj", {Code::CALL_DTYPE}, integer, y);
  tree.forward_refused("blocks.9.proj", {Code::MD_LAYER}, x, y);
  tree.forward_refused("norm", {Code::MD_LAYER}, x, y);
}

}  // namespace

void add_files(Cases& cases) {
  for (const BadFile& bad : bad_files())
    cases.push_back({10, std::string("errors.file.") + bad.slug, Kind::vector, {bad.requirement, "SQ-FMT-005"}, {"format"}, "a message that does not say which layer, or which of two values is wrong", [&bad](Trial& t) { run_bad_file(t, bad); }});
  const auto keeps = [&](const char* slug, const char* code, const char* requirement, const Damage& damage) {
    cases.push_back({10, std::string("errors.load.") + slug, Kind::vector, {requirement, "SQ-MOD-012", "SQ-MOD-007", "SQ-CNV-003"}, {"module"}, "half a slab loaded before the fault was found", [=](Trial& t) { run_load_keeps_state(t, code, damage); }});
  };
  keeps("scale_nan", "DT_SCALE_NONFINITE", "SQ-FMT-072", g00::data("norm_out.linear.scale", 0, g00::f32(NAN)));
  keeps("scale_negative", "DT_SCALE_NONPOS", "SQ-FMT-072", g00::data("norm_out.linear.scale", 0, g00::f32(-1.f)));
  keeps("zero_point", "DT_ZP_NONZERO", "SQ-FMT-072", g00::data("norm_out.linear.zero_point", 0, g00::f32(1.f)));
  keeps("bias_infinite", "DT_BIAS_NONFINITE", "SQ-FMT-072", g00::data("norm_out.linear.bias", 0, g00::f32(INFINITY)));
  keeps("code_minus_128", "DT_Q_MIN128", "SQ-FMT-071", g00::data("norm_out.linear.qweight", 0, "\x80"));
  keeps("padding", "DT_PAD_NONZERO", "SQ-FMT-071", g00::data("norm_out.linear.qweight", 7, "\x01"));
  keeps("qweight_missing", "MF_KEY_ABSENT", "SQ-FMT-060", g00::layer("qweight_key", "blocks.2.proj.codes"));
  keeps("truncated", "ST_TRUNCATED", "SQ-FMT-027", [](g00::Pair& p) { p.slab.pop_back(); });
  keeps("abi", "MF_ABI", "SQ-FMT-045", g00::top("kernel_abi_version", 999));
  cases.push_back({10, "errors.format_requests", Kind::vector, {"SQ-ERR-007", "SQ-CNV-003"}, {"format"}, "an unknown key ignored", run_format_requests});
  cases.push_back({10, "errors.module_requests", Kind::vector, {"SQ-ERR-007", "SQ-CNV-003"}, {"module"}, "an unknown key ignored, a tensor converted in silence", run_module_requests});
}

}  // namespace squareq::gates::g10
