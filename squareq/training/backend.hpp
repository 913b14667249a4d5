// Choosing and opening a backend behind the contract.
#pragma once

#include <string>

#include "squareq/contract.hpp"

namespace squareq::training {

/// A deterministic context of the backend `name`: "auto" (cuda where it is usable here, else cpu), a name, or a path. Throws
/// CFG_BACKEND for one that cannot run here or lacks the groups linear, lora or stream.
Context open_backend(const std::string& name, unsigned threads);

/// "cpu" or "cuda", from the backend's own description.
std::string backend_device(const Context& backend);

}  // namespace squareq::training
