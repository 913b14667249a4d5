#include "squareq/builder/build.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>

#include "squareq/builder/flusher.hpp"
#include "squareq/builder/identity.hpp"
#include "squareq/builder/layer_quantizer.hpp"
#include "squareq/slab/workers.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t copy_bytes = 8u << 20;
constexpr std::uint64_t flush_bytes = 512u << 20;
constexpr unsigned max_workers = 32;  // 32 workers hold about 32 * 25 MiB

void check_options(const BuildOptions& options) {
  const std::string& name = options.name;
  const bool dots = name.find_first_not_of('.') == std::string::npos;
  if (dots || name.size() > 200 || name.find_first_of("/\\:") != std::string::npos || name.find('\0') != std::string::npos ||
      printable(name) != name || name[0] == '.')
    throw Error(Code::CFG_VALUE, "slab name '" + printable(name) + "' is not one plain file name of 1 to 200 bytes");
  if (options.pack_k < 1 || options.pack_k > (1u << 20))
    throw Error(Code::CFG_VALUE, "pack_k is " + std::to_string(options.pack_k) + ", expected 1 to 1048576");
  const std::string& id = options.architecture_id;
  if (id.empty() || id.size() > 256)
    throw Error(Code::CFG_VALUE, "architecture id has " + std::to_string(id.size()) + " bytes, expected 1 to 256");
  std::error_code ignored;
  if (!fs::is_directory(options.out, ignored))
    throw Error(Code::IO_MISSING, "output folder " + printable_path(options.out) + " does not exist", options.out.string());
}

struct Names {
  SlabPaths paths;
  std::string partial, journal;  ///< file names in the output folder
};

Names make_names(const BuildOptions& options, const std::string& identity) {
  Names names;
  names.paths = SlabPaths::resolve(options.out / (options.name + ".safetensors"));
  names.partial = "." + options.name + "." + identity.substr(0, 16) + ".partial";
  names.journal = "." + options.name + "." + identity.substr(0, 16) + ".journal";
  return names;
}

/// Partials of other builds under this name stay, and are named.
void report_other_partials(const BuildOptions& options, const Names& names, Report& report) {
  const std::string head = "." + options.name + ".", tail = ".partial";
  std::error_code error;
  for (fs::directory_iterator at(options.out, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name == names.partial || !name.starts_with(head) || !name.ends_with(tail) || name.size() != head.size() + 16 + tail.size())
      continue;
    if (name.substr(head.size(), 16).find_first_not_of("0123456789abcdef") != std::string::npos) continue;
    report.add(Code::IO_PARTIAL,
               printable_path(at->path()) + " belongs to another build of this name (other source or options) and was left alone",
               at->path().string());
  }
}

/// A kill between the slab's rename and the manifest's left a complete slab that no reader accepts: take it back and publish again.
void take_back(const BuildOptions& options, const Names& names) {
  std::error_code ignored;
  const fs::path partial = options.out / names.partial;
  if (!fs::exists(options.out / names.journal, ignored)) return;
  const FolderLock lock(options.out, std::chrono::seconds(30));  // not while another process is between its two renames
  if (!fs::exists(partial, ignored) && fs::exists(names.paths.slab, ignored) && !fs::exists(names.paths.manifest, ignored))
    fs::rename(names.paths.slab, partial, ignored);
}

class Build {
 public:
  explicit Build(const BuildOptions& options)
      : options_(options),
        checkpoint_(Checkpoint::open(options.model)),
        implementation_(Implementation::load(find_backend(options.backend))) {
    for (Problem& p : checkpoint_.warnings()) result_.report.add(std::move(p));
    selection_ = select(checkpoint_, options.architecture, options.include_prefixes, result_.report);
    make_manifest();
  }

  BuildResult run() {
    const auto start = std::chrono::steady_clock::now();
    const std::string identity = build_identity(checkpoint_, selection_, options_);
    const Names names = make_names(options_, identity);
    report_other_partials(options_, names, result_.report);
    for (const fs::path& path : {names.paths.slab, names.paths.manifest, names.paths.companion})
      remove_stale_temporaries(options_.out, path.filename().string());
    take_back(options_, names);

    SafetensorsWriter slab(names.paths.slab, slab_tensors(), {}, {names.partial, seams()});
    Journal journal(options_.out / names.journal, identity);
    if (!slab.resumed()) journal.restart();
    try {
      std::unique_ptr<CompanionWriter> companion = make_companion(names, slab);
      quantize_all(slab, journal, companion.get());
      publish(names, slab, companion.get());
    } catch (const Error& e) {
      const bool kept = e.code() == Code::IO_INTERRUPTED || e.code() == Code::IO_RENAME || e.code() == Code::IO_LOCKED;
      if (!kept) give_up(slab, journal);
      throw;
    } catch (...) {
      give_up(slab, journal);
      throw;
    }
    journal.remove();
    result_.paths = names.paths;
    if (!options_.companion) result_.paths.companion.clear();
    result_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(result_);
  }

