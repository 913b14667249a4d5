#include "squareq/slab/diff.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "squareq/slab/workers.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t chunk_bytes = 4u << 20;

std::vector<float> read_floats(const SafetensorsFile& file, const TensorRecord* tensor) {
  if (!tensor) return {};
  std::vector<float> values(tensor->elements());
  file.read(*tensor, 0, values.data(), tensor->bytes());
  return values;
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

/// Rows of codes of one layer.
struct Rows {
  const Slab& slab;
  const TensorRecord& tensor;
  std::uint64_t padded;
  std::vector<std::int8_t> codes;

  Rows(const Slab& s, std::size_t layer) : slab(s), tensor(*s.tensors(layer).qweight), padded(s.layer(layer).packed_shape[1]) {}
  void read(std::uint64_t first, std::uint64_t count) {
    codes.resize(count * padded);
    slab.file().read(tensor, first * padded, codes.data(), codes.size());
  }
};

void diff_layer(const Slab& a, std::size_t ia, const Slab& b, std::size_t ib, LayerDiff& out, std::atomic<std::uint64_t>& done,
                const std::atomic<bool>& stop) {
  const std::uint64_t rows = out.shape_a[0], columns = out.shape_a[1];
  const LayerTensors &ta = a.tensors(ia), &tb = b.tensors(ib);
  const std::vector<float> sa = read_floats(a.file(), ta.scale), sb = read_floats(b.file(), tb.scale);
  const std::vector<float> za = read_floats(a.file(), ta.zero_point), zb = read_floats(b.file(), tb.zero_point);
  const std::vector<float> ba = read_floats(a.file(), ta.bias), bb = read_floats(b.file(), tb.bias);
  for (std::uint64_t r = 0; r < rows; ++r) {
    out.scales_changed += !same_bits(sa[r], sb[r]);
    out.zero_points_changed += !same_bits(za[r], zb[r]);
    const double ratio = static_cast<double>(sa[r]) / static_cast<double>(sb[r]);  // both positive: checked at open
    out.scale_ratio = std::max({out.scale_ratio, ratio, 1 / ratio});
    if (ba.empty() || bb.empty()) continue;
    out.biases_changed += !same_bits(ba[r], bb[r]);
    out.max_bias_difference = std::max(out.max_bias_difference, std::fabs(static_cast<double>(ba[r]) - static_cast<double>(bb[r])));
  }

  Rows ra(a, ia), rb(b, ib);
  const std::uint64_t step = std::max<std::uint64_t>(1, chunk_bytes / std::max(ra.padded, rb.padded));
  double squares = 0, size = 0;
  for (std::uint64_t first = 0; first < rows && !stop; first += step) {
    const std::uint64_t count = std::min(step, rows - first);
    ra.read(first, count);
    rb.read(first, count);
    for (std::uint64_t r = 0; r < count; ++r) {
      const std::int8_t *qa = ra.codes.data() + r * ra.padded, *qb = rb.codes.data() + r * rb.padded;
      const double scale_a = static_cast<double>(sa[first + r]), scale_b = static_cast<double>(sb[first + r]);
      const bool same_row = scale_a == scale_b && std::memcmp(qa, qb, columns) == 0;
      std::int64_t sum = 0;  // of squared codes: at most 127^2 * 2^40
      for (std::uint64_t k = 0; k < columns; ++k) {
        sum += static_cast<std::int64_t>(qb[k]) * qb[k];
        if (same_row) continue;
        const int difference = std::abs(qa[k] - qb[k]);
        out.codes_changed += difference != 0;
        out.max_code_difference = std::max(out.max_code_difference, difference);
        const double d = qa[k] * scale_a - qb[k] * scale_b;
        squares += d * d;
      }
      size += static_cast<double>(sum) * scale_b * scale_b;
    }
    done += count * ra.padded;
  }
  out.codes = rows * columns;
  out.relative_l2 = squares == 0 ? 0 : size == 0 ? INFINITY : std::sqrt(squares / size);
  out.compared = true;
  out.same = out.pad_k_a == out.pad_k_b && out.bias_a == out.bias_b && !out.codes_changed && !out.scales_changed &&
             !out.zero_points_changed && !out.biases_changed;
}

void add_fields(const Slab& a, const Slab& b, SlabDiff& diff) {
  const auto field = [&](const char* name, const std::string& x, const std::string& y, bool counts = true) {
    if (x != y) diff.fields.push_back({name, x, y, counts});
  };
  field("model_signature", a.manifest().model_signature, b.manifest().model_signature);
  field("architecture_id", a.manifest().architecture_id, b.manifest().architecture_id);
  field("layer_count", std::to_string(a.layer_count()), std::to_string(b.layer_count()));
  field("companion", a.companion() ? "present" : "absent", b.companion() ? "present" : "absent");
  if (!a.companion() || !b.companion()) return;
  field("squareq.architecture", a.companion()->architecture_json, b.companion()->architecture_json);
  field("squareq.source", a.companion()->source_json, b.companion()->source_json, false);
}

std::vector<LayerDiff> layer_list(const Slab& a, const Slab& b) {
  std::map<std::string, LayerDiff> layers;
  for (std::size_t i = 0; i < a.layer_count(); ++i) {
    const ManifestLayer& l = a.layer(i);
    LayerDiff& d = layers[l.canonical_name];
    d.where = Where::only_a;
    d.shape_a = l.orig_shape, d.pad_k_a = l.pad_k, d.bias_a = l.bias_key.has_value();
  }
  for (std::size_t i = 0; i < b.layer_count(); ++i) {
    const ManifestLayer& l = b.layer(i);
    LayerDiff& d = layers[l.canonical_name];
    d.where = a.find_layer(l.canonical_name) ? Where::both : Where::only_b;
    d.shape_b = l.orig_shape, d.pad_k_b = l.pad_k, d.bias_b = l.bias_key.has_value();
  }
  std::vector<LayerDiff> list;
  for (auto& [name, d] : layers) {
    d.name = name;
    list.push_back(std::move(d));
  }
  return list;
}

nlohmann::ordered_json number(double v) {
  if (std::isnan(v)) return "NaN";
  if (std::isinf(v)) return "Infinity";
  return v;
}

nlohmann::ordered_json layer_json(const LayerDiff& l) {
  nlohmann::ordered_json entry = {{"name", printable(l.name, 512)}};
  if (l.where != Where::both) {
    entry["only_in"] = l.where == Where::only_a ? "a" : "b";
    entry["shape"] = l.where == Where::only_a ? l.shape_a : l.shape_b;
    return entry;
  }
  entry["shape"] = {l.shape_a, l.shape_b};
  entry["pad_k"] = {l.pad_k_a, l.pad_k_b};
  entry["bias"] = {l.bias_a, l.bias_b};
  entry["compared"] = l.compared;
  if (!l.compared) return entry;
  entry["codes"] = l.codes;
  entry["codes_changed"] = l.codes_changed;
  entry["max_code_difference"] = l.max_code_difference;
  entry["scales_changed"] = l.scales_changed;
  entry["scale_ratio"] = number(l.scale_ratio);
  entry["zero_points_changed"] = l.zero_points_changed;
  entry["relative_l2"] = number(l.relative_l2);
  entry["biases_changed"] = l.biases_changed;
  entry["max_bias_difference"] = number(l.max_bias_difference);
  return entry;
}

}  // namespace

