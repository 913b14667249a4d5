#include "squareq/slab/signature.hpp"

#include <algorithm>
#include <vector>

#include "squareq/slab/digest.hpp"

namespace squareq {

std::string model_signature(std::span<const LinearTopology> linears) {
  std::vector<std::string> entries;
  entries.reserve(linears.size());
  for (const LinearTopology& l : linears)
    entries.push_back(l.name + ":" + std::to_string(l.in_features) + ":" + std::to_string(l.out_features) + (l.bias ? ":True" : ":False"));
  // Bytewise order of UTF-8 is code-point order, which is what Python's sorted() uses.
  std::sort(entries.begin(), entries.end());
  std::string joined;
  for (const std::string& entry : entries) joined += (joined.empty() ? "" : "|") + entry;
  return sha256_hex(joined).substr(0, 16);
}

}  // namespace squareq
