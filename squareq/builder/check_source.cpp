#include "squareq/builder/check_source.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "squareq/builder/row_quantizer.hpp"
#include "squareq/slab/floats.hpp"
#include "squareq/slab/workers.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t chunk_bytes = 8u << 20;

using Linears = std::unordered_map<std::string, const LinearSource*>;

Linears by_name(const Selection& model) {
  Linears linears;
  for (const LinearSource& l : model.quantized) linears.emplace(l.name, &l);
  return linears;
}

/// Every digit of an fp32 number.
std::string number(float value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.9g", static_cast<double>(value));
  return text.data();
}

/// One finding per tensor: how many elements differ, and the first with both values.
struct Difference {
  std::uint64_t count = 0, row = 0, column = 0;
  float slab = 0, source = 0;

  void add(std::uint64_t r, std::uint64_t c, float in_slab, float in_source) {
    if (count++ == 0) row = r, column = c, slab = in_slab, source = in_source;
  }
};

/// What the workers share.
struct Check {
  const Slab& slab;
  const Checkpoint& checkpoint;
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stop{false};
};

struct Stopped {};

std::vector<float> read_floats(const Slab& slab, const TensorRecord* tensor) {
  std::vector<float> values(tensor->elements());
  slab.file().read(*tensor, 0, values.data(), tensor->bytes());
  return values;
}

class LayerCheck {
 public:
  LayerCheck(Check& check, Context backend) : check_(check), rows_(std::move(backend)) {}

  void run(std::size_t index, const LinearSource& source, Report& report) {
    const Slab& slab = check_.slab;
    const ManifestLayer& layer = slab.layer(index);
    const LayerTensors& tensors = slab.tensors(index);
    check_.checkpoint.check_unchanged(*source.weight);
    const std::vector<float> scale = read_floats(slab, tensors.scale), zero_point = read_floats(slab, tensors.zero_point);
    const std::uint64_t padded = layer.packed_shape[1], row_bytes = source.weight->bytes / source.out();
    const std::uint64_t step = std::max<std::uint64_t>(1, chunk_bytes / row_bytes);
    Difference codes, scales, zero_points;
    for (std::uint64_t first = 0; first < source.out(); first += step) {
      if (check_.stop) throw Stopped{};
      const std::uint64_t rows = std::min(step, source.out() - first);
      expected_.resize(rows * padded);
      found_.resize(rows * padded);
      scale_.resize(rows);
      zero_point_.resize(rows);
      rows_.run(check_.checkpoint, source, layer, first, rows, {expected_.data(), scale_.data(), zero_point_.data()});
      slab.file().read(*tensors.qweight, first * padded, found_.data(), found_.size());
      for (std::uint64_t r = 0; r < rows; ++r) {
        const std::int8_t *in_slab = &found_[r * padded], *again = &expected_[r * padded];
        if (std::memcmp(in_slab, again, padded) != 0)
          for (std::uint64_t c = 0; c < padded; ++c)
            if (in_slab[c] != again[c]) codes.add(first + r, c, in_slab[c], again[c]);
        if (std::memcmp(&scale[first + r], &scale_[r], 4) != 0) scales.add(first + r, 0, scale[first + r], scale_[r]);
        if (zero_point[first + r] != zero_point_[r]) zero_points.add(first + r, 0, zero_point[first + r], zero_point_[r]);
      }
      check_.done += rows * row_bytes;
    }
    tell(layer, "codes", layer.qweight_key, codes, source.out() * padded, true, report);
    tell(layer, "scales", layer.scale_key, scales, source.out(), false, report);
    tell(layer, "zero points", layer.zero_point_key, zero_points, source.out(), false, report);
    if (source.bias) {
      const std::vector<float> bias = read_floats(slab, tensors.bias), again = read_bias(check_.checkpoint, source);
      Difference biases;
      for (std::uint64_t r = 0; r < bias.size(); ++r)
        if (std::memcmp(&bias[r], &again[r], 4) != 0) biases.add(r, 0, bias[r], again[r]);
      tell(layer, "biases", *layer.bias_key, biases, source.out(), false, report);
      check_.done += source.bias->bytes;
    }
  }

 private:
  void tell(const ManifestLayer& layer, const char* what, const std::string& tensor, const Difference& d, std::uint64_t total, bool column,
            Report& report) const {
    if (d.count == 0) return;
    report.add(Code::MD_BASE,
               "layer " + in_quotes(layer.canonical_name) + ": " + std::to_string(d.count) + " of " + std::to_string(total) + " " + what +
                   " are not the checkpoint's; first at row " + std::to_string(d.row) +
                   (column ? ", column " + std::to_string(d.column) : "") + ": " + number(d.slab) + " in the slab, " + number(d.source) +
                   " from the checkpoint",
               check_.slab.paths().slab.string(), layer.canonical_name, tensor);
  }

