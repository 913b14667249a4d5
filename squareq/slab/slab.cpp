#include "squareq/slab/slab.hpp"

#include <algorithm>
#include <numeric>

#include "squareq/slab/check.hpp"
#include "squareq/slab/limits.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;

// Everything that could be opened, and what was found while doing so.
struct Opened {
  std::optional<SafetensorsFile> slab;
  std::optional<ParsedManifest> manifest;
  std::string manifest_text;
  std::vector<LayerTensors> tensors;
  std::optional<Companion> companion;
};

void open_manifest(const SlabPaths& paths, const ValidateOptions& options, Opened& opened, Report& report) {
  const std::string name = paths.manifest.string();
  try {
    opened.manifest_text = read_text(paths.manifest, limits::manifest_bytes, Code::MF_JSON);
  } catch (const Error& e) {
    if (e.code() != Code::IO_MISSING) return report.add(e.problem());
    return report.add(Code::MF_MISSING, "the slab has no manifest '" + printable_path(paths.manifest) + "': its build did not finish, or the file was left behind", name);
  }
  opened.manifest = parse_manifest(opened.manifest_text, report, name);
  if (!opened.manifest) return;
  const std::string& signature = opened.manifest->model_signature;
  if (options.expected_signature && !signature.empty() && signature != *options.expected_signature)
    report.add(Code::MF_SIGNATURE, "the slab is of a model with signature " + signature + "; the model given has " + *options.expected_signature, name);
  const std::string& architecture = opened.manifest->architecture_id;
  if (options.expected_architecture && !architecture.empty() && architecture != *options.expected_architecture)
    report.add(Code::MF_ARCH, "the slab's architecture_id is " + in_quotes(architecture) + "; " + in_quotes(*options.expected_architecture) + " is expected", name);
}

// What the companion says about a slab that does not even open: its size still tells whether they belong together.
void check_size_only(const Companion& companion, const fs::path& slab, Report& report) {
  std::error_code failed;
  const std::uint64_t bytes = fs::file_size(slab, failed);
  if (!failed && bytes != companion.integrity.slab_bytes)
    report.add(Code::MF_PAIR, "the slab has " + std::to_string(bytes) + " bytes; the companion was made for one of " + std::to_string(companion.integrity.slab_bytes), slab.string());
}

void open_companion(const SlabPaths& paths, Opened& opened, Report& report) {
  const std::string name = paths.companion.string();
  std::error_code ignored;
  if (fs::symlink_status(paths.companion, ignored).type() == fs::file_type::not_found)
    return report.add(Code::DT_UNVERIFIED, "there is no companion '" + printable_path(paths.companion) + "': the bytes of the slab cannot be compared with checksums", name);
  opened.companion = Companion::open(paths.companion, report);
  if (!opened.companion) return;
  if (opened.slab) check_companion(*opened.companion, *opened.slab, opened.manifest_text, report);
  else check_size_only(*opened.companion, paths.slab, report);
}

Opened open_all(const SlabPaths& paths, const ValidateOptions& options, Report& report) {
  Opened opened;
  opened.slab = SafetensorsFile::open(paths.slab, report);
  open_manifest(paths, options, opened, report);
  if (opened.slab) check_slab_tensors(*opened.slab, report);
  if (opened.slab && opened.manifest) {
    opened.tensors = check_pair(*opened.manifest, *opened.slab, report);
    try {
      for (std::size_t i = 0; i < opened.tensors.size(); ++i) check_numbers(opened.manifest->layers[i].fields, opened.tensors[i], *opened.slab, report);
    } catch (const Error& e) {
      report.add(e.problem());
    }
  }
  open_companion(paths, opened, report);
  return opened;
}

}  // namespace

SlabPaths SlabPaths::resolve(const fs::path& any) {
  std::string stem = any.string();
  for (const std::string_view suffix : {".companion.safetensors", ".manifest.json", ".safetensors"}) {
    if (!stem.ends_with(suffix)) continue;
    stem.resize(stem.size() - suffix.size());
    break;
  }
  return {stem + ".safetensors", stem + ".manifest.json", stem + ".companion.safetensors"};
}

Report validate(const SlabPaths& paths, const ValidateOptions& options) {
  Report report;
  const Opened opened = open_all(paths, options, report);
  if (!options.quick && opened.slab) {
    const ParsedManifest none;
    check_bytes(opened.manifest ? *opened.manifest : none, opened.tensors, *opened.slab, opened.companion ? &*opened.companion : nullptr, options, report);
  }
  return report;
}

Report validate_container(const fs::path& path) {
  Report report;
  SafetensorsFile::open(path, report);
  return report;
}

