// The reader against headers that no writer made: what the reference implementation of safetensors rejects, what it accepts, and what is
// only worth a warning.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>

#include "gates/g00_format/damage.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/tensor_file.hpp"

namespace squareq::gates::g00 {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : ", ") + w;
  return out.empty() ? "nothing" : out;
}

bool holds(const std::vector<std::string>& codes, const std::string& code) { return std::find(codes.begin(), codes.end(), code) != codes.end(); }

std::string container(const std::string& header, const std::string& data) {
  const std::uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + header + data;
}

json judge_container(Trial& trial, const std::string& bytes) {
  const std::filesystem::path path = trial.folder() / "container.safetensors";
  write_file(path, bytes);
  return call_format(trial, "validate", {{"container", path.string()}});
}

std::vector<std::string> warning_codes(const json& answer) {
  std::vector<std::string> codes;
  require(answer.contains("warnings") && answer["warnings"].is_array(), "format.validate: the answer lacks 'warnings'");
  for (const json& w : answer["warnings"]) codes.push_back(w.at("code").get<std::string>());
  return codes;
}

struct Text {
  const char* slug;
  const char* header;
  int data;          // bytes of zeros behind it
  const char* code;  // that must be among the problems; "" where the file is good
};

/// Verdicts of the reference implementation (tensor.rs), with the code that section 1.1 gives each.
const std::vector<Text>& texts() {
  static const std::vector<Text> all = {
      {"empty_object", "{}", 0, ""},
      {"trailing_white_space", "{} \n\t\r ", 0, ""},
      {"one_tensor", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, ""},
      {"scalar", R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4, ""},
      {"no_elements", R"({"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})", 0, ""},
      {"escaped_name", R"({"a\u0062\"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, ""},
      {"metadata_only", R"({"__metadata__":{"k":"v"}})", 0, ""},
      {"order_of_fields", R"({"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}})", 1, ""},
      {"array_root", "[]", 0, "ST_ROOT"},
      {"number_root", "12345678", 0, "ST_ROOT"},
      {"no_text", "", 0, "ST_JSON"},
      {"two_values", "{}{}", 0, "ST_JSON"},
      {"comma_at_the_end", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},})", 1, "ST_JSON"},
      {"single_quotes", R"({'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1]}})", 1, "ST_JSON"},
      {"comment", R"({/* */"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "ST_JSON"},
      {"lone_surrogate", R"({"a\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "ST_JSON"},
      {"number_too_large", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":1e400}})", 1, "ST_JSON"},
      {"bom", "\xEF\xBB\xBF{}", 0, "ST_BAD_START"},
      {"tab_first", "\t{}", 0, "ST_BAD_START"},
      {"overlong_utf8", "{\"\xC0\x80\":1}", 0, "ST_UTF8"},
      {"surrogate_utf8", "{\"\xED\xA0\x80\":1}", 0, "ST_UTF8"},
      {"cut_utf8", "{\"\xE2\x82\":1}", 0, "ST_UTF8"},
      {"escape_byte", "{\"\x1B\":1}", 0, "ST_CONTROL_BYTES"},
      {"form_feed", "{\x0C}", 0, "ST_CONTROL_BYTES"},
      {"same_name_escaped", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "ST_DUP"},
      {"field_twice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "ST_DUP"},
      {"metadata_key_twice", R"({"__metadata__":{"k":"1","k":"2"}})", 0, "ST_DUP"},
      {"metadata_twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "ST_DUP"},
      {"metadata_number", R"({"__metadata__":{"k":1}})", 0, "ST_META_TYPE"},
      {"metadata_array", R"({"__metadata__":[]})", 0, "ST_META_TYPE"},
      {"record_array", R"({"a":["U8",[1],[0,1]]})", 1, "ST_FIELD_TYPE"},
      {"record_null", R"({"a":null})", 0, "ST_FIELD_TYPE"},
      {"dtype_object", R"({"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}})", 1, "ST_FIELD_TYPE"},
      {"three_offsets", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "ST_FIELD_TYPE"},
      {"one_offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})", 1, "ST_FIELD_TYPE"},
      {"nested_shape", R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "ST_FIELD_TYPE"},
      {"no_dtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "ST_FIELD_MISSING"},
      {"no_offsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1, "ST_FIELD_MISSING"},
      {"unknown_dtype", R"({"a":{"dtype":"I4","shape":[2],"data_offsets":[0,1]}})", 1, "ST_DTYPE"},
      {"minus_zero", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}})", 1, "ST_INT"},
      {"exponent", R"({"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}})", 1, "ST_INT"},
      {"two_to_the_64", R"({"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}})", 1, "ST_INT"},
      {"hole_at_the_start", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "ST_OFFSETS"},
      {"hole", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})", 3, "ST_OFFSETS"},
      {"same_range_twice", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "ST_OFFSETS"},
      {"reversed", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "ST_OFFSETS"},
      {"overflow_behind_zero", R"({"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0, "ST_OVERFLOW"},
      {"overflow_before_zero", R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0, "ST_OVERFLOW"},
      {"overflow_in_bits", R"({"a":{"dtype":"F64","shape":[576460752303423488],"data_offsets":[0,0]}})", 0, "ST_OVERFLOW"},
      {"half_a_byte", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, "ST_SIZE"},
      {"bytes_for_none", R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,4]}})", 4, "ST_SIZE"},
      {"polyglot", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 4096, "ST_TRAILING"},
      {"data_missing", R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 8, "ST_TRUNCATED"},
  };
  return all;
}

