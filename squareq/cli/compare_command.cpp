// squareq compare: two safetensors files, tensor by tensor.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/cli/command.hpp"
#include "squareq/cli/interrupt.hpp"
#include "squareq/cli/progress.hpp"
#include "squareq/slab/compare.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

struct Flags {
  std::filesystem::path a, b;
  CompareOptions options;
};

std::string shape(const std::vector<std::uint64_t>& s) { return fmt::format("[{}]", fmt::join(s, ", ")); }

std::string verdict(const TensorComparison& t) {
  if (t.where != Where::both) return t.where == Where::only_a ? "only in A" : "only in B";
  if (t.shape_a != t.shape_b) return fmt::format("shapes {} and {}", shape(t.shape_a), shape(t.shape_b));
  if (t.dtype_a != t.dtype_b && !t.same) return fmt::format("dtypes {} and {}", t.dtype_a, t.dtype_b);
  if (t.same) return "same";
  return t.compared ? fmt::format("{} of {} elements differ", t.beyond, t.elements) : fmt::format("{} bytes differ", t.beyond);
}

void tell(const Comparison& c) {
  fmt::print("{:<52} {:>10} {:>12} {:>12}  {}\n", "tensor", "dtype", "max |a-b|", "relative L2", "verdict");
  for (const TensorComparison& t : c.tensors) {
    const std::string dtype = t.dtype_a == t.dtype_b || t.dtype_b.empty() ? t.dtype_a
                              : t.dtype_a.empty()                         ? t.dtype_b
                                                                          : t.dtype_a + "/" + t.dtype_b;
    fmt::print("{:<52} {:>10} ", printable(t.name, 52), dtype);
    if (t.compared)
      fmt::print("{:>12.4g} {:>12.4g}  {}\n", t.max_abs, t.relative_l2, verdict(t));
    else
      fmt::print("{:>12} {:>12}  {}\n", "-", "-", verdict(t));
    if (t.compared && !t.same && t.has_worst) fmt::print("    worst {}: {:.9g} in A, {:.9g} in B\n", shape(t.worst), t.worst_a, t.worst_b);
    if (t.nan_a || t.nan_b || t.inf_a || t.inf_b)
      fmt::print("    NaN {} in A, {} in B; infinite {} in A, {} in B; {} places disagree\n", t.nan_a, t.nan_b, t.inf_a, t.inf_b,
                 t.nonfinite_differ);
  }
  fmt::print("{} of {} tensors differ\n", c.differing(), c.tensors.size());
}

}  // namespace

void add_compare_command(CLI::App& app, const Common& common, int& status) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("compare", "Compare two safetensors files, tensor by tensor");
  command->add_option("A", flags->a, "a .safetensors file")->required();
  command->add_option("B", flags->b, "the file that A is measured against: relative numbers are relative to B")->required();
  command
      ->add_option("--rtol", flags->options.rtol, "elements a and b are equal when |a - b| <= atol + rtol * |b|; with both 0: bit for bit")
      ->capture_default_str();
  command->add_option("--atol", flags->options.atol, "see --rtol")->capture_default_str();
  command->add_flag("--any-dtype", flags->options.any_dtype, "compare numbers even where the dtypes differ");
  command->add_flag("--common-only", flags->options.common_only, "a tensor of one file alone is listed, and is no difference");
  command->add_option("--threads", flags->options.threads, "worker threads; 0: all cores")->capture_default_str();
  command->footer(
      "NaN equals NaN, and an infinity only itself. Exit status: 0 every tensor agrees, 1 one does not.\n"
      "  squareq compare out.safetensors expected.safetensors                  bit for bit\n"
      "  squareq compare out.safetensors expected.safetensors --rtol 1e-5 --atol 1e-7");
  command->callback([flags, &common, &status] {
    const InterruptGuard guard;
    flags->options.cancelled = guard.interrupted();
    Comparison result;
    {
      ProgressMeter meter("compare", "B", common.quiet || common.json);
      flags->options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) { meter.update(done, total, what); };
      result = compare_files(flags->a, flags->b, flags->options);
    }
    if (common.json)
      fmt::print("{}\n", comparison_json(result).dump(2, ' ', true));
    else
      tell(result);
    status = result.same() ? 0 : 1;
  });
}

}  // namespace squareq::cli
