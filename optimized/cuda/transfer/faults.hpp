// Hazards that the tests plant, to see that they are found: compiled in for the test build of the stream engine only (tests/faulty.cpp).
#pragma once

#include <cuda_runtime_api.h>

namespace squareq::cuda {

#ifdef SQUAREQ_CUDA_FAULTS
/// Whether SQUAREQ_CUDA_FAULT names this hazard.
bool fault(const char* name);
/// Keeps `stream` busy for SQUAREQ_CUDA_COPY_DELAY_MS milliseconds.
void delay_copy(cudaStream_t stream);
#else
constexpr bool fault(const char*) { return false; }
inline void delay_copy(cudaStream_t) {}
#endif

}  // namespace squareq::cuda
