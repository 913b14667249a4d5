#include "bench/cuda/cublas.hpp"

namespace squareq::bench {
namespace {

void require_cublas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(Code::INTERNAL, std::string("cuBLASLt, ") + what + ": " + cublasLtGetStatusName(status));
}

template <class T>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t what, const T& value, const char* name) {
  require_cublas(cublasLtMatmulDescSetAttribute(product, what, &value, sizeof value), name);
}

}  // namespace

// cuBLASLt is column-major: row-major C is C^T = op(B)^T A^T, so B comes first and "rows" and "columns" change places. A bias per feature is then one
// per row, as its epilogues have it.
CublasProduct::CublasProduct(std::int64_t rows, std::int64_t columns, std::int64_t depth, bool transposed, Epilogue epilogue, cudaStream_t stream)
    : epilogue_(epilogue), stream_(stream) {
  require_cublas(cublasLtCreate(&handle_), "create");
  require_cublas(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  set(product_, CUBLASLT_MATMUL_DESC_TRANSA, transposed ? CUBLAS_OP_T : CUBLAS_OP_N, "transposition");
  if (epilogue != Epilogue::none) {
    const bool kept = epilogue == Epilogue::bias_gelu_kept;
    set(product_, CUBLASLT_MATMUL_DESC_EPILOGUE, kept ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS, "epilogue");
    if (kept) set(product_, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, columns, "row length of what is kept");
  }
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

/// The descriptor is read when a product is queued.
void CublasProduct::point_epilogue(const ProductOperands& operands) const {
  if (epilogue_ == Epilogue::none) return;
  set(product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias, "bias");
  if (epilogue_ == Epilogue::bias_gelu_kept) set(product_, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, operands.kept, "what is kept");
}

cublasStatus_t CublasProduct::run(const cublasLtMatmulAlgo_t& algorithm, const ProductOperands& operands) const {
  const float one = 1, zero = 0;
  point_epilogue(operands);
  return cublasLtMatmul(handle_, product_, &one, operands.b, b_, operands.a, a_, &zero, operands.c, c_, operands.c, c_, &algorithm, workspace_.data(),
                        kWorkspace, stream_);
}

void CublasProduct::choose(const std::vector<ProductOperands>& sets) {
  cublasLtMatmulPreference_t preference = nullptr;
  require_cublas(cublasLtMatmulPreferenceCreate(&preference), "preference");
  const std::size_t bytes = kWorkspace;
  require_cublas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes), "preference");
  cublasLtMatmulHeuristicResult_t proposals[8];
  int count = 0;
  point_epilogue(sets.front());
  require_cublas(cublasLtMatmulAlgoGetHeuristic(handle_, product_, b_, a_, c_, c_, preference, 8, proposals, &count), "heuristic");
  cublasLtMatmulPreferenceDestroy(preference);
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "events");
  require(cudaEventCreate(&end), "events");
  const auto run_all = [&](const cublasLtMatmulAlgo_t& algorithm) {
    for (const ProductOperands& operands : sets) require_cublas(run(algorithm, operands), "trial");
  };
  float best = 0;
  for (int i = 0; i < count; ++i) {
    if (run(proposals[i].algo, sets.front()) != CUBLAS_STATUS_SUCCESS) continue;
    run_all(proposals[i].algo);
    require(cudaEventRecord(begin, stream_), "events");
    run_all(proposals[i].algo);
    run_all(proposals[i].algo);
    require(cudaEventRecord(end, stream_), "events");
    require(cudaEventSynchronize(end), "trial");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "events");
    if (best == 0 || milliseconds < best) best = milliseconds, algorithm_ = proposals[i].algo;
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  if (best == 0) throw Error(Code::INTERNAL, "cuBLASLt proposed nothing that runs");
}

void CublasProduct::queue(const ProductOperands& operands) const { require_cublas(run(algorithm_, operands), "product"); }

}  // namespace squareq::bench
