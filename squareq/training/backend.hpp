// Choosing and opening a backend behind the contract.
#pragma once

#include <torch/types.h>

#include <string>

#include "squareq/contract.hpp"
#include "squareq/training/choose_backend.hpp"

namespace squareq::training {

/// BF16 for a backend on a GPU, F32 on the CPU. Throws CFG_BACKEND for one that cannot be loaded.
torch::Dtype default_dtype(const std::string& backend);

/// A deterministic context of the backend `name`: "auto" (cuda where it is usable here, else cpu), a name, or a path. Throws
/// CFG_BACKEND for one that cannot run here or lacks the groups linear, lora or stream. On a GPU its memory comes from libtorch's
/// caching allocator (device.hpp), and libtorch is made ready beside it: `deterministic` is libtorch's part alone (prepare_device).
Context open_backend(const std::string& name, unsigned threads, bool deterministic = true);

/// A deterministic context of the backend `name` (a name or a path) on `device`, for single operations: groups linear and lora. Changes no
/// setting of libtorch's. Throws CFG_BACKEND for one that cannot run here, lacks a group, or computes on another kind of device.
Context open_context(const std::string& name, sq_device device, unsigned threads);

/// "cpu" or "cuda", from the backend's own description.
std::string backend_device(const Context& backend);

}  // namespace squareq::training
