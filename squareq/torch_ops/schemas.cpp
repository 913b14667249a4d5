// The operations' names and arguments, as Python sees them.
#include <torch/library.h>
#include <torch/version.h>

#include <string>
#include <vector>

#include "squareq/torch_ops/backends.hpp"
#include "squareq/torch_ops/errors.hpp"

namespace squareq::torch_ops {

namespace {

/// torch.compile takes such operations as they are; libtorch before 2 knows no such promise.
const std::vector<at::Tag>& compilable() {
  static const std::vector<at::Tag> tags {
#if TORCH_VERSION_MAJOR >= 2
    at::Tag::pt2_compliant_tag,
#endif
  };
  return tags;
}

std::string backend_for(std::string device_type) { return backend(device_type); }
void set_backend_for(std::string device_type, std::string name) { set_backend(device_type, name); }

}  // namespace

// One line each, however long: what is between the quotes is what Python shows.
// clang-format off
TORCH_LIBRARY(squareq, m) {
  m.def(R"(quantize(Tensor weight) -> (Tensor qweight, Tensor scale))", compilable());
  m.def(R"(dequantize(Tensor qweight, Tensor scale, ScalarType dtype) -> Tensor)", compilable());
  m.def(R"(quantize_activation(Tensor x) -> (Tensor q, Tensor scale))", compilable());

  m.def(R"(linear(Tensor x, Tensor qweight, Tensor scale, Tensor? bias, str compute="default", str activation="none") -> Tensor)", compilable());
  m.def(R"(linear_forward(Tensor x, Tensor qweight, Tensor scale, Tensor? bias, str compute, str activation) -> (Tensor y, Tensor preactivation))", compilable());
  m.def(R"(linear_backward(Tensor grad, Tensor? preactivation, Tensor qweight, Tensor scale, str compute="default", str activation="none") -> Tensor)", compilable());

  m.def(R"(linear_lora(Tensor x, Tensor qweight, Tensor scale, Tensor? bias, Tensor lora_a, Tensor lora_b, float scaling, str compute="default") -> Tensor)", compilable());
  m.def(R"(linear_lora_forward(Tensor x, Tensor qweight, Tensor scale, Tensor? bias, Tensor lora_a, Tensor lora_b, float scaling, str compute="default") -> (Tensor y, Tensor h))", compilable());
  m.def(R"(linear_lora_backward(Tensor grad, Tensor x, Tensor h, Tensor qweight, Tensor scale, Tensor lora_a, Tensor lora_b, float scaling, str compute="default", bool[3] output_mask=[True, True, True]) -> (Tensor dx, Tensor da, Tensor db))", compilable());

  m.def(R"(explain(Tensor x, Tensor qweight, Tensor scale, Tensor? bias=None, Tensor? lora_a=None, Tensor? lora_b=None, str compute="default", str activation="none", bool backward=False) -> str)");
  m.def("backend(str device_type) -> str", coded<&backend_for>);
  m.def("set_backend(str device_type, str backend) -> ()", coded<&set_backend_for>);
}
// clang-format on

}  // namespace squareq::torch_ops
