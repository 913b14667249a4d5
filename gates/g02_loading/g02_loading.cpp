#include "gates/g02_loading/g02_loading.hpp"

#include "gates/harness/linear_vectors.hpp"

namespace squareq::gates {

void add_g02_loading(Cases& cases) {
  g02::add_quantize(cases);
  g02::add_dequantize(cases);
  g02::add_lease(cases);
  g02::add_module(cases);
  add_linear_vectors(cases, 2);
}

}  // namespace squareq::gates
