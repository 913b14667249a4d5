// OpenBLAS chooses its kernels while it is loaded, by the processor's model number; for a model newer than itself it takes the oldest
// kernels it has (SSE3), several times slower than the processor allows.
#pragma once

namespace squareq::cli {

/// Where OpenBLAS has done so, starts this program once more with OPENBLAS_CORETYPE naming kernels for the instruction sets that the
/// processor has; returns otherwise. A value that the user set is left alone. Call first in main, before any thread exists.
void use_fitting_blas_kernels(char** argv);

}  // namespace squareq::cli
