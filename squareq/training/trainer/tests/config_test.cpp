// The configuration: every refusal names the key and both values (SQ-TRN-001..004).
#include "squareq/training/trainer/config.hpp"

#include <nlohmann/json.hpp>

#include "fixtures/places.hpp"
#include "squareq/training/data/tests/support.hpp"

namespace squareq::training {
namespace {

const std::string minimal =
    R"({"model": {"slab": "s"}, "data": {"train": "c.safetensors"}, "train": {"steps": 10}, "output": {"dir": "o"}})";

RunConfig with(const std::vector<std::string>& overrides) { return parse_config(minimal, overrides); }

TEST(Config, DefaultsAndOverrides) {  // SQ-TRN-001, SQ-TRN-003
  const RunConfig c = parse_config(minimal);
  EXPECT_EQ(c.lora.rank, 16);
  EXPECT_EQ(c.lora.alpha, 16.0);
  EXPECT_EQ(c.train.batch, 1);
  EXPECT_FALSE(c.model.base);
  const RunConfig d = with({"lora.rank=8", "memory.budget=1.5GiB", "data.train=[\"a\",\"b\"]", "train.timesteps=flux_shift",
                            "train.seed=18446744073709551615", "optimizer.betas=[0.8,0.95]", "output.dir=elsewhere"});
  EXPECT_EQ(d.lora.rank, 8);
  EXPECT_EQ(d.lora.alpha, 8.0);  // follows the rank
  EXPECT_EQ(d.memory.budget, 3ull << 29);
  EXPECT_EQ(d.data.train.size(), 2u);
  EXPECT_EQ(d.train.timesteps.sampling, TimestepSampling::flux_shift);
  EXPECT_EQ(d.train.seed, UINT64_MAX);
  EXPECT_EQ(d.optimizer.betas[1], 0.95);
  EXPECT_EQ(d.output.dir, "elsewhere");
}

TEST(Config, UnknownKeysNameTheNearest) {  // SQ-TRN-002
  EXPECT_EQ(failure([] { with({"lora.rnak=4"}); }, {"lora.rnak", "lora.rank"}), Code::CFG_KEY);
  EXPECT_EQ(failure([] { with({"train.lr=1"}); }, {"optimizer.lr"}), Code::CFG_KEY);
  EXPECT_EQ(failure([] { parse_config(R"({"modle": {"slab": "s"}})"); }, {"modle", "model"}), Code::CFG_KEY);
  EXPECT_EQ(failure([] { parse_config(R"({"rank": 3})"); }, {"lora.rank"}), Code::CFG_KEY);
  EXPECT_EQ(failure([] { parse_config("{\"lora\": {\"r\\u001b[2Jank\": 1}}"); }, {"\\u001b"}), Code::CFG_KEY);
}

TEST(Config, TypesAndRanges) {  // SQ-TRN-002
  EXPECT_EQ(failure([] { with({"lora.rank=\"8\""}); }, {"lora.rank", "'8'", "whole number"}), Code::CFG_TYPE);
  EXPECT_EQ(failure([] { with({"lora.rank=8.0"}); }, {"8.0"}), Code::CFG_TYPE);
  EXPECT_EQ(failure([] { with({"lora.rank=0"}); }, {"0", "1"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"lora.rank=18446744073709551615"}); }), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"train.checkpointing=1"}); }, {"true or false"}), Code::CFG_TYPE);
  EXPECT_EQ(failure([] { with({"data.caption_dropout=1.5"}); }, {"1.5"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"optimizer.lr=0"}); }), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"lora.init=kaiming"}); }, {"kaiming", "peft", "gaussian"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"train.seed=-1"}); }), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"memory.budget=1 parsec"}); }, {"memory.budget"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"data.height=8"}); }, {"data.width"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"output.sample_every=5"}); }, {"sample.prompts"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"schedule.warmup=11"}); }, {"11", "10"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { with({"lora.rank"}); }, {"key=value"}), Code::CFG_FLAG);
  EXPECT_EQ(failure([] { parse_config("{}"); }, {"model.slab"}), Code::CFG_VALUE);
  EXPECT_EQ(failure([] { parse_config(R"({"lora": 3})"); }, {"lora", "object"}), Code::CFG_TYPE);
}

TEST(Config, StrictJson) {  // SQ-TRN-002
  EXPECT_EQ(failure([] { parse_config("{\"lora\": {\"rank\": 1, \"rank\": 2}}"); }, {"rank", "twice"}), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config("{\"lora\": {\"rank\": 1}"); }, {"byte"}), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config("\xEF\xBB\xBF{}"); }), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config(std::string("{}\0{}", 5)); }), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config("{\"lora\": {\"rank\": 1e400}}"); }), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config("{} // note"); }), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config(std::string(100, '[') + std::string(100, ']')); }, {"64"}), Code::CFG_JSON);
  EXPECT_EQ(failure([] { parse_config("[]"); }), Code::CFG_TYPE);
}

TEST(Config, EffectiveConfigReadsBack) {  // SQ-TRN-004
  const RunConfig c =
      with({"lora.rank=4", "lora.alpha=2.5", "data.validation=v", "train.timesteps=shift", "lora.targets=[\"attention\",\"proj_mlp\"]"});
  const std::string text = effective_config(c);
  EXPECT_EQ(effective_config(parse_config(text)), text);
  EXPECT_EQ(parse_config(text).lora.alpha, 2.5);
}

TEST(Config, SchemaKnowsExactlyTheseKeys) {  // SQ-TRN-001
  std::ifstream file(test::source_dir() / "spec/schema/train_config.schema.json");
  const auto schema = nlohmann::json::parse(file);
  const auto config = nlohmann::json::parse(effective_config(parse_config(minimal)));
  EXPECT_FALSE(schema.at("additionalProperties").get<bool>());
  ASSERT_EQ(schema.at("properties").size(), config.size());
  for (const auto& [section, keys] : config.items()) {
    const auto& known = schema.at("properties").at(section);
    EXPECT_FALSE(known.at("additionalProperties").get<bool>()) << section;
    EXPECT_EQ(known.at("properties").size(), keys.size()) << section;
    for (const auto& [key, value] : keys.items()) EXPECT_TRUE(known.at("properties").contains(key)) << section << "." << key;
  }
}

}  // namespace
}  // namespace squareq::training
