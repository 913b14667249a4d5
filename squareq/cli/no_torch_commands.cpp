// A build without libtorch still knows the names of the commands that need it, and says why they cannot run.

#include "squareq/cli/command.hpp"
#include "squareq/error.hpp"

namespace squareq::cli {
namespace {

void refuse(CLI::App& app, const std::string& name, const std::string& purpose) {
  CLI::App* command = app.add_subcommand(name, purpose + " (not in this build: it was configured with SQUAREQ_WITH_TORCH=OFF)");
  command->allow_extras();
  command->callback([name] { throw Error(Code::CFG_FLAG, "'" + name + "' needs libtorch, and this build was configured without it"); });
}

}  // namespace

void add_forward_command(CLI::App& app, const Common&, int&) { refuse(app, "forward", "Run a model once"); }
void add_train_command(CLI::App& app, const Common&, int&) { refuse(app, "train", "Train a LoRA"); }
void add_sample_command(CLI::App& app, const Common&, int&) { refuse(app, "sample", "Draw pictures"); }

}  // namespace squareq::cli
