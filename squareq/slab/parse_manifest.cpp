// Reads an untrusted manifest (SQ-FMT-041 to 056): every key, its type, its domain, and what the keys say about each other.

#include <algorithm>
#include <array>

#include "squareq/slab/checked.hpp"
#include "squareq/slab/digest.hpp"
#include "squareq/slab/limits.hpp"
#include "squareq/slab/manifest.hpp"
#include "squareq/slab/strict_json.hpp"
#include "squareq/slab/version.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

using Kind = JsonValue::Kind;

enum class Type { string, string_or_null, integer, shape, layers };

struct KeyRule {
  std::string_view name;
  Type type;
};

enum Top : std::size_t { signature, architecture, version, abi, runtime, count, bytes, layer_list, top_keys };
constexpr std::array<KeyRule, top_keys> top_rules = {{
    {"model_signature", Type::string}, {"architecture_id", Type::string}, {"quant_version", Type::string}, {"kernel_abi_version", Type::integer},
    {"min_runtime_version", Type::string}, {"layer_count", Type::integer}, {"total_qweight_bytes", Type::integer}, {"layers", Type::layers},
}};

using enum ParsedManifest::Field;
constexpr std::size_t key_count = ParsedManifest::layer_keys;
constexpr std::array<KeyRule, key_count> layer_rules = {{
    {"canonical_name", Type::string}, {"qweight_key", Type::string}, {"scale_key", Type::string}, {"zero_point_key", Type::string},
    {"bias_key", Type::string_or_null}, {"orig_shape", Type::shape}, {"packed_shape", Type::shape}, {"pad_k", Type::integer},
    {"quant_bits", Type::integer}, {"quant_scheme", Type::string}, {"quant_axis", Type::integer}, {"dtype_qweight", Type::string},
    {"dtype_scale", Type::string}, {"dtype_zero_point", Type::string}, {"block_id", Type::string_or_null},
}};

// Shorter layer objects cannot hold 15 keys and are not kept: memory stays proportional to the text.
constexpr std::size_t smallest_kept_layer = 200;

template <std::size_t N>
std::size_t find_rule(const std::array<KeyRule, N>& rules, std::string_view key) {
  for (std::size_t i = 0; i < N; ++i)
    if (rules[i].name == key) return i;
  return N;
}

bool fits(Type type, Kind kind) {
  switch (type) {
    case Type::string: return kind == Kind::string;
    case Type::string_or_null: return kind == Kind::string || kind == Kind::null;
    case Type::integer: return kind == Kind::natural || kind == Kind::negative;
    case Type::shape: case Type::layers: return kind == Kind::array;
  }
  return false;
}

std::string integer_text(const JsonValue& v) { return v.kind == Kind::negative ? std::to_string(v.negative) : std::to_string(v.natural); }

// An integer's value where it is natural; nullopt for a negative one (-0 counts as 0).
std::optional<std::uint64_t> natural(const JsonValue& v) {
  if (v.kind == Kind::natural) return v.natural;
  if (v.negative == 0) return 0;
  return std::nullopt;
}

std::string shape_of(const std::array<std::uint64_t, 2>& s) { return "[" + std::to_string(s[0]) + ", " + std::to_string(s[1]) + "]"; }

class ManifestHandler final : public StrictJson {
 public:
  ManifestHandler(Report& report, const std::string& file) : report_(report), file_(file) {}

  ParsedManifest parsed;
  bool root_is_object = false;

  // After the scan: what only the whole text can tell.
  void finish() {
    for (std::size_t i = 0; i < top_keys; ++i)
      if (!top_seen_[i]) bad(Code::MF_MISSING, "the manifest has no " + std::string(top_rules[i].name));
    if (!parsed.layers_known) return;
    if (layers_seen_ == 0) bad(Code::MF_EMPTY, "the manifest lists no layers");
    if (layer_count_ && *layer_count_ != layers_seen_)
      bad(Code::MF_COUNT, "layer_count is " + std::to_string(*layer_count_) + " and the manifest lists " + std::to_string(layers_seen_) + " layers");
    check_total();
    check_unique();
  }

