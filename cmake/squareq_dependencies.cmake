# Where each third-party library comes from. Versions that were tried: README, "What each dependency is for".

find_package(Threads REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(fmt REQUIRED)
# What files that include torch link: PyPI's torch puts the headers of a newer fmt first on the include path, and header-only use keeps
# headers and code of one version.
set(SQUAREQ_TORCH_FMT fmt::fmt)
find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
find_package(PNG REQUIRED)
find_package(CLI11 REQUIRED)
find_package(BLAS REQUIRED)

# The conformance suite, which ships with the program, draws its properties' examples with it; unit tests use it as well.
find_path(RAPIDCHECK_INCLUDE rapidcheck.h REQUIRED)
find_library(RAPIDCHECK_LIBRARY rapidcheck REQUIRED)
add_library(squareq_rapidcheck INTERFACE)
target_include_directories(squareq_rapidcheck SYSTEM INTERFACE ${RAPIDCHECK_INCLUDE})
target_link_libraries(squareq_rapidcheck INTERFACE ${RAPIDCHECK_LIBRARY})

if(SQUAREQ_BUILD_TESTS)
  find_package(GTest REQUIRED)
  include(squareq_test_blas)
endif()
if(SQUAREQ_BUILD_BENCH)
  find_package(benchmark REQUIRED)
endif()

if(SQUAREQ_WITH_TORCH)
  find_package(Torch REQUIRED)
  add_library(squareq_torch INTERFACE)
  target_include_directories(squareq_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
  target_link_libraries(squareq_torch INTERFACE ${TORCH_LIBRARIES})
  # PyPI's libtorch_cpu exports a copy of std::filesystem that calls through a null pointer (remove_all); whoever is loaded first is used.
  target_link_options(squareq_torch INTERFACE "$<$<CXX_COMPILER_ID:GNU>:SHELL:-Wl,--push-state,--no-as-needed -lstdc++ -Wl,--pop-state>")
  # At -O1 GCC takes the counts inside libtorch's pointers for objects of size 0.
  target_compile_options(squareq_torch INTERFACE $<BUILD_INTERFACE:$<$<CXX_COMPILER_ID:GNU>:-Wno-stringop-overflow>>)
  # On a machine with two libtorches a wrong prefix mixes the headers of one with the library of the other: refuse at configure time.
  find_file(torch_version_header torch/version.h PATHS ${TORCH_INCLUDE_DIRS} NO_DEFAULT_PATH NO_CACHE)
  cmake_path(GET TORCH_LIBRARY PARENT_PATH torch_library_dir)
  cmake_path(IS_PREFIX TORCH_INSTALL_PREFIX "${torch_version_header}" NORMALIZE torch_headers_inside)
  cmake_path(IS_PREFIX TORCH_INSTALL_PREFIX "${torch_library_dir}" NORMALIZE torch_library_inside)
  if(NOT torch_version_header OR NOT torch_headers_inside OR NOT torch_library_inside)
    message(FATAL_ERROR "libtorch's headers (${torch_version_header}) and library (${TORCH_LIBRARY}) are not both inside ${TORCH_INSTALL_PREFIX}: "
      "point CMAKE_PREFIX_PATH at one torch only")
  endif()
  foreach(dir IN LISTS TORCH_INCLUDE_DIRS)
    if(EXISTS ${dir}/fmt/base.h)
      set(SQUAREQ_TORCH_FMT fmt::fmt-header-only)
    endif()
  endforeach()
  message(STATUS "libtorch ${Torch_VERSION} in ${TORCH_INSTALL_PREFIX}")
endif()

if(SQUAREQ_WITH_CUDA)
  enable_language(CUDA)
  # For a project that requires 3.25, CMake 3.25 marks a library as deprecated that CUDA 13 no longer has, and ends there.
  set(required_version ${CMAKE_MINIMUM_REQUIRED_VERSION})
  set(CMAKE_MINIMUM_REQUIRED_VERSION 3.24)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_MINIMUM_REQUIRED_VERSION ${required_version})
endif()
