// squareq sample: pictures from prompts; squareq contact-sheet: several sets of them on one PNG.

#include <fmt/format.h>

#include <atomic>
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/cli/command.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/streaming/bytes.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/sampling/picture.hpp"
#include "squareq/training/sampling/sample_run.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::cli {

namespace {

std::atomic<bool> interrupted{false};

void on_interrupt(int) {
  interrupted = true;
  std::signal(SIGINT, SIG_DFL);
}

struct SampleFlags {
  std::string slab, base, lora, budget = "0", dtype = "auto";
  std::int64_t resident_blocks = 0;
  unsigned threads = 0;
  double mu = 0;
  training::SampleOptions sample;
};

struct SheetFlags {
  std::string out;
  std::vector<std::string> sets;
  std::int64_t columns = 8, scale = 3, count = 0, height = 0, width = 0;
};

void run_sample(const SampleFlags& flags, const Common& common) {
  training::OpenOptions open;
  open.source = flags.slab;
  if (!flags.base.empty()) open.base = flags.base;
  open.backend = resolve_backend(common);
  open.budget = streaming::parse_bytes(flags.budget, "--budget");
  open.resident_blocks = flags.resident_blocks;
  open.threads = flags.threads;
  open.dtype = flags.dtype != "auto" ? training::parse_dtype(flags.dtype) : training::default_dtype(open.backend);
  const auto model = training::Transformer::open(open);
  training::AdapterSet adapters;
  if (!flags.lora.empty()) {
    adapters = training::to_adapters(training::read_lora(flags.lora, training::lora_names(*model)), model->device());
    model->set_adapters(&adapters);
  }
  ProgressMeter meter("sample", "step", common.quiet);
  training::SampleOptions sample = flags.sample;
  sample.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
  sample.stop = &interrupted;
  std::signal(SIGINT, on_interrupt);
  const training::SampleReport report = training::sample(*model, sample);
  std::signal(SIGINT, SIG_DFL);
  model->set_adapters(nullptr);

  const sq_stream_stats stats = model->stream_stats();
  if (common.json) {
    const nlohmann::ordered_json answer = {{"ok", true},
                                           {"pictures", report.pictures},
                                           {"decoded", report.decoded},
                                           {"backend", model->backend_name()},
                                           {"adapters", adapters.size()},
                                           {"wall_seconds", report.wall_seconds},
                                           {"peak_weight_bytes", stats.peak_device_bytes},
                                           {"streamed_bytes", stats.loaded_bytes},
                                           {"files", report.files}};
    fmt::print("{}\n", answer.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
    return;
  }
  if (!report.decoded && !common.quiet)
    fmt::print(stderr, "no latent decoder is known for {} channels: latents only\n", model->config().in_channels);
  for (const std::string& file : report.files) fmt::print("{}\n", file);
}

void run_sheet(const SheetFlags& flags, const Common& common) {
  std::vector<std::vector<training::Picture>> sets;
  for (const std::string& file : flags.sets) {
    const std::filesystem::path path =
        std::filesystem::is_directory(file) ? std::filesystem::path(file) / "latents.safetensors" : std::filesystem::path(file);
    sets.push_back(training::read_pictures(path, flags.count, flags.height, flags.width));
  }
  const training::Picture sheet = training::contact_sheet(training::interleave(sets, flags.columns), flags.columns, flags.scale);
  training::write_png(flags.out, sheet);
  if (common.json) {
    const nlohmann::ordered_json answer = {
        {"ok", true},           {"sets", sets.size()}, {"pictures", sets.front().size()}, {"height", sheet.height},
        {"width", sheet.width}, {"files", {flags.out}}};
    fmt::print("{}\n", answer.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    fmt::print("{}\n", flags.out);
  }
}

}  // namespace

void add_sample_command(CLI::App& app, const Common& common, int& status) {
  CLI::App* command = app.add_subcommand("sample", "Draw pictures from prompts, with or without an adapter");
  auto flags = std::make_shared<SampleFlags>();
  command->add_option("--slab", flags->slab, "slab (file, manifest or stem), or a float checkpoint")->required();
  command->add_option("--base", flags->base, "checkpoint that a slab without companion was made from");
  command->add_option("--lora", flags->lora, "adapter: kohya, PEFT or ComfyUI keys");
  command->add_option("--prompts", flags->sample.prompts, "cache with encoder_hidden_states, pooled_projections and, optionally, noise")
      ->required();
  command->add_option("--first", flags->sample.first, "first prompt of the cache")->capture_default_str();
  command->add_option("--count", flags->sample.count, "number of prompts; 0: all")->capture_default_str();
  command->add_option("--batch", flags->sample.batch, "pictures per pass")->capture_default_str();
  command->add_option("--steps", flags->sample.steps, "Euler steps")->capture_default_str();
  command->add_option("--guidance", flags->sample.guidance, "guidance scale")->capture_default_str();
  command->add_option("--mu", flags->mu, "time shift mu of the schedule; default: FLUX.1's for models with guidance embedding, else 0");
  command->add_option("--seed", flags->sample.seed, "seed of the start noise, where the cache has none")->capture_default_str();
  command->add_flag("--fresh-noise", flags->sample.fresh_noise, "noise from --seed even where the cache has some");
  command->add_option("--height", flags->sample.height, "height in tokens (default: square)");
  command->add_option("--width", flags->sample.width, "width in tokens");
  command->add_option("--decoder", flags->sample.decoder, "auto, rgb4x4 (48 channels are 4x4 RGB pixels), none")->capture_default_str();
  command->add_option("--columns", flags->sample.columns, "pictures a line on sheet.png")->capture_default_str();
  command->add_option("--budget", flags->budget, "weight bytes on the device at most, for example 1GiB; 0: no limit")
      ->capture_default_str();
  command->add_option("--resident-blocks", flags->resident_blocks, "blocks on the device at once; 0: all")->capture_default_str();
  command->add_option("--threads", flags->threads, "backend threads; 0: all cores")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "activations: auto, f32, bf16, f16")->capture_default_str();
  command->add_option("--out", flags->sample.out, "folder for latents.safetensors, NNNN.png and sheet.png")->required();
  command->callback([command, flags, &common, &status] {
    if (command->count("--mu") > 0) flags->sample.mu = flags->mu;
    run_sample(*flags, common);
    status = 0;
  });

  CLI::App* sheet = app.add_subcommand("contact-sheet", "Put several sets of pictures line by line on one PNG");
  auto sheet_flags = std::make_shared<SheetFlags>();
  sheet->add_option("--out", sheet_flags->out, "PNG to write")->required();
  sheet->add_option("--columns", sheet_flags->columns, "pictures a line")->capture_default_str();
  sheet->add_option("--scale", sheet_flags->scale, "screen pixels per pixel")->capture_default_str();
  sheet->add_option("--count", sheet_flags->count, "first pictures of each set; 0: all")->capture_default_str();
  sheet->add_option("--height", sheet_flags->height, "height in tokens (default: square)");
  sheet->add_option("--width", sheet_flags->width, "width in tokens");
  sheet->add_option("sets", sheet_flags->sets, "files with `latents`, or folders that `squareq sample` wrote: truth, before, after")
      ->required();
  sheet->callback([sheet_flags, &common, &status] {
    run_sheet(*sheet_flags, common);
    status = 0;
  });
}

}  // namespace squareq::cli
