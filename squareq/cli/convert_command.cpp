// squareq convert: a slab under the other names of its model, or with the companion that it lacks.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/builder/convert.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/cli/interrupt.hpp"
#include "squareq/cli/output_place.hpp"
#include "squareq/cli/progress.hpp"

namespace squareq::cli {
namespace {

struct Flags {
  std::filesystem::path slab, out, model;
  std::string to, name;
  bool companion = false;
  unsigned threads = 0;
};

void check(const Flags& f) {
  if (f.companion != f.to.empty()) throw Error(Code::CFG_FLAG, "convert takes either --to NAMES or --add-companion");
  if (f.companion && f.model.empty())
    throw Error(Code::CFG_FLAG, "--add-companion needs --model, the checkpoint that the pair was made from");
  if (f.companion && (!f.out.empty() || !f.name.empty()))
    throw Error(Code::CFG_FLAG, "--add-companion writes beside the pair: --out and --name go with --to");
  if (!f.companion && (f.out.empty() || f.name.empty())) throw Error(Code::CFG_FLAG, "--to needs --out and --name");
  if (!f.companion && !f.model.empty()) throw Error(Code::CFG_FLAG, "--model goes with --add-companion; --to reads nothing but the slab");
}

AssembleResult run(const Flags& f, const Common& common) {
  check(f);
  const InterruptGuard guard;
  ProgressMeter meter("convert", "B", common.quiet || common.json);
  const auto progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
  if (f.companion) {
    SourceCheckOptions options;
    options.backend = common.backend == "auto" ? "cpu" : common.backend;
    options.threads = f.threads;
    options.cancelled = guard.interrupted();
    options.progress = progress;
    return add_companion(Slab::open(f.slab), f.model, options);
  }
  const SlabPaths target = output_place(f.out, f.name);
  return convert_slab(Slab::open(f.slab), f.to, target, {f.threads, guard.interrupted(), progress});
}

}  // namespace

void add_convert_command(CLI::App& app, const Common& common, int& status) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("convert", "Rename a slab's layers without quantizing again, or make the companion of a bare pair");
  command->add_option("SLAB", flags->slab, "the slab: its .safetensors, its manifest, or both names' common stem")->required();
  command->add_option("--to", flags->to, "names of the result: diffusers, or the publisher's (bfl, sai, sgm)");
  command->add_option("--out", flags->out, "folder for the result; must exist");
  command->add_option("--name", flags->name, "name of the result");
  command->add_flag("--add-companion", flags->companion, "write NAME.companion.safetensors beside a bare pair, from --model");
  command->add_option("--model", flags->model, "the checkpoint that the pair was made from: file, index or folder");
  command->add_option("--threads", flags->threads, "worker threads; 0: all cores")->capture_default_str();
  command->footer(
      "Rows of codes, scales and biases move, no number changes: the result is the pair that `squareq build` makes from the checkpoint in\n"
      "those names, and converting back gives the first slab. Fused layers (qkv) join rows; they must agree in padding and bias.\n"
      "--add-companion first quantizes every layer of --model again and compares: another fine-tune of the same model is refused "
      "(MD_BASE).\n"
      "  squareq convert slabs/flux1-dev --to bfl --out slabs --name flux1-dev-bfl\n"
      "  squareq convert slabs/bare --add-companion --model flux1-dev/transformer");
  command->callback([flags, &common, &status] {
    const AssembleResult r = run(*flags, common);
    if (common.json) {
      const nlohmann::ordered_json answer = {{"ok", true},
                                             {"slab", printable_path(r.paths.slab)},
                                             {"manifest", printable_path(r.paths.manifest)},
                                             {"companion", printable_path(r.paths.companion)},
                                             {"id_sha256", r.id_sha256},
                                             {"slab_bytes", r.slab_bytes},
                                             {"companion_bytes", r.companion_bytes}};
      fmt::print("{}\n", answer.dump(2, ' ', true));
    } else {
      if (!flags->companion)
        fmt::print("slab          {}  {}\nmanifest      {}\n", printable_path(r.paths.slab), size_text(r.slab_bytes),
                   printable_path(r.paths.manifest));
      fmt::print("companion     {}  {}\nidentity      {}\n", printable_path(r.paths.companion), size_text(r.companion_bytes), r.id_sha256);
    }
    status = 0;
  });
}

}  // namespace squareq::cli
