# The tests multiply with the kernels that the squareq program takes: where OpenBLAS chooses too old ones, the program starts itself once more,
# which a unit test does not, and the training tests would take three times as long. Asked once, of the machine that configures:
# -DSQUAREQ_TEST_BLAS_KERNELS=NAME chooses, and an empty name leaves OpenBLAS its choice.
if(NOT DEFINED CACHE{SQUAREQ_TEST_BLAS_KERNELS})
  try_run(squareq_blas_status squareq_blas_built
    SOURCE_FROM_CONTENT ask.cpp "#include <cstdio>\n#include \"squareq/cli/blas_kernels.hpp\"\nint main() {\n  const char* name = squareq::cli::better_blas_kernels();\n  std::printf(\"%s\", name ? name : \"\");\n}\n"
    SOURCES ${PROJECT_SOURCE_DIR}/squareq/cli/blas_kernels.cpp
    CMAKE_FLAGS -DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}
    LINK_OPTIONS -Wl,--no-as-needed LINK_LIBRARIES ${BLAS_LIBRARIES} ${CMAKE_DL_LIBS}
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON
    COMPILE_OUTPUT_VARIABLE squareq_blas_errors RUN_OUTPUT_VARIABLE squareq_blas_kernels)
  if(NOT squareq_blas_built OR NOT squareq_blas_status EQUAL 0)
    message(FATAL_ERROR "cannot ask OpenBLAS for its kernels: ${squareq_blas_errors} ${squareq_blas_kernels}")
  endif()
  set(SQUAREQ_TEST_BLAS_KERNELS "${squareq_blas_kernels}" CACHE STRING "OpenBLAS's kernels for the tests; empty: its own choice")
  message(STATUS "Tests multiply with OpenBLAS's kernels: ${SQUAREQ_TEST_BLAS_KERNELS} (empty: its own choice)")
endif()
set(SQUAREQ_TEST_BLAS "")  # a test's property
if(SQUAREQ_TEST_BLAS_KERNELS)
  set(SQUAREQ_TEST_BLAS ENVIRONMENT_MODIFICATION OPENBLAS_CORETYPE=set:${SQUAREQ_TEST_BLAS_KERNELS})
endif()
