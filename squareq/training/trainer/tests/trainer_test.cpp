// The trainer on the real emoji model: against PyTorch with the same draws, resumed against uninterrupted, refusals (SQ-TRN-040..058).
#include <torch/torch.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "fixtures/places.hpp"
#include "squareq/training/data/tensor_reader.hpp"
#include "squareq/training/trainer/adamw.hpp"
#include "squareq/training/trainer/checkpoint.hpp"
#include "squareq/training/trainer/inputs.hpp"
#include "squareq/training/trainer/loop.hpp"
#include "squareq/training/trainer/tests/emoji.hpp"

namespace squareq::training {
namespace {

const std::filesystem::path fixture = test::fixtures() / "trainer";

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

class OnEachBackend : public testing::TestWithParam<const char*> {};

TEST_P(OnEachBackend, MatchesDiffusersOnTheSameDraws) {  // SQ-TRN-045: fixtures/trainer/generate.py is the other side, also SQ-TRN-009
  const std::string backend = GetParam();
  if (backend == "cuda" && !torch::cuda::is_available()) GTEST_SKIP() << "not run: libtorch sees no GPU here";
  const TemporaryFolder folder;
  const std::vector<std::string> places = {
      "model.slab=" + emoji_slab().string(), "data.train=" + (emoji_fixture / "cache/blueprint_train.safetensors").string(),
      "lora.start=" + (fixture / "start.safetensors").string(), "train.draws=" + (fixture / "draws.safetensors").string(),
      "output.dir=" + folder.path().string(), "train.dtype=f32"};
  const RunConfig config = read_config(fixture / "run.json", places);
  ASSERT_EQ(config.memory.resident_blocks, 2);
  const auto model = Transformer::open(open_options(config, backend));
  TrainingLoop loop(config, *model);
  ASSERT_EQ(loop.adapters().size(), 66u);
  const SafetensorsFile expected = SafetensorsFile::open(fixture / "expected.safetensors");
  std::vector<double> losses(20), norms(20);
  expected.read(*expected.header().find("losses"), 0, losses.data(), 160);
  expected.read(*expected.header().find("gradient_norm"), 0, norms.data(), 160);
  double worst_loss = 0, worst_norm = 0;
  for (std::size_t step = 0; step < 20; ++step) {
    const auto result = loop.step();
    worst_loss = std::max(worst_loss, std::abs(result.loss / losses[step] - 1));
    worst_norm = std::max(worst_norm, std::abs(result.gradient_norm / norms[step] - 1));
  }
  EXPECT_LT(worst_loss, 1e-4);
  EXPECT_LT(worst_norm, 1e-3);
  std::vector<float> mine, theirs;
  for (const LoraLayer& l : to_layers(loop.adapters()))
    for (const auto& [matrix, values] : {std::pair("lora_A", l.down), std::pair("lora_B", l.up)}) {
      mine.insert(mine.end(), values.begin(), values.end());
      const std::vector<float> want = read_floats(expected, *expected.header().find("transformer." + l.layer + "." + matrix + ".weight"));
      theirs.insert(theirs.end(), want.begin(), want.end());
    }
  const double distance = relative_distance(mine, theirs);
  EXPECT_LT(distance, 1e-3);
  RecordProperty("worst_relative_loss", std::to_string(worst_loss));
  RecordProperty("adapter_distance", std::to_string(distance));
  std::printf("%s: losses agree to %.2e, gradient norms to %.2e, adapter to %.2e\n", backend.c_str(), worst_loss, worst_norm, distance);
  EXPECT_GT(model->stream_stats().loads, 0u);  // the weights were streamed
}

INSTANTIATE_TEST_SUITE_P(Trainer, OnEachBackend, testing::Values("cpu", "cuda"), [](const auto& test) { return std::string(test.param); });

std::vector<LoraLayer> result_of(const RunConfig& config) {
  return read_lora(config.output.dir / "lora.peft.safetensors", lora_names(*Transformer::open(open_options(config, "cpu"))));
}

TEST(Trainer, ResumedRunIsBitEqual) {  // SQ-TRN-054
  const TemporaryFolder folder;
  RunConfig whole = emoji_config(folder / "whole");
  whole.lora.targets = {"attention"};
  whole.lora.dropout = 0.1;
  whole.train.accumulation = 2;
  whole.optimizer.weight_decay = 0.01;
  whole.data.validation = whole.data.train;
  whole.train.batch = 4;
  const TrainReport a = train(whole, on_cpu());

  RunConfig halves = whole;
  halves.output.dir = folder / "halves";
  std::atomic<bool> stop{false};
  TrainOptions interrupted = on_cpu();
  interrupted.stop = &stop;
  interrupted.progress = [&](std::uint64_t done, std::uint64_t, std::string_view) { stop = done == 3; };
  EXPECT_EQ(failure([&] { train(halves, interrupted); }, {"step 3"}), Code::IO_INTERRUPTED);  // SQ-TRN-055
  EXPECT_TRUE(std::filesystem::exists(checkpoint_path(halves.output.dir / "checkpoints", 3)));
  EXPECT_FALSE(std::filesystem::exists(halves.output.dir / "lora.peft.safetensors"));
  EXPECT_EQ(failure([&] { train(halves, on_cpu()); }, {"--resume"}), Code::CFG_VALUE);
  TrainOptions resume = on_cpu();
  resume.resume = true;
  const TrainReport b = train(halves, resume);
  EXPECT_EQ(b.first_step, 3);
  ASSERT_EQ(a.losses.size(), b.losses.size());
  EXPECT_EQ(std::memcmp(a.losses.data(), b.losses.data(), 8 * a.losses.size()), 0);
  EXPECT_EQ(a.validation.back().loss, b.validation.back().loss);
  const auto x = result_of(whole), y = result_of(halves);
  ASSERT_EQ(x.size(), y.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(std::memcmp(x[i].down.data(), y[i].down.data(), 4 * x[i].down.size()), 0) << x[i].layer;
    EXPECT_EQ(std::memcmp(x[i].up.data(), y[i].up.data(), 4 * x[i].up.size()), 0) << x[i].layer;
  }
  std::ifstream telemetry(halves.output.dir / "telemetry.jsonl");
  std::int64_t lines = 0;
  for (std::string line; std::getline(telemetry, line); ++lines) {
    const auto record = nlohmann::json::parse(line);
    EXPECT_EQ(record.at("step"), lines);
    EXPECT_GT(record.at("h2d_bytes").get<std::int64_t>(), 0);
  }
  EXPECT_EQ(lines, 6);

  RunConfig other = halves;
  other.lora.rank = 2, other.lora.alpha = 2;
  other.lora.targets = {"attention", "proj_mlp"};
  other.train.seed = 5;
  EXPECT_EQ(failure([&] { train(other, resume); }, {"rank 2", "rank 4", "proj_mlp", "seed is 5"}), Code::CK_MISMATCH);  // SQ-TRN-053
}

TEST(Trainer, StreamingChangesNoBit) {  // SQ-TRN-044
  const TemporaryFolder folder;
  RunConfig streamed = emoji_config(folder / "streamed"), resident = emoji_config(folder / "resident");
  streamed.train.steps = resident.train.steps = 3;
  resident.memory.resident_blocks = 0;
  const TrainReport a = train(streamed, on_cpu()), b = train(resident, on_cpu());
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_GT(a.loaded_bytes_per_step, 0);
  EXPECT_EQ(b.loaded_bytes_per_step, 0);
  EXPECT_LT(a.peak_weight_bytes, b.peak_weight_bytes);
  const auto x = result_of(streamed), y = result_of(resident);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(x[i].up, y[i].up) << x[i].layer;
}

TEST(Trainer, Int8ActivationsWhereAskedFor) {  // SQ-TRN-048
  const TemporaryFolder folder;
  RunConfig exact = emoji_config(folder / "exact"), streamed = emoji_config(folder / "streamed"), resident = emoji_config(folder / "resident");
  for (RunConfig* config : {&exact, &streamed, &resident}) config->train.steps = 2;
  streamed.train.compute = resident.train.compute = "w8a8";
  resident.memory.resident_blocks = 0;
  const TrainReport a = train(exact, on_cpu()), b = train(streamed, on_cpu()), c = train(resident, on_cpu());
  EXPECT_NE(a.losses, b.losses);
  EXPECT_NEAR(b.losses[0] / a.losses[0], 1, 0.05);  // a relative error of at most 1/254 per activation
  EXPECT_EQ(b.losses, c.losses);
  const auto x = result_of(streamed), y = result_of(resident);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(x[i].up, y[i].up) << x[i].layer;

  TrainOptions resume = on_cpu();
  resume.resume = true;
  exact.train.steps = streamed.train.steps = 3;
  std::swap(exact.train.compute, streamed.train.compute);
  EXPECT_EQ(failure([&] { train(exact, resume); }, {"compute is w8a8", "absent"}), Code::CK_MISMATCH);
  EXPECT_EQ(failure([&] { train(streamed, resume); }, {"compute is absent", "w8a8"}), Code::CK_MISMATCH);

  TrainOptions shadowed = on_cpu();
  shadowed.shadow.emplace();
  EXPECT_EQ(failure([&] { train(resident, shadowed); }, {"--shadow", "w8a8"}), Code::CFG_VALUE);
  resident.model.slab = emoji_fixture / "transformer";
  EXPECT_EQ(failure([&] { train(resident, on_cpu()); }, {"w8a8", "float checkpoint"}), Code::CFG_VALUE);
}

TEST(Trainer, DeterministicOrNotIsAskedForAndSaid) {  // SQ-TRN-049
  const TemporaryFolder folder;
  RunConfig twice[] = {emoji_config(folder / "one"), emoji_config(folder / "two")}, free = emoji_config(folder / "free");
  for (RunConfig* config : {&twice[0], &twice[1], &free}) config->train.steps = 2;
  free.train.deterministic = false;
  const TrainReport a = train(twice[0], on_cpu()), b = train(twice[1], on_cpu()), c = train(free, on_cpu());
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.losses, c.losses);  // on a CPU there is no other order
  const auto x = result_of(twice[0]), y = result_of(twice[1]);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(x[i].up, y[i].up) << x[i].layer;
  EXPECT_TRUE(open_options(twice[0], "cpu").deterministic);
  EXPECT_FALSE(open_options(free, "cpu").deterministic);
  const auto said = [](const RunConfig& config) {
    std::ifstream report(config.output.dir / "report.json");
    return nlohmann::json::parse(report).at("deterministic").get<bool>();
  };
  EXPECT_TRUE(said(twice[0]));
  EXPECT_FALSE(said(free));

