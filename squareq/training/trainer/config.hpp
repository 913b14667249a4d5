// A training run as one JSON file (spec/schema/train_config.schema.json). Every key is known, typed and in range before anything
// else happens; what a file does not say has the default that stands here.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "squareq/training/trainer/timesteps.hpp"

namespace squareq::training {

enum class LoraInit { peft, squareq, gaussian };

/// Paths are relative to the current directory, as on the command line.
struct RunConfig {
  struct {
    std::filesystem::path slab;                 ///< slab (file, manifest or stem) or float checkpoint; required
    std::optional<std::filesystem::path> base;  ///< for slabs without companion
  } model;
  struct {
    std::vector<std::filesystem::path> train;       ///< one cache or several; required
    std::vector<std::filesystem::path> validation;  ///< none: no validation loss
    double caption_dropout = 0.1;                   ///< share of samples that see the empty caption
    std::int64_t height = 0, width = 0;             ///< token grid; both 0: square
  } data;
  struct {
    std::int64_t rank = 16;
    double alpha = 16.0;                          ///< default: rank
    std::vector<std::string> targets{"default"};  ///< one of default, attention, all-block-linears; or name patterns with *
    LoraInit init = LoraInit::peft;
    double dropout = 0.0;
    std::optional<std::filesystem::path> start;  ///< adapter file to continue from; layers, ranks and alphas are then the file's
  } lora;
  struct {
    std::string name = "adamw";
    double lr = 1e-4;
    std::array<double, 2> betas{0.9, 0.999};
    double eps = 1e-8;
    double weight_decay = 0.0;
  } optimizer;
  struct {
    std::string name = "constant";  ///< constant, linear or cosine (both decay to 0 at the last step)
    std::int64_t warmup = 0;        ///< steps; lr * (step + 1) / warmup
  } schedule;
  struct {
    std::int64_t steps = 0;  ///< required
    std::int64_t batch = 1;
    std::int64_t accumulation = 1;
    bool checkpointing = true;
    std::string dtype = "auto";  ///< auto: bf16 on GPUs, f32 on CPUs
    std::string compute = "w8a16";  ///< w8a16: exact weights; w8a8: int8 activations too (SQ-TRN-048)
    bool deterministic = true;      ///< false: attention's backward on a GPU may add in any order (SQ-TRN-049)
    TimestepOptions timesteps;   ///< keys timesteps, timestep_mean, timestep_std, timestep_shift
    double guidance = 1.0;       ///< input of models with guidance embedding
    std::uint64_t seed = 0;
    double clip = 1.0;                           ///< norm of all gradients; 0: off
    std::int64_t max_skipped = 5;                ///< consecutive steps with NaN or infinity before the run stops
    std::optional<std::filesystem::path> draws;  ///< debugging: order, t, noise and kept captions from a file
  } train;
  struct {
    std::uint64_t budget = 0;          ///< bytes of weights on the device; 0: no limit
    std::uint64_t vram = 0;            ///< bytes of everything on the device; 0: no limit
    std::int64_t resident_blocks = 0;  ///< 0: all
    unsigned threads = 0;              ///< 0: all cores
  } memory;
  struct {
    std::filesystem::path dir;      ///< required
    std::int64_t save_every = 100;  ///< steps between checkpoints; 0: only at the end
    std::int64_t sample_every = 0;  ///< steps between sampled pictures; 0: none. Needs sample.prompts
  } output;
  struct {
    std::optional<std::filesystem::path> prompts;
    std::int64_t count = 16;  ///< first prompts of the cache
    std::int64_t steps = 28;
    double guidance = 3.0;
    std::uint64_t seed = 0;
  } sample;
};

/// Reads and checks a configuration. `overrides` are "section.key=value" (value: JSON, or else taken as text) and win over the file.
/// Throws CFG_JSON (with byte offset), CFG_KEY (unknown; names the nearest known key), CFG_TYPE and CFG_VALUE (given and expected
/// value), and IO codes for the file itself.
RunConfig read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides = {});

/// The same from text; `name` stands for the file in messages.
RunConfig parse_config(const std::string& text, const std::vector<std::string>& overrides = {}, const std::string& name = "configuration");

/// Every key with the value in force, as JSON text that read_config accepts.
std::string effective_config(const RunConfig& config);

}  // namespace squareq::training
