#include "squareq/cli/blas_kernels.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string_view>

namespace squareq::cli {
namespace {

/// The kernels that fit the processor, by OpenBLAS's name; null where its choice is as good as any.
const char* fitting_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return nullptr;
}

bool predates_avx(std::string_view kernels) {
  constexpr std::array<std::string_view, 6> old = {"Katmai", "Coppermine", "Northwood", "Prescott", "Core2", "Nehalem"};
  for (const std::string_view name : old)
    if (kernels == name) return true;
  return false;
}

constexpr const char* variable = "OPENBLAS_CORETYPE";

}  // namespace

const char* better_blas_kernels() {
  if (std::getenv(variable) != nullptr) return nullptr;
  const auto corename = reinterpret_cast<char* (*)()>(dlsym(RTLD_DEFAULT, "openblas_get_corename"));
  return corename != nullptr && predates_avx(corename()) ? fitting_kernels() : nullptr;
}

void use_fitting_blas_kernels(char** argv) {
  const char* wanted = better_blas_kernels();
  if (wanted == nullptr || ::setenv(variable, wanted, 1) != 0) return;
  ::execv("/proc/self/exe", argv);  // returns only where it failed: then the slow kernels do the same work
}

}  // namespace squareq::cli
