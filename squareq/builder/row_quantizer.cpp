#include "squareq/builder/row_quantizer.hpp"

#include <algorithm>
#include <cmath>

#include "squareq/slab/floats.hpp"
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

Context one_thread_context(const Implementation& implementation) {
  auto host = sized<sq_host>();
  host.threads = 1;
  host.deterministic = 1;
  return Context(implementation, host);
}

std::uint64_t RowQuantizer::run(const Checkpoint& checkpoint, const LinearSource& source, const ManifestLayer& layer,
                                std::uint64_t first_row, std::uint64_t rows, const QuantizedRows& out) {
  const std::uint64_t row_bytes = source.weight->bytes / source.out();
  weights_.resize(rows * row_bytes);
  checkpoint.read(*source.weight, first_row * row_bytes, weights_.data(), weights_.size());
  checkpoint.prefetch(*source.weight, (first_row + rows) * row_bytes, weights_.size());  // read while these rows are computed
  const auto n = static_cast<std::int64_t>(rows);
  const sq_tensor w = make_tensor(weights_.data(), *to_sq_dtype(source.weight->dtype), {n, static_cast<std::int64_t>(source.in())});
  const sq_part parts[] = {{"qweight", make_tensor(out.codes, SQ_I8, {n, static_cast<std::int64_t>(layer.packed_shape[1])})},
                           {"scale", make_tensor(out.scale, SQ_F32, {n})},
                           {"zero_point", make_tensor(out.zero_point, SQ_F32, {n})}};
  std::uint64_t floored = 0;
  auto args = sized<sq_quantize_args>();
  args.pack_k = static_cast<std::uint32_t>(layer.pad_k);
  args.format = "bp8_v2";
  args.name = source.name.c_str();
  args.w = &w;
  args.out = parts;
  args.out_count = 3;
  args.floored_rows = &floored;
  const std::string file = checkpoint.files()[source.weight->file].path().string();
  try {
    call(backend_.linear().quantize, backend_, args);
  } catch (const Error& e) {
    if (e.code() == Code::DT_WEIGHT_NONFINITE) refuse_weight(source, weights_.data(), first_row, rows, file);
    throw;
  }
  for (std::uint64_t r = 0; r < rows; ++r)
    if (!(out.scale[r] > 0) || !std::isfinite(out.scale[r] * 127.0f)) refuse_weight(source, weights_.data(), first_row, rows, file);
  return floored;
}

std::vector<float> read_bias(const Checkpoint& checkpoint, const LinearSource& source) {
  std::vector<std::byte> raw(source.bias->bytes);
  checkpoint.read(*source.bias, 0, raw.data(), raw.size());
  std::vector<float> bias(source.out());
  for (std::uint64_t i = 0; i < bias.size(); ++i) {
    bias[i] = load_float(raw.data(), source.bias->dtype, i);
    if (!std::isfinite(bias[i]))
      throw Error(Code::DT_BIAS_NONFINITE, "layer " + source.name + ", row " + std::to_string(i) + ": bias is not finite in fp32",
                  checkpoint.files()[source.bias->file].path().string(), source.name, source.bias->name);
  }
  return bias;
}

}  // namespace squareq
