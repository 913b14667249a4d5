// LoRA files: kohya (ComfyUI, WebUIs, diffusers), PEFT (diffusers) and ComfyUI's native naming, written and read (spec/85-training.md).
// No torch here: an adapter is two float matrices and a number.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/slab/dtype.hpp"
#include "squareq/training/lora/names.hpp"

namespace squareq::training {

/// Delta W = alpha / rank * up @ down. `layer` is a diffusers name or, for an adapter that spans a fused module and does not split
/// into its layers, the native name.
struct LoraLayer {
  std::string layer;
  double alpha = 0;
  std::int64_t rank = 0, in = 0, out = 0;
  std::vector<float> down;  ///< A^T [rank, in]
  std::vector<float> up;    ///< B^T [out, rank]

  double scaling() const { return alpha / static_cast<double>(rank); }
};

enum class LoraFormat { kohya, peft, comfy };

/// "kohya", "peft" or "comfy"; anything else is CFG_VALUE.
LoraFormat parse_lora_format(std::string_view name);

struct LoraWriteOptions {
  LoraFormat format = LoraFormat::kohya;
  FileDtype dtype = FileDtype::F32;             ///< of the matrices (F32, BF16, F16); .alpha is always F32
  std::string title;                            ///< modelspec.title; default: the file's stem
  std::string resolution;                       ///< modelspec.resolution, "1024x1024"; empty: left out
  std::map<std::string, std::string> metadata;  ///< further header entries; win over ours
};

/// Writes atomically. kohya and comfy: layers of one fused module become one adapter of the summed rank, down stacked and up
/// block-diagonal, alpha scaled so that alpha / rank stays (SQ-TRN-031). PEFT: an adapter of a fused module is written once per layer.
/// Throws LR_KEY (no such layer in the model), LR_SHAPE, NUM_NONFINITE (a value is not finite; the old file stays), CALL_VALUE (dtype)
/// and IO codes.
void write_lora(const std::filesystem::path& path, const std::vector<LoraLayer>& layers, const LoraNames& names,
                const LoraWriteOptions& options = {});

/// Reads any of the formats, also mixed in one file; result ordered by layer name. A fused adapter whose up matrix is block-diagonal comes
/// back as its layers' own adapters, any other keeps its module. alpha: the `.alpha` tensor, else the header's lora_adapter_metadata, else
/// (and where 0) the rank.
/// Throws one Error that lists every LR_KEY, LR_SHAPE and LR_PAIR of the file; NUM_NONFINITE; ST and IO codes of the container.
std::vector<LoraLayer> read_lora(const std::filesystem::path& path, const LoraNames& names);

}  // namespace squareq::training
