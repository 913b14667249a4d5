// Any text as the configuration of a training run. It is refused with a CFG code, or read; what was read, written out with every
// default, reads to the same thing again.
#include <string>

#include "gates/fuzz/common.hpp"
#include "squareq/training/trainer/config.hpp"

using namespace squareq;
using fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const training::RunConfig config = training::parse_config({reinterpret_cast<const char*>(data), size});
    const std::string text = training::effective_config(config);
    require(training::effective_config(training::parse_config(text)) == text);
  } catch (const Error& e) {
    require(exit_status(e.code()) == 2);
    fuzz::require_printable(e.what());
  }
  return 0;
}
