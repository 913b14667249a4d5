// sgemm of the BLAS library, row-major.
//
// Threads are the library's own, set up by whoever owns the process: OpenBLAS keeps one count for the whole process, and libtorch
// uses the same library. Where the host asks for a number of threads (sq_host.threads) that differs from that count, it is set
// for the length of one call and put back. Results do not depend on it (SQ-NUM-004): see sgemm.
#pragma once

#include <cstdint>
#include <string>

namespace squareq::cpu {

enum class Op { none, transpose };

/// C [m, n] = alpha * op(A) op(B) + beta * C, F32, leading dimensions in elements. beta 0 overwrites C, NaN included.
void sgemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda, const float* b,
           std::int64_t ldb, float beta, float* c, std::int64_t ldc);

/// The library's name for the kernels it runs ("SkylakeX"); empty where it does not say.
std::string blas_kernels();

/// Sets the library's thread count for a scope; does nothing for 0, or where the library offers no way to set it.
class BlasThreads {
 public:
  explicit BlasThreads(unsigned threads);
  ~BlasThreads();
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;

 private:
  int before_ = 0;
};

}  // namespace squareq::cpu
