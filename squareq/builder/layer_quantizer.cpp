#include "squareq/builder/layer_quantizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "squareq/builder/floats.hpp"
#include "squareq/slab/digest.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

/// The element that makes a chunk of rows unusable. Rows are counted from `first_row`, the chunk's place in the layer.
[[noreturn]] void refuse_weight(const LinearSource& source, const void* data, std::uint64_t first_row, std::uint64_t rows,
                                const std::string& file) {
  const std::uint64_t columns = source.in();
  for (std::uint64_t r = 0; r < rows; ++r) {
    std::uint64_t largest = 0;
    float amax = 0;
    for (std::uint64_t c = 0; c < columns; ++c) {
      const float w = load_float(data, source.weight->dtype, r * columns + c), a = std::fabs(w);
      const auto where = [&](std::uint64_t column) {
        return "layer " + source.name + ", row " + std::to_string(first_row + r) + ", column " + std::to_string(column);
      };
      if (!std::isfinite(a))
        throw Error(Code::DT_WEIGHT_NONFINITE,
                    where(c) + ": weight is " +
                        (std::isnan(a) ? "NaN"
                         : w > 0       ? "+infinity in fp32"
                                       : "-infinity in fp32"),
                    file, source.name, source.weight->name);
      if (a > amax) amax = a, largest = c;
      if (c + 1 == columns && !std::isfinite(std::max(amax / 127.0f, 1e-8f) * 127.0f))
        throw Error(Code::DT_WEIGHT_NONFINITE,
                    where(largest) + ": |weight| " + std::to_string(amax) + " is so large that 127 * scale overflows fp32", file,
                    source.name, source.weight->name);
    }
  }
  throw Error(Code::INTERNAL,
              "layer " + source.name + ": the backend refused rows " + std::to_string(first_row) + " to " +
                  std::to_string(first_row + rows - 1) + ", which hold no weight that is not finite",
              file, source.name);
}

}  // namespace

JournalEntry LayerQuantizer::run(const LinearSource& source, const ManifestLayer& layer) {
  share_.checkpoint.check_unchanged(*source.weight);
  const std::uint64_t row_bytes = source.weight->bytes / source.out();
  const std::uint64_t step = std::max<std::uint64_t>(1, chunk_bytes_ / row_bytes);
  scale_.assign(source.out(), 0.0f);
  zero_point_.assign(source.out(), 0.0f);

  JournalEntry entry;
  Xxh3 codes_digest;
  for (std::uint64_t row = 0; row < source.out(); row += step) {
    if (share_.stop) throw Stopped{};
    const std::uint64_t rows = std::min(step, source.out() - row);
    weights_.resize(rows * row_bytes);
    codes_.resize(rows * layer.packed_shape[1]);
    share_.checkpoint.read(*source.weight, row * row_bytes, weights_.data(), weights_.size());
    share_.checkpoint.prefetch(*source.weight, (row + rows) * row_bytes, chunk_bytes_);  // read while this chunk is computed
    quantize_rows(source, layer, row, rows, entry);
    codes_digest.update(codes_.data(), codes_.size());
    share_.slab.write(layer.qweight_key, row * layer.packed_shape[1], codes_.data(), codes_.size());
    share_.done += weights_.size();
  }
  entry.digests = {codes_digest.digest(), xxh3(scale_.data(), scale_.size() * 4), xxh3(zero_point_.data(), zero_point_.size() * 4)};
  share_.slab.write(layer.scale_key, 0, scale_.data(), scale_.size() * 4);
  share_.slab.write(layer.zero_point_key, 0, zero_point_.data(), zero_point_.size() * 4);
  if (source.bias) write_bias(source, layer, entry);
  return entry;
}

void LayerQuantizer::quantize_rows(const LinearSource& source, const ManifestLayer& layer, std::uint64_t first_row, std::uint64_t rows,
                                   JournalEntry& entry) {
  const auto n = static_cast<std::int64_t>(rows);
  const sq_tensor w = make_tensor(weights_.data(), *to_sq_dtype(source.weight->dtype), {n, static_cast<std::int64_t>(source.in())});
  const sq_part out[] = {{"qweight", make_tensor(codes_.data(), SQ_I8, {n, static_cast<std::int64_t>(layer.packed_shape[1])})},
                         {"scale", make_tensor(scale_.data() + first_row, SQ_F32, {n})},
                         {"zero_point", make_tensor(zero_point_.data() + first_row, SQ_F32, {n})}};
  std::uint64_t floored = 0;
  auto args = sized<sq_quantize_args>();
  args.pack_k = static_cast<std::uint32_t>(layer.pad_k);
  args.format = "bp8_v2";
  args.name = source.name.c_str();
  args.w = &w;
  args.out = out;
  args.out_count = 3;
  args.floored_rows = &floored;
  const std::string file = share_.checkpoint.files()[source.weight->file].path().string();
  try {
    call(backend_.linear().quantize, backend_, args);
  } catch (const Error& e) {
    if (e.code() == Code::DT_WEIGHT_NONFINITE) refuse_weight(source, weights_.data(), first_row, rows, file);
    throw;
  }
  for (std::uint64_t r = first_row; r < first_row + rows; ++r)
    if (!(scale_[r] > 0) || !std::isfinite(scale_[r] * 127.0f)) refuse_weight(source, weights_.data(), first_row, rows, file);
  entry.floored_rows += floored;
}

void LayerQuantizer::write_bias(const LinearSource& source, const ManifestLayer& layer, JournalEntry& entry) {
  std::vector<std::byte> raw(source.bias->bytes);
  share_.checkpoint.read(*source.bias, 0, raw.data(), raw.size());
  std::vector<float> bias(source.out());
  for (std::uint64_t i = 0; i < bias.size(); ++i) {
    bias[i] = load_float(raw.data(), source.bias->dtype, i);
    if (!std::isfinite(bias[i]))
      throw Error(Code::DT_BIAS_NONFINITE, "layer " + source.name + ", row " + std::to_string(i) + ": bias is not finite in fp32",
                  share_.checkpoint.files()[source.bias->file].path().string(), source.name, source.bias->name);
  }
  share_.slab.write(*layer.bias_key, 0, bias.data(), bias.size() * 4);
  entry.digests.push_back(xxh3(bias.data(), bias.size() * 4));
  share_.done += raw.size();
}

bool LayerQuantizer::holds(const ManifestLayer& layer, const JournalEntry& entry) const {
  std::vector<std::string> keys = {layer.qweight_key, layer.scale_key, layer.zero_point_key};
  if (layer.bias_key) keys.push_back(*layer.bias_key);
  if (entry.digests.size() != keys.size()) return false;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (share_.stop) throw Stopped{};
    if (share_.slab.digest(share_.slab.index(keys[i])) != entry.digests[i]) return false;
  }
  return true;
}

}  // namespace squareq
