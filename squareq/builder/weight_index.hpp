// The *.safetensors.index.json of a sharded checkpoint: which shard holds which tensor.
#pragma once

#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "squareq/slab/safetensors.hpp"

namespace squareq {

struct WeightIndex {
  std::vector<std::string> files;                        ///< distinct, sorted
  std::unordered_map<std::string, std::string> file_of;  ///< tensor -> file
};

/// MD_INDEX: not strict JSON, over 64 MiB, no "weight_map" object of strings, or an empty one; IO_*.
WeightIndex read_weight_index(const std::filesystem::path& path);

/// MD_TENSOR: the index names a tensor that the shard lacks, or the shard holds one that the index does not give it.
void check_shard(const WeightIndex& index, const std::string& shard, const SafetensorsFile& file, const std::filesystem::path& index_path);

}  // namespace squareq
