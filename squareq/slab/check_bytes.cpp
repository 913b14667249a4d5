// The pass over every byte: checksums, codes and padding, on all cores.

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "squareq/slab/check.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t piece_bytes = 4u << 20;

struct Item {
  const SafetensorsFile* file;
  const TensorRecord* tensor;
  const ManifestLayer* layer = nullptr;  // of a qweight
  std::optional<std::uint64_t> expected;
  std::string owner;  // layer name, for messages
};

void check_item(const Item& item, std::vector<std::byte>& piece, const std::function<void(std::uint64_t)>& done, Report& report) {
  Xxh3 hash;
  std::optional<CodeScan> scan;
  if (item.layer) scan.emplace(*item.layer);
  const std::uint64_t total = item.tensor->bytes();
  for (std::uint64_t at = 0; at < total; at += piece_bytes) {
    const auto bytes = static_cast<std::size_t>(std::min(piece_bytes, total - at));
    item.file->read(*item.tensor, at, piece.data(), bytes);
    if (item.expected) hash.update(piece.data(), bytes);
    if (scan) scan->feed(at, reinterpret_cast<const std::int8_t*>(piece.data()), bytes);
    done(bytes);
  }
  const std::string file = item.file->path().string();
  if (item.expected && hash.digest() != *item.expected)
    report.add(Code::DT_CHECKSUM, "tensor " + in_quotes(item.tensor->name) + " has the checksum " + digest_hex(hash.digest()) + "; the companion says " + digest_hex(*item.expected), file,
               item.owner, item.tensor->name);
  if (scan) scan->tell(*item.layer, file, report);
}

std::optional<std::uint64_t> find_digest(const NamedDigests& digests, const std::string& name) {
  const auto at = std::lower_bound(digests.begin(), digests.end(), name, [](const auto& entry, const std::string& n) { return entry.first < n; });
  if (at == digests.end() || at->first != name) return std::nullopt;
  return at->second;
}

std::vector<Item> make_items(const ParsedManifest& manifest, const std::vector<LayerTensors>& tensors, const SafetensorsFile& slab, const Companion* companion) {
  std::vector<Item> items;
  const Header& header = slab.header();
  items.reserve(header.tensors.size());
  for (const TensorRecord& t : header.tensors) items.push_back({&slab, &t, nullptr, companion ? find_digest(companion->integrity.tensors, t.name) : std::nullopt, {}});
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const ParsedManifest::Layer& layer = manifest.layers[i];
    const auto item_of = [&](const TensorRecord* t) { return &items[static_cast<std::size_t>(t - header.tensors.data())]; };
    for (const TensorRecord* t : {tensors[i].qweight, tensors[i].scale, tensors[i].zero_point, tensors[i].bias})
      if (t) item_of(t)->owner = layer.fields.canonical_name;
    const bool shapes_good = layer.has(ParsedManifest::orig_shape) && layer.has(ParsedManifest::packed_shape) && layer.fields.orig_shape[1] <= layer.fields.packed_shape[1];
    if (tensors[i].qweight && shapes_good) item_of(tensors[i].qweight)->layer = &layer.fields;
  }
  if (companion)
    for (const TensorRecord& t : companion->file.header().tensors) items.push_back({&companion->file, &t, nullptr, find_digest(companion->own_digests, t.name), {}});
  return items;
}

}  // namespace

void check_bytes(const ParsedManifest& manifest, const std::vector<LayerTensors>& tensors, const SafetensorsFile& slab, const Companion* companion,
                 const ValidateOptions& options, Report& report) {
  const std::vector<Item> items = make_items(manifest, tensors, slab, companion);
  std::uint64_t total = 0;
  for (const Item& item : items) total += item.tensor->bytes();

  std::vector<Report> reports(items.size());
  std::atomic<std::size_t> next{0};
  std::mutex progress_lock;
  std::uint64_t done = 0;
  const auto work = [&] {
    std::vector<std::byte> piece(piece_bytes);
    for (std::size_t i = next++; i < items.size(); i = next++) {
      const auto advance = [&](std::uint64_t bytes) {
        const std::lock_guard guard(progress_lock);
        done += bytes;
        if (options.progress) options.progress(done, total, items[i].tensor->name);
      };
      try {
        check_item(items[i], piece, advance, reports[i]);
      } catch (const Error& e) {
        reports[i].add(e.problem());
      }
    }
  };
  const unsigned cores = options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> pool;
  for (unsigned t = 1; t < cores && t < items.size(); ++t) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
  for (Report& r : reports) report.append(std::move(r));
  try {
    slab.check_unchanged();
    if (companion) companion->file.check_unchanged();
  } catch (const Error& e) {
    report.add(e.problem());
  }
}

}  // namespace squareq
