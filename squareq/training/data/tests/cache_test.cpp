// Data caches: the emoji set against numbers of its own, and everything that can be wrong with one (SQ-TRN-020..025).
#include "squareq/training/data/cache.hpp"

#include <cmath>

#include "fixtures/places.hpp"
#include "squareq/training/data/tests/support.hpp"

namespace squareq::training {
namespace {

const std::filesystem::path emoji = test::fixtures() / "emoji" / "cache";

std::vector<NamedTensor> good(std::uint64_t rows = 2) {
  const auto fill = [](std::size_t n) { return std::vector<float>(n, 0.5f); };
  return {f32("latents", {rows, 4, 3}, fill(rows * 12)), f32("encoder_hidden_states", {rows, 5, 2}, fill(rows * 10)),
          f32("pooled_projections", {rows, 6}, fill(rows * 6))};
}

TEST(Cache, ReadsTheEmojiSet) {  // SQ-TRN-020
  const Cache cache = Cache::open({emoji / "blueprint_train.safetensors"});
  EXPECT_EQ(cache.size(), 64);
  EXPECT_EQ(cache.shape(), (CacheShape{64, 48, 12, 384, 384}));
  EXPECT_EQ(cache.captions().size(), 64u);
  std::vector<float> latents(64 * 48), text(12 * 384), pooled(384);
  cache.read_latents(63, latents.data());
  cache.read_text(63, text.data());
  cache.read_pooled(63, pooled.data());
  // Every value is a byte: x = u8 / 127.5 - 1 rounded to half precision.
  for (float x : latents) {
    const float byte = std::nearbyint((x + 1.0f) * 127.5f);
    ASSERT_GE(byte, 0.0f);
    ASSERT_LE(byte, 255.0f);
    ASSERT_NEAR(x, byte / 127.5f - 1.0f, 5e-4f);
  }
  double square = 0;
  for (float x : pooled) square += static_cast<double>(x) * static_cast<double>(x);
  EXPECT_GT(square, 0.0);
}

TEST(Cache, SeveralFilesAreOneSet) {
  const TemporaryFolder folder;
  auto second = good(3);
  std::vector<float> values(3 * 12);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  second[0] = f32("latents", {3, 4, 3}, values);
  write_file(folder / "a.safetensors", good(2));
  write_file(folder / "b.safetensors", second);
  write_plain(folder / "b.json", R"(["x", {"caption": "y", "kind": "seen"}, "z"])");
  const Cache cache = Cache::open({folder / "a.safetensors", folder / "b.safetensors"});
  EXPECT_EQ(cache.size(), 5);
  EXPECT_EQ(cache.captions(), (std::vector<std::string>{"", "", "x", "y", "z"}));
  std::vector<float> row(12);
  cache.read_latents(3, row.data());
  EXPECT_EQ(row.front(), 12.0f);
  EXPECT_EQ(failure([&] { cache.read_latents(5, row.data()); }), Code::CALL_VALUE);
  EXPECT_EQ(failure([&] { cache.read_latents(-1, row.data()); }), Code::CALL_VALUE);
}

TEST(Cache, PromptsNeedNoLatents) {
  const Cache cache = Cache::open({emoji / "prompts.safetensors"}, CacheUse::prompts);
  EXPECT_FALSE(cache.has_latents());
  EXPECT_TRUE(cache.has_noise());
  EXPECT_EQ(cache.size(), 64);
  EXPECT_EQ(failure([] { Cache::open({emoji / "prompts.safetensors"}); }, {"latents"}), Code::DS_TENSOR);
}

TEST(Cache, NamesWhatIsWrong) {  // SQ-TRN-021
  const TemporaryFolder folder;
  const auto opened = [&](std::vector<NamedTensor> tensors, std::initializer_list<const char*> words = {}) {
    write_file(folder / "c.safetensors", tensors);
    return failure([&] { Cache::open({folder / "c.safetensors"}); }, words);
  };
  EXPECT_EQ(opened(good()), Code::OK);
  auto tensors = good();
  tensors.erase(tensors.begin() + 1);
  EXPECT_EQ(opened(tensors, {"encoder_hidden_states"}), Code::DS_TENSOR);
  tensors = good();
  tensors[2] = f32("pooled_projections", {3, 6}, std::vector<float>(18));
  EXPECT_EQ(opened(tensors, {"pooled_projections", "3", "2"}), Code::DS_COUNT);
  tensors = good();
  tensors[0] = f32("latents", {2, 12}, std::vector<float>(24));
  EXPECT_EQ(opened(tensors, {"latents", "2 dimensions", "3"}), Code::DS_SHAPE);
  tensors = good();
  tensors[0] = {"latents", FileDtype::I32, {2, 4, 3}, std::string(96, '\0')};
  EXPECT_EQ(opened(tensors, {"latents", "I32"}), Code::DS_SHAPE);
  EXPECT_EQ(opened(good(0)), Code::DS_COUNT);
  EXPECT_EQ(failure([&] { Cache::open({folder / "absent.safetensors"}); }), Code::IO_MISSING);

  write_file(folder / "a.safetensors", good());
  tensors = good();
  tensors[0] = f32("latents", {2, 9, 3}, std::vector<float>(54));
  write_file(folder / "c.safetensors", tensors);
  EXPECT_EQ(failure([&] { Cache::open({folder / "a.safetensors", folder / "c.safetensors"}); }, {"4 x 3", "9 x 3"}), Code::DS_SHAPE);
}

TEST(Cache, TruncatedFileIsRefusedBeforeAnythingIsRead) {  // SQ-TRN-021
  const TemporaryFolder folder;
  write_file(folder / "c.safetensors", good());
  std::filesystem::resize_file(folder / "c.safetensors", std::filesystem::file_size(folder / "c.safetensors") - 8);
  EXPECT_EQ(failure([&] { Cache::open({folder / "c.safetensors"}); }), Code::ST_TRUNCATED);
}

TEST(Cache, CaptionsMustFit) {
  const TemporaryFolder folder;
  write_file(folder / "c.safetensors", good());
  const auto with = [&](const char* text) {
    write_plain(folder / "c.json", text);
    return failure([&] { Cache::open({folder / "c.safetensors"}); });
  };
  EXPECT_EQ(with(R"(["a", "b"])"), Code::OK);
  EXPECT_EQ(with(R"(["a"])"), Code::DS_COUNT);
  EXPECT_EQ(with(R"({"a": 1})"), Code::DS_CAPTIONS);
  EXPECT_EQ(with(R"(["a", 2])"), Code::DS_CAPTIONS);
  EXPECT_EQ(with("[\"a\", \"b\""), Code::DS_CAPTIONS);
}

TEST(Cache, NonFiniteRowsAreNeverUsed) {  // SQ-TRN-022
  const TemporaryFolder folder;
  auto tensors = good();
  std::vector<float> values(24, 0.0f);
  values[13] = NAN;
  tensors[0] = f32("latents", {2, 4, 3}, values);
  write_file(folder / "c.safetensors", tensors);
  const Cache cache = Cache::open({folder / "c.safetensors"});
  std::vector<float> row(12);
  cache.read_latents(0, row.data());
  EXPECT_EQ(failure([&] { cache.read_latents(1, row.data()); }, {"row 1", "latents"}), Code::NUM_NONFINITE);
}

TEST(Cache, MustFitTheModel) {
  const Cache cache = Cache::open({emoji / "blueprint_train.safetensors"});
  EXPECT_EQ(failure([&] { cache.require_sizes(48, 384, 384); }), Code::OK);
  EXPECT_EQ(failure([&] { cache.require_sizes(64, 384, 384); }, {"48", "64"}), Code::DS_SHAPE);
  EXPECT_EQ(failure([&] { cache.require_sizes(48, 4096, 384); }, {"384", "4096"}), Code::DS_SHAPE);
}

TEST(TokenGrid, SquareUnlessGiven) {
  EXPECT_EQ(token_grid(64, 0, 0).height, 8);
  EXPECT_EQ(token_grid(64, 4, 16).width, 16);
  EXPECT_EQ(failure([] { token_grid(60, 0, 0); }, {"60"}), Code::DS_SHAPE);
  EXPECT_EQ(failure([] { token_grid(64, 4, 15); }, {"60", "64"}), Code::DS_SHAPE);
}

}  // namespace
}  // namespace squareq::training
