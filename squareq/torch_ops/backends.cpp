#include "squareq/torch_ops/backends.hpp"

#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>

#include "squareq/text.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::torch_ops {

namespace {

namespace fs = std::filesystem;

/// As everywhere (find_backend), and beside this library: the program is somebody's Python.
fs::path locate(const std::string& name) {
  const bool is_path = name.find('/') != std::string::npos || name.ends_with(".so");
  const fs::path file = "libsquareq_" + name + ".so";
  std::error_code ignored;
  const char* chosen = std::getenv("SQUAREQ_BACKEND_PATH");
  if (is_path || (chosen && fs::exists(chosen / file, ignored))) return find_backend(name);
  Dl_info own{};
  if (dladdr(reinterpret_cast<const void*>(&locate), &own) == 0) return find_backend(name);
  const fs::path folder = fs::absolute(own.dli_fname).parent_path();
  if (fs::exists(folder / file, ignored)) return folder / file;
  try {
    return find_backend(name);
  } catch (const Error& e) {
    throw Error(e.code(), fmt::format("{}, {}", e.what(), printable(folder.string())));
  }
}

/// One per device type.
struct Served {
  std::string name;
  fs::path library;                          ///< empty until it is opened
  std::map<std::int32_t, Context> contexts;  ///< by the device's index
};

/// The device that libtorch computes on unless told otherwise; the first where it sees none, so that the backend says what is missing.
sq_device current(sq_device_kind kind) {
  if (kind != SQ_CUDA || !c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA)) return {kind, 0};
  const c10::impl::VirtualGuardImpl gpus(c10::DeviceType::CUDA);
  return {kind, gpus.deviceCount() > 0 ? gpus.getDevice().index() : 0};
}

class Backends {
 public:
  Context context(sq_device device) {
    const std::lock_guard lock(mutex_);
    return context(of(device.kind), device);
  }

  void set(sq_device_kind kind, const std::string& name) {
    Served next{name, locate(name), {}};
    const std::lock_guard lock(mutex_);
    context(next, current(kind));
    of(kind) = std::move(next);
  }

  std::string library(sq_device_kind kind) {
    const std::lock_guard lock(mutex_);
    context(of(kind), current(kind));
    return of(kind).library.string();
  }

 private:
  Served& of(std::int32_t kind) { return kind == SQ_CUDA ? cuda_ : cpu_; }

  static Context context(Served& served, sq_device device) {
    const auto found = served.contexts.find(device.index);
    if (found != served.contexts.end()) return found->second;
    if (served.library.empty()) served.library = locate(served.name);
    const auto threads = device.kind == SQ_CPU ? static_cast<unsigned>(at::get_num_threads()) : 0u;
    return served.contexts.emplace(device.index, training::open_context(served.library.string(), device, threads)).first->second;
  }

  std::mutex mutex_;
  Served cpu_{"cpu", {}, {}}, cuda_{"cuda", {}, {}};
};

Backends& backends() {
  static Backends& all = *new Backends;  // outlives whatever still runs when the process ends, libtorch's allocator among it
  return all;
}

sq_device_kind kind_of(const std::string& device_type) {
  if (device_type == "cpu") return SQ_CPU;
  if (device_type == "cuda") return SQ_CUDA;
  throw Error(Code::CFG_VALUE, fmt::format("device type '{}' is not one that a backend computes on: cpu, cuda", printable(device_type)));
}

}  // namespace

Context context_on(c10::Device device) { return backends().context(training::device_of(device)); }

void set_backend(const std::string& device_type, const std::string& name) { backends().set(kind_of(device_type), name); }

std::string backend(const std::string& device_type) { return backends().library(kind_of(device_type)); }

}  // namespace squareq::torch_ops
