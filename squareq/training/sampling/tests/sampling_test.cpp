// Sampling the emoji model against pictures that the same weights drew in PyTorch; pictures, PNG files and sheets (SQ-TRN-060..066).
#include <png.h>

#include <cmath>

#include "squareq/training/data/tensor_reader.hpp"
#include "squareq/training/sampling/picture.hpp"
#include "squareq/training/sampling/sample_run.hpp"
#include "squareq/training/trainer/tests/emoji.hpp"

namespace squareq::training {
namespace {

std::vector<std::uint8_t> expected_pixels(std::int64_t first, std::int64_t count) {
  const SafetensorsFile file = SafetensorsFile::open(emoji_fixture / "cache/prompts_expected.safetensors");
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(count * 3072));
  file.read(*file.header().find("pixels"), static_cast<std::uint64_t>(first * 3072), pixels.data(), pixels.size());
  return pixels;
}

std::vector<std::uint8_t> read_png(const std::filesystem::path& path, std::int64_t& height, std::int64_t& width) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  EXPECT_TRUE(png_image_begin_read_from_file(&image, path.c_str()));
  image.format = PNG_FORMAT_RGB;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(image));
  EXPECT_TRUE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr));
  height = image.height, width = image.width;
  return pixels;
}

/// Of the mean squared error over all pictures, dB.
double psnr(const std::vector<std::uint8_t>& a, const std::vector<std::uint8_t>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return 10 * std::log10(255.0 * 255.0 / std::max(sum / static_cast<double>(a.size()), 1e-9));
}

double draw(const std::filesystem::path& source, std::int64_t first, std::int64_t count) {
  const TemporaryFolder folder;
  OpenOptions open;
  open.source = source;
  open.backend = "cpu";
  open.resident_blocks = 2;
  const auto model = Transformer::open(open);
  SampleOptions o;
  o.prompts = emoji_fixture / "cache/prompts.safetensors";
  o.first = first, o.count = count, o.batch = 3;
  o.out = folder / "out";
  const SampleReport report = sample(*model, o);
  EXPECT_TRUE(report.decoded);
  EXPECT_EQ(report.files.size(), static_cast<std::size_t>(count) + 2);
  std::vector<std::uint8_t> pixels;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t height = 0, width = 0;
    char name[16];
    std::snprintf(name, sizeof(name), "%04d.png", static_cast<int>(first + i));
    const auto picture = read_png(folder / "out" / name, height, width);
    EXPECT_EQ(height, 32);
    EXPECT_EQ(width, 32);
    pixels.insert(pixels.end(), picture.begin(), picture.end());
  }
  return psnr(pixels, expected_pixels(first, count));
}

TEST(Sampling, FloatWeightsDrawThePicturesOfPyTorch) {  // SQ-TRN-060: one level of 255 is 48 dB
  EXPECT_GT(draw(emoji_fixture / "transformer", 16, 2), 48.0);
}

TEST(Sampling, SlabDrawsThemAsWellAsInt8Can) {  // SQ-TRN-060: 46.0 dB over all 64 prompts, 35.3 the worst
  EXPECT_GT(draw(emoji_slab(), 16, 4), 40.0);
}

TEST(Sampling, RefusesWhatDoesNotFit) {  // SQ-TRN-061
  const TemporaryFolder folder;
  OpenOptions open;
  open.source = emoji_slab();
  open.backend = "cpu";
  const auto model = Transformer::open(open);
  SampleOptions o;
  o.prompts = emoji_fixture / "cache/prompts.safetensors";
  o.out = folder / "out";
  o.first = 64;
  EXPECT_EQ(failure([&] { sample(*model, o); }, {"64"}), Code::CFG_VALUE);
  o.first = 60, o.count = 5;
  EXPECT_EQ(failure([&] { sample(*model, o); }), Code::CFG_VALUE);
  std::atomic<bool> stop{true};
  o.count = 1, o.stop = &stop;
  EXPECT_EQ(failure([&] { sample(*model, o); }), Code::IO_INTERRUPTED);
  EXPECT_FALSE(std::filesystem::exists(o.out));
}

