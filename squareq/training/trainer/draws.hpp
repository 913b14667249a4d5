// What chance decides in a training step: which rows, at which time, with which noise, which captions are dropped. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "squareq/training/trainer/timesteps.hpp"

namespace squareq::training {

/// The draws of one micro-batch of B samples.
struct Draws {
  std::vector<std::int64_t> rows;  ///< [B] of the data set
  std::vector<float> t;            ///< [B] sigma in [0, 1]
  std::vector<float> noise;        ///< [B, elements]
  std::vector<std::uint8_t> keep;  ///< [B] 0: the caption is dropped (zero embeddings)
};

/// Micro-batch `index` counts all micro-batches of a run: step * accumulation + micro. Any order of calls gives the same draws.
class DrawSource {
 public:
  virtual ~DrawSource() = default;
  virtual Draws draw(std::uint64_t index) const = 0;
};

struct SeededDrawsOptions {
  std::uint64_t seed = 0;
  std::int64_t rows = 0, batch = 0, elements = 0;
  TimestepOptions timesteps;
  double caption_dropout = 0;
};

/// Draws from the seed alone. Rows come in epochs: each is a permutation of the data set, so that every row is seen once before any
/// is seen twice.
std::unique_ptr<DrawSource> seeded_draws(const SeededDrawsOptions& options);

/// Debugging: draws from a file. Tensors `order` I64 [S, B], `timestep` F32 [S, B], `noise` F16 or F32 [S, B, ...] with `elements`
/// numbers per sample, `keep` U8 [S, B]. Throws DS_TENSOR, DS_SHAPE, DS_COUNT (fewer than `count` micro-batches); a
/// row outside the data set or a time outside [0, 1] is DS_SHAPE, before step 1.
std::unique_ptr<DrawSource> file_draws(const std::filesystem::path& path, std::int64_t rows, std::int64_t batch, std::int64_t elements,
                                       std::int64_t count);

}  // namespace squareq::training
