#include "squareq/slab/assemble.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>

#include "squareq/slab/workers.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t piece_bytes = 8u << 20;

std::optional<std::uint64_t> digest_of(const NamedDigests& digests, const std::string& name) {
  const auto at =
      std::lower_bound(digests.begin(), digests.end(), name, [](const auto& entry, const std::string& n) { return entry.first < n; });
  if (at == digests.end() || at->first != name) return std::nullopt;
  return at->second;
}

}  // namespace

/// One pass over all source tensors.
class SlabAssembly::Copy {
 public:
  Copy(const SlabAssembly& plan, SafetensorsWriter& slab, CompanionWriter* companion) : plan_(plan), slab_(slab), companion_(companion) {
    for (const Source& source : plan_.sources_)
      if (source.part == Part::slab && !layers_.contains(source.slab)) {
        auto& keys = layers_[source.slab];
        for (std::size_t i = 0; i < source.slab->layer_count(); ++i) keys[source.slab->tensors(i).qweight] = &source.slab->layer(i);
      }
  }

  void run(const AssembleOptions& options) {
    std::uint64_t total = 0;
    for (const Source& source : plan_.sources_) total += source.tensor->bytes();
    bool interrupted = false;
    std::mutex mutex;
    std::string current;
    const auto task = [&](std::size_t, std::size_t index) {
      {
        const std::lock_guard lock(mutex);
        current = plan_.sources_[index].tensor->name;
      }
      copy(plan_.sources_[index]);
    };
    const auto tick = [&] {
      if (options.cancelled && *options.cancelled && !stop_.exchange(true)) interrupted = true;
      const std::lock_guard lock(mutex);
      if (options.progress) options.progress(done_, total, printable(current));
    };
    const unsigned cores = options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency());
    Workers::run(std::min<std::size_t>(cores, std::max<std::size_t>(plan_.sources_.size(), 1)), plan_.sources_.size(), stop_, task, tick);
    if (interrupted) throw Error(Code::IO_INTERRUPTED, "interrupted; nothing was written");
  }

 private:
  struct Stopped {};

  void copy(const Source& source) {
    const SafetensorsFile& file = source.part == Part::slab ? source.slab->file() : source.slab->companion()->file;
    const std::string& name = source.tensor->name;
    const std::optional<std::uint64_t> expected =
        source.part == Part::slab ? source.slab->expected_digest(name) : digest_of(source.slab->companion()->own_digests, name);
    const ManifestLayer* layer = nullptr;
    if (source.part == Part::slab)
      if (const auto& keys = layers_.at(source.slab); keys.contains(source.tensor)) layer = keys.at(source.tensor);

    const std::uint64_t total = source.tensor->bytes(), row = layer ? layer->packed_shape[1] : 1;
    const std::uint64_t step = std::max<std::uint64_t>(piece_bytes / row, 1) * row;  // codes are checked by whole rows
    std::vector<std::byte> piece(static_cast<std::size_t>(std::min(step, total)));
    Xxh3 hash;
    Report found;
    for (std::uint64_t at = 0; at < total; at += step) {
      if (stop_) throw Stopped{};
      const std::uint64_t bytes = std::min(step, total - at);
      file.read(*source.tensor, at, piece.data(), bytes);
      if (expected) hash.update(piece.data(), static_cast<std::size_t>(bytes));
      if (layer)
        check_codes(*layer, at / row, bytes / row, reinterpret_cast<const std::int8_t*>(piece.data()), file.path().string(), found);
      for (const Piece& p : source.pieces) {
        const std::uint64_t begin = std::max(p.from, at), end = std::min(p.from + p.bytes, at + bytes);
        if (begin < end) put(source.part, p.target, p.to + (begin - p.from), piece.data() + (begin - at), end - begin);
      }
      done_ += bytes;
    }
    found.throw_first();
    if (expected && hash.digest() != *expected)
      throw Error(
          Code::DT_CHECKSUM,
          "tensor " + in_quotes(name) + " has the checksum " + digest_hex(hash.digest()) + "; the companion says " + digest_hex(*expected),
          file.path().string(), layer ? layer->canonical_name : "", name);
    file.check_unchanged();
  }

  void put(Part part, const std::string& target, std::uint64_t to, const std::byte* data, std::uint64_t bytes) {
    if (part == Part::slab)
      slab_.write(target, to, data, bytes);
    else
      companion_->write(target, to, data, bytes);
  }

  const SlabAssembly& plan_;
  SafetensorsWriter& slab_;
  CompanionWriter* companion_;
  std::map<const Slab*, std::unordered_map<const TensorRecord*, const ManifestLayer*>> layers_;
  std::atomic<std::uint64_t> done_{0};
  std::atomic<bool> stop_{false};
};