bool SlabDiff::same() const {
  return std::none_of(fields.begin(), fields.end(), [](const FieldDiff& f) { return f.counts; }) &&
         std::all_of(layers.begin(), layers.end(), [](const LayerDiff& l) { return l.same; }) &&
         std::all_of(companion.begin(), companion.end(), [](const TensorComparison& t) { return t.same; });
}

SlabDiff diff_slabs(const Slab& a, const Slab& b, const DiffOptions& options) {
  SlabDiff diff;
  add_fields(a, b, diff);
  diff.layers = layer_list(a, b);

  std::uint64_t total = 0;
  for (const LayerDiff& l : diff.layers)
    if (const auto i = a.find_layer(l.name); i && l.shape_a == l.shape_b) total += a.tensors(*i).qweight->bytes();
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stop{false};
  bool interrupted = false;
  std::mutex mutex;
  std::string current;
  const auto task = [&](std::size_t, std::size_t index) {
    LayerDiff& l = diff.layers[index];
    if (l.where != Where::both || l.shape_a != l.shape_b) return;
    {
      const std::lock_guard lock(mutex);
      current = l.name;
    }
    diff_layer(a, *a.find_layer(l.name), b, *b.find_layer(l.name), l, done, stop);
  };
  const auto tick = [&] {
    if (options.cancelled && *options.cancelled && !stop.exchange(true)) interrupted = true;
    const std::lock_guard lock(mutex);
    if (options.progress) options.progress(done, total, printable(current));
  };
  const unsigned cores = options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  Workers::run(std::min<std::size_t>(cores, std::max<std::size_t>(diff.layers.size(), 1)), diff.layers.size(), stop, task, tick);
  if (interrupted) throw Error(Code::IO_INTERRUPTED, "interrupted");
  a.file().check_unchanged();
  b.file().check_unchanged();
  if (a.companion() && b.companion()) {
    CompareOptions exact;
    exact.threads = options.threads;
    exact.cancelled = options.cancelled;
    diff.companion = compare_files(a.paths().companion, b.paths().companion, exact).tensors;
  }
  return diff;
}

nlohmann::ordered_json diff_json(const SlabDiff& diff) {
  using Json = nlohmann::ordered_json;
  Json answer = {{"ok", diff.same()},       {"fields", Json::array()}, {"layers_same", 0},
                 {"layers", Json::array()}, {"companion_same", 0},     {"companion", Json::array()}};
  const auto text = [](const std::string& t) { return t.empty() ? Json(nullptr) : Json(printable(t, 4096)); };
  for (const FieldDiff& f : diff.fields)
    answer["fields"].push_back({{"name", f.name}, {"a", text(f.a)}, {"b", text(f.b)}, {"counts", f.counts}});
  std::size_t same = 0;
  for (const LayerDiff& l : diff.layers) {
    if (l.same)
      ++same;
    else
      answer["layers"].push_back(layer_json(l));
  }
  answer["layers_same"] = same;
  Comparison companion;
  for (const TensorComparison& t : diff.companion)
    if (!t.same) companion.tensors.push_back(t);
  answer["companion_same"] = diff.companion.size() - companion.tensors.size();
  answer["companion"] = comparison_json(companion)["tensors"];
  return answer;
}

}  // namespace squareq
