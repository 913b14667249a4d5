// Gate 11: nothing left over. One symbol, one spelling per term, no other file format, no word on standard output, no promise that is not kept.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "gates/g00_format/g00_format.hpp"
#include "gates/g11_cleanup/exports.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/module.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

void run_exports(Trial& trial) {
  Dl_info info{};
  // describe is the library's own even where the suite stands between (placed tensors).
  require(dladdr(reinterpret_cast<const void*>(trial.subject().implementation()->describe), &info) != 0 && info.dli_fname, "the library of the implementation is not to be found");
  const auto names = exported_symbols(info.dli_fname);
  require(std::find(names.begin(), names.end(), SQ_ENTRY_POINT) != names.end(), "the library exports no " SQ_ENTRY_POINT);
  for (const std::string& name : names) require(name == SQ_ENTRY_POINT, "the library exports '" + name + "' beside " SQ_ENTRY_POINT);
}

/// Groups are described if and only if their tables are there, every entry included; formats, dtypes and classes are words of the registry.
void run_describe(Trial& trial) {
  const Description& d = trial.description();
  const auto tables = [&](const Implementation& i) { return std::map<std::string, bool>{{"linear", i->linear != nullptr}, {"stream", i->stream != nullptr}, {"telemetry", i->telemetry != nullptr}}; };
  for (const auto& [group, there] : tables(trial.subject().implementation())) require(d.groups.contains(group) == there, "group '" + group + "' is " + (there ? "there but not described" : "described but not there"));
  if (d.groups.contains("format")) {
    const auto* g = trial.subject().of_group("format")->format;
    require(g && g->build && g->validate && g->report, "group 'format' lacks an entry");
  }
  if (d.groups.contains("module")) {
    const auto* g = trial.subject().of_group("module")->module;
    require(g && g->create && g->load && g->cast && g->list && g->freeze && g->read && g->write && g->forward && g->destroy, "group 'module' lacks an entry");
  }
  if (d.groups.contains("stream")) {
    const auto* g = trial.subject().implementation()->stream;
    require(g->open && g->begin_step && g->acquire && g->release && g->end_step && g->stats && g->lease_weight && g->close, "group 'stream' lacks an entry");
  }
  const std::set<std::string> groups = {"linear", "lora", "stream", "telemetry", "format", "module"}, operations = {"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "explain", "rms_norm_rope_forward", "rms_norm_rope_backward", "open", "begin_step", "acquire", "release", "end_step", "stats",
                                            "lease_weight", "close", "last_step", "build", "validate", "report", "create", "load", "cast", "list", "freeze", "read", "write", "forward", "destroy"},
                              dtypes = {"f32", "bf16", "f16"}, classes = {"R1", "R2", "R4"};
  const json object = json::parse(d.json);
  const auto words = [&](const char* key, const std::set<std::string>& known) {
    if (!object.contains(key)) return;
    for (const json& word : object[key]) require(known.contains(word.get<std::string>()), std::string("describe() lists ") + word.dump() + " under '" + key + "', a word that the contract does not have");
  };
  words("groups", groups);
  words("operations", operations);
  words("activation_dtypes", dtypes);
  words("rounding_classes", classes);
  require(object.contains("rounding_classes") && object["rounding_classes"].is_array(), "describe() lists no rounding_classes");
  require(d.formats.contains("bp8_v2"), "describe() does not list bp8_v2");
  require(object["name"] == trial.subject().implementation()->name && object["version"] == trial.subject().implementation()->version, "describe() and the table give different names or versions");
}

