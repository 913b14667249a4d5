// Our own library as an implementation of the contract's group `format`: build, validate, report (spec/90-conformance.md).
#pragma once

#include "squareq/contract.h"

namespace squareq {

/// The table; name "squareq". Contexts carry the host's thread count, nothing else. Requests name a backend with "backend"
/// (default "cpu").
const sq_implementation* format_implementation();

}  // namespace squareq
