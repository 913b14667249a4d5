// Pictures from prompts: Euler integration of the flow from noise (t = 1) to data (t = 0) through the same streamed weights.
#pragma once

#include <torch/types.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/training/model.hpp"

namespace squareq::training {

struct EulerOptions {
  std::int64_t steps = 28;
  double guidance = 3.0;  ///< models with guidance embedding: their input. Others: v0 + guidance (v_text - v0), 1 = the caption alone
  double mu = 0.0;        ///< resolution shift of the schedule; 0: equal steps
  const std::atomic<bool>* stop = nullptr;          ///< set: IO_INTERRUPTED after the current step
  std::function<void(std::int64_t done)> progress;  ///< after every step
};

/// noise [B, tokens, channels] F32, text [B, T, D], pooled [B, P] -> latents [B, tokens, channels] F32. The empty caption of guidance
/// is all zeros. No gradients.
torch::Tensor euler_sample(Transformer& model, const torch::Tensor& noise, const torch::Tensor& text, const torch::Tensor& pooled,
                           const torch::Tensor& img_ids, const EulerOptions& options);

struct SampleOptions {
  std::filesystem::path prompts;  ///< cache with encoder_hidden_states and pooled_projections; `noise` where it has it
  std::int64_t first = 0;         ///< first prompt
  std::int64_t count = 0;         ///< prompts; 0: all that follow
  std::int64_t batch = 8;         ///< pictures per pass
  std::int64_t steps = 28;
  double guidance = 3.0;
  std::optional<double> mu;  ///< default: FLUX.1's shift for models with guidance embedding, else none
  std::uint64_t seed = 0;    ///< noise where the cache has none, or `fresh_noise`
  bool fresh_noise = false;
  std::int64_t height = 0, width = 0;  ///< token grid; both 0: square. Needed where the cache has neither noise nor latents
  std::string decoder = "auto";
  std::filesystem::path out;  ///< folder: latents.safetensors, NNNN.png, sheet.png
  std::int64_t columns = 8;   ///< of the sheet
  const std::atomic<bool>* stop = nullptr;
  std::function<void(std::uint64_t done, std::uint64_t total, std::string_view what)> progress;
};

struct SampleReport {
  std::int64_t pictures = 0;
  bool decoded = false;  ///< PNGs were written; else latents alone
  std::vector<std::string> files;
  double wall_seconds = 0;
};

/// Draws and writes. The files of `out` are written at the end, each atomically.
SampleReport sample(Transformer& model, const SampleOptions& options);

}  // namespace squareq::training
