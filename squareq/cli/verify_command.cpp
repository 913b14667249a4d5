// squareq verify: is this slab, or this safetensors file, what it should be? Every problem is listed, not only the first.

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "squareq/builder/check_source.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/cli/interrupt.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

namespace fs = std::filesystem;

struct VerifyFlags {
  fs::path path, container, model;
  bool quick = false, topology = false;
  unsigned threads = 0;
};

/// What a check against a checkpoint came to.
enum class Compared { nothing, topology, numbers };

// The slab against the checkpoint: topology of the whole model, every layer's shape and bias, then (unless told otherwise) every number.
class ModelCheck {
 public:
  ModelCheck(const fs::path& source, const SlabPaths& paths) : paths_(paths), checkpoint_(Checkpoint::open(source)) {
    Report unreadable;
    try {
      manifest_ = parse_manifest(read_text(paths.manifest, std::uint64_t{64} << 20, Code::MF_JSON), unreadable);
    } catch (const Error&) {
      // validate() tells it
    }
    model_ = select_like(checkpoint_, manifest_ ? manifest_->model_signature : "");
  }

  const std::string& signature() const { return model_.signature; }

  Compared run(bool topology_only, const SourceCheckOptions& options, Report& report) const {
    if (!manifest_ || manifest_->model_signature != model_.signature) return Compared::nothing;
    check_topology(model_, *manifest_, paths_.manifest.string(), report);
    if (topology_only) return Compared::topology;
    Report ignored;  // what keeps a slab from opening is in validate()'s report
    const std::optional<Slab> slab = Slab::open(paths_, {}, ignored);
    if (!slab) return Compared::topology;
    try {
      compare_with_source(*slab, checkpoint_, model_, options, report);
    } catch (const Error& e) {
      if (e.code() == Code::IO_INTERRUPTED) throw;
      report.add(e.problem());  // a checkpoint that no slab can come from, or that cannot be read: one problem among the others
      return Compared::topology;
    }
    return Compared::numbers;
  }

 private:
  SlabPaths paths_;
  Checkpoint checkpoint_;
  std::optional<ParsedManifest> manifest_;
  Selection model_;
};

struct Result {
  Report report;
  Compared compared = Compared::nothing;
};

Result run(const VerifyFlags& flags, const Common& common) {
  if (flags.path.empty() == flags.container.empty()) throw Error(Code::CFG_FLAG, "verify takes either a slab's PATH or --container FILE");
  if (!flags.container.empty()) {
    if (!flags.model.empty()) throw Error(Code::CFG_FLAG, "--model goes with a slab, not with --container");
    return {validate_container(flags.container)};
  }
  if (flags.model.empty() && flags.topology) throw Error(Code::CFG_FLAG, "--model-topology goes with --model");
  const SlabPaths paths = SlabPaths::resolve(flags.path);
  ValidateOptions options;
  options.quick = flags.quick;
  options.threads = flags.threads;
  std::optional<ModelCheck> model;
  if (!flags.model.empty()) {
    model.emplace(flags.model, paths);
    options.expected_signature = model->signature();
  }
  Result result;
  {
    ProgressMeter meter("verify", "B", common.quiet || common.json);
    options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
    result.report = validate(paths, options);
  }
  if (!model) return result;
  const InterruptGuard guard;
  ProgressMeter meter("against the checkpoint", "B", common.quiet || common.json);
  SourceCheckOptions source;
  source.backend = common.backend == "auto" ? "cpu" : common.backend;  // as `squareq build`
  source.threads = flags.threads;
  source.cancelled = guard.interrupted();
  source.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
  Report of_model;
  result.compared = model->run(flags.topology || flags.quick, source, of_model);
  result.report.append(std::move(of_model));
  return result;
}

/// For people; empty without --model.
std::string model_text(const VerifyFlags& flags, Compared compared) {
  if (flags.model.empty()) return "";
  switch (compared) {
    case Compared::numbers: return ", every number is the checkpoint's";
    case Compared::topology: return ", names and shapes are the checkpoint's; its numbers were not compared";
    default: return ", not compared with the checkpoint";
  }
}

void tell(const Result& result, const VerifyFlags& flags) {
  const Report& report = result.report;
  const auto line = [](const char* kind, const Problem& p) {
    fmt::print(stderr, "{}: {}: {}{}\n", kind, public_code_name(p.code), printable(p.message, 2048), p.file.empty() ? "" : "  [" + printable(p.file, 1024) + "]");
  };
  for (const Problem& p : report.problems) line("problem", p);
  for (const Problem& p : report.warnings) line("warning", p);
  if (report.problems_left_out) fmt::print(stderr, "... and {} more problems\n", report.problems_left_out);
  if (report.warnings_left_out) fmt::print(stderr, "... and {} more warnings\n", report.warnings_left_out);
  const std::string subject = printable_path(flags.container.empty() ? flags.path : flags.container);
  if (report.ok()) fmt::print("{}: good{}\n", subject, model_text(flags, result.compared));
  else fmt::print(stderr, "squareq: '{}' has {} problem{}\n", subject, report.problems.size() + report.problems_left_out, report.problems.size() == 1 ? "" : "s");
}

}  // namespace

void add_verify_command(CLI::App& app, const Common& common, int& status) {
  const auto flags = std::make_shared<VerifyFlags>();
  CLI::App* command = app.add_subcommand("verify", "Check a slab, or any safetensors file, and list every problem");
  command->add_option("PATH", flags->path, "the slab's .safetensors, its manifest, or both names' common stem");
  command->add_option("--model", flags->model, "the checkpoint that the slab should be of: every layer is quantized again and compared, number by number");
  command->add_flag("--model-topology", flags->topology, "with --model: compare signature, layers and shapes only, no numbers");
  command->add_flag("--quick", flags->quick, "stop after headers, manifest, scales, zero points and biases; of --model only the topology");
  command->add_option("--container", flags->container, "check one safetensors file by itself; no manifest is needed");
  command->add_option("--threads", flags->threads, "worker threads; 0: all cores")->capture_default_str();
  command->footer(
      "Exit status: 0 good, 1 a problem was found. --model finds a slab of another fine-tune of the same model (MD_BASE, naming layer, row and\n"
      "both values); it reads the whole checkpoint, as a build does, and the arithmetic is that of --backend (default: cpu, as `squareq build`).");
  command->callback([flags, &common, &status] {
    const Result result = run(*flags, common);
    if (common.json) {
      auto answer = report_json(result.report);
      if (!flags->model.empty())
        answer["compared_with_model"] = result.compared == Compared::numbers ? "numbers" : result.compared == Compared::topology ? "topology" : "nothing";
      fmt::print("{}\n", answer.dump(2, ' ', true));
    } else {
      tell(result, *flags);
    }
    status = result.report.exit_status();
  });
}

}  // namespace squareq::cli
