// squareq train: a LoRA from one configuration file.

#include <fmt/format.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>

#include "squareq/cli/command.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/cli/shadow_flags.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::cli {

namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

/// The first Ctrl-C asks for an orderly end; the second one kills.
void on_interrupt(int) {
  interrupted = true;
  std::signal(SIGINT, SIG_DFL);
}

struct Flags {
  std::string config;
  std::vector<std::string> set;
  bool resume = false, overwrite = false, dry_run = false;
  ShadowFlags shadow;
};

}  // namespace

void add_train_command(CLI::App& app, const Common& common, int& status) {
  CLI::App* command = app.add_subcommand("train", "Train a LoRA adapter on a slab");
  auto flags = std::make_shared<Flags>();
  command->add_option("--config", flags->config, "configuration of the run, one JSON file (spec/schema/train_config.schema.json)")
      ->required();
  command->add_option("--set", flags->set, "section.key=value, wins over the file; may stand several times")->take_all();
  command->add_flag("--resume", flags->resume, "continue from the newest complete checkpoint in output.dir");
  command->add_flag("--overwrite", flags->overwrite, "begin anew in an output.dir that holds checkpoints");
  command->add_flag("--dry-run", flags->dry_run, "check everything, show what would run, train nothing");
  flags->shadow.add_to(*command);
  command->footer(
      "Writes lora.kohya.safetensors, lora.peft.safetensors, report.json, config.json, telemetry.jsonl and checkpoints/ into output.dir.\n"
      "Ctrl-C finishes the step, saves a checkpoint and exits with 130; --resume goes on bit for bit as if nothing had happened.");
  command->callback([flags, &common, &status] {
    if (flags->resume && flags->overwrite) throw Error(Code::CFG_FLAG, "--resume and --overwrite exclude each other");
    const training::RunConfig config = training::read_config(flags->config, flags->set);
    ProgressMeter meter("train", "step", common.quiet);
    training::TrainOptions options;
    options.backend = resolve_backend(common);
    options.shadow = flags->shadow.options(common);
    options.resume = flags->resume;
    options.overwrite = flags->overwrite;
    options.stop = &interrupted;
    options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
    if (!common.quiet) options.note = [](const std::string& line) { fmt::print(stderr, "{}\n", line); };
    if (flags->dry_run) {
      fmt::print("{}\n", training::describe_run(config, options));
      status = 0;
      return;
    }
    std::signal(SIGINT, on_interrupt);
    const training::TrainReport report = training::train(config, options);
    std::signal(SIGINT, SIG_DFL);
    if (common.json) {
      fmt::print("{}\n", training::report_json(report));
    } else {
      if (report.shadow) tell_shadow(*report.shadow);
      for (const std::string& file : report.files) fmt::print("{}\n", file);
    }
    status = 0;
  });
}

}  // namespace squareq::cli
