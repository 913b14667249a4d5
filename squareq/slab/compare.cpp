#include "squareq/slab/compare.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "squareq/slab/floats.hpp"
#include "squareq/slab/workers.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t piece_elements = 1u << 19;
constexpr std::uint64_t piece_bytes = 4u << 20;

bool is_wide(FileDtype t) { return t == FileDtype::I64 || t == FileDtype::U64; }

bool holds_numbers(FileDtype t) {
  switch (t) {
    case FileDtype::BOOL:
    case FileDtype::U8:
    case FileDtype::I8:
    case FileDtype::I16:
    case FileDtype::U16:
    case FileDtype::F16:
    case FileDtype::BF16:
    case FileDtype::I32:
    case FileDtype::U32:
    case FileDtype::F32:
    case FileDtype::F64:
    case FileDtype::I64:
    case FileDtype::U64: return true;
    default: return false;
  }
}

/// Element `index` as Real, which must hold the dtype's values exactly.
template <class Real>
Real load(const std::byte* data, FileDtype dtype, std::uint64_t index) {
  const auto get = [&]<class T>(T) {
    T value;
    std::memcpy(&value, data + index * sizeof(T), sizeof(T));
    return static_cast<Real>(value);
  };
  switch (dtype) {
    case FileDtype::BOOL:
    case FileDtype::U8: return get(std::uint8_t{});
    case FileDtype::I8: return get(std::int8_t{});
    case FileDtype::I16: return get(std::int16_t{});
    case FileDtype::U16: return get(std::uint16_t{});
    case FileDtype::I32: return get(std::int32_t{});
    case FileDtype::U32: return get(std::uint32_t{});
    case FileDtype::I64: return get(std::int64_t{});
    case FileDtype::U64: return get(std::uint64_t{});
    case FileDtype::F64: return get(double{});
    default: return static_cast<Real>(load_float(data, dtype, index));
  }
}

std::vector<std::uint64_t> index_of(std::uint64_t flat, const std::vector<std::uint64_t>& shape) {
  std::vector<std::uint64_t> index(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    index[i] = flat % shape[i];
    flat /= shape[i];
  }
  return index;
}

struct Shared {
  const SafetensorsFile &a, &b;
  const CompareOptions& options;
  std::atomic<std::uint64_t>& done;
  const std::atomic<bool>& stop;
};

/// Neither a difference of numbers nor one of dtypes: the bytes.
void compare_bytes(const Shared& s, const TensorRecord& a, const TensorRecord& b, TensorComparison& out) {
  std::vector<std::byte> x(std::min(piece_bytes, a.bytes())), y(x.size());
  for (std::uint64_t at = 0; at < a.bytes() && !s.stop; at += piece_bytes) {
    const std::uint64_t bytes = std::min(piece_bytes, a.bytes() - at);
    s.a.read(a, at, x.data(), bytes);
    s.b.read(b, at, y.data(), bytes);
    for (std::uint64_t i = 0; i < bytes; ++i) out.beyond += x[i] != y[i];
    s.done += bytes;
  }
}

template <class Real>
void compare_numbers(const Shared& s, const TensorRecord& a, const TensorRecord& b, TensorComparison& out) {
  const std::uint64_t size_a = dtype_bits(a.dtype) / 8, size_b = dtype_bits(b.dtype) / 8, total = a.elements();
  const bool exact = s.options.rtol == 0 && s.options.atol == 0, same_dtype = a.dtype == b.dtype;
  std::vector<std::byte> x(std::min(piece_elements, total) * size_a), y(std::min(piece_elements, total) * size_b);
  Real squares = 0, scale = 0, largest = -1;
  double farthest = -1;
  std::uint64_t worst = 0;
  for (std::uint64_t at = 0; at < total && !s.stop; at += piece_elements) {
    const std::uint64_t count = std::min(piece_elements, total - at);
    s.a.read(a, at * size_a, x.data(), count * size_a);
    s.b.read(b, at * size_b, y.data(), count * size_b);
    s.done += count * size_a;
    for (std::uint64_t i = 0; i < count; ++i) {
      const Real va = load<Real>(x.data(), a.dtype, i), vb = load<Real>(y.data(), b.dtype, i);
      out.nan_a += std::isnan(va), out.nan_b += std::isnan(vb);
      out.inf_a += std::isinf(va), out.inf_b += std::isinf(vb);
      const bool finite = std::isfinite(va) && std::isfinite(vb);
      double distance = 0;  // how far out, for the worst element
      bool good = true;
      if (!finite) {
        good = va == vb || (std::isnan(va) && std::isnan(vb));
        if (!good) ++out.nonfinite_differ, distance = INFINITY;
      } else {
        const Real difference = std::fabs(va - vb);
        squares += difference * difference;
        scale += vb * vb;
        largest = std::max(largest, difference);
        const Real allowed = static_cast<Real>(s.options.atol) + static_cast<Real>(s.options.rtol) * std::fabs(vb);
        good = difference <= allowed;
        distance = static_cast<double>(allowed > 0 ? difference / allowed : difference);
      }
      // Bit for bit: zeros of either sign and NaNs of any payload are told apart.
      if (exact && same_dtype && good) good = std::memcmp(x.data() + i * size_a, y.data() + i * size_b, size_a) == 0;
      out.beyond += !good;
      if ((!good || distance > 0) && distance > farthest) {
        farthest = distance;
        worst = at + i;
        out.has_worst = true;
        out.worst_a = static_cast<double>(va), out.worst_b = static_cast<double>(vb);
      }
    }
  }
  out.max_abs = static_cast<double>(std::max<Real>(largest, 0));
  out.relative_l2 = squares == 0 ? 0 : scale == 0 ? INFINITY : static_cast<double>(std::sqrt(squares / scale));
  if (out.has_worst) out.worst = index_of(worst, a.shape);
}