 private:
  static void give_up(SafetensorsWriter& slab, Journal& journal) {
    slab.file().discard();
    journal.remove();
  }

  void make_manifest() {
    manifest_.model_signature = selection_.signature;
    manifest_.architecture_id = options_.architecture_id;
    for (const LinearSource& l : selection_.quantized)
      layers_.push_back(make_layer(l.name, l.out(), l.in(), options_.pack_k, l.bias != nullptr));
    manifest_.layers = layers_;
    sort_layers(manifest_);
    manifest_text_ = manifest_text(manifest_);
  }

  WriteSeams seams() const {
    WriteSeams s;
    if (options_.at_point) s.step = [this](std::string_view step, const fs::path&) { options_.at_point(step); };
    return s;
  }

  std::vector<TensorSpec> slab_tensors() const {
    std::vector<TensorSpec> tensors;
    for (const ManifestLayer& l : layers_) {
      const std::uint64_t out = l.orig_shape[0];
      tensors.push_back({l.qweight_key, FileDtype::I8, {l.packed_shape[0], l.packed_shape[1]}});
      tensors.push_back({l.scale_key, FileDtype::F32, {out}});
      tensors.push_back({l.zero_point_key, FileDtype::F32, {out}});
      if (l.bias_key) tensors.push_back({*l.bias_key, FileDtype::F32, {out}});
    }
    return tensors;
  }

  std::unique_ptr<CompanionWriter> make_companion(const Names& names, const SafetensorsWriter& slab) const {
    if (!options_.companion) return nullptr;
    std::vector<TensorSpec> tensors;
    for (const Checkpoint::Tensor* t : selection_.rest) tensors.push_back({t->name, t->dtype, t->shape});
    const std::string architecture = selection_.architecture ? selection_.architecture->json(checkpoint_.config_json()) : "";
    return std::make_unique<CompanionWriter>(names.paths.companion, std::move(tensors), slab.layout(), architecture,
                                             source_record(checkpoint_, selection_), SafetensorsWriter::Options{"", seams()});
  }

  /// A layer or an unquantized tensor, in the order of the source's bytes.
  struct Task {
    std::uint64_t position = 0;
    const Checkpoint::Tensor* rest = nullptr;
    std::size_t layer = 0;
  };

