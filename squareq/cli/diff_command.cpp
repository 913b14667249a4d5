// squareq diff: how two slabs differ.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/cli/command.hpp"
#include "squareq/cli/interrupt.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/slab/diff.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

struct Flags {
  std::filesystem::path a, b;
  DiffOptions options;
};

std::string side(const LayerDiff& l, bool a) {
  const auto& shape = a ? l.shape_a : l.shape_b;
  return fmt::format("[{}, {}] pad_k {} {} bias", shape[0], shape[1], a ? l.pad_k_a : l.pad_k_b,
                     (a ? l.bias_a : l.bias_b) ? "with" : "without");
}

void tell_layers(const SlabDiff& d) {
  bool head = false;
  for (const LayerDiff& l : d.layers) {
    if (l.same) continue;
    if (!head)
      fmt::print("{:<52} {:>10} {:>8} {:>12} {:>12} {:>12}\n", "layer", "codes", "max |d|", "scale ratio", "relative L2", "max |d bias|");
    head = true;
    if (l.where != Where::both) {
      fmt::print("{:<52} only in {}: {}\n", printable(l.name, 52), l.where == Where::only_a ? "A" : "B", side(l, l.where == Where::only_a));
      continue;
    }
    if (l.compared)
      fmt::print("{:<52} {:>9.3f}% {:>8} {:>12.6g} {:>12.4g} {:>12.4g}\n", printable(l.name, 52),
                 l.codes ? 100.0 * static_cast<double>(l.codes_changed) / static_cast<double>(l.codes) : 0.0, l.max_code_difference,
                 l.scale_ratio, l.relative_l2, l.max_bias_difference);
    if (!l.compared || l.pad_k_a != l.pad_k_b || l.bias_a != l.bias_b)
      fmt::print("{:<52} {} in A, {} in B\n", l.compared ? "" : printable(l.name, 52), side(l, true), side(l, false));
  }
}

void tell(const SlabDiff& d) {
  for (const FieldDiff& f : d.fields)
    fmt::print("{}: '{}' in A, '{}' in B{}\n", f.name, printable(f.a, 400), printable(f.b, 400),
               f.counts ? "" : "  (where the numbers came from; counts as no difference)");
  tell_layers(d);
  for (const TensorComparison& t : d.companion) {
    if (t.same) continue;
    fmt::print("companion tensor {}: ", printable(t.name));
    if (t.where != Where::both)
      fmt::print("only in {}\n", t.where == Where::only_a ? "A" : "B");
    else if (t.compared && t.dtype_a == t.dtype_b)
      fmt::print("{} of {} elements differ, at most by {:.4g}; relative L2 {:.4g}\n", t.beyond, t.elements, t.max_abs, t.relative_l2);
    else
      fmt::print("dtype or shape differs, or its bytes\n");
  }
  const auto differing = [](const auto& list) { return std::count_if(list.begin(), list.end(), [](const auto& x) { return !x.same; }); };
  if (d.same())
    fmt::print("the same: {} layers, {} companion tensors\n", d.layers.size(), d.companion.size());
  else
    fmt::print("{} of {} layers and {} of {} companion tensors differ\n", differing(d.layers), d.layers.size(), differing(d.companion),
               d.companion.size());
}

}  // namespace

void add_diff_command(CLI::App& app, const Common& common, int& status) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("diff", "Show how two slabs differ: fields, layers, and how far their numbers are apart");
  command->add_option("A", flags->a, "a slab: its .safetensors, its manifest, or both names' common stem")->required();
  command->add_option("B", flags->b, "the slab that A is measured against")->required();
  command->add_option("--threads", flags->options.threads, "worker threads; 0: all cores")->capture_default_str();
  command->footer(
      "Per layer: share of codes that changed and the largest change, largest scale_a/scale_b or its inverse, ||Wa - Wb|| / ||Wb|| of the\n"
      "dequantized weights, largest change of a bias. Layers of other padding are compared without it. Exit status: 0 the same, 1 not.\n"
      "Where the companions only name other source files, the slabs are the same.");
  command->callback([flags, &common, &status] {
    const InterruptGuard guard;
    flags->options.cancelled = guard.interrupted();
    const Slab a = Slab::open(flags->a), b = Slab::open(flags->b);
    SlabDiff result;
    {
      ProgressMeter meter("diff", "B", common.quiet || common.json);
      flags->options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
      result = diff_slabs(a, b, flags->options);
    }
    if (common.json)
      fmt::print("{}\n", diff_json(result).dump(2, ' ', true));
    else
      tell(result);
    status = result.same() ? 0 : 1;
  });
}

}  // namespace squareq::cli