 private:
  void on_value(std::uint32_t depth, JsonValue v) override {
    if (depth == 0) root_is_object = v.kind == Kind::object;
    if (!root_is_object) return;
    if (depth == 1) return top_value(v);
    if (top_ != layer_list || !parsed.layers_known) return;
    if (depth == 2) return start_layer(v);
    if (!in_layer_) return;
    if (depth == 3) return layer_value(v);
    if (depth == 4 && in_shape_) return element(v);
  }

  void on_key(std::uint32_t depth, std::string& key) override {
    if (!root_is_object) return;
    if (depth == 1) {
      top_ = find_rule(top_rules, key);
      if (top_ == top_keys) report_.add(Code::MF_UNKNOWN_FIELD, "the manifest has an unknown key " + in_quotes(key), file_);
    } else if (depth == 3 && in_layer_) {
      key_ = find_rule(layer_rules, key);
      if (key_ == key_count) report_.add(Code::MF_UNKNOWN_FIELD, layer_text() + " has an unknown key " + in_quotes(key), file_, layer_.fields.canonical_name);
    }
  }

  void on_end(std::uint32_t depth) override {
    if (depth == 3 && in_shape_) finish_shape();
    if (depth == 2 && in_layer_) finish_layer();
  }

  void on_duplicate(std::uint32_t depth, std::string_view key) override {
    const bool layer = depth >= 3 && in_layer_;
    report_.add(Code::MF_DUP_KEY, (layer ? layer_text() : std::string("the manifest")) + " holds the key " + in_quotes(key) + " twice", file_,
                layer ? layer_.fields.canonical_name : std::string());
  }

  void bad(Code code, std::string message) { report_.add(code, std::move(message), file_); }

  void top_value(JsonValue& v) {
    if (top_ == top_keys) return;
    const KeyRule& rule = top_rules[top_];
    top_seen_[top_] = true;
    if (top_ == layer_list) {
      parsed.layers_known = v.kind == Kind::array;
      parsed.layers.clear();
      layers_seen_ = 0;
    }
    if (!fits(rule.type, v.kind)) return bad(Code::MF_TYPE, std::string(rule.name) + " is " + std::string(kind_name(v.kind)));
    switch (top_) {
      case signature:
        if (parse_digest(*v.text)) parsed.model_signature = std::move(*v.text);
        else bad(Code::MF_SIGNATURE, "model_signature " + in_quotes(*v.text) + " is not 16 lower-case hex digits");
        break;
      case architecture:
        if (!v.text->empty() && v.text->size() <= limits::architecture_id_bytes) parsed.architecture_id = std::move(*v.text);
        else bad(Code::MF_ARCH, "architecture_id has " + std::to_string(v.text->size()) + " bytes; 1 to " + std::to_string(limits::architecture_id_bytes) + " are allowed");
        break;
      case version:
        if (*v.text != quant_version_v2)
          bad(Code::MF_VERSION, "quant_version is " + in_quotes(*v.text) + "; this reader knows '" + std::string(quant_version_v2) + "'");
        break;
      case abi:
        if (natural(v) != static_cast<std::uint64_t>(kernel_abi_version))
          bad(Code::MF_ABI, "kernel_abi_version is " + integer_text(v) + "; this reader supports " + std::to_string(kernel_abi_version));
        break;
      case runtime: runtime_value(*v.text); break;
      case count:
        layer_count_ = natural(v);
        if (!layer_count_) bad(Code::MF_COUNT, "layer_count is " + integer_text(v));
        break;
      case bytes:
        total_bytes_ = natural(v);
        if (!total_bytes_) bad(Code::MF_BYTES, "total_qweight_bytes is " + integer_text(v));
        break;
      default: break;
    }
  }

