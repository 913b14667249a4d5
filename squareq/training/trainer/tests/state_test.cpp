// What surrounds the steps: draws, targets, initial adapters, checkpoints (SQ-TRN-013, 040..047, 050..054).
#include <cmath>
#include <set>

#include "squareq/training/data/tests/support.hpp"
#include "squareq/training/trainer/checkpoint.hpp"
#include "squareq/training/trainer/draws.hpp"
#include "squareq/training/trainer/targets.hpp"

namespace squareq::training {
namespace {

TEST(Draws, EveryRowOnceAnEpoch) {  // SQ-TRN-041
  const auto draws = seeded_draws({9, 10, 4, 6, {}, 0.25});
  std::vector<std::int64_t> rows;
  for (std::uint64_t i = 0; i < 5; ++i)
    for (std::int64_t row : draws->draw(i).rows) rows.push_back(row);
  EXPECT_EQ(std::set<std::int64_t>(rows.begin(), rows.begin() + 10).size(), 10u);
  EXPECT_EQ(std::set<std::int64_t>(rows.begin() + 10, rows.end()).size(), 10u);
  EXPECT_NE(std::vector<std::int64_t>(rows.begin(), rows.begin() + 10), std::vector<std::int64_t>(rows.begin() + 10, rows.end()));
}

TEST(Draws, AreFunctionsOfTheSeedAndTheIndex) {  // SQ-TRN-040
  const SeededDrawsOptions options{9, 10, 4, 6, {}, 0.5};
  const Draws late = seeded_draws(options)->draw(7);
  const auto draws = seeded_draws(options);
  for (std::uint64_t i = 0; i < 7; ++i) draws->draw(i);
  const Draws same = draws->draw(7);
  EXPECT_EQ(late.rows, same.rows);
  EXPECT_EQ(late.t, same.t);
  EXPECT_EQ(late.noise, same.noise);
  EXPECT_EQ(late.keep, same.keep);
  EXPECT_NE(late.noise, draws->draw(8).noise);
  EXPECT_NE(late.noise, seeded_draws({10, 10, 4, 6, {}, 0.5})->draw(7).noise);
}

TEST(Draws, DropTheirShareOfCaptions) {  // SQ-TRN-013
  const auto draws = seeded_draws({3, 100, 50, 1, {}, 0.1});
  int dropped = 0;
  for (std::uint64_t i = 0; i < 200; ++i)
    for (std::uint8_t keep : draws->draw(i).keep) dropped += !keep;
  EXPECT_NEAR(dropped / 10000.0, 0.1, 5 * std::sqrt(0.09 / 10000));
}

TEST(Draws, FilesAreChecked) {
  const TemporaryFolder folder;
  const auto integers = [](const char* name, FileDtype dtype, std::vector<std::int64_t> values) {
    NamedTensor t{name, dtype, {2, 2}, {}};
    for (std::int64_t v : values) t.bytes.append(reinterpret_cast<const char*>(&v), dtype == FileDtype::I64 ? 8 : 1);
    return t;
  };
  const auto open = [&](std::int64_t row, float t, std::int64_t count, std::initializer_list<const char*> words) {
    write_file(folder / "d.safetensors",
               {integers("order", FileDtype::I64, {0, 1, 2, row}), integers("keep", FileDtype::U8, {1, 0, 1, 1}),
                f32("timestep", {2, 2}, {0.5f, 0.25f, 1.0f, t}), f32("noise", {2, 2, 3}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})});
    return failure(
        [&] {
          const auto draws = file_draws(folder / "d.safetensors", 4, 2, 3, count);
          const Draws d = draws->draw(1);
          EXPECT_EQ(d.rows, (std::vector<std::int64_t>{2, 3}));
          EXPECT_EQ(d.noise, (std::vector<float>{6, 7, 8, 9, 10, 11}));
          EXPECT_EQ(d.keep, (std::vector<std::uint8_t>{1, 1}));
        },
        words);
  };
  EXPECT_EQ(open(3, 0.0f, 2, {}), Code::OK);
  EXPECT_EQ(open(4, 0.0f, 2, {"4"}), Code::DS_SHAPE);
  EXPECT_EQ(open(3, 1.5f, 2, {"1.5"}), Code::DS_SHAPE);
  EXPECT_EQ(open(3, 0.0f, 3, {"2", "3"}), Code::DS_COUNT);
}

std::vector<TargetLayer> flux_layers() {
  std::vector<TargetLayer> layers;
  const LoraNames names(published_architecture("flux1-dev"));
  const Architecture dev = published_architecture("flux1-dev");
  for (const ArchitectureLayer& l : dev.layers())
    layers.push_back(
        {l.name, static_cast<std::int64_t>(l.in), static_cast<std::int64_t>(l.out), l.block ? static_cast<std::int64_t>(*l.block) : -1});
  return layers;
}

TEST(Targets, ChooseThePublishedCounts) {  // SQ-TRN-042
  const auto layers = flux_layers();
  const auto parameters = [](const std::vector<TargetLayer>& chosen) {
    std::int64_t sum = 0;
    for (const TargetLayer& l : chosen) sum += 16 * (l.in + l.out);
    return sum;
  };
  EXPECT_EQ(choose_targets(layers, {"all-block-linears"}).size(), 19u * 14 + 38u * 6);
  EXPECT_EQ(choose_targets(layers, {"default"}).size(), 19u * 12 + 38u * 5);
  EXPECT_EQ(choose_targets(layers, {"attention"}).size(), 19u * 8 + 38u * 3);
  // The counts that the public trainers publish for their own lists.
  const auto peft = choose_targets(layers, {"to_q", "to_k", "to_v", "to_out.0"});
  EXPECT_EQ(peft.size(), 190u);
  EXPECT_EQ(parameters(peft), 18677760);
  const auto script = choose_targets(
      layers, {"attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj",
               "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"});
  EXPECT_EQ(script.size(), 342u);
  EXPECT_EQ(parameters(script), 44826624);
  EXPECT_EQ(choose_targets(layers, {"transformer_blocks.*.ff.*"}).size(), 19u * 2);
  EXPECT_EQ(failure([&] { choose_targets(layers, {"attn.to_qq"}); }, {"attn.to_qq", "attn.to_q"}), Code::CFG_VALUE);
}

TEST(InitialAdapters, ChangeNothingAndFollowTheirLaw) {  // SQ-TRN-043
  const std::vector<TargetLayer> layers = {{"a", 400, 100, 0}, {"b", 400, 100, 0}};
  const auto moments = [&](LoraInit init) {
    const auto adapters = initial_adapters(layers, 16, 8, init, 1);
    double square = 0, largest = 0;
    for (float x : adapters[0].down)
      square += static_cast<double>(x) * static_cast<double>(x), largest = std::max(largest, std::abs(static_cast<double>(x)));
    for (float x : adapters[1].up) EXPECT_EQ(x, 0.0f);
    EXPECT_NE(adapters[0].down, adapters[1].down);
    EXPECT_EQ(adapters[0].alpha, 8);
    return std::pair(square / 6400, largest);
  };
  const auto [peft, peft_largest] = moments(LoraInit::peft);
  EXPECT_NEAR(peft * 3 * 400, 1.0, 0.06);
  EXPECT_LE(peft_largest, 0.05);
  EXPECT_GT(peft_largest, 0.0499);
  const auto [squareq, squareq_largest] = moments(LoraInit::squareq);
  EXPECT_NEAR(squareq * 3 * 16 / 6, 1.0, 0.06);
  EXPECT_LE(squareq_largest, 0.6124);
  EXPECT_NEAR(moments(LoraInit::gaussian).first * 256, 1.0, 0.1);
}

Checkpoint example(std::int64_t step) {
  Checkpoint c;
  c.identity = {"base-1", {{"seed", "3"}, {"batch", "4"}}, {{"layer.a", 2, 3, 4, 1.5}, {"layer.b", 2, 3, 4, 1.5}}};
  c.step = step;
  c.optimizer_step = step - 1;
  c.skipped = 1;
  c.losses.assign(static_cast<std::size_t>(step), 0.25);
  c.losses[0] = std::nan("");
  c.tensors = {{"adapter.layer.a.a_t", {2, 3}, {1, 2, 3, 4, 5, -0.0f}}, {"moment1.layer.a.a_t", {2, 3}, {0, 0, 1e-30f, 0, 0, 1}}};
  return c;
}

TEST(Checkpoint, ReadsBackExactlyAndKeepsTwo) {  // SQ-TRN-050
  const TemporaryFolder folder;
  for (std::int64_t step : {10, 20, 30}) save_checkpoint(folder.path(), example(step));
  EXPECT_FALSE(std::filesystem::exists(checkpoint_path(folder.path(), 10)));
  EXPECT_TRUE(std::filesystem::exists(checkpoint_path(folder.path(), 20)));
  std::vector<Problem> warnings;
  const Checkpoint c = load_newest(folder.path(), warnings);
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(c.step, 30);
  EXPECT_EQ(c.optimizer_step, 29);
  EXPECT_EQ(c.skipped, 1);
  EXPECT_TRUE(std::isnan(c.losses[0]));
  EXPECT_EQ(c.identity.layers, example(30).identity.layers);
  EXPECT_EQ(c.identity.settings, example(30).identity.settings);
  for (const CheckpointTensor& t : c.tensors)
    for (const CheckpointTensor& want : example(30).tensors) {
      if (t.name != want.name) continue;
      EXPECT_EQ(std::memcmp(t.values.data(), want.values.data(), 24), 0) << t.name;
    }
}

TEST(Checkpoint, EveryTruncationIsFoundAndThePreviousOneUsed) {  // SQ-TRN-052
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), example(10));
  save_checkpoint(folder.path(), example(20));
  const auto path = checkpoint_path(folder.path(), 20);
  const auto size = std::filesystem::file_size(path);
  std::ifstream raw(path, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(raw), {}};
  for (std::uintmax_t bytes : {std::uintmax_t{0}, std::uintmax_t{7}, size / 3, size - 49, size - 1}) {
    std::filesystem::resize_file(path, bytes);
    EXPECT_EQ(failure([&] { load_checkpoint(path); }), Code::CK_TRUNCATED) << bytes;
    std::vector<Problem> warnings;
    EXPECT_EQ(load_newest(folder.path(), warnings).step, 10);
    ASSERT_EQ(warnings.size(), 1u);
    EXPECT_EQ(warnings[0].code, Code::CK_TRUNCATED);
    write_plain(path, whole);
  }
  std::string flipped = whole;
  flipped[flipped.size() - 3] ^= 1;
  write_plain(path, flipped);
  EXPECT_EQ(failure([&] { load_checkpoint(path); }, {"checksum"}), Code::CK_TRUNCATED);
  std::filesystem::remove(checkpoint_path(folder.path(), 10));
  std::vector<Problem> warnings;
  EXPECT_EQ(failure([&] { load_newest(folder.path(), warnings); }), Code::CK_TRUNCATED);
  EXPECT_EQ(failure([&] { load_newest(folder / "absent", warnings); }), Code::IO_MISSING);
}

TEST(Checkpoint, EveryDifferenceIsListed) {  // SQ-TRN-053
  const RunIdentity run = example(10).identity;
  EXPECT_EQ(failure([&] { require_same(run, run, "f"); }), Code::OK);
  RunIdentity other = run;
  other.base = "base-2";
  other.settings["seed"] = "4";
  other.layers[0].rank = 8;
  other.layers[1].name = "layer.c";
  EXPECT_EQ(
      failure([&] { require_same(run, other, "f"); }, {"base-1", "base-2", "seed is 3", "4", "rank 2", "rank 8", "layer.b", "layer.c"}),
      Code::CK_MISMATCH);
}

}  // namespace
}  // namespace squareq::training