void compare_tensor(const Shared& s, const TensorRecord& a, const TensorRecord& b, TensorComparison& out) {
  if (a.shape != b.shape) {
    s.done += a.bytes();
    return;
  }
  const bool dtypes_good = a.dtype == b.dtype || s.options.any_dtype;
  out.elements = a.elements();
  if (holds_numbers(a.dtype) && holds_numbers(b.dtype)) {
    out.compared = true;
    if (is_wide(a.dtype) || is_wide(b.dtype))
      compare_numbers<long double>(s, a, b, out);
    else
      compare_numbers<double>(s, a, b, out);
    out.same = dtypes_good && out.beyond == 0;
  } else if (a.dtype == b.dtype) {
    compare_bytes(s, a, b, out);
    out.same = out.beyond == 0;
  } else {
    s.done += a.bytes();
  }
}

nlohmann::ordered_json number(double v) {
  if (std::isnan(v)) return "NaN";
  if (std::isinf(v)) return v > 0 ? "Infinity" : "-Infinity";
  return v;
}

}  // namespace

bool Comparison::same() const { return differing() == 0; }

std::size_t Comparison::differing() const {
  return static_cast<std::size_t>(std::count_if(tensors.begin(), tensors.end(), [](const TensorComparison& t) { return !t.same; }));
}

Comparison compare_files(const std::filesystem::path& path_a, const std::filesystem::path& path_b, const CompareOptions& options) {
  for (const auto& [name, value] : {std::pair("rtol", options.rtol), std::pair("atol", options.atol)})
    if (!(value >= 0) || !std::isfinite(value))
      throw Error(Code::CFG_VALUE, std::string(name) + " is " + std::to_string(value) + ", expected a number of at least 0");
  const SafetensorsFile a = SafetensorsFile::open(path_a), b = SafetensorsFile::open(path_b);

  Comparison result;
  std::uint64_t total = 0;
  std::map<std::string, std::pair<const TensorRecord*, const TensorRecord*>> pairs;
  for (const TensorRecord& t : a.header().tensors) pairs[t.name].first = &t;
  for (const TensorRecord& t : b.header().tensors) pairs[t.name].second = &t;
  for (const auto& [name, pair] : pairs) {
    TensorComparison t;
    t.name = name;
    t.where = !pair.second ? Where::only_a : !pair.first ? Where::only_b : Where::both;
    t.same = t.where != Where::both && options.common_only;
    if (pair.first) t.dtype_a = dtype_name(pair.first->dtype), t.shape_a = pair.first->shape;
    if (pair.second) t.dtype_b = dtype_name(pair.second->dtype), t.shape_b = pair.second->shape;
    if (t.where == Where::both) total += pair.first->bytes();
    result.tensors.push_back(std::move(t));
  }

  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stop{false};
  bool interrupted = false;
  std::mutex mutex;
  std::string current;
  const Shared shared{a, b, options, done, stop};
  const auto task = [&](std::size_t, std::size_t index) {
    TensorComparison& t = result.tensors[index];
    if (t.where != Where::both) return;
    {
      const std::lock_guard lock(mutex);
      current = t.name;
    }
    const auto& [record_a, record_b] = pairs.at(t.name);
    compare_tensor(shared, *record_a, *record_b, t);
  };
  const auto tick = [&] {
    if (options.cancelled && *options.cancelled && !stop.exchange(true)) interrupted = true;
    const std::lock_guard lock(mutex);
    if (options.progress) options.progress(done, total, printable(current));
  };
  const unsigned cores = options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  Workers::run(std::min<std::size_t>(cores, std::max<std::size_t>(result.tensors.size(), 1)), result.tensors.size(), stop, task, tick);
  if (interrupted) throw Error(Code::IO_INTERRUPTED, "interrupted");
  a.check_unchanged();
  b.check_unchanged();
  return result;
}

nlohmann::ordered_json comparison_json(const Comparison& comparison) {
  using Json = nlohmann::ordered_json;
  Json answer = {{"ok", comparison.same()}, {"differing", comparison.differing()}, {"tensors", Json::array()}};
  for (const TensorComparison& t : comparison.tensors) {
    Json entry = {{"name", printable(t.name, 512)}, {"same", t.same}};
    if (t.where != Where::both) {
      const bool a = t.where == Where::only_a;
      entry["only_in"] = a ? "a" : "b";
      entry["dtype"] = a ? t.dtype_a : t.dtype_b;
      entry["shape"] = a ? t.shape_a : t.shape_b;
      answer["tensors"].push_back(std::move(entry));
      continue;
    }
    entry["dtype"] = {t.dtype_a, t.dtype_b};
    entry["shape"] = {t.shape_a, t.shape_b};
    entry["elements"] = t.elements;
    entry["compared"] = t.compared ? "numbers" : t.shape_a == t.shape_b && t.dtype_a == t.dtype_b ? "bytes" : "no";
    entry["beyond"] = t.beyond;
    if (t.compared) {
      entry["nan"] = {t.nan_a, t.nan_b};
      entry["inf"] = {t.inf_a, t.inf_b};
      entry["nonfinite_differ"] = t.nonfinite_differ;
      entry["max_abs"] = number(t.max_abs);
      entry["relative_l2"] = number(t.relative_l2);
      entry["worst"] = nullptr;
      if (t.has_worst) entry["worst"] = {{"index", t.worst}, {"a", number(t.worst_a)}, {"b", number(t.worst_b)}};
    }
    answer["tensors"].push_back(std::move(entry));
  }
  return answer;
}

}  // namespace squareq
