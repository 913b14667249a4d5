// Good pairs pass; every way of being bad that this gate knows is refused with its own code. Each damages the golden `three_layers`, which
// the Python code loads silently in most of these states.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>

#include "gates/g00_format/damage.hpp"
#include "gates/g00_format/g00_format.hpp"
#include "gates/harness/goldens.hpp"

namespace squareq::gates::g00 {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct Bad {
  const char* slug;
  const char* code;
  Damage damage;
  const char* requirement = nullptr;  // where it is not the code's usual sentence
};

const std::vector<Bad>& bad_pairs() {
  static const std::string scale = "blocks.2.proj.scale", q = "blocks.2.proj.qweight", zero = "blocks.2.proj.zero_point", bias = "blocks.2.proj.bias";
  static const std::vector<Bad> all = {
      // the container
      {"st_empty", "ST_TOO_SMALL", [](Pair& p) { p.slab.clear(); }},
      {"st_seven_bytes", "ST_TOO_SMALL", [](Pair& p) { p.slab.resize(7); }},
      {"st_huge_header", "ST_HEADER_TOO_LARGE", [](Pair& p) { p.slab.replace(0, 8, std::string(8, '\xFF')); }},
      {"st_header_past_eof", "ST_HEADER_PAST_EOF", [](Pair& p) { p.slab.replace(0, 8, std::string("\x00\x00\x01\x00\x00\x00\x00\x00", 8)); }},
      {"st_leading_space", "ST_BAD_START", [](Pair& p) { set_header(p, " " + p.slab.substr(8, header_bytes(p))); }},
      {"st_nul_after_object", "ST_CONTROL_BYTES", [](Pair& p) { p.slab[8 + header_bytes(p) - 1] = '\0'; }},
      {"st_not_utf8", "ST_UTF8", header_text("blocks.2.proj.bias", "blocks.2.proj.bi\xFFs")},
      {"st_cut_json", "ST_JSON", header_text("}}", "} ")},
      {"st_duplicate_name", "ST_DUP", header_text("\"blocks.10.proj.zero_point\"", "\"blocks.10.proj.scale\"")},
      {"st_metadata_null", "ST_META_TYPE", header_text("{\"blocks.10", "{\"__metadata__\":null,\"blocks.10")},
      {"st_shape_text", "ST_FIELD_TYPE", header_text("\"shape\":[2]", "\"shape\":\"2\"")},
      {"st_no_shape", "ST_FIELD_MISSING", header_text("\"shape\":[2],", "")},
      {"st_lower_case_dtype", "ST_DTYPE", header_text("\"F32\"", "\"f32\"")},
      {"st_float_offset", "ST_INT", header_text("[0,8]", "[0,8.0]")},
      {"st_negative_dimension", "ST_INT", header_text("\"shape\":[2]", "\"shape\":[-2]")},
      {"st_overlap", "ST_OFFSETS", header_text("[8,16]", "[4,12]")},
      {"st_overflow", "ST_OVERFLOW", header_text("\"shape\":[2]", "\"shape\":[4294967296,4294967296]")},
      {"st_size", "ST_SIZE", header_text("\"shape\":[2]", "\"shape\":[3]")},
      {"st_trailing", "ST_TRAILING", [](Pair& p) { p.slab += "x"; }},
      {"st_truncated", "ST_TRUNCATED", [](Pair& p) { p.slab.pop_back(); }},
      // the manifest's text
      {"mf_empty_text", "MF_JSON", [](Pair& p) { p.manifest.clear(); }},
      {"mf_bom", "MF_JSON", [](Pair& p) { p.manifest = "\xEF\xBB\xBF" + p.manifest; }},
      {"mf_nan_literal", "MF_JSON", [](Pair& p) { p.manifest.replace(p.manifest.find("\"layer_count\": 3"), 16, "\"layer_count\": NaN"); }},
      {"mf_second_value", "MF_JSON", [](Pair& p) { p.manifest += "{}"; }},
      {"mf_duplicate_key", "MF_DUP_KEY", [](Pair& p) { p.manifest.replace(p.manifest.find("{"), 1, "{\n  \"layer_count\": 3,"); }},
      {"mf_count_text", "MF_TYPE", top("layer_count", "3")},
      {"mf_count_float", "MF_TYPE", top("layer_count", 3.0)},
      {"mf_bits_true", "MF_TYPE", layer("quant_bits", true)},
      {"mf_no_signature", "MF_MISSING", manifest([](ordered_json& m) { m.erase("model_signature"); })},
      {"mf_layer_no_scale_key", "MF_MISSING", manifest([](ordered_json& m) { m["layers"][1].erase("scale_key"); })},
      {"mf_no_layers", "MF_EMPTY", manifest([](ordered_json& m) {
         m["layers"] = ordered_json::array();
         m["layer_count"] = 0;
         m["total_qweight_bytes"] = 0;
       })},
      // the manifest's fields
      {"mf_abi_999", "MF_ABI", top("kernel_abi_version", 999)},
      {"mf_abi_0", "MF_ABI", top("kernel_abi_version", 0)},
      {"mf_version", "MF_VERSION", top("quant_version", "squareq_bp8_v1")},
      {"mf_runtime_newer", "MF_RUNTIME", top("min_runtime_version", "0.10.0")},
      {"mf_runtime_text", "MF_RUNTIME", top("min_runtime_version", "0.1")},
      {"mf_count", "MF_COUNT", top("layer_count", 4)},
      {"mf_bytes", "MF_BYTES", top("total_qweight_bytes", 49)},
      {"mf_signature_upper", "MF_SIGNATURE", top("model_signature", "36C5BE74B1943224")},
      {"mf_bits_4", "MF_QUANT", layer("quant_bits", 4)},
      {"mf_bits_7", "MF_QUANT", layer("quant_bits", 7)},
      {"mf_bits_minus_1", "MF_QUANT", layer("quant_bits", -1)},
      {"mf_axis_1", "MF_QUANT", layer("quant_axis", 1)},
      {"mf_scheme", "MF_QUANT", layer("quant_scheme", "per_tensor_symmetric")},
      {"mf_dtype_text", "MF_QUANT", layer("dtype_scale", "float16")},
      {"mf_packed_columns", "MF_PACK", layer("packed_shape", {3, 16})},
      {"mf_packed_rows", "MF_SHAPE", layer("packed_shape", {4, 8})},
      {"mf_orig_rank", "MF_SHAPE", layer("orig_shape", {3, 5, 1})},
      {"mf_empty_name", "MF_NAME", layer("canonical_name", "")},
      {"mf_traversal", "MF_NAME", layer("canonical_name", "../blocks")},
      {"mf_control_character", "MF_NAME", layer("canonical_name", "blocks.2\n.proj")},
      {"mf_duplicate_layer", "MF_LAYER_DUP", layer("canonical_name", "blocks.10.proj")},
      {"mf_key_used_twice", "MF_KEY_ALIAS", layer("zero_point_key", scale)},
      {"mf_absent_qweight", "MF_KEY_ABSENT", layer("qweight_key", "blocks.2.proj.codes")},
      {"mf_arch_empty", "MF_ARCH", top("architecture_id", "")},
      {"mf_arch_long", "MF_ARCH", top("architecture_id", std::string(257, 'a'))},
      {"mf_bits_32", "MF_QUANT", layer("quant_bits", 32)},
      {"mf_pad_k_0", "MF_PACK", layer("pad_k", 0)},
      {"mf_name_long", "MF_NAME", layer("canonical_name", std::string(513, 'a'))},
      {"mf_name_bidi", "MF_NAME", layer("canonical_name", "blocks.2\xE2\x80\xAE.proj")},
      {"mf_name_empty_segment", "MF_NAME", layer("canonical_name", "blocks..proj")},
      {"mf_tensor_name", "MF_NAME", header_text("\"norm_out.linear.zero_point\"", "\"a/b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[60,60]},\"norm_out.linear.zero_point\""), "SQ-FMT-064"},
      {"st_rank_9", "ST_RANK", header_text("\"norm_out.linear.zero_point\"", "\"marker\":{\"dtype\":\"F32\",\"shape\":[0,1,1,1,1,1,1,1,1],\"data_offsets\":[60,60]},\"norm_out.linear.zero_point\"")},
      {"mf_qweight_u8", "MF_DTYPE", header_text("\"blocks.2.proj.qweight\":{\"dtype\":\"I8\"", "\"blocks.2.proj.qweight\":{\"dtype\":\"U8\"")},
      {"mf_scale_i32", "MF_DTYPE", header_text("\"blocks.2.proj.scale\":{\"dtype\":\"F32\"", "\"blocks.2.proj.scale\":{\"dtype\":\"I32\"")},
      {"mf_qweight_transposed", "MF_SHAPE", header_text("\"blocks.2.proj.qweight\":{\"dtype\":\"I8\",\"shape\":[3,8]", "\"blocks.2.proj.qweight\":{\"dtype\":\"I8\",\"shape\":[8,3]"), "SQ-FMT-062"},
      {"mf_scale_column", "MF_SHAPE", header_text("\"blocks.2.proj.scale\":{\"dtype\":\"F32\",\"shape\":[3]", "\"blocks.2.proj.scale\":{\"dtype\":\"F32\",\"shape\":[3,1]"), "SQ-FMT-062"},
      {"mf_absent_bias", "MF_KEY_ABSENT", layer("bias_key", "blocks.2.proj.b")},
      {"mf_orphan_bias", "MF_ORPHAN", layer("bias_key", nullptr)},
      {"mf_layer_dropped", "MF_ORPHAN", manifest([](ordered_json& m) {
         m["layers"].erase(1);
         m["layer_count"] = 2;
         m["total_qweight_bytes"] = 24;
       })},
      // the numbers
      {"dt_scale_nan", "DT_SCALE_NONFINITE", data(scale, 4, f32(NAN))},
      {"dt_scale_inf", "DT_SCALE_NONFINITE", data(scale, 8, f32(INFINITY))},
      {"dt_scale_zero_in_one_row", "DT_SCALE_NONPOS", data(scale, 4, f32(0.0f))},
      {"dt_scale_minus_zero", "DT_SCALE_NONPOS", data(scale, 0, f32(-0.0f))},
      {"dt_scale_negative", "DT_SCALE_NONPOS", data(scale, 0, f32(-1.0f))},
      {"dt_scale_range", "DT_SCALE_RANGE", data(scale, 0, f32(2.7e36f))},
      {"dt_zero_point", "DT_ZP_NONZERO", data(zero, 4, f32(1.0f))},
      {"dt_zero_point_nan", "DT_ZP_NONZERO", data(zero, 0, f32(NAN))},
      {"dt_bias_nan", "DT_BIAS_NONFINITE", data(bias, 0, f32(NAN))},
      {"dt_code_minus_128", "DT_Q_MIN128", data(q, 3, "\x80")},
      {"dt_padding", "DT_PAD_NONZERO", data(q, 7, "\x01")},
  };
  return all;
}

/// The sentence of spec/20-slab-format.md that a code enforces.
std::string requirement_of(const std::string& code) {
  static const std::map<std::string, std::string> sentences = {
      {"ST_TOO_SMALL", "SQ-FMT-010"}, {"ST_HEADER_TOO_LARGE", "SQ-FMT-011"}, {"ST_HEADER_PAST_EOF", "SQ-FMT-012"}, {"ST_BAD_START", "SQ-FMT-013"},
      {"ST_CONTROL_BYTES", "SQ-FMT-014"}, {"ST_UTF8", "SQ-FMT-015"}, {"ST_JSON", "SQ-FMT-016"}, {"ST_DUP", "SQ-FMT-019"}, {"ST_META_TYPE", "SQ-FMT-020"},
      {"ST_FIELD_TYPE", "SQ-FMT-021"}, {"ST_FIELD_MISSING", "SQ-FMT-022"}, {"ST_DTYPE", "SQ-FMT-003"}, {"ST_INT", "SQ-FMT-023"}, {"ST_OFFSETS", "SQ-FMT-024"},
      {"ST_OVERFLOW", "SQ-FMT-025"}, {"ST_SIZE", "SQ-FMT-026"}, {"ST_TRAILING", "SQ-FMT-027"}, {"ST_TRUNCATED", "SQ-FMT-027"}, {"ST_DEPTH", "SQ-FMT-017"},
      {"ST_ROOT", "SQ-FMT-018"}, {"MF_JSON", "SQ-FMT-041"}, {"MF_DUP_KEY", "SQ-FMT-042"}, {"MF_MISSING", "SQ-FMT-043"}, {"MF_TYPE", "SQ-FMT-044"},
      {"MF_ABI", "SQ-FMT-045"}, {"MF_VERSION", "SQ-FMT-045"}, {"MF_RUNTIME", "SQ-FMT-045"}, {"MF_COUNT", "SQ-FMT-046"}, {"MF_BYTES", "SQ-FMT-046"},
      {"MF_EMPTY", "SQ-FMT-047"}, {"MF_NAME", "SQ-FMT-048"}, {"MF_LAYER_DUP", "SQ-FMT-049"}, {"MF_KEY_ALIAS", "SQ-FMT-049"}, {"MF_SHAPE", "SQ-FMT-051"},
      {"MF_PACK", "SQ-FMT-052"}, {"MF_QUANT", "SQ-FMT-053"}, {"MF_SIGNATURE", "SQ-FMT-055"}, {"MF_KEY_ABSENT", "SQ-FMT-060"}, {"MF_DTYPE", "SQ-FMT-061"},
      {"MF_ORPHAN", "SQ-FMT-063"}, {"MF_ARCH", "SQ-FMT-054"}, {"ST_RANK", "SQ-FMT-064"}, {"DT_SCALE_NONFINITE", "SQ-FMT-067"}, {"DT_SCALE_NONPOS", "SQ-FMT-067"}, {"DT_SCALE_RANGE", "SQ-FMT-067"},
      {"DT_ZP_NONZERO", "SQ-FMT-069"}, {"DT_BIAS_NONFINITE", "SQ-FMT-070"}, {"DT_Q_MIN128", "SQ-FMT-071"}, {"DT_PAD_NONZERO", "SQ-FMT-071"}};
  return sentences.at(code);
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : ", ") + w;
  return out.empty() ? "nothing" : out;
}