  std::vector<Task> make_tasks(const CompanionWriter* companion) const {
    std::vector<Task> tasks;
    const auto position = [&](const Checkpoint::Tensor* t) { return static_cast<std::uint64_t>(t - checkpoint_.tensors().data()); };
    for (std::size_t i = 0; i < layers_.size(); ++i) tasks.push_back({position(selection_.quantized[i].weight), nullptr, i});
    if (companion)
      for (const Checkpoint::Tensor* t : selection_.rest) tasks.push_back({position(t), t, 0});
    std::sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.position < b.position; });
    return tasks;
  }

  static std::uint64_t source_bytes(const LinearSource& l) { return l.weight->bytes + (l.bias ? l.bias->bytes : 0); }

  void quantize_all(SafetensorsWriter& slab, Journal& journal, CompanionWriter* companion) {
    const std::vector<Task> tasks = make_tasks(companion);
    for (const Task& t : tasks) result_.source_bytes += t.rest ? t.rest->bytes : source_bytes(selection_.quantized[t.layer]);
    entries_.resize(layers_.size());

    std::atomic<std::uint64_t> done{0};
    std::atomic<bool> stop{false};
    bool interrupted = false;
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    // More workers than cores: while some wait for the disk, others compute.
    const std::size_t workers = std::clamp<std::size_t>(options_.threads ? options_.threads : cores + cores / 2 + 1, 1, max_workers);
    std::vector<std::unique_ptr<LayerQuantizer>> quantizers;
    const BuildShare share{checkpoint_, slab, done, stop};
    for (std::size_t w = 0; w < workers; ++w) quantizers.push_back(std::make_unique<LayerQuantizer>(share, one_thread_context(implementation_)));

    std::mutex mutex;
    std::string current;
    const auto task = [&](std::size_t worker, std::size_t index) {
      const Task& t = tasks[index];
      {
        const std::lock_guard lock(mutex);
        current = t.rest ? t.rest->name : selection_.quantized[t.layer].name;
      }
      if (t.rest)
        copy(*t.rest, *companion, done, stop);
      else
        quantize_layer(*quantizers[worker], t.layer, journal, done);
    };
    const auto tick = [&] {
      if (options_.cancelled && *options_.cancelled && !stop.exchange(true)) interrupted = true;
      const std::lock_guard lock(mutex);
      if (options_.progress) options_.progress(done, result_.source_bytes, printable(current));
    };
    const Flusher flusher(slab.file().temporary(), done, flush_bytes);
    Workers::run(workers, tasks.size(), stop, task, tick);
    if (interrupted)
      throw Error(Code::IO_INTERRUPTED, "interrupted; the same command continues from " + printable_path(slab.file().temporary()));
  }

  void quantize_layer(LayerQuantizer& quantizer, std::size_t index, Journal& journal, std::atomic<std::uint64_t>& done) {
    const LinearSource& source = selection_.quantized[index];
    const auto finished = journal.entries().find(index);
    if (finished != journal.entries().end() && quantizer.holds(layers_[index], finished->second)) {
      entries_[index] = finished->second;
      done += source_bytes(source);
      ++reused_;
      return;
    }
    entries_[index] = quantizer.run(source, layers_[index]);
    journal.append(index, entries_[index]);
    if (options_.at_point) options_.at_point("layer");
  }

  void copy(const Checkpoint::Tensor& t, CompanionWriter& companion, std::atomic<std::uint64_t>& done, const std::atomic<bool>& stop) {
    checkpoint_.check_unchanged(t);
    std::vector<std::byte> piece(std::min(t.bytes, copy_bytes));
    for (std::uint64_t at = 0; at < t.bytes; at += piece.size()) {
      if (stop) throw Stopped{};
      const std::uint64_t bytes = std::min<std::uint64_t>(piece.size(), t.bytes - at);
      checkpoint_.read(t, at, piece.data(), bytes);
      companion.write(t.name, at, piece.data(), bytes);
      done += bytes;
    }
    if (options_.at_point) options_.at_point("rest");
  }

  void publish(const Names& names, SafetensorsWriter& slab, CompanionWriter* companion) {
    for (const SafetensorsFile& file : checkpoint_.files()) file.check_unchanged();
    std::vector<std::uint64_t> digests(slab.layout().header.tensors.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const ManifestLayer& l = layers_[i];
      const std::vector<std::uint64_t>& d = entries_[i].digests;
      digests[slab.index(l.qweight_key)] = d[0];
      digests[slab.index(l.scale_key)] = d[1];
      digests[slab.index(l.zero_point_key)] = d[2];
      if (l.bias_key) digests[slab.index(*l.bias_key)] = d[3];
      result_.floored_rows += entries_[i].floored_rows;
    }
    const IntegrityRecord record = make_integrity(slab.layout(), manifest_text_, digests);
    if (options_.at_point) options_.at_point("publish");
    if (companion) companion->finish(record);
    result_.companion_bytes = companion ? companion->file().layout().header.file_bytes : 0;
    publish_slab(names.paths, slab, companion, manifest_text_, {std::chrono::seconds(30), seams()});

    result_.architecture = selection_.architecture;
    result_.signature = selection_.signature;
    result_.slab_id = record.id_sha256;
    result_.layers = layers_.size();
    result_.reused_layers = reused_;
    result_.other_tensors = companion ? selection_.rest.size() : 0;
    result_.slab_bytes = slab.layout().header.file_bytes;
    if (result_.floored_rows)
      result_.report.add(Code::DT_SCALE_FLOOR,
                         std::to_string(result_.floored_rows) +
                             " rows have |w| below 1.27e-6 throughout: their scale is the floor 1e-8, they lose precision",
                         names.paths.slab.string());
  }

  const BuildOptions& options_;
  Checkpoint checkpoint_;
  Implementation implementation_;
  Selection selection_;
  Manifest manifest_;
  std::string manifest_text_;
  std::vector<ManifestLayer> layers_;  ///< in the order of selection_.quantized
  std::vector<JournalEntry> entries_;  ///< likewise
  std::atomic<std::size_t> reused_{0};
  BuildResult result_;
};

}  // namespace

BuildResult build(const BuildOptions& options) {
  check_options(options);
  return Build(options).run();
}

}  // namespace squareq
