// The reference with one number changed once: $SQUAREQ_ONE_CHANGE is "forward|backward:LAYER:N", and the N-th such call of that layer
// (counted from 1) gets another first element of y or dx. What `--shadow` must find, by name and step.
#include <cmath>
#include <cstdlib>
#include <string>

#include "squareq/contract.hpp"

namespace {

const sq_implementation& base() {
  static const squareq::Implementation implementation = squareq::Implementation::load(squareq::find_backend("reference"));
  return implementation.table();
}

struct Wish {
  std::string pass, layer;
  long call = 0;
};

const Wish& wish() {
  static const Wish wanted = [] {
    const char* value = std::getenv("SQUAREQ_ONE_CHANGE");
    const std::string text = value ? value : "";
    const std::size_t first = text.find(':'), last = text.rfind(':');
    if (first == std::string::npos || first == last) return Wish{};
    return Wish{text.substr(0, first), text.substr(first + 1, last - first - 1), std::atol(text.c_str() + last + 1)};
  }();
  return wanted;
}

bool due(sq_context* context, const char* pass, const sq_weight_ref* ref) {
  static long calls = 0;
  if (wish().pass != pass) return false;
  auto weight = squareq::sized<sq_weight>();
  if (ref->weight)
    weight = *ref->weight;
  else if (base().stream->lease_weight(context, ref->session, ref->lease, ref->layer, &weight, nullptr) != SQ_OK)
    return false;
  return wish().layer == weight.name && ++calls == wish().call;
}

void change(const sq_tensor* t) {
  if (!t || t->dtype != SQ_F32) return;
  float& first = *static_cast<float*>(t->data);
  first += 0.015625f * (1 + std::fabs(first));
}

sq_status forward(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  const sq_status status = base().linear->linear_forward(c, a, e);
  if (status == SQ_OK && due(c, "forward", a->weight)) change(a->y);
  return status;
}

sq_status backward(sq_context* c, const sq_linear_backward_args* a, sq_error* e) {
  const sq_status status = base().linear->linear_backward(c, a, e);
  if (status == SQ_OK && due(c, "backward", a->weight)) change(a->dx);
  return status;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const sq_implementation* squareq_implementation(uint32_t host_abi_version,
                                                                                                  uint32_t* own_abi_version) {
  static sq_linear_group linear;
  static sq_implementation implementation;
  if (own_abi_version) *own_abi_version = SQ_ABI_VERSION;
  if (host_abi_version != SQ_ABI_VERSION) return nullptr;
  linear = *base().linear;
  linear.linear_forward = forward;
  linear.linear_backward = backward;
  implementation = base();
  implementation.linear = &linear;
  return &implementation;
}
