#include "bench/cuda/cublas.hpp"

#include <stdexcept>

namespace squareq::bench {
namespace {

void require_cublas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string("cuBLASLt, ") + what + ": status " + std::to_string(static_cast<int>(status)));
}

}  // namespace

// cuBLASLt is column-major: row-major C is C^T = op(B)^T A^T, so B comes first and "rows" and "columns" change places.
CublasProduct::CublasProduct(std::int64_t rows, std::int64_t columns, std::int64_t depth, bool transposed, cudaStream_t stream) : stream_(stream) {
  require_cublas(cublasLtCreate(&handle_), "create");
  require_cublas(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  const cublasOperation_t first = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  require_cublas(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first), "transposition");
  const auto side = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
  require_cublas(transposed ? cublasLtMatrixLayoutCreate(&b_, CUDA_R_16BF, side(depth), side(columns), depth)
                            : cublasLtMatrixLayoutCreate(&b_, CUDA_R_16BF, side(columns), side(depth), columns),
                 "layout");
  require_cublas(cublasLtMatrixLayoutCreate(&a_, CUDA_R_16BF, side(depth), side(rows), depth), "layout");
  require_cublas(cublasLtMatrixLayoutCreate(&c_, CUDA_R_16BF, side(columns), side(rows), columns), "layout");
}

CublasProduct::~CublasProduct() {
  cublasLtMatrixLayoutDestroy(a_);
  cublasLtMatrixLayoutDestroy(b_);
  cublasLtMatrixLayoutDestroy(c_);
  cublasLtMatmulDescDestroy(product_);
  cublasLtDestroy(handle_);
}

cublasStatus_t CublasProduct::run(const cublasLtMatmulAlgo_t& algorithm, const void* a, const void* b, void* c) const {
  const float one = 1, zero = 0;
  return cublasLtMatmul(handle_, product_, &one, b, b_, a, a_, &zero, c, c_, c, c_, &algorithm, workspace_.data(), kWorkspace, stream_);
}

void CublasProduct::choose(const void* a, const void* b, void* c) {
  cublasLtMatmulPreference_t preference = nullptr;
  require_cublas(cublasLtMatmulPreferenceCreate(&preference), "preference");
  const std::size_t bytes = kWorkspace;
  require_cublas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes), "preference");
  cublasLtMatmulHeuristicResult_t proposals[8];
  int count = 0;
  require_cublas(cublasLtMatmulAlgoGetHeuristic(handle_, product_, b_, a_, c_, c_, preference, 8, proposals, &count), "heuristic");
  cublasLtMatmulPreferenceDestroy(preference);
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "events");
  require(cudaEventCreate(&end), "events");
  float best = 0;
  for (int i = 0; i < count; ++i) {
    if (run(proposals[i].algo, a, b, c) != CUBLAS_STATUS_SUCCESS) continue;
    require(cudaEventRecord(begin, stream_), "events");
    for (int repeat = 0; repeat < 5; ++repeat) require_cublas(run(proposals[i].algo, a, b, c), "trial");
    require(cudaEventRecord(end, stream_), "events");
    require(cudaEventSynchronize(end), "trial");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "events");
    if (best == 0 || milliseconds < best) best = milliseconds, algorithm_ = proposals[i].algo;
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  if (best == 0) throw std::runtime_error("cuBLASLt proposed nothing that runs");
}

void CublasProduct::queue(const void* a, const void* b, void* c) const { require_cublas(run(algorithm_, a, b, c), "product"); }

}  // namespace squareq::bench
