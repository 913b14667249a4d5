// Gate 0: the files. Goldens of the Python V2 builder, and pairs that must be refused, each with its code.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "gates/harness/registry.hpp"
#include "gates/harness/trial.hpp"

namespace squareq::gates::g00 {

/// A slab and its manifest in memory, to be damaged and written.
struct Pair {
  std::string slab, manifest;
};

/// A golden pair by name ("three_layers", "prefix_filtered", "empty", "pack1").
Pair golden_pair(const std::string& name);
/// Writes NAME.safetensors and NAME.manifest.json into the trial's folder; returns the slab's path.
std::filesystem::path write_pair(Trial& trial, const Pair& pair);
std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, const std::string& bytes);

/// One call of the group `format`; the answer parsed. Fails when it is refused.
nlohmann::json call_format(Trial& trial, const char* operation, const nlohmann::json& request);

/// The codes of an answer's problems.
std::vector<std::string> problem_codes(const nlohmann::json& answer);

void add_build(Cases& cases);
void add_cut(Cases& cases);
void add_companion(Cases& cases);
void add_reader(Cases& cases);
void add_validate(Cases& cases);

}  // namespace squareq::gates::g00