  Check& check_;
  RowQuantizer rows_;
  std::vector<std::int8_t> expected_, found_;
  std::vector<float> scale_, zero_point_;
};

bool is_float(FileDtype t) { return t == FileDtype::F64 || t == FileDtype::F32 || t == FileDtype::F16 || t == FileDtype::BF16; }

/// A tensor of the companion against the checkpoint's.
void check_rest(Check& check, const TensorRecord& mine, const Checkpoint::Tensor& source, Report& report) {
  const SafetensorsFile& companion = check.slab.companion()->file;
  const bool bytes_only = mine.dtype == source.dtype;
  if (!bytes_only && !(is_float(mine.dtype) && is_float(source.dtype))) {
    report.add(Code::MD_TENSOR,
               "companion tensor " + in_quotes(mine.name) + " is " + std::string(dtype_name(mine.dtype)) + ", the checkpoint's " +
                   std::string(dtype_name(source.dtype)),
               companion.path().string(), {}, mine.name);
    check.done += source.bytes;
    return;
  }
  const std::uint64_t elements = bytes_only ? mine.bytes() : mine.elements();
  const std::uint64_t a = bytes_only ? 1 : dtype_bits(mine.dtype) / 8, b = bytes_only ? 1 : dtype_bits(source.dtype) / 8;
  const std::uint64_t step = chunk_bytes / 8;
  std::vector<std::byte> x, y;
  std::uint64_t differing = 0, first = 0;
  for (std::uint64_t at = 0; at < elements; at += step) {
    if (check.stop) throw Stopped{};
    const std::uint64_t count = std::min(step, elements - at);
    x.resize(count * a);
    y.resize(count * b);
    companion.read(mine, at * a, x.data(), x.size());
    check.checkpoint.read(source, at * b, y.data(), y.size());
    for (std::uint64_t i = 0; i < count; ++i) {
      const bool same = bytes_only ? x[i] == y[i] : load_float(x.data(), mine.dtype, i) == load_float(y.data(), source.dtype, i);
      if (!same && differing++ == 0) first = at + i;
    }
    check.done += count * b;
  }
  if (differing == 0) return;
  const std::uint64_t width = bytes_only ? std::max<std::uint64_t>(dtype_bits(mine.dtype) / 8, 1) : 1, element = first / width;
  std::string values;
  if (is_float(mine.dtype)) {
    x.resize(dtype_bits(mine.dtype) / 8);
    y.resize(dtype_bits(source.dtype) / 8);
    companion.read(mine, element * x.size(), x.data(), x.size());
    check.checkpoint.read(source, element * y.size(), y.data(), y.size());
    values = ": " + number(load_float(x.data(), mine.dtype, 0)) + " in the companion, " + number(load_float(y.data(), source.dtype, 0)) +
             " in the checkpoint";
  }
  report.add(Code::MD_BASE,
             "companion tensor " + in_quotes(mine.name) + " is not the checkpoint's; the first difference is element " +
                 std::to_string(element) + values,
             companion.path().string(), {}, mine.name);
}

std::string text(const std::vector<std::uint64_t>& shape) { return shape_text(std::vector<std::int64_t>(shape.begin(), shape.end())); }

struct RestPair {
  const TensorRecord* mine;
  const Checkpoint::Tensor* source;
};

/// Companion tensors that can be compared; the others are reported.
std::vector<RestPair> pair_rest(const Slab& slab, const Checkpoint& checkpoint, Report& report) {
  std::vector<RestPair> pairs;
  if (!slab.companion()) return pairs;
  const SafetensorsFile& companion = slab.companion()->file;
  const std::string file = companion.path().string();
  std::unordered_set<std::string_view> known;
  for (const Checkpoint::Tensor* t : rest_of(checkpoint, slab.manifest())) {
    known.insert(t->name);
    const TensorRecord* mine = companion.header().find(t->name);
    if (!mine)
      report.add(Code::MD_TENSOR, "the companion has no tensor " + in_quotes(t->name) + ", which the checkpoint holds", file, {}, t->name);
    else if (mine->shape != t->shape)
      report.add(Code::MD_TENSOR,
                 "companion tensor " + in_quotes(t->name) + " is " + text(mine->shape) + ", the checkpoint's " + text(t->shape), file, {},
                 t->name);
    else
      pairs.push_back({mine, t});
  }
  for (const TensorRecord& t : companion.header().tensors)
    if (!known.contains(t.name))
      report.add(Code::MD_TENSOR, "the companion has a tensor " + in_quotes(t.name) + ", which the checkpoint does not hold", file, {},
                 t.name);
  return pairs;
}

}  // namespace

