// Device memory, random contents and timing by replayed graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "squareq/contract.hpp"

namespace squareq::bench {

/// Throws with CUDA's words unless `status` is cudaSuccess.
void require(cudaError_t status, const char* what);

class Buffer {
 public:
  explicit Buffer(std::size_t bytes);
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  /// Fills with bf16 numbers in [-1, 1), codes in [-127, 127], or F32 numbers in (0.001, 0.01).
  void fill(std::int32_t dtype, unsigned seed);

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// Scratch for captured calls: hands out pieces of one allocation and starts over with every call, so that a graph can hold the addresses.
class Arena {
 public:
  explicit Arena(std::size_t bytes) : memory_(bytes) {}
  sq_allocator table();

 private:
  Buffer memory_;
  std::size_t used_ = 0;
  std::uint64_t live_ = 0;
};

/// A route is queued once per set of operands; a graph holds one call for each set, so that every call finds its operands outside the caches.
struct Route {
  std::string name;
  std::function<void(int set)> queue;
};

/// Microseconds per call of each route, `rounds` values each: rounds interleave the routes, and all are replayed from graphs.
std::vector<std::vector<double>> time_routes(const std::vector<Route>& routes, int sets, int rounds, cudaStream_t stream);

double median(std::vector<double> values);

}  // namespace squareq::bench
