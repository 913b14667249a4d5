// The library as Python gets it: opened by its path, its operations called through libtorch's dispatcher; and random layers to call them
// on.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <tuple>

#include "squareq/torch_ops/signatures.hpp"

namespace squareq::torch_ops::testing {

using at::Tensor;

/// The operation `name`, from the library beside the backends.
template <class Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  static const bool loaded = [] {
    const std::string path = std::string(std::getenv("SQUAREQ_BACKEND_PATH")) + "/libsquareq_torch.so";
    if (!dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) throw std::runtime_error(dlerror());
    return true;
  }();
  static_cast<void>(loaded);
  return operation<Signature>((std::string("squareq::") + name).c_str());
}

inline std::tuple<Tensor, Tensor> quantize(const Tensor& weight) { return op<Quantize>("quantize").call(weight); }
inline Tensor dequantize(const Tensor& qweight, const Tensor& scale, at::ScalarType dtype) {
  return op<Dequantize>("dequantize").call(qweight, scale, dtype);
}
inline std::tuple<Tensor, Tensor> quantize_activation(const Tensor& x) { return op<QuantizeActivation>("quantize_activation").call(x); }

/// A frozen weight with whole-range codes, and an adapter.
struct Layer {
  Tensor qweight, scale, lora_a, lora_b;
  MaybeTensor bias;
  double scaling = 0.75;

  Layer(std::int64_t out, std::int64_t in, std::int64_t rank = 3, bool with_bias = true)
      : qweight(at::randint(-127, 128, {out, in}, at::kChar)),
        scale(at::rand({out}) * 0.01 + 0.001),
        lora_a(at::randn({rank, in})),
        lora_b(at::randn({out, rank})) {
    if (with_bias) bias = at::randn({out});
  }

  Tensor linear(const Tensor& x, const char* activation = "none", const char* compute = "default") const {
    return op<Linear>("linear").call(x, qweight, scale, bias, compute, activation);
  }
  std::tuple<Tensor, Tensor> linear_forward(const Tensor& x, const char* activation) const {
    return op<LinearForward>("linear_forward").call(x, qweight, scale, bias, "default", activation);
  }
  Tensor linear_backward(const Tensor& grad, const MaybeTensor& preactivation = {}, const char* activation = "none") const {
    return op<LinearBackward>("linear_backward").call(grad, preactivation, qweight, scale, "default", activation);
  }
  Tensor linear_lora(const Tensor& x, const char* compute = "default") const {
    return op<LinearLora>("linear_lora").call(x, qweight, scale, bias, lora_a, lora_b, scaling, compute);
  }
  std::tuple<Tensor, Tensor> linear_lora_forward(const Tensor& x) const {
    return op<LinearLoraForward>("linear_lora_forward").call(x, qweight, scale, bias, lora_a, lora_b, scaling, "default");
  }
  std::tuple<Tensor, Tensor, Tensor> linear_lora_backward(const Tensor& grad, const Tensor& x, const Tensor& h,
                                                          std::array<bool, 3> mask = {true, true, true}) const {
    return op<LinearLoraBackward>("linear_lora_backward").call(grad, x, h, qweight, scale, lora_a, lora_b, scaling, "default", mask);
  }

  Layer on_meta() const {
    Layer m = *this;
    for (Tensor* t : {&m.qweight, &m.scale, &m.lora_a, &m.lora_b}) *t = t->to(at::kMeta);
    if (bias) m.bias = bias->to(at::kMeta);
    return m;
  }
};

/// What a call that is refused says; the test fails where it is not refused.
template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  } catch (const std::exception& e) {
    return e.what();
  }
  ADD_FAILURE() << "accepted";
  return {};
}

/// Expects every one of `parts` in `text`.
inline void expect_says(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is missing in: " << text;
}

}  // namespace squareq::torch_ops::testing
