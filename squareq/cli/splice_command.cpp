// squareq splice: whole blocks of one slab in another of the same model.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/builder/splice.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/cli/interrupt.hpp"
#include "squareq/cli/output_place.hpp"
#include "squareq/cli/progress.hpp"

namespace squareq::cli {
namespace {

struct Flags {
  std::filesystem::path slab, from, out;
  std::string blocks, name;
  unsigned threads = 0;
};

}  // namespace

void add_splice_command(CLI::App& app, const Common& common, int& status) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("splice", "Make a slab from another one's blocks in this one");
  command->add_option("SLAB", flags->slab, "the slab that gives everything but the blocks")->required();
  command->add_option("--from", flags->from, "the slab that gives the blocks; same architecture, shapes and signature")->required();
  command->add_option("--blocks", flags->blocks, "which blocks, for example 0-4,7 or single_transformer_blocks.0-4 or outside")->required();
  command->add_option("--out", flags->out, "folder for the result; must exist")->required();
  command->add_option("--name", flags->name, "name of the result")->required();
  command->add_option("--threads", flags->threads, "worker threads; 0: all cores")->capture_default_str();
  command->footer(
      "Numbers count blocks from 0 in the order of a forward pass (FLUX.1: double blocks, then single ones; `squareq inspect` lists "
      "them);\n"
      "`outside` is everything that is in no block. The companion's unquantized tensors of a block go with it, and its source record "
      "names\n"
      "the blocks, the other slab and its source.");
  command->callback([flags, &common, &status] {
    const InterruptGuard guard;
    const SlabPaths target = output_place(flags->out, flags->name);
    const Slab base = Slab::open(flags->slab), other = Slab::open(flags->from);
    SpliceResult r;
    {
      ProgressMeter meter("splice", "B", common.quiet || common.json);
      const auto progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
      r = splice_slab(base, other, flags->blocks, target, {flags->threads, guard.interrupted(), progress});
    }
    if (common.json) {
      nlohmann::ordered_json answer = {{"ok", true},
                                       {"slab", printable_path(r.files.paths.slab)},
                                       {"manifest", printable_path(r.files.paths.manifest)},
                                       {"companion", nullptr},
                                       {"id_sha256", r.files.id_sha256},
                                       {"blocks", r.blocks},
                                       {"layers", r.layers},
                                       {"companion_tensors", r.companion_tensors}};
      if (!r.files.paths.companion.empty()) answer["companion"] = printable_path(r.files.paths.companion);
      fmt::print("{}\n", answer.dump(2, ' ', true));
    } else {
      fmt::print("slab          {}  {}\nmanifest      {}\n", printable_path(r.files.paths.slab), size_text(r.files.slab_bytes),
                 printable_path(r.files.paths.manifest));
      if (!r.files.paths.companion.empty())
        fmt::print("companion     {}  {}\n", printable_path(r.files.paths.companion), size_text(r.files.companion_bytes));
      fmt::print("identity      {}\n{} layers and {} unquantized tensors from {}: {}\n", r.files.id_sha256, r.layers, r.companion_tensors,
                 printable_path(flags->from), fmt::join(r.blocks, ", "));
    }
    status = 0;
  });
}

}  // namespace squareq::cli
