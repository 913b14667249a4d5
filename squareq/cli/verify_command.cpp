// squareq verify: is this slab, or this safetensors file, what it should be? Every problem is listed, not only the first.

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/builder/checkpoint.hpp"
#include "squareq/builder/selection.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

namespace fs = std::filesystem;

struct VerifyFlags {
  fs::path path, container, model;
  bool quick = false;
  unsigned threads = 0;
};

// The slab against the checkpoint: topology of the whole model, then every layer's shape and bias.
void check_model(const fs::path& source, const SlabPaths& paths, ValidateOptions& options, Report& report) {
  Report ignored;
  const Checkpoint checkpoint = Checkpoint::open(source);
  const Selection recognised = select(checkpoint, "auto", {}, ignored);
  const Selection generic = select(checkpoint, "none", {}, ignored);
  Report unreadable;
  std::optional<ParsedManifest> manifest;
  try {
    manifest = parse_manifest(read_text(paths.manifest, std::uint64_t{64} << 20, Code::MF_JSON), unreadable);
  } catch (const Error&) {
    return;  // validate() tells it
  }
  // A slab may have been built with --arch none: then its signature is that of the generic rule.
  const bool built_generic = manifest && manifest->model_signature == generic.signature;
  const Selection& model = built_generic ? generic : recognised;
  options.expected_signature = model.signature;
  if (!manifest || manifest->model_signature != model.signature) return;
  for (const ParsedManifest::Layer& layer : manifest->layers) {
    const ManifestLayer& f = layer.fields;
    if (!layer.has(ParsedManifest::canonical_name) || !layer.has(ParsedManifest::orig_shape) || !layer.has(ParsedManifest::bias_key)) continue;
    const auto linear = std::find_if(model.quantized.begin(), model.quantized.end(), [&](const LinearSource& l) { return l.name == f.canonical_name; });
    if (linear == model.quantized.end()) {
      report.add(Code::MD_LAYER, "layer " + in_quotes(f.canonical_name) + " of the slab is no linear layer of the model", paths.manifest.string(), f.canonical_name);
    } else if (linear->out() != f.orig_shape[0] || linear->in() != f.orig_shape[1] || (linear->bias != nullptr) != f.bias_key.has_value()) {
      report.add(Code::MD_LAYER,
                 fmt::format("layer {} is [{}, {}] {} bias in the slab and [{}, {}] {} bias in the model", in_quotes(f.canonical_name), f.orig_shape[0], f.orig_shape[1],
                             f.bias_key ? "with" : "without", linear->out(), linear->in(), linear->bias ? "with" : "without"),
                 paths.manifest.string(), f.canonical_name);
    }
  }
}

Report run(const VerifyFlags& flags, const Common& common) {
  if (flags.path.empty() == flags.container.empty()) throw Error(Code::CFG_FLAG, "verify takes either a slab's PATH or --container FILE");
  if (!flags.container.empty()) {
    if (!flags.model.empty()) throw Error(Code::CFG_FLAG, "--model goes with a slab, not with --container");
    return validate_container(flags.container);
  }
  const SlabPaths paths = SlabPaths::resolve(flags.path);
  ValidateOptions options;
  options.quick = flags.quick;
  options.threads = flags.threads;
  ProgressMeter meter("verify", "B", common.quiet || common.json);
  options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
  Report of_model;
  if (!flags.model.empty()) check_model(flags.model, paths, options, of_model);
  Report report = validate(paths, options);
  report.append(std::move(of_model));
  return report;
}

void tell(const Report& report, const VerifyFlags& flags) {
  const auto line = [](const char* kind, const Problem& p) {
    fmt::print(stderr, "{}: {}: {}{}\n", kind, public_code_name(p.code), printable(p.message, 2048), p.file.empty() ? "" : "  [" + printable(p.file, 1024) + "]");
  };
  for (const Problem& p : report.problems) line("problem", p);
  for (const Problem& p : report.warnings) line("warning", p);
  if (report.problems_left_out) fmt::print(stderr, "... and {} more problems\n", report.problems_left_out);
  if (report.warnings_left_out) fmt::print(stderr, "... and {} more warnings\n", report.warnings_left_out);
  const std::string subject = printable_path(flags.container.empty() ? flags.path : flags.container);
  if (report.ok()) fmt::print("{}: good\n", subject);
  else fmt::print(stderr, "squareq: '{}' has {} problem{}\n", subject, report.problems.size() + report.problems_left_out, report.problems.size() == 1 ? "" : "s");
}

}  // namespace

void add_verify_command(CLI::App& app, const Common& common, int& status) {
  const auto flags = std::make_shared<VerifyFlags>();
  CLI::App* command = app.add_subcommand("verify", "Check a slab, or any safetensors file, and list every problem");
  command->add_option("PATH", flags->path, "the slab's .safetensors, its manifest, or both names' common stem");
  command->add_option("--model", flags->model, "the checkpoint that the slab should be of: signature, layers and shapes must match");
  command->add_flag("--quick", flags->quick, "stop after headers, manifest, scales, zero points and biases");
  command->add_option("--container", flags->container, "check one safetensors file by itself; no manifest is needed");
  command->add_option("--threads", flags->threads, "worker threads; 0: all cores")->capture_default_str();
  command->callback([flags, &common, &status] {
    const Report report = run(*flags, common);
    if (common.json) fmt::print("{}\n", report_json(report).dump(2, ' ', true));
    else tell(report, *flags);
    status = report.exit_status();
  });
}

}  // namespace squareq::cli
