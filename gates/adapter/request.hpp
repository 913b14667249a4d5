// A contract call turned into a request: its fields, the tensors that travel, and the refusals that only the host can make because what they are
// about (an address, a stride, a device) does not travel.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gates/adapter/exchange_files.hpp"

namespace squareq::gates::adapter {

struct Request {
  nlohmann::ordered_json fields = nlohmann::ordered_json::object();
  std::vector<NamedTensor> inputs, outputs;
  std::string layer{};  ///< the name of the layer that the call is about, for the host's own refusals

  /// Null pointers are left out: the adapter judges whether it needs the tensor. Throws Refusal where the copy would hide a fault, and where
  /// the name was given before (CALL_VALUE): a file holds each once.
  void input(const std::string& name, const sq_tensor* tensor);
  void output(const std::string& name, const sq_tensor* tensor);
  /// Travels both ways.
  void accumulator(const std::string& name, const sq_tensor* tensor) {
    input(name, tensor);
    output(name, tensor);
  }

  void quantize(const sq_quantize_args* given);
  void dequantize(const sq_dequantize_args* given);
  void linear_forward(const sq_linear_forward_args* given);
  void linear_backward(const sq_linear_backward_args* given);
  void quantize_activation(const sq_quantize_activation_args* given);
  void numeric_guard(const sq_numeric_guard_args* given);
  void rms_norm_rope_forward(const sq_rms_norm_rope_forward_args* given);
  void rms_norm_rope_backward(const sq_rms_norm_rope_backward_args* given);
  /// One of the above by sq_op; fills "operation". Throws Refusal(CALL_VALUE) for an unknown number.
  void operation(std::int32_t op, const void* args);

 private:
  void weight(const sq_weight_ref* given);
  void lora(const sq_lora* given);
};

}  // namespace squareq::gates::adapter
