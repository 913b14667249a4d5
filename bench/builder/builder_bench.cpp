// builder_bench generate --model ID --out DIR      makes a checkpoint of the published layout with random weights
// builder_bench measure --model DIR --out DIR      builds it; time against plain I/O of the same bytes, peak resident memory
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/builder/generate.hpp"
#include "bench/builder/plain_io.hpp"
#include "squareq/builder/build.hpp"
#include "squareq/builder/checkpoint.hpp"

namespace squareq::bench {
namespace {

namespace fs = std::filesystem;

/// Not RUSAGE_SELF: its maximum survives fork and exec. VmHWM is this process's own.
std::uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

/// CPU seconds of this process so far, user and system: what a busy machine cannot distort.
double cpu_seconds() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void measure(const fs::path& model, const fs::path& out, const std::string& backend, unsigned threads, bool keep) {
  std::vector<fs::path> files;
  std::uint64_t source_bytes = 0;
  const Checkpoint source = Checkpoint::open(model);
  for (const SafetensorsFile& file : source.files()) {
    files.push_back(file.path());
    source_bytes += file.header().file_bytes;
  }
  const auto forget_source = [&] {
    for (const fs::path& file : files) forget(file);
  };

  // The yardstick is taken before and after the build: the first reader of a file may pay for what lies below the page cache.
  const auto plain_read = [&] {
    forget_source();
    return read_seconds(files);
  };
  const double read_before = plain_read();

  BuildOptions options;
  options.model = model;
  options.out = out;
  options.name = "bench";
  options.backend = backend;
  options.threads = threads;
  forget_source();
  const double cpu_before = cpu_seconds();
  const BuildResult r = build(options);
  const double cpu = cpu_seconds() - cpu_before;
  const std::uint64_t peak = peak_resident_bytes();
  for (const fs::path& file : {r.paths.slab, r.paths.companion}) forget(file);
  if (!keep)
    for (const fs::path& file : {r.paths.slab, r.paths.manifest, r.paths.companion}) fs::remove(file);

  const double write = write_seconds(out / "plain.bin", r.slab_bytes + r.companion_bytes);
  const double read_after = plain_read(), read = (read_before + read_after) / 2;
  const nlohmann::ordered_json answer = {{"bench", "builder"},
                                         {"architecture", r.architecture ? r.architecture->id() : "none"},
                                         {"backend", backend},
                                         {"layers", r.layers},
                                         {"source_bytes", source_bytes},
                                         {"written_bytes", r.slab_bytes + r.companion_bytes},
                                         {"build_s", r.seconds},
                                         {"build_cpu_s", cpu},
                                         {"plain_read_s", {read_before, read_after}},
                                         {"plain_write_s", write},
                                         {"ratio", r.seconds / (read + write)},
                                         {"peak_resident_bytes", peak}};
  fmt::print("{}\n", answer.dump());
}

int run(int argc, char** argv) {
  CLI::App app{"Measures squareq build"};
  app.require_subcommand(1);
  std::string id, backend = "cpu";
  fs::path model, out;
  unsigned shards = 1, threads = 0;
  bool keep = false;
  CLI::App* generate_command = app.add_subcommand("generate", "write a random checkpoint of a published layout");
  generate_command->add_option("--model", id, "flux1-dev, sdxl, ...")->required();
  generate_command->add_option("--out", out, "folder, must exist")->required();
  generate_command->add_option("--shards", shards)->capture_default_str()->check(CLI::Range(1u, 99u));
  generate_command->callback([&] { fmt::print("{} bytes\n", generate(id, out, shards, 1)); });
  CLI::App* measure_command = app.add_subcommand("measure", "build, then the same bytes as plain I/O");
  measure_command->add_option("--model", model)->required();
  measure_command->add_option("--out", out, "folder on the disk to be measured")->required();
  measure_command->add_option("--backend", backend)->capture_default_str();
  measure_command->add_option("--threads", threads)->capture_default_str();
  measure_command->add_flag("--keep", keep, "leave the slab");
  measure_command->callback([&] { measure(model, out, backend, threads, keep); });
  CLI11_PARSE(app, argc, argv);
  return 0;
}

}  // namespace
}  // namespace squareq::bench

int main(int argc, char** argv) {
  try {
    return squareq::bench::run(argc, argv);
  } catch (const squareq::Error& e) {
    fmt::print(stderr, "builder_bench: {}: {}\n", squareq::code_name(e.code()), e.what());
    return squareq::exit_status(e.code());
  }
}
