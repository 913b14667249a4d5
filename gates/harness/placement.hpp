// Tensors on the device that the implementation under test describes, behind the cases' backs: cases fill and judge host memory; while a call
// to a device implementation runs, every tensor that lies in a placed buffer stands in device memory, sentinels and all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gates/harness/device_memory.hpp"
#include "squareq/contract.hpp"

namespace squareq::gates {

/// Tells that host memory [data, data + bytes) belongs to one guarded buffer. Takes as much device memory where a device is in use. Throws
/// GPU_OOM.
void place(std::byte* data, std::size_t bytes);
void unplace(std::byte* data);

/// `inner` behind a table that moves tensors to `device` before each call and back after it, queues every call on the device's stream and waits
/// for it, and says that contexts live on that device. One per process: the table finds its inner one by a global.
Implementation placed_on(const Implementation& inner, DeviceMemory& device);
/// Where memory for this implementation's contexts comes from; null: the host.
DeviceMemory* device_of(const Implementation& implementation);

}  // namespace squareq::gates
