#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "squareq/slab/check.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t piece_elements = 1u << 18;
constexpr float fp16_max = 65504.0f;

struct RowFault {
  std::uint64_t rows = 0, first = 0;
  float value = 0;
  void note(std::uint64_t row, float v) {
    if (rows++ == 0) {
      first = row;
      value = v;
    }
  }
};

// Calls see(row, value) for every element of an F32 vector, read in pieces.
template <typename See>
void each_element(const SafetensorsFile& slab, const TensorRecord& tensor, See see) {
  const std::uint64_t elements = tensor.bytes() / sizeof(float);
  std::vector<float> piece(static_cast<std::size_t>(std::min(elements, piece_elements)));
  for (std::uint64_t at = 0; at < elements; at += piece.size()) {
    const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), elements - at));
    slab.read(tensor, at * sizeof(float), piece.data(), n * sizeof(float));
    for (std::size_t i = 0; i < n; ++i) see(at + i, piece[i]);
  }
}

class LayerNumbers {
 public:
  LayerNumbers(const ManifestLayer& layer, const SafetensorsFile& slab, Report& report)
      : layer_(layer), slab_(slab), file_(slab.path().string()), report_(report) {}

  void scale(const TensorRecord& t) {
    RowFault nonfinite, nonpositive, range, fp16, subnormal;
    each_element(slab_, t, [&](std::uint64_t row, float s) {
      // One comparison for the common case: a normal scale whose 127-fold fits fp16.
      if (s >= std::numeric_limits<float>::min() && 127.0f * s <= fp16_max) return;
      if (!std::isfinite(s)) nonfinite.note(row, s);
      else if (s <= 0.0f) nonpositive.note(row, s);
      else if (s < std::numeric_limits<float>::min()) subnormal.note(row, s);
      else if (!std::isfinite(127.0f * s)) range.note(row, s);
      else fp16.note(row, s);
    });
    tell(Code::DT_SCALE_NONFINITE, nonfinite, t, "is not finite");
    tell(Code::DT_SCALE_NONPOS, nonpositive, t, "is not positive");
    tell(Code::DT_SCALE_RANGE, range, t, "is so large that 127 times it overflows");
    tell(Code::DT_SCALE_FP16, fp16, t, "is so large that 127 times it overflows fp16");
    tell(Code::DT_SCALE_SUBNORMAL, subnormal, t, "is subnormal");
  }

  void zero_point(const TensorRecord& t) {
    RowFault nonzero;
    each_element(slab_, t, [&](std::uint64_t row, float z) {
      if (!(z == 0.0f)) nonzero.note(row, z);
    });
    tell(Code::DT_ZP_NONZERO, nonzero, t, "is not 0");
  }

  void bias(const TensorRecord& t) {
    RowFault nonfinite;
    each_element(slab_, t, [&](std::uint64_t row, float b) {
      if (!std::isfinite(b)) nonfinite.note(row, b);
    });
    tell(Code::DT_BIAS_NONFINITE, nonfinite, t, "is not finite");
  }

 private:
  void tell(Code code, const RowFault& fault, const TensorRecord& t, const std::string& what) {
    if (fault.rows == 0) return;
    const std::string others = fault.rows > 1 ? " (and " + std::to_string(fault.rows - 1) + " more rows)" : "";
    report_.add(code, "row " + std::to_string(fault.first) + " of " + in_quotes(t.name) + " is " + std::to_string(fault.value) + ": it " + what + others, file_, layer_.canonical_name, t.name);
  }

  const ManifestLayer& layer_;
  const SafetensorsFile& slab_;
  const std::string file_;
  Report& report_;
};

}  // namespace

void check_numbers(const ManifestLayer& layer, const LayerTensors& tensors, const SafetensorsFile& slab, Report& report) {
  LayerNumbers numbers(layer, slab, report);
  if (tensors.scale) numbers.scale(*tensors.scale);
  if (tensors.zero_point) numbers.zero_point(*tensors.zero_point);
  if (tensors.bias) numbers.bias(*tensors.bias);
}

void CodeScan::Fault::note(std::uint64_t r, std::uint64_t c) {
  // Pieces may come in any order: the first place is the smallest.
  if (elements++ == 0 || r < row || (r == row && c < column)) {
    row = r;
    column = c;
  }
}

void CodeScan::feed(std::uint64_t offset, const std::int8_t* codes, std::size_t bytes) {
  for (const std::int8_t* p = codes; (p = static_cast<const std::int8_t*>(std::memchr(p, 0x80, bytes - static_cast<std::size_t>(p - codes)))) != nullptr;) {
    const std::uint64_t at = offset + static_cast<std::uint64_t>(p - codes);
    minimum_.note(at / columns_, at % columns_);
    if (static_cast<std::size_t>(++p - codes) == bytes) break;
  }
  if (used_ == columns_) return;
  for (std::uint64_t row = offset / columns_; row * columns_ < offset + bytes; ++row) {
    const std::uint64_t begin = std::max(row * columns_ + used_, offset), end = std::min((row + 1) * columns_, offset + bytes);
    for (std::uint64_t at = begin; at < end; ++at)
      if (codes[at - offset] != 0) padding_.note(row, at % columns_);
  }
}

void CodeScan::tell(const ManifestLayer& layer, const std::string& file, Report& report) const {
  const auto say = [&](Code code, const Fault& fault, const std::string& what) {
    if (fault.elements == 0) return;
    report.add(code, in_quotes(layer.qweight_key) + " of layer " + in_quotes(layer.canonical_name) + " " + what + " in row " + std::to_string(fault.row) + ", column " +
                         std::to_string(fault.column) + (fault.elements > 1 ? " (and " + std::to_string(fault.elements - 1) + " more)" : ""),
               file, layer.canonical_name, layer.qweight_key);
  };
  say(Code::DT_Q_MIN128, minimum_, "holds -128");
  say(Code::DT_PAD_NONZERO, padding_, "has a padding column that is not 0");
}

void check_codes(const ManifestLayer& layer, std::uint64_t first_row, std::uint64_t rows, const std::int8_t* codes, const std::string& file, Report& report) {
  CodeScan scan(layer);
  scan.feed(first_row * layer.packed_shape[1], codes, static_cast<std::size_t>(rows * layer.packed_shape[1]));
  scan.tell(layer, file, report);
}

}  // namespace squareq