  void runtime_value(const std::string& text) {
    const auto wanted = version_parts(text);
    if (wanted.empty()) bad(Code::MF_RUNTIME, "min_runtime_version " + in_quotes(text) + " is not MAJOR.MINOR.PATCH");
    else if (is_newer_version(wanted, version_parts(slab_runtime_version)))
      bad(Code::MF_RUNTIME, "the slab needs runtime version " + in_quotes(text) + "; this is " + std::string(slab_runtime_version));
  }

  std::string layer_text() const {
    return layer_.has(canonical_name) ? "layer " + in_quotes(layer_.fields.canonical_name) : "layer number " + std::to_string(layers_seen_);
  }

  void layer_bad(Code code, const std::string& message) { report_.add(code, message, file_, layer_.fields.canonical_name); }

  void start_layer(const JsonValue& v) {
    ++layers_seen_;
    layer_ = {};
    layer_seen_ = {};
    in_layer_ = v.kind == Kind::object;
    key_ = key_count;
    layer_start_ = position();
    if (!in_layer_) bad(Code::MF_TYPE, "layer number " + std::to_string(layers_seen_) + " is " + std::string(kind_name(v.kind)) + ", not an object");
  }

  void good() { layer_.good |= 1u << key_; }

  void layer_value(JsonValue& v) {
    if (key_ == key_count) return;
    const KeyRule& rule = layer_rules[key_];
    layer_seen_[key_] = true;
    layer_.good &= ~(1u << key_);
    if (!fits(rule.type, v.kind)) return layer_bad(Code::MF_TYPE, std::string(rule.name) + " of " + layer_text() + " is " + std::string(kind_name(v.kind)));
    if (rule.type == Type::shape) {
      in_shape_ = true;
      shape_count_ = 0;
      shape_good_ = true;
      return;
    }
    ManifestLayer& f = layer_.fields;
    switch (key_) {
      case canonical_name: name_value(v, f.canonical_name); break;
      case qweight_key: name_value(v, f.qweight_key); break;
      case scale_key: name_value(v, f.scale_key); break;
      case zero_point_key: name_value(v, f.zero_point_key); break;
      case bias_key:
        f.bias_key.reset();
        if (v.kind == Kind::null) good();
        else name_value(v, f.bias_key.emplace());
        break;
      case pad_k:
        f.pad_k = natural(v).value_or(0);
        if (f.pad_k >= 1) good();
        else layer_bad(Code::MF_PACK, "pad_k of " + layer_text() + " is " + integer_text(v) + "; it must be at least 1");
        break;
      case quant_bits: constant(natural(v) == 8u, integer_text(v), "8"); break;
      case quant_axis: constant(natural(v) == 0u, integer_text(v), "0"); break;
      case quant_scheme: constant(*v.text == "per_row_symmetric", in_quotes(*v.text), "'per_row_symmetric'"); break;
      case dtype_qweight: constant(*v.text == "int8", in_quotes(*v.text), "'int8'"); break;
      case dtype_scale: case dtype_zero_point: constant(*v.text == "float32", in_quotes(*v.text), "'float32'"); break;
      case block_id:
        f.block_id.reset();
        if (v.kind == Kind::string) f.block_id = std::move(*v.text);
        good();
        break;
      default: break;
    }
  }

  void constant(bool equal, const std::string& found, const std::string& wanted) {
    if (equal) good();
    else layer_bad(Code::MF_QUANT, std::string(layer_rules[key_].name) + " of " + layer_text() + " is " + found + "; " + std::string(quant_version_v2) + " has " + wanted);
  }

  void name_value(JsonValue& v, std::string& destination) {
    if (is_slab_name(*v.text)) {
      destination = std::move(*v.text);
      good();
    } else {
      layer_bad(Code::MF_NAME, std::string(layer_rules[key_].name) + " of " + layer_text() + " is " + in_quotes(*v.text) + ", which is no legal name");
    }
  }

