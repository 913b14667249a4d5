#include "squareq/training/sampling/picture.hpp"

#include <fmt/format.h>
#include <png.h>

#include <algorithm>
#include <cmath>

#include "squareq/error.hpp"
#include "squareq/slab/atomic_file.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/tensor_reader.hpp"

namespace squareq::training {

namespace {

constexpr std::int64_t rgb4x4_channels = 48;

/// The picture as PNG bytes (libpng's simplified API).
bool encode(const Picture& picture, std::string& out) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(picture.width);
  image.height = static_cast<png_uint_32>(picture.height);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t bytes = 0;
  if (!png_image_write_to_memory(&image, nullptr, &bytes, 0, picture.pixels.data(), 0, nullptr)) return false;
  out.resize(bytes);
  if (!png_image_write_to_memory(&image, out.data(), &bytes, 0, picture.pixels.data(), 0, nullptr)) return false;
  out.resize(bytes);
  return true;
}

}  // namespace

Decoder choose_decoder(std::string_view name, std::int64_t channels) {
  if (name == "none") return Decoder::none;
  if (name == "auto") return channels == rgb4x4_channels ? Decoder::rgb4x4 : Decoder::none;
  if (name != "rgb4x4") throw Error(Code::CFG_VALUE, fmt::format("decoder '{}' is none of auto, rgb4x4, none", printable(name)));
  if (channels != rgb4x4_channels)
    throw Error(Code::CFG_VALUE, fmt::format("decoder rgb4x4 takes {} channels, the latents have {}", rgb4x4_channels, channels));
  return Decoder::rgb4x4;
}

Picture decode_rgb4x4(const float* latents, const TokenGrid& grid) {
  Picture p{4 * grid.height, 4 * grid.width, {}};
  p.pixels.resize(static_cast<std::size_t>(p.height * p.width * 3));
  for (std::int64_t row = 0; row < p.height; ++row)
    for (std::int64_t column = 0; column < p.width; ++column)
      for (std::int64_t c = 0; c < 3; ++c) {
        const std::int64_t token = grid.width * (row / 4) + column / 4;
        const float x = std::clamp(latents[token * rgb4x4_channels + 16 * c + 4 * (row % 4) + column % 4], -1.0f, 1.0f);
        p.pixels[static_cast<std::size_t>((row * p.width + column) * 3 + c)] =
            static_cast<std::uint8_t>(std::nearbyint((x + 1.0f) * 127.5f));
      }
  return p;
}

void write_png(const std::filesystem::path& path, const Picture& picture) {
  const std::string shown = printable_path(path);
  constexpr std::int64_t limit = 1 << 20;
  if (picture.height < 1 || picture.width < 1 || picture.height > limit || picture.width > limit ||
      picture.pixels.size() != static_cast<std::size_t>(picture.height * picture.width * 3))
    throw Error(Code::CALL_SHAPE,
                fmt::format("{}: {} bytes for a picture of {} x {}", shown, picture.pixels.size(), picture.height, picture.width), shown);
  std::string bytes;
  if (!encode(picture, bytes))
    throw Error(Code::IO_ERROR, fmt::format("{}: libpng could not encode {} x {} pixels", shown, picture.height, picture.width), shown);
  write_text_file(path, bytes);
}

Picture contact_sheet(const std::vector<Picture>& pictures, std::int64_t columns, std::int64_t scale, std::int64_t gap) {
  if (pictures.empty() || columns < 1 || scale < 1 || gap < 0)
    throw Error(Code::CALL_SHAPE,
                fmt::format("a sheet of {} pictures in {} columns, scale {}, gap {}", pictures.size(), columns, scale, gap));
  const std::int64_t h = pictures.front().height, w = pictures.front().width;
  for (const Picture& p : pictures)
    if (p.height != h || p.width != w)
      throw Error(Code::CALL_SHAPE, fmt::format("pictures of {} x {} and {} x {} on one sheet", h, w, p.height, p.width));
  const auto count = static_cast<std::int64_t>(pictures.size());
  const std::int64_t lines = (count + columns - 1) / columns;
  Picture sheet{scale * (lines * (h + gap) + gap), scale * (std::min(count, columns) * (w + gap) + gap), {}};
  sheet.pixels.assign(static_cast<std::size_t>(sheet.height * sheet.width * 3), 200);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t top = scale * (gap + (i / columns) * (h + gap)), left = scale * (gap + (i % columns) * (w + gap));
    const Picture& p = pictures[static_cast<std::size_t>(i)];
    for (std::int64_t y = 0; y < h * scale; ++y)
      for (std::int64_t x = 0; x < w * scale; ++x)
        std::copy_n(&p.pixels[static_cast<std::size_t>(((y / scale) * w + x / scale) * 3)], 3,
                    &sheet.pixels[static_cast<std::size_t>(((top + y) * sheet.width + left + x) * 3)]);
  }
  return sheet;
}

std::vector<Picture> interleave(const std::vector<std::vector<Picture>>& sets, std::int64_t columns) {
  std::vector<Picture> out;
  for (const auto& set : sets)
    if (set.size() != sets.front().size())
      throw Error(Code::CALL_SHAPE, fmt::format("sets of {} and {} pictures on one sheet", sets.front().size(), set.size()));
  const std::size_t count = sets.empty() ? 0 : sets.front().size();
  // A short last line would shift the sets against each other: it is filled with the background.
  for (std::size_t first = 0; first < count; first += static_cast<std::size_t>(columns))
    for (const auto& set : sets)
      for (std::size_t i = first; i < first + static_cast<std::size_t>(columns); ++i) {
        if (i < count)
          out.push_back(set[i]);
        else if (count > static_cast<std::size_t>(columns))
          out.push_back({set[0].height, set[0].width, std::vector<std::uint8_t>(set[0].pixels.size(), 200)});
      }
  return out;
}

std::vector<Picture> read_pictures(const std::filesystem::path& path, std::int64_t limit, std::int64_t height, std::int64_t width,
                                   std::string_view decoder) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const std::string shown = printable_path(path);
  const TensorRecord* latents = file.header().find("latents");
  if (!latents) throw Error(Code::DS_TENSOR, fmt::format("{}: no tensor 'latents'", shown), shown, {}, "latents");
  if (latents->shape.size() != 3)
    throw Error(Code::DS_SHAPE, fmt::format("{}: 'latents' has {} dimensions, expected 3", shown, latents->shape.size()), shown, {},
                "latents");
  const std::uint64_t elements = latents->shape[1] * latents->shape[2];
  const TokenGrid grid = token_grid(static_cast<std::int64_t>(latents->shape[1]), height, width);
  if (choose_decoder(decoder, static_cast<std::int64_t>(latents->shape[2])) == Decoder::none)
    throw Error(Code::CFG_VALUE, fmt::format("{}: no decoder is known for latents of {} channels", shown, latents->shape[2]), shown);
  std::vector<Picture> pictures;
  std::vector<float> row(elements);
  for (std::uint64_t n = 0; n < latents->shape[0] && (limit == 0 || n < static_cast<std::uint64_t>(limit)); ++n) {
    read_floats(file, *latents, n * elements, elements, row.data());
    pictures.push_back(decode_rgb4x4(row.data(), grid));
  }
  return pictures;
}

}  // namespace squareq::training
