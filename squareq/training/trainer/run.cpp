// A whole run: opening, checking, stepping, saving, reporting.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "squareq/slab/atomic_file.hpp"
#include "squareq/streaming/bytes.hpp"
#include "squareq/streaming/telemetry.hpp"
#include "squareq/text.hpp"
#include "squareq/training/models/source.hpp"
#include "squareq/training/modules/shadow_check.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/sampling/sample_run.hpp"
#include "squareq/training/trainer/loop.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::training {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Telemetry has one line per step: what a crashed run wrote past its last checkpoint goes.
void keep_lines(const fs::path& path, std::int64_t lines) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  std::ifstream in(path);
  std::string text, line;
  for (std::int64_t i = 0; i < lines && std::getline(in, line); ++i) text += line + "\n";
  write_text_file(path, text);
}

class Run {
 public:
  Run(const RunConfig& config, const TrainOptions& options, Transformer& model, std::shared_ptr<Shadow> shadow)
      : config_(config), options_(options), model_(model), shadow_(std::move(shadow)), loop_(config, model), checkpoints_(config.output.dir / "checkpoints") {}

  TrainReport operator()() {
    prepare_output();
    if (options_.resume) resume();
    const fs::path telemetry_path = config_.output.dir / "telemetry.jsonl";
    keep_lines(telemetry_path, loop_.steps_done());
    streaming::TelemetryWriter telemetry(telemetry_path);
    announce();

    const auto start = Clock::now();
    const sq_stream_stats before = model_.stream_stats();
    const std::int64_t first = loop_.steps_done();
    if (first == 0) validate();
    while (loop_.steps_done() < config_.train.steps) {
      const auto step_start = Clock::now();
      if (shadow_) shadow_->enter(fmt::format("step {}", loop_.steps_done() + 1));
      TrainingLoop::StepResult result = loop_.step();
      result.metrics.wall_ms = 1e3 * seconds_since(step_start);
      streaming::StepRecord record;
      record.metrics = result.metrics;
      record.skipped = result.skipped;
      if (std::isfinite(result.loss)) record.loss = result.loss;
      telemetry.write(record);
      after_step(result);
    }
    report_.wall_seconds = seconds_since(start);
    const sq_stream_stats after = model_.stream_stats();
    const std::int64_t here = loop_.steps_done() - first;
    report_.first_step = first;
    report_.loaded_bytes_per_step =
        here > 0 ? static_cast<double>(after.loaded_bytes - before.loaded_bytes) / static_cast<double>(here) : 0.0;
    report_.peak_weight_bytes = after.peak_device_bytes;
    finish();
    return report_;
  }

 private:
  void note(const std::string& line) const {
    if (options_.note) options_.note(line);
  }

  void prepare_output() {
    std::error_code error;
    fs::create_directories(config_.output.dir, error);
    if (error) throw_errno(error.value(), "create folder", config_.output.dir);
    if (!options_.resume && has_checkpoints(checkpoints_)) {
      if (!options_.overwrite)
        throw Error(Code::CFG_VALUE,
                    fmt::format("output.dir {} holds checkpoints of an earlier run: --resume continues it, --overwrite begins anew",
                                printable_path(config_.output.dir)));
      fs::remove_all(checkpoints_, error);
    }
    write_text_file(config_.output.dir / "config.json", effective_config(config_));
  }

  void resume() {
    const std::size_t known = report_.warnings.size();
    const Checkpoint checkpoint = load_newest(checkpoints_, report_.warnings);
    for (std::size_t i = known; i < report_.warnings.size(); ++i)
      note(fmt::format("{}: {}", code_name(report_.warnings[i].code), report_.warnings[i].message));
    loop_.restore(checkpoint, printable_path(checkpoint_path(checkpoints_, checkpoint.step)));
    note(fmt::format("resuming after step {}", checkpoint.step));
  }

  void announce() {
    report_.backend = model_.backend_name();
    report_.slab_id = model_.slab_id();
    report_.model = lora_names(model_).id();
    report_.layers = static_cast<std::int64_t>(loop_.adapters().size());
    for (const torch::Tensor& p : loop_.adapters().parameters()) report_.parameters += p.numel();
    report_.budget_bytes = config_.memory.budget;
    report_.deterministic = config_.train.deterministic;
    note(fmt::format("training {} adapter parameters in {} layers of {} on backend {}, {} rows, {} steps of {} x {}", report_.parameters,
                     report_.layers, report_.model, report_.backend, loop_.data().size(), config_.train.steps, config_.train.accumulation,
                     config_.train.batch));
  }

  void validate() {
    if (!loop_.has_validation()) return;
    if (shadow_) shadow_->enter(fmt::format("validation after step {}", loop_.steps_done()));
    report_.validation.push_back({loop_.steps_done(), loop_.validate()});
    note(fmt::format("step {}: validation loss {:.5f}", loop_.steps_done(), report_.validation.back().loss));
  }

  void after_step(const TrainingLoop::StepResult& result) {
    const std::int64_t done = loop_.steps_done();
    if (result.skipped)
      note(fmt::format("step {}: skipped, {} NaN and {} infinite values", done, result.metrics.nan_count, result.metrics.inf_count));
    if (options_.progress)
      options_.progress(static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(config_.train.steps),
                        fmt::format("loss {:.4f}", recent_loss()));
    const bool last = done == config_.train.steps;
    const bool stop = options_.stop && options_.stop->load();
    const bool due = config_.output.save_every > 0 && done % config_.output.save_every == 0;
    if (due || last || stop) save_checkpoint(checkpoints_, loop_.snapshot());
    if (due || last) validate();
    if (config_.output.sample_every > 0 && done % config_.output.sample_every == 0) draw(done);
    if (stop && !last)
      throw Error(Code::IO_INTERRUPTED,
                  fmt::format("interrupted after step {} of {}; the checkpoint is saved, --resume continues", done, config_.train.steps));
  }