/// A class that is described computes, one that is not described is refused; so are the dtypes of activations.
void run_offers(Trial& trial) {
  const json object = json::parse(trial.description().json);
  std::set<std::string> classes;
  for (const json& c : object.at("rounding_classes")) classes.insert(c.get<std::string>());
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  for (const auto& [dtype, name] : {std::pair<std::int32_t, const char*>{SQ_F32, "f32"}, {SQ_BF16, "bf16"}, {SQ_F16, "f16"}})
    for (const auto& [compute, rounding] : {std::pair<std::int32_t, const char*>{SQ_COMPUTE_EXACT_W, "R1"}, {SQ_COMPUTE_W8A8, "R4"}}) {
      Problem p(3, Layer("offered", 16, 64, 64, true), dtype);
      fill(p, random, {});
      const DirectWeight direct(p.layer);
      Guarded y("y", Role::out, dtype, {3, 16});
      auto args = sized<sq_linear_forward_args>();
      args.compute = compute;
      args.weight = direct.ref();
      args.x = p.x.tensor();
      args.y = y.tensor();
      const std::string what = std::string("linear_forward of ") + name + " in class " + rounding;
      const auto call = [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); };
      if (trial.description().activation_dtypes.contains(name) && classes.contains(rounding)) call_ok(what, {&p.x, &y}, call);
      else call_refused(what + ", which is not described", {Code::CALL_UNSUPPORTED, Code::CALL_DTYPE, Code::CALL_VALUE}, {&p.x, &y}, call);
    }
}

