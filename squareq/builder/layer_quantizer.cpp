#include "squareq/builder/layer_quantizer.hpp"

#include <algorithm>

#include "squareq/slab/digest.hpp"

namespace squareq {

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
    codes_.resize(rows * layer.packed_shape[1]);
    entry.floored_rows += rows_.run(share_.checkpoint, source, layer, row, rows, {codes_.data(), &scale_[row], &zero_point_[row]});
    codes_digest.update(codes_.data(), codes_.size());
    share_.slab.write(layer.qweight_key, row * layer.packed_shape[1], codes_.data(), codes_.size());
    share_.done += rows * row_bytes;
  }
  entry.digests = {codes_digest.digest(), xxh3(scale_.data(), scale_.size() * 4), xxh3(zero_point_.data(), zero_point_.size() * 4)};
  share_.slab.write(layer.scale_key, 0, scale_.data(), scale_.size() * 4);
  share_.slab.write(layer.zero_point_key, 0, zero_point_.data(), zero_point_.size() * 4);
  if (source.bias) write_bias(source, layer, entry);
  return entry;
}

void LayerQuantizer::write_bias(const LinearSource& source, const ManifestLayer& layer, JournalEntry& entry) {
  const std::vector<float> bias = read_bias(share_.checkpoint, source);
  share_.slab.write(*layer.bias_key, 0, bias.data(), bias.size() * 4);
  entry.digests.push_back(xxh3(bias.data(), bias.size() * 4));
  share_.done += source.bias->bytes;
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
