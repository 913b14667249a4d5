// The `squareq` program: parses the command line, runs one command, turns errors into one clear message and an exit status.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "squareq/cli/blas_kernels.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/contract.hpp"
#include "squareq/text.hpp"
#ifdef SQUAREQ_WITH_TORCH
#include "squareq/training/choose_backend.hpp"
#endif

namespace squareq::cli {

std::string resolve_backend(const Common& common) {
  if (common.backend != "auto") return common.backend;
#ifdef SQUAREQ_WITH_TORCH
  const training::ChosenBackend chosen = training::choose_backend();
  if (!common.quiet) fmt::print(stderr, "backend {} (auto: {})\n", chosen.name, printable(chosen.reason));
  return chosen.name;
#else
  return "cpu";  // what computes on a GPU needs libtorch's CUDA beside it
#endif
}

namespace {

int report(const Error& error, const Common& common) {
  const Problem& p = error.problem();
  if (common.json) {
    const auto text_or_null = [](const std::string& text) { return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(printable(text, 1024)); };
    nlohmann::ordered_json problem = {{"code", code_name(p.code)}, {"message", p.message}, {"file", text_or_null(p.file)},
                                      {"layer", text_or_null(p.layer)}, {"tensor", text_or_null(p.tensor)}};
    nlohmann::ordered_json answer;
    answer["ok"] = false;
    answer["problems"] = nlohmann::ordered_json::array({problem});
    answer["warnings"] = nlohmann::ordered_json::array();
    fmt::print("{}\n", answer.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
  }
  fmt::print(stderr, "squareq: {}: {}\n", code_name(p.code), p.message);
  return exit_status(p.code);
}

/// The word as a shell reads it back; control characters are escaped for the terminal and do not survive.
std::string shell_quoted(const std::string& word) {
  const std::string safe = printable(word, 4096);
  const auto plain = [](unsigned char c) { return std::isalnum(c) || std::strchr("_-./=:,+@%", c); };
  if (!safe.empty() && std::all_of(safe.begin(), safe.end(), plain)) return safe;
  std::string quoted = "'";
  for (const char c : safe) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

int run(int argc, char** argv) {
  CLI::App app{"Fine-tunes large diffusion transformers from INT8 slabs: weights are quantized once, streamed block by block and computed\n"
               "on directly; only LoRA adapters are trained.\n\n"
               "A first run:\n"
               "  squareq build --model transformer/ --out slabs --name my-model     checkpoint -> slab\n"
               "  squareq verify slabs/my-model                                      every byte and number checked\n"
               "  squareq train --config run.json                                    a LoRA, within the memory you name\n"
               "  squareq sample --slab slabs/my-model --lora out/lora.safetensors --prompts cache.safetensors --out pictures"};
  app.name("squareq");
  app.set_version_flag("--version", SQUAREQ_VERSION);
  app.require_subcommand(1);
  app.fallthrough();

  Common common;
  app.add_option("--backend", common.backend, "auto, reference, cpu, cuda, or a path to a backend's shared library")->capture_default_str();
  app.add_flag("--json", common.json, "one JSON object on stdout and nothing else there");
  app.add_flag("--quiet", common.quiet, "no progress");

  for (int i = 0; i < argc; ++i) common.command_line += (i ? " " : "") + shell_quoted(argv[i]);

  int status = 0;
  add_build_command(app, common, status);
  add_verify_command(app, common, status);
  add_inspect_command(app, common, status);
  add_diff_command(app, common, status);
  add_convert_command(app, common, status);
  add_splice_command(app, common, status);
  add_compare_command(app, common, status);
  add_plan_command(app, common, status);
  add_forward_command(app, common, status);
  add_train_command(app, common, status);
  add_sample_command(app, common, status);
  add_gates_command(app, common, status);
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) command->fallthrough();

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    // The parser echoes what it was given: escape it like any other foreign text.
    return report(Error(Code::CFG_FLAG, printable(e.what(), 400) + " (try --help)"), common);
  } catch (const Error& e) {
    return report(e, common);
  } catch (const std::bad_alloc&) {
    return report(Error(Code::HOST_OOM, "out of host memory; a smaller --budget, batch or model may fit"), common);
  } catch (const std::exception& e) {
    return report(Error(Code::INTERNAL, printable(e.what(), 400)), common);
  }
  return status;
}

/// Commands that spend their time in matrix products; the others start at once.
bool multiplies(int argc, char** argv) {
  for (int i = 1; i < argc; ++i)
    for (const std::string_view command : {"train", "sample", "forward", "gates"})
      if (command == argv[i]) return true;
  return false;
}

}  // namespace
}  // namespace squareq::cli

int main(int argc, char** argv) {
  if (squareq::cli::multiplies(argc, argv)) squareq::cli::use_fitting_blas_kernels(argv);
  std::signal(SIGXFSZ, SIG_IGN);  // a full quota is IO_NO_SPACE with a message, not a death by signal
  std::signal(SIGPIPE, SIG_IGN);  // so is a reader of our output that went away
  return squareq::cli::run(argc, argv);
}
