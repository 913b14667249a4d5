#include "gates/g10_errors/g10_errors.hpp"

namespace squareq::gates {

void add_g10_errors(Cases& cases) {
  g10::add_linear(cases);
  g10::add_operations(cases);
  g10::add_structs(cases);
  g10::add_files(cases);
}

}  // namespace squareq::gates
