// One instance of the CUDA backend, the memory it takes from the host's allocator, and CUDA's errors as ours.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>

#include "squareq/contract.h"
#include "squareq/error.hpp"

namespace squareq::cuda {

class StreamSession;

/// What the numeric guard has found in all of a context's calls: counters in page-locked memory that kernels add to, so that a step's
/// metrics read them without waiting for the device.
class NonfiniteTotals {
 public:
  NonfiniteTotals() = default;
  NonfiniteTotals(const NonfiniteTotals&) = delete;
  NonfiniteTotals& operator=(const NonfiniteTotals&) = delete;
  ~NonfiniteTotals();

  void allocate();  // with the context's device current; throws HOST_OOM
  std::int64_t* counters() const { return counters_; }  // [NaN, infinite]
  std::int64_t nan() const { return read(0); }
  std::int64_t inf() const { return read(1); }

 private:
  std::int64_t read(int index) const;
  std::int64_t* counters_ = nullptr;
};

}  // namespace squareq::cuda

struct sq_context {
  ~sq_context();
  /// The session of this id; throws CALL_STATE where it is closed or was never opened here.
  std::shared_ptr<squareq::cuda::StreamSession> session(std::uint64_t id) const;

  sq_host host{};
  std::optional<sq_allocator> allocator;  // none: CUDA's stream-ordered allocator for scratch, its plain one for sessions
  std::string device_name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::string first_kernel;  // $SQUAREQ_CUDA_KERNEL: no kernel before it in the table is used
  squareq::cuda::NonfiniteTotals nonfinite;
  // Operations take the context as const: none of its settings changes. Sessions come and go.
  mutable std::mutex sessions_mutex;
  mutable std::map<std::uint64_t, std::shared_ptr<squareq::cuda::StreamSession>> sessions;
};

namespace squareq::cuda {

/// Why no device of this machine can be used, as an error (GPU_NONE, GPU_ARCH); none where at least one can.
std::optional<Problem> why_unusable();

/// The devices of this machine that can be used: index, name, compute capability, memory. Empty where there is none.
struct DeviceInfo {
  int index = 0;
  std::string name;
  int major = 0, minor = 0, multiprocessors = 0;
  std::uint64_t bytes = 0;
};
std::optional<DeviceInfo> device_info(int index);
int device_count();

/// Fills a new context from the host's table. Throws CALL_NULL, CALL_VALUE, CALL_VERSION, CALL_DEVICE, GPU_NONE, GPU_ARCH.
void configure(sq_context& context, const sq_host* given);

/// Throws GPU_OOM, GPU_STICKY or INTERNAL, with `doing` and CUDA's own words, unless `status` is cudaSuccess.
void check_cuda(cudaError_t status, const std::string& doing);

/// Whether a kernel may start before the one queued ahead of it is done (programmatic dependent launch).
inline bool overlaps_kernels(const sq_context& context) { return context.major >= 9; }

/// Makes the context's device the thread's current one, and puts the former one back.
class CurrentDevice {
 public:
  explicit CurrentDevice(const sq_context& context);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int former_ = 0;
};

/// Device workspace for work queued on `stream`; given back in the order of the stream.
class Scratch {
 public:
  Scratch(const sq_context& context, std::uint64_t bytes, cudaStream_t stream, const char* tag);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const { return static_cast<T*>(data_); }

 private:
  const sq_context& context_;
  std::uint64_t bytes_;
  cudaStream_t stream_;
  void* data_ = nullptr;
};

inline cudaStream_t cuda_stream(sq_stream_handle stream) { return static_cast<cudaStream_t>(stream); }

/// The edge between C++ and the C ABI: runs body, turns what it throws into a status and a filled error record.
sq_status report(sq_error* e, const Problem& problem);

template <class Body>
sq_status guarded(sq_error* e, const Body& body) {
  try {
    body();
    return SQ_OK;
  } catch (const Error& error) {
    return report(e, error.problem());
  } catch (const std::bad_alloc&) {
    return report(e, {Code::HOST_OOM, "host memory exhausted", {}, {}, {}});
  } catch (const std::exception& error) {
    return report(e, {Code::INTERNAL, std::string("cuda: ") + error.what(), {}, {}, {}});
  }
}

}  // namespace squareq::cuda
