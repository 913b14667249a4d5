// What an Architecture holds, and the steps that make it: bind (sizes, flags, counts), expand (tensors, layers, blocks), configure.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/architecture/expression.hpp"
#include "squareq/architecture/registry.hpp"

namespace squareq {

struct Architecture::Data {
  std::string id, family, scheme, native_scheme;
  bool published = false;
  ArchitectureConfig config;
  std::vector<ArchitectureLayer> layers;
  std::vector<ArchitectureBlock> blocks;
  std::vector<TensorShape> tensors, diffusers_tensors;
  std::unordered_map<std::string, std::size_t> layer_index;
  std::unordered_map<std::string, RowView> native;  ///< diffusers tensor -> native rows
  std::unordered_map<std::string, RowView> kohya;   ///< layer in scheme -> kohya module rows
};

namespace architecture_detail {

/// Everything that turns a family into one model.
struct Bindings {
  const Family* family = nullptr;
  std::string scheme;
  Sizes dims, counts;
  std::map<std::string, bool> flags;
  /// Does `flag` of the instance's template hold in repetition `index`?
  std::function<bool(const Instance&, std::uint64_t index, const std::string& flag)> block_flag;
  /// Is this tensor in the checkpoint? Decides between spellings; null: the first spelling.
  std::function<bool(const std::string&)> present;
};

/// "transformer_blocks.{i}." with i = 3 -> "transformer_blocks.3."
std::string numbered(const std::string& pattern, std::uint64_t index);

/// Path of a module or tensor below a prefix that ends in '.', or is empty.
std::string join(const std::string& prefix, const std::string& path);

/// Every spelling that `scheme` gives the tensor that diffusers calls `name`. Empty for an unknown name.
std::vector<std::string> spellings(const Family& family, const std::string& scheme, const std::string& name);

/// Sizes, flags and counts from a checkpoint's tensors. Throws MD_TENSOR for a size or block that is missing.
Bindings bind_model(const Family& family, const std::string& scheme, std::span<const TensorShape> tensors);
/// The same of a published variant.
Bindings bind_model(const Family& family, const std::string& scheme, const Variant& variant);

/// Fills tensors, layers, blocks and name maps.
void expand(const Bindings& bindings, Architecture::Data& data);

/// A JSON object from an untrusted text: at most 1 MiB and 64 levels, no key twice. MD_ARCH, naming `what`, for anything else.
nlohmann::json parse_strict(std::string_view text, const std::string& what);

/// Fills the sizes of config from the registry's rules.
void configure(const Bindings& bindings, Architecture::Data& data);
/// Lets diffusers' config.json supply what keys cannot tell; MD_ARCH where it is malformed or contradicts the keys.
void apply_config_json(const Family& family, std::string_view text, Architecture::Data& data);

}  // namespace architecture_detail
}  // namespace squareq
