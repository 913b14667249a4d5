// sgemm of the BLAS library, row-major, on the threads of this backend's own pool.
#pragma once

#include <cstdint>
#include <string>

namespace squareq::cpu {

class WorkerPool;

enum class Op { none, transpose };

/// C [m, n] = alpha * op(A) op(B) + beta * C, F32, leading dimensions in elements. beta 0 overwrites C, NaN included.
/// C is computed in pieces whose borders depend on m and n alone, each by one call on one thread: results depend on no number of
/// threads (SQ-NUM-004), whereas a BLAS library that cuts C itself lets other kernels, with another order of sums, do the borders.
void sgemm(WorkerPool& pool, Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda,
           const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);

/// The library's name for the kernels it runs ("SkylakeX"); empty where it does not say.
std::string blas_kernels();

/// While one of these lives, the BLAS library uses one thread per call. OpenBLAS keeps one count for the whole process, shared with
/// libtorch: it is put back when the last scope of any thread ends. Does nothing where the library offers no way to set it.
class SingleThreadedBlas {
 public:
  SingleThreadedBlas();
  ~SingleThreadedBlas();
  SingleThreadedBlas(const SingleThreadedBlas&) = delete;
  SingleThreadedBlas& operator=(const SingleThreadedBlas&) = delete;
};

}  // namespace squareq::cpu