std::string requirement(const std::string& code) {
  static const std::map<std::string, std::string> sentences = {
      {"", "SQ-FMT-002"},         {"ST_ROOT", "SQ-FMT-018"},    {"ST_JSON", "SQ-FMT-016"},    {"ST_BAD_START", "SQ-FMT-013"},     {"ST_UTF8", "SQ-FMT-015"},  {"ST_CONTROL_BYTES", "SQ-FMT-014"},
      {"ST_DUP", "SQ-FMT-019"},   {"ST_META_TYPE", "SQ-FMT-020"}, {"ST_FIELD_TYPE", "SQ-FMT-021"}, {"ST_FIELD_MISSING", "SQ-FMT-022"}, {"ST_DTYPE", "SQ-FMT-003"}, {"ST_INT", "SQ-FMT-023"},
      {"ST_OFFSETS", "SQ-FMT-024"}, {"ST_OVERFLOW", "SQ-FMT-025"}, {"ST_SIZE", "SQ-FMT-026"},   {"ST_TRAILING", "SQ-FMT-027"},      {"ST_TRUNCATED", "SQ-FMT-027"}};
  return sentences.at(code);
}

void run_text(Trial& trial, const Text& text) {
  const auto codes = problem_codes(judge_container(trial, container(text.header, std::string(static_cast<std::size_t>(text.data), '\0'))));
  if (*text.code == '\0') require(codes.empty(), "a file that the reference accepts is refused: " + joined(codes));
  else require(holds(codes, text.code), std::string("expected ") + text.code + " among the problems, found " + joined(codes));
}

/// 64 levels are read, 65 are not; 100,000 neither crash nor hang.
void run_depth(Trial& trial) {
  const auto nested = [](std::size_t levels) {  // the root and the record are two of them
    return R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":)" + std::string(levels - 2, '[') + std::string(levels - 2, ']') + "}}";
  };
  require(problem_codes(judge_container(trial, container(nested(64), "x"))).empty(), "64 levels are refused");
  for (const std::size_t levels : {65u, 1000u, 100000u})
    require(holds(problem_codes(judge_container(trial, container(nested(levels), "x"))), "ST_DEPTH"), std::to_string(levels) + " levels are accepted");
}

