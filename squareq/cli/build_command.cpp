// squareq build: a float checkpoint becomes a slab.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/builder/build.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/cli/interrupt.hpp"
#include "squareq/cli/output_place.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

void tell(const BuildResult& r) {
  if (r.architecture)
    fmt::print("architecture  {} ({} names{})\n", r.architecture->id(), r.architecture->scheme(),
               r.architecture->published() ? "" : ", not the published size");
  fmt::print("slab          {}  {}, {} layers{}\n", printable(r.paths.slab.string(), 4096), size_text(r.slab_bytes), r.layers,
             r.reused_layers ? fmt::format(" ({} from the interrupted build)", r.reused_layers) : "");
  fmt::print("manifest      {}\n", printable(r.paths.manifest.string(), 4096));
  if (!r.paths.companion.empty())
    fmt::print("companion     {}  {}, {} unquantized tensors\n", printable(r.paths.companion.string(), 4096), size_text(r.companion_bytes),
               r.other_tensors);
  fmt::print("signature     {}\nidentity      {}\n{} read in {:.1f} s\n", r.signature, r.slab_id, size_text(r.source_bytes), r.seconds);
}

}  // namespace

void add_build_command(CLI::App& app, const Common& common, int& status) {
  const auto options = std::make_shared<BuildOptions>();
  const auto bare = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("build", "Quantize a float checkpoint to an INT8 slab");
  command
      ->add_option("--model", options->model, "a .safetensors file, a *.safetensors.index.json, or a folder with either (diffusers layout)")
      ->required();
  command->add_option("--out", options->out, "folder for the slab; must exist")->required();
  command->add_option("--name", options->name, "name of the slab: NAME.safetensors, NAME.manifest.json, NAME.companion.safetensors")
      ->required();
  command->add_option("--arch-id", options->architecture_id, "architecture_id of the manifest")->capture_default_str();
  command->add_option("--pack-k", options->pack_k, "rows are padded to a multiple of this many elements; 1: not")->capture_default_str();
  command->add_option("--include-prefix", options->include_prefixes, "only layers whose name starts with this; may be given several times")
      ->allow_extra_args(false);
  command->add_option("--arch", options->architecture, "auto; the architecture it must be; or none: take every 2-D weight for a linear")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "worker threads; 0: from the number of cores")->capture_default_str();
  command->add_flag("--no-companion", *bare, "write the bare V2 pair, without checksums and the unquantized tensors");
  command->callback([options, bare, &common, &status] {
    options->companion = !*bare;
    options->backend = common.backend == "auto" ? "cpu" : common.backend;  // the checkpoint is on the host, and so is the result
    const InterruptGuard guard;
    options->cancelled = guard.interrupted();
    BuildResult result;
    {
      ProgressMeter meter("build", "B", common.quiet || common.json);
      options->progress = [&meter](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
      result = build(*options);
    }
    for (const Problem& warning : result.report.warnings) fmt::print(stderr, "squareq: warning: {}\n", warning.message);
    if (common.json)
      fmt::print("{}\n", build_json(result).dump(2, ' ', true));
    else
      tell(result);
    status = 0;
  });
}

}  // namespace squareq::cli
