#include "squareq/builder/convert.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "squareq/builder/identity.hpp"
#include "squareq/builder/inspect.hpp"
#include "squareq/slab/signature.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::string_view weight_suffix = ".weight", bias_suffix = ".bias";

/// Rows of a tensor in one scheme that are rows [first, first + rows) of the diffusers tensor.
struct Segment {
  std::uint64_t first, at, rows;
};

std::vector<Segment> segments(const RowView& v) {
  if (!v.swap_halves) return {{0, v.first_row, v.rows}};
  const std::uint64_t half = v.rows / 2;
  return {{0, v.first_row + half, v.rows - half}, {v.rows - half, v.first_row, half}};
}

/// Rows that lie together in both schemes.
struct Run {
  std::uint64_t from, to, rows;
};

std::vector<Run> runs(const RowView& from, const RowView& to) {
  std::vector<Run> all;
  for (const Segment& a : segments(from))
    for (const Segment& b : segments(to)) {
      const std::uint64_t begin = std::max(a.first, b.first), end = std::min(a.first + a.rows, b.first + b.rows);
      if (begin < end) all.push_back({a.at + (begin - a.first), b.at + (begin - b.first), end - begin});
    }
  return all;
}

std::string signature_of(const Architecture& architecture) {
  std::vector<LinearTopology> linears;
  for (const ArchitectureLayer& l : architecture.layers()) linears.push_back({l.name, l.in, l.out, l.bias});
  return model_signature(linears);
}

/// The layer that a tensor is the weight or bias of, or "".
std::string owner(const std::string& tensor, std::string_view suffix) {
  return tensor.ends_with(suffix) ? tensor.substr(0, tensor.size() - suffix.size()) : std::string();
}

class Conversion {
 public:
  Conversion(const Slab& slab, const Architecture& source, const std::string& scheme)
      : slab_(slab), source_(source), target_(other(scheme)) {}

  SlabAssembly plan() {
    if (signature_of(source_) != slab_.manifest().model_signature)
      throw Error(Code::MF_SIGNATURE,
                  "the slab's model_signature is " + slab_.manifest().model_signature + "; the linears of its architecture have " +
                      signature_of(source_),
                  slab_.paths().manifest.string());
    for (const TensorShape& t : source_.diffusers_tensors()) group(t);
    for (const auto& [name, parts] : by_target_) put(name, parts);

    Manifest manifest;
    manifest.architecture_id = slab_.manifest().architecture_id;
    manifest.model_signature = signature_of(target_);
    for (auto& [name, layer] : layers_) manifest.layers.push_back(layer);
    sort_layers(manifest);
    SlabAssembly assembly(std::move(manifest));
    const auto recorded = nlohmann::ordered_json::parse(slab_.companion()->architecture_json);
    const std::string config = recorded.contains("config_json") && !recorded["config_json"].is_null() ? recorded["config_json"].dump() : "";
    assembly.with_companion(rest_, target_.json(config), slab_.companion()->source_json);
    for (const Move& m : moves_) assembly.take(slab_, m.part, *m.source, m.from, m.target, m.to, m.bytes);
    return assembly;
  }

 private:
  /// One diffusers tensor: where it comes from, and where it goes.
  struct Part {
    RowView from, to;
    std::vector<std::uint64_t> shape;         ///< of the diffusers tensor
    const TensorRecord* rest = nullptr;       ///< the companion's tensor, or
    std::optional<std::size_t> weight, bias;  ///< the slab's layer that this is the weight or the bias of
  };
  struct Move {
    SlabAssembly::Part part;
    const TensorRecord* source;
    std::uint64_t from;
    std::string target;
    std::uint64_t to, bytes;
  };

  /// The same model under the other names.
  Architecture other(const std::string& scheme) const {
    const std::vector<std::string> known = {"diffusers", source_.native_scheme()};
    if (std::find(known.begin(), known.end(), scheme) == known.end())
      throw Error(Code::CFG_VALUE, "names '" + printable(scheme) + "' are unknown for " + source_.id() + "; there are diffusers and " +
                                       source_.native_scheme());
    if (scheme == source_.scheme()) throw Error(Code::CFG_VALUE, "the slab has " + scheme + " names already", slab_.paths().slab.string());
    std::vector<TensorShape> tensors;
    if (scheme == "diffusers") {
      tensors = source_.diffusers_tensors();
    } else {
      std::map<std::string, std::size_t> seen;
      for (const TensorShape& t : source_.diffusers_tensors()) {
        const RowView view = *source_.native(t.name);
        if (!seen.emplace(view.tensor, tensors.size()).second) continue;
        tensors.push_back({view.tensor, t.shape});
        tensors.back().shape[0] = view.total_rows;
      }
    }
    const auto record = nlohmann::json::parse(slab_.companion()->architecture_json);
    const bool config = record.contains("config_json") && !record["config_json"].is_null();
    auto found = recognise(tensors, config ? record["config_json"].dump() : "");
    if (!found || found->id() != source_.id() || found->scheme() != scheme)
      throw Error(Code::INTERNAL, "the tensors of " + source_.id() + " under " + scheme + " names are not recognised as such");
    return *found;
  }