void SlabAssembly::with_companion(std::vector<TensorSpec> tensors, std::string architecture_json, std::string source_json) {
  companion_ = true;
  companion_tensors_ = std::move(tensors);
  architecture_json_ = std::move(architecture_json);
  source_json_ = std::move(source_json);
}

void SlabAssembly::take(const Slab& slab, Part part, const TensorRecord& source, std::uint64_t from, const std::string& target,
                        std::uint64_t to, std::uint64_t bytes) {
  const auto [at, fresh] = by_tensor_.emplace(&source, sources_.size());
  if (fresh) sources_.push_back({&slab, part, &source, {}});
  sources_[at->second].pieces.push_back({from, to, bytes, target});
}

std::vector<TensorSpec> SlabAssembly::slab_tensors() const {
  std::vector<TensorSpec> tensors;
  for (const ManifestLayer& l : manifest_.layers) {
    const std::uint64_t out = l.orig_shape[0];
    tensors.push_back({l.qweight_key, FileDtype::I8, {l.packed_shape[0], l.packed_shape[1]}});
    tensors.push_back({l.scale_key, FileDtype::F32, {out}});
    tensors.push_back({l.zero_point_key, FileDtype::F32, {out}});
    if (l.bias_key) tensors.push_back({*l.bias_key, FileDtype::F32, {out}});
  }
  return tensors;
}

void SlabAssembly::check_cover(const FileLayout& slab, const FileLayout* companion) const {
  const auto refuse = [](const std::string& tensor, const std::string& what) {
    throw Error(Code::INTERNAL, "tensor " + in_quotes(tensor) + " " + what, {}, {}, tensor);
  };
  std::map<std::pair<Part, std::string>, std::vector<std::pair<std::uint64_t, std::uint64_t>>> ranges;
  for (const Source& source : sources_)
    for (const Piece& p : source.pieces) {
      const std::uint64_t size = source.tensor->bytes();
      if (p.from > size || p.bytes > size - p.from)
        refuse(source.tensor->name, "has " + std::to_string(size) + " bytes; " + std::to_string(p.bytes) + " from byte " +
                                        std::to_string(p.from) + " are to be taken");
      ranges[{source.part, p.target}].emplace_back(p.to, p.bytes);
    }
  const auto check = [&](Part part, const FileLayout& layout) {
    for (const TensorRecord& t : layout.header.tensors) {
      const std::string size = "of " + std::to_string(t.bytes()) + " bytes ";
      auto pieces = ranges.extract({part, t.name});
      std::uint64_t filled = 0;
      if (pieces) {
        std::sort(pieces.mapped().begin(), pieces.mapped().end());
        for (const auto& [to, bytes] : pieces.mapped()) {
          if (to != filled || bytes > t.bytes() - filled)
            refuse(t.name, size + "is filled up to byte " + std::to_string(filled) + "; the next piece is " + std::to_string(bytes) +
                               " bytes at byte " + std::to_string(to));
          filled += bytes;
        }
      }
      if (filled != t.bytes()) refuse(t.name, size + "is filled up to byte " + std::to_string(filled));
    }
  };
  check(Part::slab, slab);
  if (companion) check(Part::companion, *companion);
  if (!ranges.empty()) refuse(ranges.begin()->first.second, "is the target of a piece, and not in the result");
}

AssembleResult SlabAssembly::write(const SlabPaths& paths, const AssembleOptions& options) {
  for (const std::filesystem::path& path : {paths.slab, paths.manifest, paths.companion})
    remove_stale_temporaries(path.parent_path(), path.filename().string());
  const std::string text = manifest_text(manifest_);
  SafetensorsWriter slab(paths.slab, slab_tensors());
  std::unique_ptr<CompanionWriter> companion;
  if (companion_)
    companion = std::make_unique<CompanionWriter>(paths.companion, companion_tensors_, slab.layout(), architecture_json_, source_json_);
  check_cover(slab.layout(), companion ? &companion->file().layout() : nullptr);

  Copy(*this, slab, companion.get()).run(options);

  std::vector<std::uint64_t> digests;
  for (std::size_t i = 0; i < slab.layout().header.tensors.size(); ++i) digests.push_back(slab.digest(i));
  const IntegrityRecord record = make_integrity(slab.layout(), text, digests);
  if (companion) companion->finish(record);
  AssembleResult result{paths, record.id_sha256, slab.layout().header.file_bytes,
                        companion ? companion->file().layout().header.file_bytes : 0};
  publish_slab(paths, slab, companion.get(), text);
  if (!companion) result.paths.companion.clear();
  return result;
}

}  // namespace squareq