/// The 22 dtypes, and nothing that looks like one.
void run_dtypes(Trial& trial) {
  const std::pair<const char*, int> known[] = {{"BOOL", 8},    {"F4", 4},         {"F6_E2M3", 6},    {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
                                               {"I16", 16},    {"U16", 16},       {"F16", 16},       {"BF16", 16},   {"I32", 32}, {"U32", 32}, {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64},         {"U64", 64}};
  const auto header = [](const std::string& dtype, std::size_t bytes) { return R"({"a":{"dtype":")" + dtype + R"(","shape":[4],"data_offsets":[0,)" + std::to_string(bytes) + "]}}"; };
  for (const auto& [name, bits] : known) {
    const std::size_t bytes = static_cast<std::size_t>(bits) * 4 / 8;
    require(problem_codes(judge_container(trial, container(header(name, bytes), std::string(bytes, '\0')))).empty(), std::string(name) + " with 4 elements in " + std::to_string(bytes) + " bytes is refused");
    std::string lower = name;
    for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    require(holds(problem_codes(judge_container(trial, container(header(lower, bytes), std::string(bytes, '\0')))), "ST_DTYPE"), lower + " is taken for " + name);
  }
}

/// Data may begin at any byte: F32 tensors at odd addresses are read as they are.
void run_unaligned(Trial& trial) {
  for (const std::size_t spaces : {1u, 2u, 3u, 5u}) {
    Pair pair = golden_pair("three_layers");
    std::string text = pair.slab.substr(8, header_bytes(pair));
    text.erase(text.find_last_not_of(' ') + 1);
    while ((8 + text.size()) % 8 != spaces) text += ' ';
    set_header(pair, text, false);
    require(problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}})).empty(), "a slab whose data begin at an odd byte is refused");
    data("blocks.2.proj.scale", 8, f32(NAN))(pair);
    require(holds(problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}})), "DT_SCALE_NONFINITE"), "a NaN scale at an odd address is not seen");
  }
}

void run_warning(Trial& trial, const Damage& damage, const std::string& code) {
  Pair pair = golden_pair("three_layers");
  damage(pair);
  const json answer = call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}});
  require(problem_codes(answer).empty(), "a warning is reported as a problem: " + joined(problem_codes(answer)));
  require(holds(warning_codes(answer), code), "expected the warning " + code + ", found " + joined(warning_codes(answer)));
}

/// The verdict is the same whatever the order of keys and the white space between them.
void run_order(Trial& trial) {
  Pair good = golden_pair("three_layers"), bad = good;
  header_text("\"shape\":[2]", "\"shape\":[3]")(bad);
  for (Pair* pair : {&good, &bad}) {
    const auto wanted = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, *pair).string()}}));
    const auto header = ordered_json::parse(pair->slab.substr(8, header_bytes(*pair)));
    ordered_json reversed = ordered_json::object();
    std::vector<std::pair<std::string, ordered_json>> items;
    for (const auto& item : header.items()) items.emplace_back(item.key(), item.value());
    for (auto it = items.rbegin(); it != items.rend(); ++it) {
      ordered_json record = ordered_json::object();
      for (const char* key : {"data_offsets", "shape", "dtype"}) record[key] = it->second.at(key);
      reversed[it->first] = record;
    }
    for (const int indent : {-1, 0, 3}) {
      Pair again = *pair;
      set_header(again, reversed.dump(indent));
      const auto codes = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, again).string()}}));
      require(codes == wanted, "another order of keys gives " + joined(codes) + " instead of " + joined(wanted));
    }
  }
}

/// A quick look at a pair still finds every bad scale, zero point and bias.
void run_quick(Trial& trial) {
  const std::tuple<const char*, float, const char*> faults[] = {{"blocks.2.proj.scale", NAN, "DT_SCALE_NONFINITE"}, {"blocks.2.proj.scale", -1.f, "DT_SCALE_NONPOS"}, {"blocks.2.proj.zero_point", 2.f, "DT_ZP_NONZERO"},
                                                                {"blocks.2.proj.bias", INFINITY, "DT_BIAS_NONFINITE"}};
  for (const auto& [tensor, value, code] : faults) {
    Pair pair = golden_pair("three_layers");
    data(tensor, 4, f32(value))(pair);
    const auto codes = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}, {"quick", true}}));
    require(holds(codes, code), std::string("a quick look does not find ") + code + " in " + tensor + ": " + joined(codes));
  }
}

