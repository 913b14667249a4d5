#include "optimized/cpu/blas.hpp"

#include <cblas.h>

#include <algorithm>
#include <mutex>

#include "optimized/cpu/worker_pool.hpp"

// Present in OpenBLAS only: weak, so that any CBLAS links.
extern "C" {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
void openblas_set_num_threads(int) __attribute__((weak));
int openblas_get_num_threads(void) __attribute__((weak));
char* openblas_get_corename(void) __attribute__((weak));
#pragma GCC diagnostic pop
}

namespace squareq::cpu {
namespace {

// Large enough that packing its operands costs little beside multiplying them, small enough to keep a few threads busy.
constexpr std::int64_t kPieceRows = 256;
constexpr std::int64_t kPieceColumns = 512;

CBLAS_TRANSPOSE cblas_op(Op op) { return op == Op::none ? CblasNoTrans : CblasTrans; }

/// A matrix of one row may come with any stride; BLAS still checks its leading dimension.
int leading(std::int64_t ld, std::int64_t columns) { return static_cast<int>(std::max({ld, columns, std::int64_t{1}})); }

std::mutex scopes_mutex;
int scopes = 0;          // SingleThreadedBlas objects alive
int threads_before = 0;  // the library's count when the first of them began

}  // namespace

void sgemm(WorkerPool& pool, Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda,
           const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  const int lda_checked = leading(lda, op_a == Op::none ? k : m), ldb_checked = leading(ldb, op_b == Op::none ? n : k);
  const std::int64_t down = (m + kPieceRows - 1) / kPieceRows, across = (n + kPieceColumns - 1) / kPieceColumns;
  pool.parallel_for(down * across, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t row = piece / across * kPieceRows, column = piece % across * kPieceColumns;
      cblas_sgemm(CblasRowMajor, cblas_op(op_a), cblas_op(op_b), static_cast<int>(std::min(kPieceRows, m - row)),
                  static_cast<int>(std::min(kPieceColumns, n - column)), static_cast<int>(k), alpha, a + row * (op_a == Op::none ? lda_checked : 1),
                  lda_checked, b + column * (op_b == Op::none ? 1 : ldb_checked), ldb_checked, beta, c + row * ldc + column, leading(ldc, n));
    }
  });
}

std::string blas_kernels() { return openblas_get_corename == nullptr ? "" : openblas_get_corename(); }

SingleThreadedBlas::SingleThreadedBlas() {
  if (openblas_set_num_threads == nullptr || openblas_get_num_threads == nullptr) return;
  const std::lock_guard lock(scopes_mutex);
  if (scopes++ > 0) return;
  threads_before = openblas_get_num_threads();
  if (threads_before != 1) openblas_set_num_threads(1);
}

SingleThreadedBlas::~SingleThreadedBlas() {
  if (openblas_set_num_threads == nullptr || openblas_get_num_threads == nullptr) return;
  const std::lock_guard lock(scopes_mutex);
  if (--scopes == 0 && threads_before != 1) openblas_set_num_threads(threads_before);
}

}  // namespace squareq::cpu
