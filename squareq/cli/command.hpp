// What every subcommand of the `squareq` program implements, and the flags they share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace squareq::cli {

/// Flags that may stand before or after the subcommand.
struct Common {
  std::string backend = "auto";  ///< auto, reference, cpu, cuda or a path to a shared library
  bool json = false;             ///< one JSON object on stdout, everything else on stderr
  bool quiet = false;            ///< no progress
  std::string command_line;      ///< as it was given, quoted for a shell
};

/// Each registers its subcommand. The callback runs after parsing, sets `status` (0 good, 1 a file or gate is bad), and throws
/// squareq::Error for everything else; main turns that into a message and the exit status of its class.
void add_build_command(CLI::App& app, const Common& common, int& status);
void add_inspect_command(CLI::App& app, const Common& common, int& status);
void add_verify_command(CLI::App& app, const Common& common, int& status);
void add_diff_command(CLI::App& app, const Common& common, int& status);
void add_convert_command(CLI::App& app, const Common& common, int& status);
void add_splice_command(CLI::App& app, const Common& common, int& status);
void add_compare_command(CLI::App& app, const Common& common, int& status);
void add_plan_command(CLI::App& app, const Common& common, int& status);
void add_gates_command(CLI::App& app, const Common& common, int& status);
void add_forward_command(CLI::App& app, const Common& common, int& status);
void add_train_command(CLI::App& app, const Common& common, int& status);
void add_sample_command(CLI::App& app, const Common& common, int& status);

/// The backend that `auto` means here (choose_backend.hpp), said on stderr unless quiet. Any other name is returned unchanged.
std::string resolve_backend(const Common& common);

}  // namespace squareq::cli
