// How two slabs differ: manifest fields, layers, and how far their numbers are apart. Behind `squareq diff`.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "squareq/slab/compare.hpp"
#include "squareq/slab/slab.hpp"

namespace squareq {

struct DiffOptions {
  unsigned threads = 0;                          ///< 0: all cores; each holds two chunks of rows of at most 4 MiB
  const std::atomic<bool>* cancelled = nullptr;  ///< set: IO_INTERRUPTED
  Progress progress;                             ///< bytes of codes of the first slab
};

/// One layer. Where both slabs have it with the same [out, in], the numbers are compared, whatever the padding.
struct LayerDiff {
  std::string name;
  Where where = Where::both;
  std::array<std::uint64_t, 2> shape_a{}, shape_b{};
  std::uint64_t pad_k_a = 0, pad_k_b = 0;
  bool bias_a = false, bias_b = false;
  bool compared = false, same = false;

  std::uint64_t codes = 0, codes_changed = 0;  ///< without padding columns
  int max_code_difference = 0;
  std::uint64_t scales_changed = 0, zero_points_changed = 0;  ///< rows; zero points bit for bit, so that -0 is told from 0
  double scale_ratio = 1;                                     ///< largest of a/b and b/a over all rows
  double relative_l2 = 0;                                     ///< ||Wa - Wb|| / ||Wb|| of W = q s in float64; infinite for Wb = 0 != Wa
  std::uint64_t biases_changed = 0;
  double max_bias_difference = 0;
};

/// A value that stands in both with different texts; empty where one has none.
struct FieldDiff {
  std::string name, a, b;
  bool counts = true;  ///< false: says where the numbers came from, not what they are
};

struct SlabDiff {
  std::vector<FieldDiff> fields;            ///< only those that differ
  std::vector<LayerDiff> layers;            ///< all, by name
  std::vector<TensorComparison> companion;  ///< all tensors of both companions, by name; bit for bit
  bool same() const;
};

/// Throws IO_*. Both slabs are open and therefore checked.
SlabDiff diff_slabs(const Slab& a, const Slab& b, const DiffOptions& options = {});

/// {"ok", "fields": [...], "layers": [...], "companion": [...]}; layers and tensors that are the same are only counted.
nlohmann::ordered_json diff_json(const SlabDiff& diff);

}  // namespace squareq