/// A folder, a pipe and a device in the slab's place: refused by their own code, at once.
void run_not_regular(Trial& trial) {
  const std::filesystem::path folder = trial.folder() / "kinds";
  std::filesystem::create_directory(folder);
  std::filesystem::create_directory(folder / "folder.safetensors");
  require(mkfifo((folder / "pipe.safetensors").c_str(), 0600) == 0, "cannot make a pipe");
  std::filesystem::create_symlink("/dev/zero", folder / "device.safetensors");
  for (const char* kind : {"folder", "pipe", "device"}) {
    const auto codes = problem_codes(call_format(trial, "validate", {{"container", (folder / (std::string(kind) + ".safetensors")).string()}}));
    require(holds(codes, "IO_NOT_REGULAR"), std::string("a ") + kind + " in a file's place: " + joined(codes));
  }
  require(holds(problem_codes(call_format(trial, "validate", {{"container", (folder / "absent").string()}})), "IO_MISSING"), "an absent file has another code");
}

/// Files that a checkpoint's index names lie in its folder, under one plain name.
void run_escape(Trial& trial) {
  Instance& instance = trial.instance("format");
  const std::filesystem::path model = trial.folder() / "model";
  std::filesystem::create_directory(model);
  std::filesystem::create_directory(trial.folder() / "out");
  Guarded w("w", Role::in, SQ_F32, {4, 8});
  w.fill(1.0);
  const std::string shard = write_tensors({{"blocks.0.fc.weight", &w}});
  write_file(trial.folder() / "outside.safetensors", shard);
  std::filesystem::create_symlink("../outside.safetensors", model / "link.safetensors");
  for (const std::string& name : {std::string("../outside.safetensors"), (trial.folder() / "outside.safetensors").string(), std::string("link.safetensors")}) {
    write_file(model / "model.safetensors.index.json", json{{"metadata", json::object()}, {"weight_map", {{"blocks.0.fc.weight", name}}}}.dump());
    const std::string text = json{{"model", model.string()}, {"out", (trial.folder() / "out").string()}, {"name", "n"}, {"arch", "none"}}.dump();
    std::string answer;
    call_refused("format.build of an index that names '" + name + "'", {Code::IO_ESCAPE}, {}, [&](sq_error* e) { return instance.context()->format->build(instance.get(), text.c_str(), append_text, &answer, e); });
  }
}

/// Names with quotes and letters beyond ASCII: raw in the slab's header, escaped in the manifest.
void run_strings(Trial& trial) {
  Guarded w("w", Role::in, SQ_F32, {2, 3});
  w.fill(0.5);
  const std::string name = "blocks.0.\"q\"\xC3\xA9\xF0\x9F\x98\x80";
  const std::filesystem::path model = trial.folder() / "model.safetensors", out = trial.folder() / "out";
  std::filesystem::create_directory(out);
  write_file(model, write_tensors({{name + ".weight", &w}}));
  call_format(trial, "build", {{"model", model.string()}, {"out", out.string()}, {"name", "strings"}, {"arch", "none"}, {"companion", false}});
  const std::string slab = read_file(out / "strings.safetensors"), text = read_file(out / "strings.manifest.json");
  require(slab.find("\"blocks.0.\\\"q\\\"\xC3\xA9\xF0\x9F\x98\x80.scale\":{\"dtype\"") != std::string::npos, "the slab's header does not escape the quote alone");
  require(text.find("\"canonical_name\": \"blocks.0.\\\"q\\\"\\u00e9\\ud83d\\ude00\"") != std::string::npos, "the manifest does not hold the name as Python writes it");
  require(problem_codes(call_format(trial, "validate", {{"slab", (out / "strings.safetensors").string()}})).empty(), "what was written is not accepted");
}

