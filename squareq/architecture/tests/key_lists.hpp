// The published key lists of fixtures/models as tensors.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "fixtures/places.hpp"
#include "squareq/architecture/architecture.hpp"

namespace squareq {

inline nlohmann::ordered_json read_fixture(const std::string& name) {
  std::ifstream file(test::fixtures() / name);
  if (!file) throw std::runtime_error("no fixture " + name);
  return nlohmann::ordered_json::parse(file);
}

inline std::vector<TensorShape> key_list(const std::string& name) {
  std::vector<TensorShape> tensors;
  const nlohmann::ordered_json keys = read_fixture("models/" + name + ".keys.json");
  for (const auto& [key, shape] : keys.items()) tensors.push_back({key, shape.get<std::vector<std::uint64_t>>()});
  return tensors;
}

}  // namespace squareq