  void group(const TensorShape& t) {
    Part part{*source_.locate(t.name), *target_.locate(t.name), t.shape, nullptr, std::nullopt, std::nullopt};
    if (const std::string name = owner(part.from.tensor, weight_suffix); !name.empty()) part.weight = slab_.find_layer(name);
    if (const std::string name = owner(part.from.tensor, bias_suffix); !name.empty()) part.bias = slab_.find_layer(name);
    if (part.bias && !slab_.tensors(*part.bias).bias) part.bias.reset();
    if (!part.weight && !part.bias) part.rest = slab_.companion()->file.header().find(part.from.tensor);
    by_target_[part.to.tensor].push_back(std::move(part));
  }

  [[noreturn]] void refuse(Code code, const std::string& target, const Part& a, const Part& b, const std::string& what) const {
    throw Error(code, "'" + a.from.tensor + "' and '" + b.from.tensor + "' become one tensor '" + target + "', but " + what,
                slab_.paths().slab.string(), {}, a.from.tensor);
  }

  void check_joinable(const std::string& name, const std::vector<Part>& parts) const {
    const Part& a = parts.front();
    for (const Part& b : parts) {
      if (a.weight.has_value() != b.weight.has_value() || a.bias.has_value() != b.bias.has_value())
        refuse(Code::MD_LAYER, name, a, b, "only one of them is quantized");
      if (a.weight && slab_.layer(*a.weight).bias_key.has_value() != slab_.layer(*b.weight).bias_key.has_value())
        refuse(Code::MD_LAYER, name, a, b, "only one of them has a bias");
      if (a.weight && slab_.layer(*a.weight).pad_k != slab_.layer(*b.weight).pad_k)
        refuse(Code::MD_LAYER, name, a, b,
               "pad_k is " + std::to_string(slab_.layer(*a.weight).pad_k) + " and " + std::to_string(slab_.layer(*b.weight).pad_k));
      if (a.rest && a.rest->dtype != b.rest->dtype)
        refuse(Code::MD_TENSOR, name, a, b,
               "they are " + std::string(dtype_name(a.rest->dtype)) + " and " + std::string(dtype_name(b.rest->dtype)));
    }
  }

  void put(const std::string& name, const std::vector<Part>& parts) {
    check_joinable(name, parts);
    const Part& first = parts.front();
    if (first.weight) return put_weight(name, parts);
    if (first.bias) return put_bias(name, parts);
    std::vector<std::uint64_t> shape = first.shape;
    shape[0] = first.to.total_rows;
    rest_.push_back({name, first.rest->dtype, shape});
    for (const Part& p : parts) {
      const std::uint64_t row = p.rest->bytes() / p.rest->shape[0];
      for (const Run& r : runs(p.from, p.to))
        moves_.push_back({SlabAssembly::Part::companion, p.rest, r.from * row, name, r.to * row, r.rows * row});
    }
  }

  void put_weight(const std::string& tensor, const std::vector<Part>& parts) {
    const ManifestLayer& model = slab_.layer(*parts.front().weight);
    const std::string name = owner(tensor, weight_suffix);
    ManifestLayer layer = make_layer(name, parts.front().to.total_rows, model.orig_shape[1], model.pad_k, model.bias_key.has_value());
    layer.block_id = model.block_id;
    for (const Part& p : parts)
      if (slab_.layer(*p.weight).block_id != model.block_id) layer.block_id.reset();
    for (const Part& p : parts) {
      const LayerTensors& t = slab_.tensors(*p.weight);
      const std::uint64_t row = layer.packed_shape[1];
      for (const Run& r : runs(p.from, p.to)) {
        moves_.push_back({SlabAssembly::Part::slab, t.qweight, r.from * row, layer.qweight_key, r.to * row, r.rows * row});
        moves_.push_back({SlabAssembly::Part::slab, t.scale, r.from * 4, layer.scale_key, r.to * 4, r.rows * 4});
        moves_.push_back({SlabAssembly::Part::slab, t.zero_point, r.from * 4, layer.zero_point_key, r.to * 4, r.rows * 4});
      }
    }
    layers_.emplace(name, std::move(layer));
  }

