#include "squareq/slab/companion.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "squareq/slab/strict_json.hpp"

namespace squareq {
namespace {

using Kind = JsonValue::Kind;

// One handler for both records: the slab's (all keys) and the companion's own (version and tensors).
class IntegrityHandler final : public StrictJson {
 public:
  IntegrityHandler(bool own, Report& report, const std::string& file) : own_(own), report_(report), file_(file) {}

  IntegrityRecord record;

  void finish() {
    static constexpr std::array<std::string_view, 6> names = {"version", "slab_bytes", "header_xxh3", "manifest_xxh3", "id_sha256", "tensors"};
    for (std::size_t i = 0; i < names.size(); ++i) {
      const bool needed = !own_ || i == 0 || i == 5;
      if (needed && !seen_[i]) bad("has no " + std::string(names[i]));
    }
  }

 private:
  void on_value(std::uint32_t depth, JsonValue v) override {
    if (depth == 0 && v.kind != Kind::object) bad("is " + std::string(kind_name(v.kind)) + ", not an object");
    if (depth == 1) field(v);
    if (depth == 2 && in_tensors_) {
      const auto digest = v.kind == Kind::string ? parse_digest(*v.text) : std::nullopt;
      if (digest) record.tensors.emplace_back(std::move(tensor_), *digest);
      else report_.add(Code::MF_INTEGRITY, where() + " holds no digest of 16 lower-case hex digits for tensor " + in_quotes(tensor_), file_, {}, tensor_);
    }
  }

  void field(JsonValue& v) {
    in_tensors_ = false;
    if (key_ == "version") {
      seen_[0] = true;
      if (v.kind != Kind::natural) bad("has as version " + std::string(kind_name(v.kind)));
      else if (v.natural != 1) bad("has version " + std::to_string(v.natural) + "; this reader knows version 1");
    } else if (key_ == "tensors") {
      seen_[5] = true;
      in_tensors_ = v.kind == Kind::object;
      if (!in_tensors_) bad("has as tensors " + std::string(kind_name(v.kind)));
    } else if (own_) {
      report_.add(Code::MF_UNKNOWN_FIELD, where() + " has an unknown key " + in_quotes(key_), file_);
    } else if (key_ == "slab_bytes") {
      seen_[1] = true;
      if (v.kind == Kind::natural) record.slab_bytes = v.natural;
      else bad("has as slab_bytes " + std::string(kind_name(v.kind)));
    } else if (key_ == "header_xxh3" || key_ == "manifest_xxh3") {
      const bool header = key_ == "header_xxh3";
      seen_[header ? 2 : 3] = true;
      const auto digest = v.kind == Kind::string ? parse_digest(*v.text) : std::nullopt;
      if (digest) (header ? record.header_xxh3 : record.manifest_xxh3) = *digest;
      else bad("has a " + key_ + " that is not 16 lower-case hex digits");
    } else if (key_ == "id_sha256") {
      seen_[4] = true;
      const bool good = v.kind == Kind::string && v.text->size() == 64 && v.text->find_first_not_of("0123456789abcdef") == std::string::npos;
      if (good) record.id_sha256 = std::move(*v.text);
      else bad("has an id_sha256 that is not 64 lower-case hex digits");
    } else {
      report_.add(Code::MF_UNKNOWN_FIELD, where() + " has an unknown key " + in_quotes(key_), file_);
    }
  }

  void on_key(std::uint32_t depth, std::string& key) override {
    if (depth == 1) key_ = std::move(key);
    if (depth == 2 && in_tensors_) tensor_ = std::move(key);
  }
  void on_end(std::uint32_t depth) override {
    if (depth == 1) in_tensors_ = false;
  }
  void on_duplicate(std::uint32_t, std::string_view key) override { bad("holds the key " + in_quotes(key) + " twice"); }

  std::string where() const { return std::string(own_ ? companion_integrity_key : integrity_key); }
  void bad(const std::string& what) { report_.add(Code::MF_INTEGRITY, where() + " " + what, file_); }