void check_companion(const Companion& companion, const SafetensorsFile& slab, std::string_view manifest, Report& report) {
  const std::string file = companion.file.path().string();
  const IntegrityRecord& record = companion.integrity;
  const auto pair = [&](const std::string& message) { report.add(Code::MF_PAIR, message, file); };
  const std::uint64_t bytes = slab.header().file_bytes;
  const std::uint64_t manifest_hash = xxh3(manifest.data(), manifest.size());
  const bool size_good = record.slab_bytes == bytes, header_good = record.header_xxh3 == slab.header_xxh3(), manifest_good = record.manifest_xxh3 == manifest_hash;
  if (!size_good) pair("the companion was made for a slab of " + std::to_string(record.slab_bytes) + " bytes; this one has " + std::to_string(bytes));
  if (!header_good) pair("the companion was made for a slab with the header hash " + digest_hex(record.header_xxh3) + "; this one has " + digest_hex(slab.header_xxh3()));
  if (!manifest_good && !manifest.empty()) pair("the companion was made for a manifest with the hash " + digest_hex(record.manifest_xxh3) + "; this one has " + digest_hex(manifest_hash));
  if (!header_good) return;  // another slab has other tensors: nothing more to compare

  const auto named = [&](const std::string& name) {
    return std::binary_search(record.tensors.begin(), record.tensors.end(), std::pair(name, std::uint64_t{0}), [](const auto& a, const auto& b) { return a.first < b.first; });
  };
  bool complete = true;
  for (const TensorRecord& t : slab.header().tensors) {
    if (named(t.name)) continue;
    complete = false;
    report.add(Code::MF_INTEGRITY, "the companion has no checksum of tensor " + in_quotes(t.name), file, {}, t.name);
  }
  for (const auto& [name, digest] : record.tensors) {
    if (slab.header().find(name)) continue;
    complete = false;
    report.add(Code::MF_INTEGRITY, "the companion has a checksum of tensor " + in_quotes(name) + ", which the slab does not hold", file, {}, name);
  }
  if (!complete || !manifest_good) return;

  std::string prefix(static_cast<std::size_t>(slab.header().data_start), '\0');
  std::vector<std::uint64_t> digests;
  for (const TensorRecord& t : slab.header().tensors)
    digests.push_back(std::lower_bound(record.tensors.begin(), record.tensors.end(), std::pair(t.name, std::uint64_t{0}))->second);
  try {
    slab.file().read(0, prefix.data(), prefix.size());
  } catch (const Error& e) {
    return report.add(e.problem());
  }
  const std::string id = slab_id(prefix, manifest, digests);
  if (id != record.id_sha256) report.add(Code::MF_INTEGRITY, "the companion's id_sha256 is " + record.id_sha256 + "; its own record gives " + id, file);
}

Slab Slab::open(const fs::path& path, const ValidateOptions& options) {
  Report report;
  auto slab = open(SlabPaths::resolve(path), options, report);
  report.throw_first();
  return std::move(*slab);
}

std::optional<Slab> Slab::open(const SlabPaths& paths, const ValidateOptions& options, Report& report) {
  Report found;
  Opened opened = open_all(paths, options, found);
  if (!found.ok()) {
    report.append(std::move(found));
    return std::nullopt;
  }
  Slab slab(paths, to_manifest(std::move(*opened.manifest)), std::move(*opened.slab));
  slab.tensors_ = std::move(opened.tensors);
  slab.warnings_ = found.warnings;
  if (opened.companion) slab.companion_ = std::make_unique<Companion>(std::move(*opened.companion));
  slab.by_name_.resize(slab.manifest_.layers.size());
  std::iota(slab.by_name_.begin(), slab.by_name_.end(), 0u);
  std::sort(slab.by_name_.begin(), slab.by_name_.end(),
            [&](std::uint32_t a, std::uint32_t b) { return slab.layer(a).canonical_name < slab.layer(b).canonical_name; });
  report.append(std::move(found));
  return slab;
}

std::optional<std::size_t> Slab::find_layer(std::string_view name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name, [&](std::uint32_t i, std::string_view wanted) { return layer(i).canonical_name < wanted; });
  if (at == by_name_.end() || layer(*at).canonical_name != name) return std::nullopt;
  return *at;
}

std::string Slab::id_sha256() const {
  if (companion_) return companion_->integrity.id_sha256;
  std::string prefix(static_cast<std::size_t>(file_.header().data_start), '\0');
  file_.file().read(0, prefix.data(), prefix.size());
  std::vector<std::uint64_t> digests;
  for (const TensorRecord& t : file_.header().tensors) digests.push_back(tensor_digest(file_, t));
  return slab_id(prefix, read_text(paths_.manifest, limits::manifest_bytes, Code::MF_JSON), digests);
}

std::optional<std::uint64_t> Slab::expected_digest(std::string_view tensor) const {
  if (!companion_) return std::nullopt;
  const NamedDigests& digests = companion_->integrity.tensors;
  const auto at = std::lower_bound(digests.begin(), digests.end(), tensor, [](const auto& entry, std::string_view name) { return entry.first < name; });
  if (at == digests.end() || at->first != tensor) return std::nullopt;
  return at->second;
}

}  // namespace squareq
