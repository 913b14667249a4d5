// The group `module` through the contract: a scaffolded tree of the golden slab's three layers, and calls on it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gates/harness/trial.hpp"

namespace squareq::gates {

/// One module of the implementation's; destroyed with this object.
class ModuleTree {
 public:
  /// Creates from `request` (spec/55-modules.md). Fails when it is refused.
  ModuleTree(Trial& trial, const nlohmann::json& request);
  ~ModuleTree();
  ModuleTree(const ModuleTree&) = delete;
  ModuleTree& operator=(const ModuleTree&) = delete;

  /// The tree of the golden pair `three_layers`, an embedding and a norm; rank 0: without adapters.
  static nlohmann::json golden_request(std::int64_t rank);

  /// Loads; returns the number of layers that it says it loaded.
  std::int64_t load(const std::string& slab);
  void load_refused(const std::string& slab, const std::vector<Code>& codes);
  void cast(const std::string& dtype, const std::string& scope);
  void cast_refused(const std::string& dtype, const std::string& scope, const std::vector<Code>& codes);
  /// {"parameters": [...], "buffers": [...]}
  nlohmann::json list();
  /// One parameter or buffer by its listed entry.
  Guarded read(const nlohmann::json& entry);
  void write(const nlohmann::json& entry, Guarded& value);
  void forward(const std::string& layer, Guarded& x, Guarded& y);
  void forward_refused(const std::string& layer, const std::vector<Code>& codes, Guarded& x, Guarded& y);
  void read_refused(const std::string& name, const std::vector<Code>& codes, Guarded& out);
  void write_refused(const std::string& name, const std::vector<Code>& codes, Guarded& in);

 private:
  Instance& instance_;
  const sq_module_group* group_;
  std::uint64_t id_ = 0;
};

/// The contract's dtype of a listed name ("i8", "f32", ...); fails for another.
std::int32_t listed_dtype(const nlohmann::json& entry);

}  // namespace squareq::gates
