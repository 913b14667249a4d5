#include "gates/g02_loading/g02_loading.hpp"

namespace squareq::gates::g02 {

void add_module(Cases&) {}

}  // namespace squareq::gates::g02
