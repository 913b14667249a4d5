// The V2 model signature: the topology of all linear layers of a model, 16 hex digits (SQ-FMT-040).
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace squareq {

struct LinearTopology {
  std::string name;
  std::uint64_t in_features = 0;
  std::uint64_t out_features = 0;
  bool bias = false;
};

/// First 16 hex digits of the SHA-256 of the sorted entries "name:in:out:True|False" joined by '|'. The complete entries are
/// sorted, so "a.10:..." stands before "a.1:...". Every linear of the model counts, also those a prefix filter leaves out.
std::string model_signature(std::span<const LinearTopology> linears);

}  // namespace squareq