  /// Mean of the last ten steps that were not skipped.
  double recent_loss() const {
    double sum = 0;
    int count = 0;
    const std::vector<double>& losses = loop_.losses();
    for (std::size_t i = losses.size(); i-- > 0 && count < 10;)
      if (std::isfinite(losses[i])) sum += losses[i], ++count;
    return count ? sum / count : std::nan("");
  }

  void draw(std::int64_t step) {
    if (shadow_) shadow_->enter(fmt::format("samples after step {}", step));
    SampleOptions o;
    o.prompts = *config_.sample.prompts;
    o.count = config_.sample.count;
    o.steps = config_.sample.steps;
    o.guidance = config_.sample.guidance;
    o.seed = config_.sample.seed;
    o.height = config_.data.height, o.width = config_.data.width;
    o.out = config_.output.dir / "samples" / fmt::format("step-{:08}", step);
    const double dropout = std::exchange(loop_.adapters().dropout, 0.0);
    sample(model_, o);
    loop_.adapters().dropout = dropout;
  }

  void finish() {
    const std::vector<LoraLayer> layers = to_layers(loop_.adapters());
    const LoraNames names = lora_names(model_);
    for (const auto& [format, file] :
         {std::pair(LoraFormat::kohya, "lora.kohya.safetensors"), std::pair(LoraFormat::peft, "lora.peft.safetensors")}) {
      LoraWriteOptions options;
      options.format = format;
      write_lora(config_.output.dir / file, layers, names, options);
      report_.files.push_back((config_.output.dir / file).string());
    }
    report_.steps = loop_.steps_done();
    report_.skipped = loop_.skipped();
    report_.losses = loop_.losses();
    if (shadow_) report_.shadow = shadow_->summary();
    write_text_file(config_.output.dir / "report.json", report_json(report_));
    note(fmt::format("loss {:.4f} (mean of the last ten steps); {:.2f} s per step; weights at most {}; {} streamed per step", recent_loss(),
                     report_.wall_seconds / static_cast<double>(std::max<std::int64_t>(1, report_.steps - report_.first_step)),
                     streaming::bytes_text(report_.peak_weight_bytes),
                     streaming::bytes_text(static_cast<std::uint64_t>(report_.loaded_bytes_per_step))));
  }

  const RunConfig& config_;
  const TrainOptions& options_;
  Transformer& model_;
  std::shared_ptr<Shadow> shadow_;
  TrainingLoop loop_;
  fs::path checkpoints_;
  TrainReport report_;
};

}  // namespace

OpenOptions open_options(const RunConfig& config, const std::string& backend) {
  if (config.memory.vram > 0 && backend != "cuda")
    throw Error(Code::CFG_VALUE, fmt::format("memory.vram is {}, but backend {} has no memory of its own: set memory.budget",
                                             config.memory.vram, printable(backend)));
  OpenOptions open;
  open.source = config.model.slab;
  open.base = config.model.base;
  open.backend = backend;
  open.budget = config.memory.budget > 0 ? config.memory.budget : config.memory.vram;
  open.resident_blocks = config.memory.resident_blocks;
  open.threads = config.memory.threads;
  open.compute = config.train.compute == "w8a8" ? SQ_COMPUTE_W8A8 : SQ_COMPUTE_DEFAULT;
  open.deterministic = config.train.deterministic;
  open.checkpointing = config.train.checkpointing;
  open.dtype = config.train.dtype == "auto" ? default_dtype(backend) : parse_dtype(config.train.dtype);
  return open;
}

TrainReport train(const RunConfig& config, const TrainOptions& options, Transformer& model) {
  if (options.shadow) throw Error(Code::CALL_VALUE, "a shadow is given when a model is opened; this one is open");
  return Run(config, options, model, nullptr)();
}

TrainReport train(const RunConfig& config, const TrainOptions& options) {
  OpenOptions open = open_options(config, options.backend);
  if (options.shadow) {
    if (!is_slab(open.source))
      throw Error(Code::CFG_VALUE,
                  fmt::format("--shadow compares backends on a slab; '{}' is a float checkpoint", printable(open.source.string())));
    if (config.train.compute != "w8a16")
      throw Error(Code::CFG_VALUE, fmt::format("--shadow has bounds for train.compute w8a16 only; it is {}", config.train.compute));
    open.shadow = std::make_shared<Shadow>(*options.shadow, open.threads);
  }
  const auto model = Transformer::open(open);
  return Run(config, options, *model, open.shadow)();
}

std::string describe_run(const RunConfig& config, const TrainOptions& options) {
  const auto model = Transformer::open(open_options(config, options.backend));
  TrainingLoop loop(config, *model);
  nlohmann::ordered_json root;
  std::int64_t parameters = 0;
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const auto& [name, a] : loop.adapters().all()) {
    parameters += a.a_t.numel() + a.b_t.numel();
    layers.push_back(name);
  }
  root["ok"] = true;
  root["model"] = lora_names(*model).id();
  root["backend"] = model->backend_name();
  root["slab_id"] = model->slab_id();
  root["blocks"] = model->block_count();
  root["weight_bytes"] = model->stream_stats().device_bytes;
  root["data_rows"] = loop.data().size();
  root["image_tokens"] = loop.data().shape().tokens;
  root["text_tokens"] = loop.data().shape().text_tokens;
  root["samples"] = config.train.steps * config.train.batch * config.train.accumulation;
  root["adapter_parameters"] = parameters;
  root["adapter_layers"] = layers;
  root["config"] = nlohmann::ordered_json::parse(effective_config(config));
  return root.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace squareq::training
