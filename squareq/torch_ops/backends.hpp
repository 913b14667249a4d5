// Which backend computes for the tensors of a device.
#pragma once

#include <c10/core/Device.h>

#include <string>

#include "squareq/contract.hpp"

namespace squareq::torch_ops {

/// The context that computes on `device`: opened by its first call (CFG_BACKEND where that fails, named), then kept for as long as the
/// process lives. Memory on a GPU comes from libtorch's caching allocator. Thread-safe.
Context context_on(c10::Device device);

/// What computes for "cpu" or "cuda" tensors from now on: a backend's name ("cpu", "reference", "cuda": what they are until this is
/// called) or a path. CFG_VALUE for another device type; CFG_BACKEND for one that cannot run here or computes elsewhere, and then nothing
/// changes. Calls that have begun end with the former. Thread-safe.
void set_backend(const std::string& device_type, const std::string& backend);

/// Path of the library that answers for "cpu" or "cuda"; opens it where no call has. Errors as those of set_backend.
std::string backend(const std::string& device_type);

}  // namespace squareq::torch_ops