  void put_bias(const std::string& tensor, const std::vector<Part>& parts) {
    for (const Part& p : parts)
      for (const Run& r : runs(p.from, p.to))
        moves_.push_back({SlabAssembly::Part::slab, slab_.tensors(*p.bias).bias, r.from * 4, tensor, r.to * 4, r.rows * 4});
  }

  const Slab& slab_;
  const Architecture& source_;
  Architecture target_;
  std::map<std::string, std::vector<Part>> by_target_;
  std::map<std::string, ManifestLayer> layers_;
  std::vector<TensorSpec> rest_;
  std::vector<Move> moves_;
};

}  // namespace

AssembleResult convert_slab(const Slab& slab, const std::string& scheme, const SlabPaths& target, const AssembleOptions& options) {
  const std::string file = slab.paths().slab.string();
  if (!slab.companion())
    throw Error(
        Code::MD_ARCH,
        "a bare pair does not say what model it is of: make its companion first (squareq convert SLAB --add-companion --model CHECKPOINT)",
        file);
  const std::optional<Architecture> architecture = slab_architecture(slab);
  if (!architecture)
    throw Error(Code::MD_ARCH,
                "the companion records no architecture (the slab was built by the generic rule): its names have no counterpart", file);
  std::error_code ignored;
  if (std::filesystem::equivalent(slab.paths().slab, target.slab, ignored))
    throw Error(Code::CFG_VALUE, "the result would overwrite the slab that it is made from", file);
  Report problems;
  for (Problem& p : architecture->check(original_shapes(slab), file)) problems.add(std::move(p));
  problems.throw_first();
  return Conversion(slab, *architecture, scheme).plan().write(target, options);
}

AssembleResult add_companion(const Slab& slab, const std::filesystem::path& source, const SourceCheckOptions& options) {
  if (slab.companion()) throw Error(Code::CFG_VALUE, "the slab has a companion already", slab.paths().companion.string());
  const Checkpoint checkpoint = Checkpoint::open(source);
  const Manifest& manifest = slab.manifest();
  Selection model = select_like(checkpoint, manifest.model_signature);
  Report report;
  if (model.signature != manifest.model_signature)
    throw Error(Code::MF_SIGNATURE,
                "the slab is of a model with signature " + manifest.model_signature + "; the checkpoint has " + model.signature,
                slab.paths().manifest.string());
  ParsedManifest parsed;
  parsed.model_signature = manifest.model_signature;
  for (const ManifestLayer& layer : manifest.layers) parsed.layers.push_back({layer, ~0u});
  check_topology(model, parsed, slab.paths().manifest.string(), report);
  compare_with_source(slab, checkpoint, model, options, report);
  report.throw_first();

  // What build() would have recorded: only the slab's own layers count as quantized.
  std::erase_if(model.quantized, [&](const LinearSource& l) { return !slab.find_layer(l.name); });
  const std::vector<const Checkpoint::Tensor*> rest = rest_of(checkpoint, manifest);
  std::vector<TensorSpec> tensors;
  for (const Checkpoint::Tensor* t : rest) tensors.push_back({t->name, t->dtype, t->shape});

  const SafetensorsFile& file = slab.file();
  FileLayout layout;
  layout.prefix.resize(file.header().data_start);
  file.file().read(0, layout.prefix.data(), layout.prefix.size());
  layout.header = file.header();
  std::vector<std::uint64_t> digests;
  for (const TensorRecord& t : file.header().tensors) digests.push_back(tensor_digest(file, t));
  const IntegrityRecord record = make_integrity(layout, read_text(slab.paths().manifest, std::uint64_t{64} << 20, Code::MF_JSON), digests);

  const std::filesystem::path& path = slab.paths().companion;
  remove_stale_temporaries(path.has_parent_path() ? path.parent_path() : ".", path.filename().string());
  CompanionWriter companion(path, std::move(tensors), layout, model.architecture ? model.architecture->json(checkpoint.config_json()) : "",
                            source_record(checkpoint, model));
  std::vector<std::byte> piece(8u << 20);
  for (const Checkpoint::Tensor* t : rest)
    for (std::uint64_t at = 0; at < t->bytes; at += piece.size()) {
      if (options.cancelled && *options.cancelled) throw Error(Code::IO_INTERRUPTED, "interrupted; nothing was written");
      const std::uint64_t bytes = std::min<std::uint64_t>(piece.size(), t->bytes - at);
      checkpoint.read(*t, at, piece.data(), bytes);
      companion.write(t->name, at, piece.data(), bytes);
    }
  companion.finish(record);
  file.check_unchanged();
  for (const SafetensorsFile& f : checkpoint.files()) f.check_unchanged();
  companion.file().commit();
  return {slab.paths(), record.id_sha256, file.header().file_bytes, companion.file().layout().header.file_bytes};
}

}  // namespace squareq
