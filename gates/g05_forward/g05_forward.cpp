#include "gates/g05_forward/g05_forward.hpp"

#include "gates/harness/linear_vectors.hpp"

namespace squareq::gates {

void add_g05_forward(Cases& cases) {
  g05::add_exact(cases);
  g05::add_generic(cases);
  g05::add_contract(cases);
  g05::add_numbers(cases);
  g05::add_int8(cases);
  g05::add_refused_given(cases);
  g05::add_quantize_activation(cases);
  g05::add_rms_norm_rope(cases);
  g05::add_refused_backward(cases);
  g05::add_refused_weights(cases);
  g05::add_guard_borders(cases);
  g05::add_create(cases);
  g05::add_explain(cases);
  g05::add_borders(cases);
  add_linear_vectors(cases, 5);
}

}  // namespace squareq::gates
