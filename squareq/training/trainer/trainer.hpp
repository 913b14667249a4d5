// The training loop: flow matching on cached latents, frozen streamed weights, FP32 LoRA adapters, AdamW (spec/85-training.md).
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/error.hpp"
#include "squareq/training/lora/lora_file.hpp"
#include "squareq/training/model.hpp"
#include "squareq/training/shadow.hpp"
#include "squareq/training/trainer/config.hpp"

namespace squareq::training {

struct TrainOptions {
  std::string backend = "auto";
  bool resume = false;                      ///< continue from the newest complete checkpoint of output.dir
  bool overwrite = false;                   ///< an output.dir with checkpoints of an earlier run is begun anew
  std::optional<ShadowOptions> shadow;      ///< compute every quantized linear a second time; slabs only (CFG_VALUE)
  const std::atomic<bool>* stop = nullptr;  ///< set: the step is finished, a checkpoint saved, then IO_INTERRUPTED is thrown
  std::function<void(std::uint64_t done, std::uint64_t total, std::string_view what)> progress;
  std::function<void(const std::string& line)> note;  ///< what a person should know, a line each
};

struct ValidationPoint {
  std::int64_t step = 0;
  double loss = 0;
};

/// What a finished run reports; report.json holds the same.
struct TrainReport {
  std::string backend, slab_id, model;
  std::int64_t steps = 0, first_step = 0, skipped = 0;
  std::int64_t layers = 0, parameters = 0;
  bool deterministic = true;  ///< train.deterministic
  std::vector<double> losses;  ///< per step, NaN for a skipped one
  std::vector<ValidationPoint> validation;
  std::uint64_t budget_bytes = 0, peak_weight_bytes = 0;
  double loaded_bytes_per_step = 0;
  double wall_seconds = 0;  ///< of the steps of this process
  std::vector<std::string> files;
  std::vector<Problem> warnings;
  std::optional<ShadowSummary> shadow;  ///< where it was asked for
};

/// JSON text of the report.
std::string report_json(const TrainReport& report);

/// The whole run: opens model and data, checks that everything fits together, trains, writes output.dir/{lora.kohya.safetensors,
/// lora.peft.safetensors, report.json, config.json, telemetry.jsonl, checkpoints/}. Throws before step 1 for whatever does not fit;
/// NUM_NONFINITE after train.max_skipped steps in a row without a finite gradient (the last good checkpoint stays).
TrainReport train(const RunConfig& config, const TrainOptions& options);

/// The same on an open model; options.shadow must be empty, a shadow is part of how a model is opened.
TrainReport train(const RunConfig& config, const TrainOptions& options, Transformer& model);

/// What `train` would do, as JSON text, after every check that needs no training: sizes, layers, memory, the effective configuration.
std::string describe_run(const RunConfig& config, const TrainOptions& options);

/// How the configuration opens its model.
OpenOptions open_options(const RunConfig& config, const std::string& backend);

/// Names of an open model's layers for LoRA files.
LoraNames lora_names(const Transformer& model);

/// Between the files' adapters and the model's. Tensors are FP32 on the model's device.
AdapterSet to_adapters(const std::vector<LoraLayer>& layers, torch::Device device);
std::vector<LoraLayer> to_layers(const AdapterSet& adapters);

}  // namespace squareq::training
