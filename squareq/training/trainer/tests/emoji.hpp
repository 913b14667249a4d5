// The emoji model as a slab, built once per test program.
#pragma once

#include "fixtures/places.hpp"
#include "squareq/builder/build.hpp"
#include "squareq/training/data/tests/support.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::training {

inline const std::filesystem::path emoji_fixture = test::fixtures() / "emoji";

inline std::filesystem::path emoji_slab() {
  static const TemporaryFolder folder;
  static const std::filesystem::path stem = [] {
    BuildOptions options;
    options.model = emoji_fixture / "transformer";
    options.out = folder.path();
    options.name = "emoji";
    return build(options).paths.slab;
  }();
  return stem;
}

/// Two resident blocks, batch 2, few layers: quick.
inline RunConfig emoji_config(const std::filesystem::path& out) {
  RunConfig c;
  c.model.slab = emoji_slab();
  c.data.train = {emoji_fixture / "cache" / "blueprint_train.safetensors"};
  c.lora.rank = 4;
  c.lora.alpha = 4;
  c.train.steps = 6;
  c.train.batch = 2;
  c.optimizer.lr = 1e-3;
  c.memory.resident_blocks = 2;
  c.output.dir = out;
  c.output.save_every = 0;
  return c;
}

inline TrainOptions on_cpu() {
  TrainOptions options;
  options.backend = "cpu";
  return options;
}

}  // namespace squareq::training