/// Sums of int8 products are integers: 2^24 + 1 and its like come out exactly where fp32 accumulation would drop the last unit.
void run_integer_sums(Trial& trial) {
  Instance& instance = trial.instance();
  constexpr std::int64_t k = 4096;  // 4096 * 127 * 127 = 6.6e7 > 2^24
  Problem p(1, Layer("integers", 4, k, 64, false), SQ_F32);
  p.layer.scale.fill(1.0);
  Guarded q("q", Role::in, SQ_I8, {1, k}), xs("scale", Role::in, SQ_F32, {1});
  xs.fill(1.0);
  Random random = trial.random("codes");
  std::vector<std::int64_t> sums(4, 0);
  for (std::int64_t i = 0; i < k; ++i) {
    q.set(0, i, i % 3 ? 127 : 126);
    for (std::int64_t n = 0; n < 4; ++n) {
      p.layer.qweight.set(n, i, n == 0 ? 127 : n == 1 ? -127 : static_cast<double>(random.integer(100, 127)));
      sums[static_cast<std::size_t>(n)] += static_cast<std::int64_t>(q.at(0, i)) * static_cast<std::int64_t>(p.layer.qweight.at(n, i));
    }
  }
  const DirectWeight direct(p.layer);
  const sq_part parts[] = {{"q", *q.tensor()}, {"scale", *xs.tensor()}};
  auto xq = sized<sq_quantized_activation>();
  xq.format = "per_token_int8";
  xq.parts = parts;
  xq.part_count = 2;
  Guarded y("y", Role::out, SQ_F32, {1, 4});
  auto args = sized<sq_linear_forward_args>();
  args.weight = direct.ref();
  args.xq = &xq;
  args.y = y.tensor();
  call_ok("linear_forward of int8 activations", {&q, &xs, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  for (std::int64_t n = 0; n < 4; ++n) {
    const double wanted = static_cast<double>(static_cast<float>(sums[static_cast<std::size_t>(n)]));  // the one rounding of the result
    require(y.at(n) == wanted, "the integer sum " + std::to_string(sums[static_cast<std::size_t>(n)]) + " comes out as " + std::to_string(y.at(n)));
  }
  // And fp32 sums of floating products: 4096 ones beside a value that fp16 accumulation would swallow.
  Problem ones(1, Layer("ones", 1, k, 64, false), SQ_F16);
  ones.y_dtype = SQ_F32;
  ones.layer.scale.fill(1.0);
  ones.layer.qweight.fill(1.0);
  ones.x.fill(1.0);
  if (trial.description().activation_dtypes.contains("f16")) require(forward(instance, ones).y.at(0) == static_cast<double>(k), "4096 ones sum to " + std::to_string(forward(instance, ones).y.at(0)) + ": accumulated in 16 bits");
}

/// Files that other programs write under a slab's name: refused by the framing, never interpreted, never run.
void run_foreign_files(Trial& trial) {
  const std::filesystem::path marker = trial.folder() / "unpickled";
  const std::string pickle = "cos\nsystem\n(S'touch " + marker.string() + "'\ntR.";
  const std::pair<const char*, std::string> files[] = {{"model.fpk", pickle},
                                                       {"model.pt", "\x80\x02" + pickle},
                                                       {"model.pth", std::string("PK\x03\x04") + pickle},
                                                       {"model.safetensors", pickle},
                                                       {"zip.safetensors", std::string("PK\x03\x04\x14\x00\x00\x00", 8) + std::string(100, '\0')},
                                                       {"gguf.safetensors", std::string("GGUF\x03\x00\x00\x00", 8) + std::string(100, '\0')},
                                                       {"lfs.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"},
                                                       {"html.safetensors", "<!DOCTYPE html><html></html>"}};
  for (const auto& [name, bytes] : files) {
    const std::filesystem::path path = trial.folder() / name;
    g00::write_file(path, bytes);
    for (const char* kind : {"container", "slab"}) {
      Instance& instance = trial.instance("format");
      const std::string text = json{{kind, path.string()}}.dump();
      std::string answer;
      sq_error e = make_error();
      const auto status = static_cast<Code>(instance.context()->format->validate(instance.get(), text.c_str(), append_text, &answer, &e));
      const json object = json::parse(answer, nullptr, false);
      require(status != Code::OK || (object.is_object() && object.value("ok", true) == false), std::string(name) + " is accepted as a " + kind);
    }
    require(!std::filesystem::exists(marker), std::string(name) + " was unpickled");
  }
  // A slab under another ending is read for what it holds, or refused; a torch file is never written.
  for (const auto& entry : std::filesystem::recursive_directory_iterator(trial.folder())) require(entry.path().extension() != ".pkl", "a pickle was written");
}

/// Keys of an answer, at any level.
void keys_of(const json& value, std::set<std::string>& keys) {
  if (value.is_object())
    for (const auto& [key, inner] : value.items()) keys.insert(key), keys_of(inner, keys);
  if (value.is_array())
    for (const json& inner : value) keys_of(inner, keys);
}

/// One spelling per term: no answer uses another word for slab, block, scale, zero_point or qweight.
void run_spelling(Trial& trial) {
  const std::string slab = g00::write_pair(trial, g00::golden_pair("three_layers")).string();
  std::set<std::string> keys;
  keys_of(g00::call_format(trial, "report", {{"slab", slab}}), keys);
  keys_of(g00::call_format(trial, "validate", {{"slab", slab}}), keys);
  keys_of(json::parse(trial.description().json), keys);
  const std::set<std::string> banned = {"zp", "zeros", "zero_points", "zeropoint", "zeroPoint", "qw", "weight_int8", "int8_weight", "codes", "weight_scale", "scales_f32", "absmax", "chunk", "shard", "pack", "layer_blocks", "w_scale", "qzeros", "fpk", "lora_down", "lora_up"};
  for (const std::string& key : keys) {
    require(!banned.contains(key), "an answer says '" + key + "'");
    for (const char c : key) require((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.', "an answer's key '" + key + "' is not written in small letters and underscores");
  }
}

/// Buffers and parameters of a module carry the names of the spec, no synonym and nothing besides.
void run_module_words(Trial& trial) {
  ModuleTree tree(trial, ModuleTree::golden_request(2));
  tree.load(g00::write_pair(trial, g00::golden_pair("three_layers")).string());
  const json listed = tree.list();
  for (const char* kind : {"buffers", "parameters"})
    for (const json& entry : listed.at(kind)) {
      const std::string name = entry.at("name").get<std::string>(), tail = name.substr(name.rfind('.') + 1);
      const std::set<std::string> words = std::string(kind) == "buffers" ? std::set<std::string>{"qweight", "scale", "zero_point"} : std::set<std::string>{"bias", "lora_A", "lora_B", "weight"};
      require(words.contains(tail), "'" + name + "' is none of the names of spec/55-modules.md");
    }
}

/// Runs `work` with standard output in a file; returns what was written there.
template <class Work>
std::string output_of(Trial& trial, Work&& work) {
  const std::filesystem::path path = trial.folder() / "stdout";
  std::fflush(stdout);
  const int kept = dup(STDOUT_FILENO), file = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  require(kept >= 0 && file >= 0 && dup2(file, STDOUT_FILENO) >= 0, "standard output cannot be redirected");
  close(file);
  const auto restore = [&] {
    std::fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
  };
  try {
    work();
  } catch (...) {
    restore();
    throw;
  }
  restore();
  return g00::read_file(path);
}

/// A library is silent: what it has to say it says through its answers, its errors and the host's log.
void run_silent(Trial& trial) {
  Random random = trial.random("data");
  const std::string said = output_of(trial, [&] {
    Instance& instance = trial.instance();
    Problem p(3, Layer("silent", 16, 64, 64, true), SQ_F32);
    fill(p, random, {.rank = 2});
    Guarded dy("dy", Role::in, SQ_F32, {3, 16}), narrow("y", Role::out, SQ_F32, {3, 15});
    dy.fill(1.0);
    forward(instance, p);
    backward(instance, p, dy, nullptr, nullptr);
    const DirectWeight direct(p.layer);
    auto args = sized<sq_linear_forward_args>();
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.y = narrow.tensor();
    call_refused("linear_forward with a narrow y", {Code::CALL_SHAPE}, {&narrow}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
    trial.subject().implementation().describe();
  });
  require(said.empty(), "the library writes to standard output: '" + said.substr(0, 80) + "'");
}

void run_silent_files(Trial& trial) {
  const std::string slab = g00::write_pair(trial, g00::golden_pair("three_layers")).string();
  const std::string said = output_of(trial, [&] {
    g00::call_format(trial, "validate", {{"slab", slab}});
    g00::call_format(trial, "report", {{"slab", slab}});
  });
  require(said.empty(), "the library writes to standard output: '" + said.substr(0, 80) + "'");
}

/// Contexts come and go; another context's life changes no bit of this one's results.
void run_contexts(Trial& trial) {
  Random random = trial.random("data");
  Problem p(5, Layer("contexts", 40, 70, 64, true), SQ_F32);
  fill(p, random, {.rank = 3});
  Instance& kept = trial.instance();
  const ForwardOutputs first = forward(kept, p);
  for (int i = 0; i < 50; ++i) {
    Instance& other = trial.instance("linear", static_cast<std::uint32_t>(1 + i % 3));
    same_bits("y of context " + std::to_string(i), forward(other, p).y, first.y);
    other.destroy();
    require(other.meter().held() == 0, "context " + std::to_string(i) + " leaves " + std::to_string(other.meter().held()) + " bytes");
  }
  same_bits("y after 50 other contexts", forward(kept, p).y, first.y);
}

}  // namespace

void add_g11_cleanup(Cases& cases) {
  cases.push_back({11, "cleanup.exports", Kind::vector, {"SQ-CNV-009"}, {"linear", "in_process"}, "symbols that meet those of another backend in one process", run_exports});
  cases.push_back({11, "cleanup.describe", Kind::vector, {"SQ-CNV-008", "SQ-NUM-005"}, {"linear"}, "a group described and absent, a word of its own", run_describe});
  cases.push_back({11, "cleanup.offers", Kind::vector, {"SQ-NUM-005", "SQ-CNV-008", "SQ-LIN-044"}, {"linear", "operation:linear_forward"}, "a class or dtype computed that is not described, or the reverse", run_offers});
  cases.push_back({11, "cleanup.integer_sums", Kind::vector, {"SQ-NUM-002", "SQ-NUM-012"}, {"linear", "operation:linear_forward", "operation:quantize_activation"}, "int8 products summed in fp32, floats in fp16", run_integer_sums});
  cases.push_back({11, "cleanup.foreign_files", Kind::vector, {"SQ-FMT-001", "SQ-FMT-005"}, {"format"}, "a pickle read, an old format accepted", run_foreign_files});
  cases.push_back({11, "cleanup.spelling", Kind::vector, {"SQ-FMT-005"}, {"format"}, "two words for one thing", run_spelling});
  cases.push_back({11, "cleanup.module_words", Kind::vector, {"SQ-MOD-020"}, {"module"}, "a weight under another name", run_module_words});
  cases.push_back({11, "cleanup.silent", Kind::property, {"SQ-ERR-004"}, {"linear", "lora", "operation:linear_forward", "operation:linear_backward"}, "a library that prints", run_silent});
  cases.push_back({11, "cleanup.silent_files", Kind::property, {"SQ-ERR-004"}, {"format"}, "a library that prints", run_silent_files});
  cases.push_back({11, "cleanup.contexts", Kind::property, {"SQ-CNV-004", "SQ-CNV-007"}, {"linear", "lora", "operation:linear_forward"}, "state outside the context", run_contexts});
}

}  // namespace squareq::gates
