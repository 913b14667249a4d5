// Checkpoints of a published model's exact layout with random weights: what a build is measured on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace squareq::bench {

/// Writes `shards` files and their index (one plain file for 1) of the published model `id`, diffusers names, bf16, every element
/// normal with deviation 0.02. Returns the bytes written.
std::uint64_t generate(const std::string& id, const std::filesystem::path& folder, unsigned shards, std::uint64_t seed);

}  // namespace squareq::bench