  void element(const JsonValue& v) {
    auto& shape = key_ == orig_shape ? layer_.fields.orig_shape : layer_.fields.packed_shape;
    const std::size_t at = shape_count_++;
    if (v.kind != Kind::natural && v.kind != Kind::negative) {
      if (shape_good_) layer_bad(Code::MF_TYPE, std::string(layer_rules[key_].name) + " of " + layer_text() + " holds " + std::string(kind_name(v.kind)));
      shape_good_ = false;
    } else if (const auto dim = natural(v).value_or(0); dim == 0) {
      if (shape_good_) layer_bad(Code::MF_SHAPE, std::string(layer_rules[key_].name) + " of " + layer_text() + " holds " + integer_text(v) + "; a dimension is at least 1");
      shape_good_ = false;
    } else if (at < 2) {
      shape[at] = dim;
    }
  }

  void finish_shape() {
    in_shape_ = false;
    if (shape_count_ != 2)
      layer_bad(Code::MF_SHAPE, std::string(layer_rules[key_].name) + " of " + layer_text() + " has " + std::to_string(shape_count_) + " elements, not 2");
    else if (shape_good_) good();
  }

  bool is_good(ParsedManifest::Field key) const { return layer_.has(key); }
  void spoil(ParsedManifest::Field key) { layer_.good &= ~(1u << key); }

  void finish_layer() {
    in_layer_ = false;
    for (std::size_t i = 0; i < key_count; ++i)
      if (!layer_seen_[i]) layer_bad(Code::MF_MISSING, layer_text() + " has no " + std::string(layer_rules[i].name));
    check_shapes();
    if (position() - layer_start_ >= smallest_kept_layer) return parsed.layers.push_back(std::move(layer_));
    for (std::string* key : {&layer_.fields.canonical_name, &layer_.fields.qweight_key, &layer_.fields.scale_key, &layer_.fields.zero_point_key})
      if (!key->empty()) parsed.claimed.push_back(std::move(*key));
    if (layer_.fields.bias_key) parsed.claimed.push_back(std::move(*layer_.fields.bias_key));
  }

  void check_shapes() {
    const ManifestLayer& f = layer_.fields;
    for (const ParsedManifest::Field key : {orig_shape, packed_shape}) {
      const auto& s = key == orig_shape ? f.orig_shape : f.packed_shape;
      if (!is_good(key) || checked_mul(s[0], s[1])) continue;
      layer_bad(Code::MF_SHAPE, std::string(layer_rules[key].name) + " " + shape_of(s) + " of " + layer_text() + " overflows 64 bits");
      spoil(key);
    }
    if (!is_good(orig_shape) || !is_good(packed_shape)) return;
    if (f.packed_shape[0] != f.orig_shape[0])
      layer_bad(Code::MF_SHAPE, layer_text() + " has " + std::to_string(f.orig_shape[0]) + " rows in orig_shape and " + std::to_string(f.packed_shape[0]) + " in packed_shape");
    if (is_good(pad_k) && checked_round_up(f.orig_shape[1], f.pad_k) != f.packed_shape[1])
      layer_bad(Code::MF_PACK, layer_text() + " has " + std::to_string(f.packed_shape[1]) + " columns in packed_shape; " + std::to_string(f.orig_shape[1]) +
                                   " rounded up to a multiple of pad_k " + std::to_string(f.pad_k) + " is another number");
  }

  void check_total() {
    std::optional<std::uint64_t> total = 0;
    if (parsed.layers.size() != layers_seen_) return;  // unknowable: a layer is unusable, and that was reported
    for (const ParsedManifest::Layer& layer : parsed.layers) {
      if (!layer.has(packed_shape)) return;
      if (total) total = checked_add(*total, layer.fields.packed_shape[0] * layer.fields.packed_shape[1]);
    }
    if (!total) bad(Code::MF_BYTES, "the sum of all packed shapes overflows 64 bits");
    else if (total_bytes_ && *total_bytes_ != *total)
      bad(Code::MF_BYTES, "total_qweight_bytes is " + std::to_string(*total_bytes_) + " and the packed shapes sum to " + std::to_string(*total));
  }

