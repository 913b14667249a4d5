// RGB pictures: from latents where a decoder is known, as PNG files (libpng), and many on one sheet. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/training/data/cache.hpp"

namespace squareq::training {

/// 8-bit RGB, row-major [height, width, 3].
struct Picture {
  std::int64_t height = 0, width = 0;
  std::vector<std::uint8_t> pixels;
};

enum class Decoder { none, rgb4x4 };

/// "rgb4x4" (48 channels: 4x4 pixels of R, G, B, no VAE), "none", or "auto": rgb4x4 for 48 channels, else none. CFG_VALUE otherwise,
/// and for rgb4x4 with another number of channels (both named).
Decoder choose_decoder(std::string_view name, std::int64_t channels);

/// One sample, latents [tokens, 48] with token n = width * h + w and feature 16 c + 4 ph + pw, values in [-1, 1] (clamped):
/// u8 = round((x + 1) * 127.5).
Picture decode_rgb4x4(const float* latents, const TokenGrid& grid);

/// Atomic. CALL_SHAPE where pixels and sizes disagree; IO codes.
void write_png(const std::filesystem::path& path, const Picture& picture);

/// A sheet of `columns` pictures a line on grey (200), `gap` pixels between and around them, each pixel `scale` x `scale`. All
/// pictures of one size (CALL_SHAPE).
Picture contact_sheet(const std::vector<Picture>& pictures, std::int64_t columns, std::int64_t scale = 2, std::int64_t gap = 2);

/// Several sets of the same subjects (truth, before, after) line by line: line 1 of each set, then line 2 of each, ... Sets must be
/// of one length (CALL_SHAPE).
std::vector<Picture> interleave(const std::vector<std::vector<Picture>>& sets, std::int64_t columns);

/// Decodes `latents` [N, tokens, channels] of a safetensors file, N at most `limit` (0: all). DS_TENSOR, DS_SHAPE; CFG_VALUE where no
/// decoder is known for that many channels.
std::vector<Picture> read_pictures(const std::filesystem::path& file, std::int64_t limit, std::int64_t height, std::int64_t width,
                                   std::string_view decoder = "auto");

}  // namespace squareq::training
