#include "squareq/builder/splice.hpp"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "squareq/builder/inspect.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || status != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// "4" -> (4, 4), "0-4" -> (0, 4).
std::optional<std::pair<std::uint64_t, std::uint64_t>> range(std::string_view text) {
  const std::size_t dash = text.find('-');
  const auto first = number(text.substr(0, dash)), last = dash == std::string_view::npos ? first : number(text.substr(dash + 1));
  if (!first || !last || *last < *first) return std::nullopt;
  return std::pair(*first, *last);
}

class BlockChoice {
 public:
  BlockChoice(const SlabBlocks& blocks, const std::string& spec) : blocks_(blocks), all_(blocks.names()) {
    for (std::size_t at = 0; at <= spec.size();) {
      const std::size_t comma = std::min(spec.find(',', at), spec.size());
      add(spec.substr(at, comma - at));
      at = comma + 1;
    }
  }

  /// In forward order; "outside" last.
  std::vector<std::string> chosen() const {
    std::vector<std::string> list;
    for (const std::string& name : all_)
      if (chosen_.contains(name)) list.push_back(name);
    if (chosen_.contains(SlabBlocks::outside())) list.emplace_back(SlabBlocks::outside());
    return list;
  }

 private:
  [[noreturn]] void refuse(const std::string& item, const std::string& why) const {
    throw Error(Code::CFG_VALUE,
                "--blocks: " + in_quotes(item) + " " + why +
                    (all_.empty() ? "" : "; the slab's blocks are " + printable(all_.front()) + " to " + printable(all_.back())));
  }

  void add(const std::string& item) {
    if (item == "outside") {
      chosen_.insert(SlabBlocks::outside());
      return;
    }
    if (std::find(all_.begin(), all_.end(), item) != all_.end()) {
      chosen_.insert(item);
      return;
    }
    if (const auto numbers = range(item)) {
      if (!blocks_.by_architecture()) refuse(item, "is a number, but the slab's architecture is not known: name its blocks");
      if (numbers->second >= all_.size()) refuse(item, "is beyond the last of " + std::to_string(all_.size()) + " blocks, counted from 0");
      for (std::uint64_t i = numbers->first; i <= numbers->second; ++i) chosen_.insert(all_[i]);
      return;
    }
    const std::size_t dot = item.rfind('.');
    const auto numbers = dot == std::string::npos ? std::nullopt : range(std::string_view(item).substr(dot + 1));
    if (!numbers) refuse(item, "is no block, no range of blocks and not 'outside'");
    if (numbers->second - numbers->first >= all_.size()) refuse(item, "names more blocks than there are");
    for (std::uint64_t i = numbers->first; i <= numbers->second; ++i) {
      const std::string name = item.substr(0, dot + 1) + std::to_string(i);
      if (std::find(all_.begin(), all_.end(), name) == all_.end()) refuse(name, "is no block");
      chosen_.insert(name);
    }
  }

  const SlabBlocks& blocks_;
  std::vector<std::string> all_;
  std::set<std::string> chosen_;
};

std::string tensor_text(const TensorRecord& t) {
  return std::string(dtype_name(t.dtype)) + " " + shape_text(std::vector<std::int64_t>(t.shape.begin(), t.shape.end()));
}

std::string layer_text(const ManifestLayer& l) {
  return shape_text(std::vector<std::int64_t>(l.orig_shape.begin(), l.orig_shape.end())) +
         ", pad_k " + std::to_string(l.pad_k) + (l.bias_key ? ", with bias" : ", without bias");
}

void check_layers(const Slab& base, const Slab& other, Report& report) {
  const std::string file = other.paths().manifest.string();
  for (std::size_t i = 0; i < base.layer_count(); ++i) {
    const ManifestLayer& a = base.layer(i);
    const auto at = other.find_layer(a.canonical_name);
    if (!at) {
      report.add(Code::MD_LAYER, "layer " + in_quotes(a.canonical_name) + " is not in the other slab", file, a.canonical_name);
      continue;
    }
    const ManifestLayer& b = other.layer(*at);
    if (a.orig_shape != b.orig_shape || a.pad_k != b.pad_k || a.bias_key.has_value() != b.bias_key.has_value())
      report.add(Code::MD_LAYER,
                 "layer " + in_quotes(a.canonical_name) + " is " + layer_text(a) + " here and " + layer_text(b) + " in the other slab",
                 file, a.canonical_name);
  }
  for (std::size_t i = 0; i < other.layer_count(); ++i)
    if (!base.find_layer(other.layer(i).canonical_name))
      report.add(Code::MD_LAYER, "layer " + in_quotes(other.layer(i).canonical_name) + " is in the other slab only", file,
                 other.layer(i).canonical_name);
}

