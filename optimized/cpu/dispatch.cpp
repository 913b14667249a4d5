// Chooses the kernel table for this machine.
#include <cstdlib>
#include <string>

#include "optimized/cpu/kernels.hpp"
#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {

extern const Kernels kernels_baseline;
#ifdef SQUAREQ_CPU_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

struct Candidate {
  const Kernels* kernels;
  bool usable;
};

}  // namespace

const Kernels& select_kernels() {
#ifdef SQUAREQ_CPU_X86
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const Candidate candidates[] = {
      {&kernels_avx512, avx512}, {&kernels_avx2, static_cast<bool>(__builtin_cpu_supports("avx2"))}, {&kernels_baseline, true}};
#else
  const Candidate candidates[] = {{&kernels_baseline, true}};
#endif
  const char* forced = std::getenv("SQUAREQ_CPU_ISA");
  for (const Candidate& c : candidates) {
    if (forced == nullptr ? c.usable : std::string_view(forced) == c.kernels->isa) {
      if (!c.usable) throw Error(Code::CFG_BACKEND, std::string("SQUAREQ_CPU_ISA=") + forced + " cannot run on this processor");
      return *c.kernels;
    }
  }
  throw Error(Code::CFG_BACKEND, "SQUAREQ_CPU_ISA=" + printable(forced) + " is none of baseline, avx2, avx512");
}

}  // namespace squareq::cpu
