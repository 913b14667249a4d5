// One linear layer with several sets of operands, and the calls of the contract that the bench times.
#pragma once

#include <memory>
#include <vector>

#include "bench/cuda/cublas.hpp"
#include "bench/cuda/device.hpp"
#include "bench/cuda/shapes.hpp"

namespace squareq::bench {

/// Which forward. `codes`: X comes quantized, from the set's codes; `copied`: X is what copy_x() wrote.
struct ForwardCall {
  std::int32_t compute = SQ_COMPUTE_DEFAULT;
  bool lora = false, gelu = false, kept = false, codes = false, copied = false;
};

/// Which backward. With `lora` it also makes the adapters' gradients, from the saved H.
struct BackwardCall {
  std::int32_t compute = SQ_COMPUTE_DEFAULT;
  bool lora = false;
};

class Layer {
 public:
  static constexpr std::int64_t kRank = 16;

  /// M = `rows` tokens. As many sets as take more memory than a cache holds (220 MB), 2 to 16 of them; bf16 activations.
  Layer(const Context& context, const Random& random, std::int64_t rows, const Shape& shape, cudaStream_t stream);
  ~Layer() { cudaDeviceSynchronize(); }  // whatever still reads the sets
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  static int count_sets(std::int64_t rows, const Shape& shape);
  int sets() const { return static_cast<int>(sets_.size()); }

  /// For cuBLASLt: Y of X, dX of dY; `whole`: with the weight that dequantize() writes in place of the set's own bf16 weight.
  ProductOperands forward_operands(int set, bool whole = false) const;
  ProductOperands backward_operands(int set, bool whole = false) const;

  void forward(int set, const ForwardCall& call) const;
  void backward(int set, const BackwardCall& call) const;
  /// The whole weight, as bf16, into one place that all sets share.
  void dequantize(int set) const;
  /// LayerNorm and modulation of X, straight to the set's codes.
  void produce_codes(int set) const;
  /// What a separate producer costs at least: X read and written once.
  void copy_x(int set) const;

 private:
  struct Set;
  struct Shared;
  struct Views;
  std::int64_t rows_;
  Shape shape_;
  const Context& context_;
  cudaStream_t stream_;
  std::vector<std::shared_ptr<const Set>> sets_;
  std::shared_ptr<const Shared> shared_;
};

}  // namespace squareq::bench