/// Bytes of a file reach messages escaped and cut, never raw.
void run_printable(Trial& trial) {
  const std::string evil = "x\x1b[31m\x7f\n" "\xE2\x80\xAE" "y" + std::string(400, 'z');
  Pair pair = golden_pair("three_layers");
  layer("canonical_name", evil)(pair);
  header_text("\"blocks.10.proj.scale\"", "\"\\u001b[31m\xE2\x80\xAE" + std::string(400, 'w') + "\"")(pair);
  const json answer = call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}});
  require(!problem_codes(answer).empty(), "names with control characters are accepted");
  for (const char* list : {"problems", "warnings"})
    for (const json& p : answer[list])
      for (const char* field : {"message", "layer", "tensor"}) {
        if (!p.contains(field) || !p[field].is_string()) continue;
        const std::string text = p[field].get<std::string>();
        for (const char c : text) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F, std::string("a ") + field + " holds a control character");
        require(text.find("\xE2\x80\xAE") == std::string::npos, std::string("a ") + field + " holds a bidirectional control");
        // What a message quotes is cut; layer and tensor are for programs and hold the whole name.
        if (std::string(field) == "message")
          require(text.find(std::string(201, 'z')) == std::string::npos && text.find(std::string(201, 'w')) == std::string::npos, std::string("a ") + field + " quotes more than 200 characters of a name");
      }
}

}  // namespace

void add_reader(Cases& cases) {
  const std::vector<std::string> needs = {"format"};
  for (const Text& text : texts())
    cases.push_back({0, std::string("format.container.") + text.slug, Kind::vector, {requirement(text.code), *text.code ? "SQ-FMT-001" : "SQ-FMT-002"}, needs,
                     *text.code ? "a file accepted that the reference rejects" : "a file refused that the reference accepts", [&text](Trial& t) { run_text(t, text); }});
  cases.push_back({0, "format.container.depth", Kind::vector, {"SQ-FMT-017", "SQ-FMT-001"}, needs, "recursion in the reader", run_depth});
  cases.push_back({0, "format.container.dtypes", Kind::vector, {"SQ-FMT-003", "SQ-FMT-026"}, needs, "a dtype unknown, or of another size", run_dtypes});
  cases.push_back({0, "format.good.unaligned", Kind::vector, {"SQ-FMT-006"}, needs, "a cast pointer into the file", run_unaligned});
  const auto warning = [&](const char* slug, const char* sentence, const Damage& damage, const char* code) {
    cases.push_back({0, std::string("format.warning.") + slug, Kind::vector, {sentence}, needs, "a warning that fails the file, or that is not given", [=](Trial& t) { run_warning(t, damage, code); }});
  };
  warning("field", "SQ-FMT-028", header_text("\"dtype\":\"F32\"", "\"made_by\":[1,{}],\"dtype\":\"F32\""), "ST_FIELD_UNKNOWN");
  warning("scale_subnormal", "SQ-FMT-068", data("blocks.2.proj.scale", 4, f32(1e-39f)), "DT_SCALE_SUBNORMAL");
  warning("scale_fp16", "SQ-FMT-068", data("blocks.2.proj.scale", 4, f32(516.f)), "DT_SCALE_RANGE");
  warning("unverified", "SQ-FMT-085", [](Pair&) {}, "DT_UNVERIFIED");
  warning("manifest_key", "SQ-FMT-056", top("made_by", "someone else"), "MF_UNKNOWN_FIELD");
  warning("other_tensor", "SQ-FMT-063", header_text("\"norm_out.linear.zero_point\"", "\"marker\":{\"dtype\":\"F8_E4M3\",\"shape\":[0],\"data_offsets\":[60,60]},\"norm_out.linear.zero_point\""), "MF_ORPHAN");
  cases.push_back({0, "format.order_of_keys", Kind::property, {"SQ-FMT-030"}, needs, "a verdict that depends on the order of keys", run_order});
  cases.push_back({0, "format.quick", Kind::vector, {"SQ-FMT-072"}, needs, "bad scales found only when a block is used", run_quick});
  cases.push_back({0, "format.not_regular", Kind::vector, {"SQ-FMT-090"}, needs, "a reader that waits at a pipe", run_not_regular});
  cases.push_back({0, "format.escape", Kind::vector, {"SQ-FMT-092"}, needs, "a file name that leaves its folder", run_escape});
  cases.push_back({0, "format.strings", Kind::vector, {"SQ-FMT-034", "SQ-FMT-050"}, needs, "names escaped differently from the reference's writer", run_strings});
  cases.push_back({0, "format.printable", Kind::vector, {"SQ-ERR-003"}, needs, "bytes of a file sent to a terminal", run_printable});
}

}  // namespace squareq::gates::g00
