// squareq forward: a recognised model run once on the tensors of a file, with gradients where asked.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/cli/command.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/cli/shadow_flags.hpp"
#include "squareq/error.hpp"
#include "squareq/streaming/bytes.hpp"
#include "squareq/tensor.hpp"
#include "squareq/training/forward.hpp"

namespace squareq::cli {

namespace {

struct Flags {
  training::ForwardRequest request;
  std::string base, config, lora, budget;
  ShadowFlags shadow;
};

void print_json(const training::ForwardReport& report, const std::string& output) {
  nlohmann::ordered_json outputs = nlohmann::ordered_json::object();
  for (const auto& tensor : report.outputs) outputs[tensor.name] = tensor.shape;
  nlohmann::ordered_json answer = {{"ok", true},
                                         {"output", output},
                                         {"architecture", report.architecture},
                                         {"backend", report.backend},
                                         {"dtype", report.dtype},
                                         {"peak_weight_bytes", report.peak_weight_bytes},
                                         {"loaded_bytes", report.loaded_bytes},
                                         {"tensors", outputs},
                                         {"ignored", report.ignored}};
  if (report.shadow) answer["shadow"] = shadow_json(*report.shadow);
  fmt::print("{}\n", answer.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
}

void print_text(const training::ForwardReport& report, const std::string& output) {
  fmt::print("{} on {}, activations {}", report.architecture, report.backend, report.dtype);
  if (report.peak_weight_bytes)
    fmt::print(", {} of weights at most, {} streamed", streaming::bytes_text(report.peak_weight_bytes),
               streaming::bytes_text(report.loaded_bytes));
  fmt::print("\n");
  if (report.shadow) tell_shadow(*report.shadow);
  fmt::print("{}:\n", output);
  for (const auto& tensor : report.outputs) fmt::print("  {} {}\n", tensor.name, shape_text(tensor.shape));
}

void run(Flags& flags, const Common& common) {
  training::ForwardRequest request = flags.request;
  if (!flags.base.empty()) request.base = flags.base;
  if (!flags.config.empty()) request.config = flags.config;
  if (!flags.lora.empty()) request.lora = flags.lora;
  if (!flags.budget.empty()) request.budget = streaming::parse_bytes(flags.budget, "--budget");
  if (request.resident_blocks < 0) throw Error(Code::CFG_VALUE, fmt::format("--resident-blocks {} is negative", request.resident_blocks));
  request.backend = resolve_backend(common);
  request.shadow = flags.shadow.options(common);
  ProgressMeter meter("loading", "B", common.quiet || common.json);
  request.progress = [&meter](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
  const training::ForwardReport report = training::run_forward(request);
  for (const std::string& name : report.ignored)
    fmt::print(stderr, "squareq: input tensor '{}' is no argument of the model and was not used\n", name);
  if (common.json)
    print_json(report, request.output.string());
  else
    print_text(report, request.output.string());
}

}  // namespace

void add_forward_command(CLI::App& app, const Common& common, int& status) {
  CLI::App* command = app.add_subcommand("forward", "Run a model once on the tensors of a file, with gradients where asked");
  auto flags = std::make_shared<Flags>();
  command->add_option("--model", flags->request.model, "float checkpoint (file, index, folder) or slab (file, manifest, stem)")->required();
  command->add_option("--base", flags->base, "checkpoint that a slab without companion was made from");
  command->add_option("--inputs", flags->request.inputs, "safetensors file with the arguments of the diffusers class (and cotangent)")
      ->required();
  command->add_option("--output", flags->request.output, "safetensors file for sample and gradients")->required();
  command->add_option("--config", flags->config, "config.json to use instead of the one found beside the model");
  command->add_flag("--grad", flags->request.grad,
                    "also write gradients of sum(sample * cotangent) for every floating input and adapter tensor");
  command->add_option("--lora", flags->lora, "adapter file: kohya, PEFT or ComfyUI");
  command->add_option("--budget", flags->budget, "weight bytes on the device, for example 1GiB; default: no limit");
  command
      ->add_option("--resident-blocks", flags->request.resident_blocks, "blocks on the device at once, copies in flight included; 0: all")
      ->capture_default_str();
  command->add_option("--dtype", flags->request.dtype, "activations: f32, bf16, f16; f64 for float checkpoints")->capture_default_str();
  flags->shadow.add_to(*command);
  command->callback([flags, &common, &status] {
    run(*flags, common);
    status = 0;
  });
}

}  // namespace squareq::cli
