// OpenBLAS chooses its kernels while it is loaded, by the processor's model number; for a model newer than itself it takes the oldest
// kernels it has (SSE3), several times slower than the processor allows.
#pragma once

namespace squareq::cli {

/// The kernels, by OpenBLAS's name, for the instruction sets that the processor has, where OpenBLAS has taken older ones than AVX. Null where
/// its choice is as good as any, where it is not loaded, and where the user chose (OPENBLAS_CORETYPE).
const char* better_blas_kernels();

/// Where OpenBLAS has done so, starts this program once more with OPENBLAS_CORETYPE naming the better kernels; returns otherwise. Call first in
/// main, before any thread exists.
void use_fitting_blas_kernels(char** argv);

}  // namespace squareq::cli