TEST(Picture, UnpacksTheEmojiPacking) {  // SQ-TRN-062
  // Pixel [row][column][channel] holds 48 * token + feature of its place, written from the packing's definition.
  const TokenGrid grid{2, 3};
  std::vector<float> latents(6 * 48);
  for (int h = 0; h < 2; ++h)
    for (int w = 0; w < 3; ++w)
      for (int c = 0; c < 3; ++c)
        for (int ph = 0; ph < 4; ++ph)
          for (int pw = 0; pw < 4; ++pw) {
            const int value = (7 * (4 * h + ph) + 13 * (4 * w + pw) + 101 * c) % 256;
            latents[static_cast<std::size_t>((3 * h + w) * 48 + 16 * c + 4 * ph + pw)] = static_cast<float>(value) / 127.5f - 1.0f;
          }
  const Picture p = decode_rgb4x4(latents.data(), grid);
  ASSERT_EQ(p.height, 8);
  ASSERT_EQ(p.width, 12);
  for (int y = 0; y < 8; ++y)
    for (int x = 0; x < 12; ++x)
      for (int c = 0; c < 3; ++c) ASSERT_EQ(p.pixels[static_cast<std::size_t>((y * 12 + x) * 3 + c)], (7 * y + 13 * x + 101 * c) % 256);
}

TEST(Picture, DecodersAreChosenByChannels) {  // SQ-TRN-063
  EXPECT_EQ(choose_decoder("auto", 48), Decoder::rgb4x4);
  EXPECT_EQ(choose_decoder("auto", 64), Decoder::none);
  EXPECT_EQ(failure([] { choose_decoder("rgb4x4", 64); }, {"48", "64"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { choose_decoder("vae", 48); }, {"vae"}), Code::CFG_VALUE);
}

TEST(Picture, SheetsPlaceThePictures) {  // SQ-TRN-064
  const auto solid = [](std::uint8_t level) { return Picture{2, 3, std::vector<std::uint8_t>(18, level)}; };
  const Picture sheet = contact_sheet({solid(1), solid(2), solid(3)}, 2, 2, 1);
  ASSERT_EQ(sheet.height, 2 * (2 * 3 + 1));
  ASSERT_EQ(sheet.width, 2 * (2 * 4 + 1));
  const auto at = [&](std::int64_t y, std::int64_t x) { return sheet.pixels[static_cast<std::size_t>((y * sheet.width + x) * 3)]; };
  EXPECT_EQ(at(0, 0), 200);
  EXPECT_EQ(at(2, 2), 1);
  EXPECT_EQ(at(5, 7), 1);
  EXPECT_EQ(at(2, 8), 200);
  EXPECT_EQ(at(2, 10), 2);
  EXPECT_EQ(at(8, 2), 3);
  EXPECT_EQ(at(8, 10), 200);
  EXPECT_EQ(failure([&] { contact_sheet({solid(1), {1, 1, {0, 0, 0}}}, 2); }), Code::CALL_SHAPE);
  const auto lines = interleave({{solid(1), solid(2), solid(3)}, {solid(4), solid(5), solid(6)}}, 2);
  std::vector<int> order;
  for (const Picture& p : lines) order.push_back(p.pixels[0]);
  EXPECT_EQ(order, (std::vector<int>{1, 2, 4, 5, 3, 200, 6, 200}));
}

TEST(Picture, PngHoldsThePixels) {
  const TemporaryFolder folder;
  Picture p{3, 5, std::vector<std::uint8_t>(45)};
  for (std::size_t i = 0; i < p.pixels.size(); ++i) p.pixels[i] = static_cast<std::uint8_t>(37 * i);
  write_png(folder / "p.png", p);
  std::int64_t height = 0, width = 0;
  EXPECT_EQ(read_png(folder / "p.png", height, width), p.pixels);
  EXPECT_EQ(height, 3);
  p.pixels.pop_back();
  EXPECT_EQ(failure([&] { write_png(folder / "p.png", p); }), Code::CALL_SHAPE);
}

TEST(Picture, ReadsCachesAndSamples) {
  const auto pictures = read_pictures(emoji_fixture / "cache/blueprint_train.safetensors", 3, 0, 0);
  ASSERT_EQ(pictures.size(), 3u);
  EXPECT_EQ(pictures[0].height, 32);
  EXPECT_EQ(failure([] { read_pictures(emoji_fixture / "cache/prompts.safetensors", 1, 0, 0); }, {"latents"}), Code::DS_TENSOR);
}

}  // namespace
}  // namespace squareq::training