  void check_unique() {
    std::vector<std::string_view> names, keys;
    for (const ParsedManifest::Layer& layer : parsed.layers) {
      const ManifestLayer& f = layer.fields;
      const auto take = [&](ParsedManifest::Field key, std::string_view text, std::vector<std::string_view>& list) {
        if (layer.has(key)) list.push_back(text);
      };
      take(canonical_name, f.canonical_name, names);
      take(qweight_key, f.qweight_key, keys);
      take(scale_key, f.scale_key, keys);
      take(zero_point_key, f.zero_point_key, keys);
      if (f.bias_key) take(bias_key, *f.bias_key, keys);
    }
    each_repeated(names, [&](std::string_view name) {
      report_.add(Code::MF_LAYER_DUP, "two layers are named " + in_quotes(name), file_, std::string(name));
    });
    each_repeated(keys, [&](std::string_view key) {
      report_.add(Code::MF_KEY_ALIAS, "two fields or layers use the tensor " + in_quotes(key), file_, {}, std::string(key));
    });
  }

  template <typename Tell>
  static void each_repeated(std::vector<std::string_view>& list, Tell tell) {
    std::sort(list.begin(), list.end());
    for (std::size_t i = 1; i < list.size(); ++i)
      if (list[i] == list[i - 1] && (i < 2 || list[i - 2] != list[i])) tell(list[i]);
  }

  Report& report_;
  const std::string& file_;
  std::size_t top_ = top_keys;
  std::array<bool, top_keys> top_seen_{};
  std::optional<std::uint64_t> layer_count_, total_bytes_;
  std::uint64_t layers_seen_ = 0;
  ParsedManifest::Layer layer_;
  std::array<bool, key_count> layer_seen_{};
  std::size_t key_ = key_count;
  std::size_t layer_start_ = 0;
  bool in_layer_ = false, in_shape_ = false, shape_good_ = true;
  std::size_t shape_count_ = 0;
};

}  // namespace

std::optional<ParsedManifest> parse_manifest(std::string_view text, Report& report, const std::string& file) {
  const auto refuse = [&](const std::string& message) {
    report.add(Code::MF_JSON, message, file);
    return std::nullopt;
  };
  if (text.size() > limits::manifest_bytes) return refuse("the manifest has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(limits::manifest_bytes) + " are read");
  if (text.empty()) return refuse("the manifest is empty");
  if (text.starts_with("\xEF\xBB\xBF")) return refuse("the manifest starts with a byte order mark");
  if (const std::size_t at = find_control_byte(text); at != std::string_view::npos)
    return refuse("the manifest holds the control byte " + std::to_string(static_cast<unsigned>(static_cast<unsigned char>(text[at]))) + " at byte " + std::to_string(at));
  if (const std::size_t at = find_invalid_utf8(text); at != std::string_view::npos) return refuse("the manifest is not valid UTF-8 at byte " + std::to_string(at));

  Report found;
  ManifestHandler handler(found, file);
  if (const auto failure = handler.scan(text)) {
    return refuse(failure->syntax ? "the manifest is not valid JSON at byte " + std::to_string(failure->position)
                                  : "the manifest nests deeper than " + std::to_string(limits::json_depth) + " levels");
  }
  if (!handler.root_is_object) {
    report.add(Code::MF_TYPE, "the manifest is valid JSON, but not an object", file);
    return std::nullopt;
  }
  handler.finish();
  std::stable_sort(found.problems.begin(), found.problems.end(), [](const Problem& a, const Problem& b) { return a.code < b.code; });
  report.append(std::move(found));
  return std::move(handler.parsed);
}

}  // namespace squareq
