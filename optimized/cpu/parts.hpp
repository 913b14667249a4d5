// What a call names: layers, formats, and the parts of a format. Every check throws a CALL_* error that names the layer.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "squareq/contract.h"

namespace squareq::cpu {

/// The layer's name of a struct called `owner`; CALL_NULL where it is null.
std::string require_name(const char* given, const char* owner);

/// CALL_NULL where the format is null, CALL_UNSUPPORTED where it is not `offered`. `subject`: the tensor concerned, or "".
void require_format(const char* given, std::string_view offered, const std::string& layer, const std::string& subject);

/// The parts of a weight or an activation, each of a known name and given once.
class Parts {
 public:
  /// Throws CALL_NULL for a null list or name, CALL_VALUE for a part that is unknown or given twice, CALL_PART for a missing one.
  Parts(const sq_part* parts, std::uint32_t count, const std::string& layer, std::string_view format,
        std::initializer_list<std::string_view> required, std::initializer_list<std::string_view> optional = {});

  /// Null where an optional part is not given.
  const sq_tensor* operator[](std::string_view name) const;

 private:
  const sq_part* parts_;
  std::uint32_t count_;
};

}  // namespace squareq::cpu