  bool own_;
  Report& report_;
  const std::string& file_;
  std::array<bool, 6> seen_{};
  bool in_tensors_ = false;
  std::string key_, tensor_;
};

std::optional<IntegrityRecord> parse_record(std::string_view text, bool own, Report& report, const std::string& file) {
  Report found;
  IntegrityHandler handler(own, found, file);
  const std::string where(own ? companion_integrity_key : integrity_key);
  // The text came out of a checked header: it is UTF-8, but escapes may have brought control bytes.
  if (find_control_byte(text) != std::string_view::npos || text.starts_with("\xEF\xBB\xBF") || handler.scan(text)) {
    report.add(Code::MF_INTEGRITY, where + " is not valid JSON", file);
    return std::nullopt;
  }
  handler.finish();
  std::sort(handler.record.tensors.begin(), handler.record.tensors.end());
  const bool good = found.ok();
  report.append(std::move(found));
  if (!good) return std::nullopt;
  return std::move(handler.record);
}

// Architecture and source are written and read by other parts; here they only have to be JSON objects.
class ObjectHandler final : public StrictJson {
 public:
  bool object = false;

 private:
  void on_value(std::uint32_t depth, JsonValue v) override {
    if (depth == 0) object = v.kind == Kind::object;
  }
  void on_key(std::uint32_t, std::string&) override {}
  void on_end(std::uint32_t) override {}
  void on_duplicate(std::uint32_t, std::string_view) override { object = false; }
};

bool is_json_object(std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF") || find_control_byte(text) != std::string_view::npos || find_invalid_utf8(text) != std::string_view::npos) return false;
  ObjectHandler handler;
  return !handler.scan(text) && handler.object;
}

std::string digests_text(const NamedDigests& digests) {
  std::string text = "{";
  for (const auto& [name, digest] : digests) text += (text.size() > 1 ? "," : "") + nlohmann::json(name).dump() + ":\"" + digest_hex(digest) + "\"";
  return text + "}";
}

std::string own_text(const NamedDigests& digests) { return "{\"version\":1,\"tensors\":" + digests_text(digests) + "}"; }

// What the companion says about its own tensors must name each of them once.
void check_own(const Companion& companion, Report& report, const std::string& file) {
  for (const TensorRecord& t : companion.file.header().tensors) {
    const auto at = std::lower_bound(companion.own_digests.begin(), companion.own_digests.end(), t.name, [](const auto& entry, const std::string& name) { return entry.first < name; });
    if (at == companion.own_digests.end() || at->first != t.name)
      report.add(Code::MF_INTEGRITY, std::string(companion_integrity_key) + " has no digest of tensor " + in_quotes(t.name), file, {}, t.name);
  }
  for (const auto& [name, digest] : companion.own_digests)
    if (!companion.file.header().find(name))
      report.add(Code::MF_INTEGRITY, std::string(companion_integrity_key) + " names tensor " + in_quotes(name) + ", which the companion does not hold", file, {}, name);
}

Metadata companion_metadata(const IntegrityRecord& record, const NamedDigests& own, const std::string& architecture, const std::string& source) {
  Metadata metadata;
  if (!architecture.empty()) metadata.emplace_back(architecture_key, architecture);
  metadata.emplace_back(companion_integrity_key, own_text(own));
  metadata.emplace_back(integrity_key, integrity_text(record));
  if (!source.empty()) metadata.emplace_back(source_key, source);
  return metadata;
}

// A record and digests of the right lengths, to lay the header out before the numbers are known.
Metadata placeholder(const std::vector<TensorSpec>& tensors, const FileLayout& slab, const std::string& architecture, const std::string& source) {
  for (const std::string* text : {&architecture, &source})
    if (!text->empty() && !is_json_object(*text)) throw Error(Code::CALL_VALUE, "architecture and source of a companion must be JSON objects");
  NamedDigests own;
  for (const TensorSpec& spec : tensors) own.emplace_back(spec.name, 0);
  return companion_metadata(make_integrity(slab, {}, std::vector<std::uint64_t>(slab.header.tensors.size())), own, architecture, source);
}

}  // namespace

std::string slab_id(std::string_view slab_prefix, std::string_view manifest, std::span<const std::uint64_t> digests) {
  Sha256 hash;
  hash.update(slab_prefix.data(), slab_prefix.size());
  hash.update(manifest.data(), manifest.size());
  for (const std::uint64_t digest : digests) {
    std::array<unsigned char, 8> canonical{};
    for (std::size_t i = 0; i < 8; ++i) canonical[i] = static_cast<unsigned char>(digest >> (56 - 8 * i));
    hash.update(canonical.data(), canonical.size());
  }
  return hash.hex();
}

IntegrityRecord make_integrity(const FileLayout& slab, std::string_view manifest, std::span<const std::uint64_t> digests) {
  if (digests.size() != slab.header.tensors.size())
    throw Error(Code::CALL_VALUE, std::to_string(digests.size()) + " digests were given for " + std::to_string(slab.header.tensors.size()) + " tensors");
  IntegrityRecord record;
  record.slab_bytes = slab.header.file_bytes;
  record.header_xxh3 = xxh3(slab.prefix.data(), slab.prefix.size());
  record.manifest_xxh3 = xxh3(manifest.data(), manifest.size());
  record.id_sha256 = slab_id(slab.prefix, manifest, digests);
  for (std::size_t i = 0; i < digests.size(); ++i) record.tensors.emplace_back(slab.header.tensors[i].name, digests[i]);
  std::sort(record.tensors.begin(), record.tensors.end());
  return record;
}

std::string integrity_text(const IntegrityRecord& record) {
  return "{\"version\":1,\"slab_bytes\":" + std::to_string(record.slab_bytes) + ",\"header_xxh3\":\"" + digest_hex(record.header_xxh3) + "\",\"manifest_xxh3\":\"" +
         digest_hex(record.manifest_xxh3) + "\",\"id_sha256\":\"" + record.id_sha256 + "\",\"tensors\":" + digests_text(record.tensors) + "}";
}

std::optional<IntegrityRecord> parse_integrity(std::string_view text, Report& report, const std::string& file) { return parse_record(text, false, report, file); }

std::optional<Companion> Companion::open(const std::filesystem::path& path, Report& report) {
  const std::string name = path.string();
  Report found;
  auto file = SafetensorsFile::open(path, found);
  if (!file) {
    report.append(std::move(found));
    return std::nullopt;
  }
  const auto text = [&](std::string_view key) {
    const std::string* value = file->header().find_metadata(key);
    return value ? *value : std::string();
  };
  const std::string integrity = text(integrity_key), own = text(companion_integrity_key);
  std::string architecture = text(architecture_key), source = text(source_key);
  Companion companion{std::move(*file), {}, {}, std::move(architecture), std::move(source)};
  if (integrity.empty()) found.add(Code::MF_INTEGRITY, "the companion has no " + std::string(integrity_key), name);
  else if (auto record = parse_integrity(integrity, found, name)) companion.integrity = std::move(*record);
  if (!own.empty()) {
    if (auto record = parse_record(own, true, found, name)) companion.own_digests = std::move(record->tensors);
  }
  if (found.ok()) check_own(companion, found, name);
  for (const auto& [key, value] : {std::pair(architecture_key, &companion.architecture_json), std::pair(source_key, &companion.source_json)})
    if (!value->empty() && !is_json_object(*value)) found.add(Code::MF_INTEGRITY, std::string(key) + " is not a JSON object", name);
  const bool good = found.ok();
  report.append(std::move(found));
  if (!good) return std::nullopt;
  return companion;
}

CompanionWriter::CompanionWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors, const FileLayout& slab, std::string architecture_json,
                                 std::string source_json, const SafetensorsWriter::Options& options)
    : architecture_json_(std::move(architecture_json)),
      source_json_(std::move(source_json)),
      file_(target, tensors, placeholder(tensors, slab, architecture_json_, source_json_), options) {}

void CompanionWriter::finish(const IntegrityRecord& record) {
  NamedDigests own;
  const auto& tensors = file_.layout().header.tensors;
  for (std::size_t i = 0; i < tensors.size(); ++i) own.emplace_back(tensors[i].name, file_.digest(i));
  file_.replace_metadata(companion_metadata(record, own, architecture_json_, source_json_));
}

}  // namespace squareq
