// The acceptance rules of the official safetensors package, said once more and independently of squareq/slab: a whole document in
// memory, no line shared with the reader. check_official.py holds both against the package itself.
#pragma once

#include <string_view>

namespace squareq::fuzz {

/// Whether the package opens these bytes. Where it is laxer than JSON objects with every field spelled out (records as arrays, a dtype
/// as an object), this says no: our reader must refuse those as well.
bool official_accepts(std::string_view file);

}  // namespace squareq::fuzz
