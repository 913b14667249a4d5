// A training or prompt set on disk: precomputed latents and text embeddings in safetensors files, captions in a JSON beside each.
// Rows are read when a batch needs them, so a set may be larger than memory. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "squareq/slab/safetensors.hpp"

namespace squareq::training {

/// Sizes of one row. A prompt set without start noise has tokens == channels == 0.
struct CacheShape {
  std::int64_t tokens = 0, channels = 0;       ///< latents [N, tokens, channels], or noise of the same shape
  std::int64_t text_tokens = 0, text_dim = 0;  ///< encoder_hidden_states [N, text_tokens, text_dim]
  std::int64_t pooled_dim = 0;                 ///< pooled_projections [N, pooled_dim]
  bool operator==(const CacheShape&) const = default;
};

enum class CacheUse {
  training,  ///< latents required
  prompts    ///< text only; `noise` [N, tokens, channels] or latents optional
};

/// Reads are thread-safe; movable.
class Cache {
 public:
  /// One or several files that agree in every size; rows are numbered through. F16, BF16 or F32 tensors; others in the file are
  /// ignored. `NAME.json` beside a file, where there is one, is a list of N captions (strings, or objects with "caption").
  /// Throws DS_TENSOR (a tensor is missing), DS_SHAPE (rank, dtype or a size differs from the other tensors' or files'; both named),
  /// DS_COUNT (no rows, or rows or captions differ in number), DS_CAPTIONS, and ST and IO codes of the container.
  static Cache open(const std::vector<std::filesystem::path>& files, CacheUse use = CacheUse::training);

  std::int64_t size() const { return rows_; }
  const CacheShape& shape() const { return shape_; }
  bool has_latents() const { return has_latents_; }
  bool has_noise() const { return has_noise_; }
  /// Empty when no file has captions.
  const std::vector<std::string>& captions() const { return captions_; }

  /// One row as float. NUM_NONFINITE (tensor and row named) where it holds NaN or infinity; CALL_VALUE for a row outside the set.
  void read_latents(std::int64_t row, float* out) const { read("latents", row, shape_.tokens * shape_.channels, out); }
  void read_noise(std::int64_t row, float* out) const { read("noise", row, shape_.tokens * shape_.channels, out); }
  void read_text(std::int64_t row, float* out) const { read("encoder_hidden_states", row, shape_.text_tokens * shape_.text_dim, out); }
  void read_pooled(std::int64_t row, float* out) const { read("pooled_projections", row, shape_.pooled_dim, out); }

  /// Throws DS_SHAPE naming cache and model where sizes do not fit: channels, text_dim, pooled_dim (0: not checked).
  void require_sizes(std::int64_t channels, std::int64_t text_dim, std::int64_t pooled_dim) const;

 private:
  struct Part {
    SafetensorsFile file;
    std::int64_t rows;
  };
  void read(const char* tensor, std::int64_t row, std::int64_t elements, float* out) const;

  std::vector<Part> parts_;
  std::int64_t rows_ = 0;
  CacheShape shape_;
  bool has_latents_ = false, has_noise_ = false;
  std::vector<std::string> captions_;
};

/// Token grid of a set: `height` x `width` as given (both 0: the square root of `tokens`). Throws DS_SHAPE where it does not hold exactly
/// `tokens`.
struct TokenGrid {
  std::int64_t height = 0, width = 0;
};
TokenGrid token_grid(std::int64_t tokens, std::int64_t height, std::int64_t width);

}  // namespace squareq::training