Selection select_like(const Checkpoint& checkpoint, const std::string& slab_signature) {
  Report ignored;
  Selection recognised = select(checkpoint, "auto", {}, ignored);
  if (recognised.signature == slab_signature) return recognised;
  Selection generic = select(checkpoint, "none", {}, ignored);
  return generic.signature == slab_signature ? std::move(generic) : std::move(recognised);
}

void check_topology(const Selection& model, const ParsedManifest& manifest, const std::string& file, Report& report) {
  if (manifest.model_signature != model.signature) return;
  const Linears linears = by_name(model);
  for (const ParsedManifest::Layer& layer : manifest.layers) {
    const ManifestLayer& f = layer.fields;
    if (!layer.has(ParsedManifest::canonical_name) || !layer.has(ParsedManifest::orig_shape) || !layer.has(ParsedManifest::bias_key))
      continue;
    const auto at = linears.find(f.canonical_name);
    if (at == linears.end()) {
      report.add(Code::MD_LAYER, "layer " + in_quotes(f.canonical_name) + " of the slab is no linear layer of the model", file,
                 f.canonical_name);
      continue;
    }
    const LinearSource& l = *at->second;
    if (l.out() != f.orig_shape[0] || l.in() != f.orig_shape[1] || (l.bias != nullptr) != f.bias_key.has_value())
      report.add(Code::MD_LAYER,
                 "layer " + in_quotes(f.canonical_name) + " is " + text({f.orig_shape[0], f.orig_shape[1]}) +
                     (f.bias_key ? " with" : " without") + " bias in the slab and " + text({l.out(), l.in()}) +
                     (l.bias ? " with" : " without") + " bias in the model",
                 file, f.canonical_name);
  }
}

std::vector<const Checkpoint::Tensor*> rest_of(const Checkpoint& checkpoint, const Manifest& manifest) {
  std::unordered_set<std::string> taken;
  for (const ManifestLayer& layer : manifest.layers) {
    taken.insert(layer.canonical_name + ".weight");
    if (layer.bias_key) taken.insert(layer.canonical_name + ".bias");
  }
  std::vector<const Checkpoint::Tensor*> rest;
  for (const Checkpoint::Tensor& t : checkpoint.tensors())
    if (!taken.contains(t.name)) rest.push_back(&t);
  return rest;
}

void compare_with_source(const Slab& slab, const Checkpoint& checkpoint, const Selection& model, const SourceCheckOptions& options,
                         Report& report) {
  const Linears linears = by_name(model);
  struct Task {
    std::size_t layer = 0;
    const LinearSource* source = nullptr;
    RestPair rest{};
  };
  std::vector<Task> tasks;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const ManifestLayer& layer = slab.layer(i);
    const auto at = linears.find(layer.canonical_name);
    if (at == linears.end()) continue;
    const LinearSource& l = *at->second;
    if (l.out() != layer.orig_shape[0] || l.in() != layer.orig_shape[1] || (l.bias != nullptr) != layer.bias_key.has_value()) continue;
    tasks.push_back({i, &l, {}});
    total += l.weight->bytes + (l.bias ? l.bias->bytes : 0);
  }
  for (const RestPair& pair : pair_rest(slab, checkpoint, report)) {
    tasks.push_back({0, nullptr, pair});
    total += pair.source->bytes;
  }

  Check check{slab, checkpoint};
  const unsigned cores = options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  const std::size_t workers = std::min<std::size_t>(cores, std::max<std::size_t>(tasks.size(), 1));
  const Implementation implementation = Implementation::load(find_backend(options.backend));
  std::vector<std::unique_ptr<LayerCheck>> checks;
  for (std::size_t w = 0; w < workers; ++w) checks.push_back(std::make_unique<LayerCheck>(check, one_thread_context(implementation)));
  std::vector<Report> reports(tasks.size());
  bool interrupted = false;
  std::mutex mutex;
  std::string current;
  const auto task = [&](std::size_t worker, std::size_t index) {
    const Task& t = tasks[index];
    {
      const std::lock_guard lock(mutex);
      current = t.source ? t.source->name : t.rest.mine->name;
    }
    if (t.source)
      checks[worker]->run(t.layer, *t.source, reports[index]);
    else
      check_rest(check, *t.rest.mine, *t.rest.source, reports[index]);
  };
  const auto tick = [&] {
    if (options.cancelled && *options.cancelled && !check.stop.exchange(true)) interrupted = true;
    const std::lock_guard lock(mutex);
    if (options.progress) options.progress(check.done, total, printable(current));
  };
  Workers::run(workers, tasks.size(), check.stop, task, tick);
  if (interrupted) throw Error(Code::IO_INTERRUPTED, "interrupted");
  for (Report& r : reports) report.append(std::move(r));
  slab.file().check_unchanged();
  if (slab.companion()) slab.companion()->file.check_unchanged();
  for (const SafetensorsFile& file : checkpoint.files()) file.check_unchanged();
}

}  // namespace squareq