void run_bad(Trial& trial, const Bad& bad) {
  Pair pair = golden_pair("three_layers");
  bad.damage(pair);
  const auto codes = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}}));
  require(std::find(codes.begin(), codes.end(), bad.code) != codes.end(), std::string("expected ") + bad.code + " among the problems, found " + joined(codes));
}

void run_good(Trial& trial, const std::string& name, const Damage& harmless) {
  Pair pair = golden_pair(name);
  if (harmless) harmless(pair);
  const auto codes = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}}));
  require(codes.empty(), "a good pair is refused: " + joined(codes));
}

/// Two independent faults are both reported in one call.
void run_two_faults(Trial& trial) {
  Pair pair = golden_pair("three_layers");
  data("blocks.2.proj.scale", 4, f32(NAN))(pair);
  layer("bias_key", "blocks.2.proj.b")(pair);
  top("layer_count", 7)(pair);
  const auto codes = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}}));
  for (const char* code : {"DT_SCALE_NONFINITE", "MF_KEY_ABSENT", "MF_COUNT"})
    require(std::find(codes.begin(), codes.end(), code) != codes.end(), std::string(code) + " is missing: found " + joined(codes));
}

void run_missing_manifest(Trial& trial) {
  const std::filesystem::path slab = write_pair(trial, golden_pair("three_layers"));
  std::filesystem::remove(trial.folder() / "pair.manifest.json");
  const auto codes = problem_codes(call_format(trial, "validate", {{"slab", slab.string()}}));
  require(!codes.empty() && (codes[0] == "MF_MISSING" || codes[0] == "IO_MISSING"), "a slab without its manifest: found " + joined(codes));
}

}  // namespace