void check_companions(const Companion& a, const Companion& b, Report& report) {
  const std::string file = b.file.path().string();
  for (const TensorRecord& t : a.file.header().tensors) {
    const TensorRecord* o = b.file.header().find(t.name);
    if (!o)
      report.add(Code::MD_TENSOR, "companion tensor " + in_quotes(t.name) + " is not in the other slab's", file, {}, t.name);
    else if (o->dtype != t.dtype || o->shape != t.shape)
      report.add(Code::MD_TENSOR,
                 "companion tensor " + in_quotes(t.name) + " is " + tensor_text(t) + " here and " + tensor_text(*o) + " in the other slab's",
                 file, {}, t.name);
  }
  for (const TensorRecord& t : b.file.header().tensors)
    if (!a.file.header().find(t.name))
      report.add(Code::MD_TENSOR, "companion tensor " + in_quotes(t.name) + " is in the other slab's only", file, {}, t.name);
}

void check_match(const Slab& base, const Slab& other) {
  const std::string file = other.paths().manifest.string();
  const Manifest &a = base.manifest(), &b = other.manifest();
  if (a.model_signature != b.model_signature)
    throw Error(Code::MF_SIGNATURE, "the slabs are of models with signatures " + a.model_signature + " and " + b.model_signature, file);
  if (a.architecture_id != b.architecture_id)
    throw Error(Code::MF_ARCH,
                "the slabs have the architecture ids " + in_quotes(a.architecture_id) + " and " + in_quotes(b.architecture_id), file);
  if ((base.companion() == nullptr) != (other.companion() == nullptr))
    throw Error(Code::MD_ARCH,
                std::string("only ") + (base.companion() ? "the first" : "the other") +
                    " slab has a companion: the unquantized tensors of the blocks would be missing",
                file);
  Report report;
  check_layers(base, other, report);
  if (base.companion()) {
    if (base.companion()->architecture_json != other.companion()->architecture_json)
      throw Error(Code::MD_ARCH,
                  "the companions record different architectures: " + printable(base.companion()->architecture_json) + " and " +
                      printable(other.companion()->architecture_json),
                  other.paths().companion.string());
    check_companions(*base.companion(), *other.companion(), report);
  }
  report.throw_first();
}

std::string spliced_source(const Slab& base, const Slab& other, const std::vector<std::string>& blocks) {
  const auto parse = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json::object() : nlohmann::ordered_json::parse(text);
  };
  nlohmann::ordered_json record = parse(base.companion()->source_json);
  nlohmann::ordered_json entry = {{"blocks", blocks}, {"id_sha256", other.id_sha256()}, {"source", parse(other.companion()->source_json)}};
  if (!record.contains("spliced") || !record["spliced"].is_array()) record["spliced"] = nlohmann::ordered_json::array();
  record["spliced"].push_back(std::move(entry));
  return record.dump();
}

}  // namespace

SpliceResult splice_slab(const Slab& base, const Slab& other, const std::string& spec, const SlabPaths& target,
                         const AssembleOptions& options) {
  std::error_code ignored;
  for (const Slab* slab : {&base, &other})
    if (fs::equivalent(slab->paths().slab, target.slab, ignored))
      throw Error(Code::CFG_VALUE, "the result would overwrite a slab that it is made from", slab->paths().slab.string());
  check_match(base, other);
  const SlabBlocks blocks(base);
  SpliceResult result;
  result.blocks = BlockChoice(blocks, spec).chosen();
  const std::set<std::string> chosen(result.blocks.begin(), result.blocks.end());

  SlabAssembly assembly(base.manifest());
  for (std::size_t i = 0; i < base.layer_count(); ++i) {
    const ManifestLayer& layer = base.layer(i);
    const bool taken = chosen.contains(blocks.of(layer.canonical_name));
    const Slab& from = taken ? other : base;
    const LayerTensors& t = from.tensors(taken ? *other.find_layer(layer.canonical_name) : i);
    result.layers += taken;
    assembly.take(from, SlabAssembly::Part::slab, *t.qweight, layer.qweight_key);
    assembly.take(from, SlabAssembly::Part::slab, *t.scale, layer.scale_key);
    assembly.take(from, SlabAssembly::Part::slab, *t.zero_point, layer.zero_point_key);
    if (t.bias) assembly.take(from, SlabAssembly::Part::slab, *t.bias, *layer.bias_key);
  }
  if (base.companion()) {
    std::vector<TensorSpec> tensors;
    for (const TensorRecord& t : base.companion()->file.header().tensors) {
      tensors.push_back({t.name, t.dtype, t.shape});
      const bool taken = chosen.contains(blocks.of_tensor(t.name));
      result.companion_tensors += taken;
      assembly.take(taken ? other : base, SlabAssembly::Part::companion, taken ? *other.companion()->file.header().find(t.name) : t,
                    t.name);
    }
    assembly.with_companion(std::move(tensors), base.companion()->architecture_json, spliced_source(base, other, result.blocks));
  }
  result.files = assembly.write(target, options);
  return result;
}

}  // namespace squareq