  TrainOptions resume = on_cpu();
  resume.resume = true;
  twice[0].train.steps = free.train.steps = 3;
  std::swap(twice[0].train.deterministic, free.train.deterministic);
  EXPECT_EQ(failure([&] { train(twice[0], resume); }, {"deterministic is false, the checkpoint", "absent"}), Code::CK_MISMATCH);
  EXPECT_EQ(failure([&] { train(free, resume); }, {"deterministic is absent", "false"}), Code::CK_MISMATCH);
}

TEST(Trainer, StopsOnNumbersThatAreNone) {  // SQ-TRN-051
  const TemporaryFolder folder;
  RunConfig config = emoji_config(folder / "run");
  config.lora.targets = {"single_transformer_blocks.5.proj_out"};
  config.train.max_skipped = 2;
  config.train.steps = 5;
  const auto model = Transformer::open(open_options(config, "cpu"));
  TrainingLoop loop(config, *model);
  EXPECT_FALSE(loop.step().skipped);
  const torch::Tensor up = loop.adapters().all().begin()->second.b_t;
  {
    const torch::NoGradGuard no_grad;
    up.data_ptr<float>()[0] = INFINITY;
  }
  const auto result = loop.step();
  EXPECT_TRUE(result.skipped);
  EXPECT_GT(result.metrics.nan_count + result.metrics.inf_count, 0);
  EXPECT_EQ(failure([&] { loop.step(); }, {"2 steps in a row"}), Code::NUM_NONFINITE);
  EXPECT_EQ(loop.skipped(), 2);
  EXPECT_TRUE(std::isnan(loop.losses().back()));
}

TEST(Trainer, RefusesBeforeTheFirstStep) {  // SQ-TRN-021, SQ-TRN-038
  const TemporaryFolder folder;
  const auto fails = [&](auto&& change, std::initializer_list<const char*> words) {
    RunConfig config = emoji_config(folder / "run");
    change(config);
    return failure([&] { train(config, on_cpu()); }, words);
  };
  EXPECT_EQ(fails([](RunConfig& c) { c.lora.start = test::fixtures() / "lora/tiny.adapter.safetensors"; },
                  {"to_q", "192"}),
            Code::LR_SHAPE);
  EXPECT_EQ(fails([](RunConfig& c) { c.data.train = {emoji_fixture / "cache/prompts.safetensors"}; }, {"latents"}), Code::DS_TENSOR);
  EXPECT_EQ(fails([](RunConfig& c) { c.data.width = 4, c.data.height = 8; }, {"32", "64"}), Code::DS_SHAPE);
  EXPECT_EQ(fails([](RunConfig& c) { c.lora.targets = {"to_queue"}; }, {"to_queue"}), Code::CFG_VALUE);
  EXPECT_EQ(fails([](RunConfig& c) { c.memory.vram = 1 << 30; }, {"memory.vram"}), Code::CFG_VALUE);
  EXPECT_EQ(fails([](RunConfig& c) { c.memory.resident_blocks = 0, c.memory.budget = 1000; }, {"1000"}), Code::CFG_BUDGET);
  EXPECT_FALSE(std::filesystem::exists(folder / "run/lora.kohya.safetensors"));
}

TEST(Inputs, ImageIdsAreRowMajor) {  // SQ-TRN-023
  const TokenGrid grid = token_grid(12, 3, 4);
  const torch::Tensor ids = image_ids(grid, 3, torch::kCPU);
  ASSERT_EQ(ids.sizes(), (std::vector<std::int64_t>{12, 3}));
  for (std::int64_t row = 0; row < 12; ++row)
    EXPECT_TRUE(torch::equal(ids[row], torch::tensor({0.f, static_cast<float>(row / 4), static_cast<float>(row % 4)}))) << row;
  const TokenGrid square = token_grid(49, 0, 0);
  EXPECT_EQ(square.height, 7);
  EXPECT_EQ(square.width, 7);
}

TEST(LearningRate, ClosedForms) {  // SQ-TRN-047
  EXPECT_DOUBLE_EQ(learning_rate("constant", 2, 0, 4, 100), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate("constant", 2, 3, 4, 100), 2);
  EXPECT_DOUBLE_EQ(learning_rate("constant", 2, 99, 4, 100), 2);
  EXPECT_DOUBLE_EQ(learning_rate("linear", 2, 50, 0, 100), 1);
  EXPECT_DOUBLE_EQ(learning_rate("cosine", 2, 0, 0, 100), 2);
  EXPECT_NEAR(learning_rate("cosine", 2, 25, 0, 100), 1 + std::sqrt(0.5), 1e-12);
}

TEST(AdamW, FirstStepsByHand) {  // SQ-TRN-046
  const torch::Tensor p = torch::tensor({1.0f, -2.0f}).requires_grad_(true);
  AdamW optimizer({p}, {{0.9, 0.99}, 1e-8, 0.1});
  double want[2] = {1, -2}, m[2] = {}, v[2] = {};
  const double gradients[3][2] = {{0.5, -1}, {0.25, 3}, {-1, 0.125}};
  for (int step = 1; step <= 3; ++step) {
    p.mutable_grad() = torch::tensor({static_cast<float>(gradients[step - 1][0]), static_cast<float>(gradients[step - 1][1])});
    optimizer.step(0.01);
    for (int i = 0; i < 2; ++i) {
      const double g = gradients[step - 1][i];
      m[i] = 0.9 * m[i] + 0.1 * g, v[i] = 0.99 * v[i] + 0.01 * g * g;
      want[i] =
          want[i] * (1 - 0.01 * 0.1) - 0.01 * (m[i] / (1 - std::pow(0.9, step))) / (std::sqrt(v[i] / (1 - std::pow(0.99, step))) + 1e-8);
      EXPECT_NEAR(p[i].item<float>(), want[i], 1e-6) << step;
    }
  }
}

}  // namespace
}  // namespace squareq::training