void add_validate(Cases& cases) {
  for (const Bad& bad : bad_pairs())
    cases.push_back({0, std::string("format.bad.") + bad.slug, Kind::vector, {bad.requirement ? bad.requirement : requirement_of(bad.code), "SQ-FMT-005"}, {"format"}, std::string(bad.code) + " not seen", [&bad](Trial& t) { run_bad(t, bad); }});
  const auto good = [&](const std::string& id, const std::string& golden, const Damage& harmless, const char* requirement) {
    cases.push_back({0, "format.good." + id, Kind::vector, {requirement}, {"format"}, "a strictness that refuses what the format allows", [=](Trial& t) { run_good(t, golden, harmless); }});
  };
  good("three_layers", "three_layers", nullptr, "SQ-FMT-002");
  good("prefix_filtered", "prefix_filtered", nullptr, "SQ-FMT-002");
  good("pack1", "pack1", nullptr, "SQ-FMT-052");
  good("crlf", "three_layers", [](Pair& p) {
    std::string text;
    for (const char c : p.manifest) text += c == '\n' ? std::string("\r\n") : std::string(1, c);
    p.manifest = text;
  }, "SQ-FMT-050");
  good("unsorted_layers", "three_layers", manifest([](ordered_json& m) { std::swap(m["layers"][0], m["layers"][2]); }), "SQ-FMT-057");
  good("unknown_key", "three_layers", top("made_by", "someone else"), "SQ-FMT-056");
  good("block_id", "three_layers", layer("block_id", "blocks.2"), "SQ-FMT-044");
  good("minus_zero_point", "three_layers", data("blocks.2.proj.zero_point", 4, f32(-0.0f)), "SQ-FMT-069");
  good("header_padding", "three_layers", [](Pair& p) { set_header(p, p.slab.substr(8, header_bytes(p)) + std::string(16, ' ')); }, "SQ-FMT-002");
  good("metadata", "three_layers", header_text("{\"blocks.10", "{\"__metadata__\":{\"made_by\":\"someone\"},\"blocks.10"), "SQ-FMT-002");
  good("zero_codes_row", "three_layers", data("blocks.2.proj.qweight", 0, std::string(5, '\0')), "SQ-FMT-071");
  cases.push_back({0, "format.bad.empty_slab", Kind::vector, {"SQ-FMT-047"}, {"format"}, "zero layers loaded and nobody noticed",
                   [](Trial& t) {
                     const auto codes = problem_codes(call_format(t, "validate", {{"slab", write_pair(t, golden_pair("empty")).string()}}));
                     require(std::find(codes.begin(), codes.end(), "MF_EMPTY") != codes.end(), "expected MF_EMPTY, found " + joined(codes));
                   }});
  cases.push_back({0, "format.bad.several_faults", Kind::vector, {"SQ-FMT-004", "SQ-FMT-066", "SQ-ERR-001"}, {"format"}, "only the first fault of a pair is reported", run_two_faults});
  cases.push_back({0, "format.bad.no_manifest", Kind::vector, {"SQ-FMT-065"}, {"format"}, "a slab without its manifest", run_missing_manifest});
}

}  // namespace squareq::gates::g00
