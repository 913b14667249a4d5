#include "optimized/cpu/blas.hpp"

#include <cblas.h>

#include <algorithm>

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

constexpr std::int64_t kDepth = 256;

CBLAS_TRANSPOSE cblas_op(Op op) { return op == Op::none ? CblasNoTrans : CblasTrans; }

/// A matrix of one row may come with any stride; BLAS still checks its leading dimension.
int leading(std::int64_t ld, std::int64_t columns) { return static_cast<int>(std::max({ld, columns, std::int64_t{1}})); }

}  // namespace

void sgemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda, const float* b,
           std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  // OpenBLAS cuts a deep sum at places that depend on its thread count, a sum of up to 256 terms nowhere: cut it here, always alike.
  const std::int64_t lda_checked = leading(lda, op_a == Op::none ? k : m);
  const std::int64_t ldb_checked = leading(ldb, op_b == Op::none ? n : k);
  const std::int64_t pieces = (k + kDepth - 1) / kDepth;
  const std::int64_t depth = (k + pieces - 1) / pieces;
  for (std::int64_t begin = 0; begin < k; begin += depth) {
    const std::int64_t size = std::min(depth, k - begin);
    cblas_sgemm(CblasRowMajor, cblas_op(op_a), cblas_op(op_b), static_cast<int>(m), static_cast<int>(n), static_cast<int>(size), alpha,
                a + begin * (op_a == Op::none ? 1 : lda_checked), static_cast<int>(lda_checked), b + begin * (op_b == Op::none ? ldb_checked : 1),
                static_cast<int>(ldb_checked), begin == 0 ? beta : 1.0f, c, leading(ldc, n));
  }
}

std::string blas_kernels() { return openblas_get_corename == nullptr ? "" : openblas_get_corename(); }

BlasThreads::BlasThreads(unsigned threads) {
  if (threads == 0 || openblas_set_num_threads == nullptr || openblas_get_num_threads == nullptr) return;
  const int now = openblas_get_num_threads();
  if (now == static_cast<int>(threads)) return;
  before_ = now;
  openblas_set_num_threads(static_cast<int>(threads));
}

BlasThreads::~BlasThreads() {
  if (before_ != 0) openblas_set_num_threads(before_);
}

}  // namespace squareq::cpu
