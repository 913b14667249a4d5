# Flags, ccache, output folders and the helper functions that every CMakeLists.txt of the project uses.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
# Release means -O2: -O3 buys nothing measurable here and costs compile time. Debug info stays small.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1")

find_program(SQUAREQ_CCACHE ccache)
if(SQUAREQ_CCACHE)
  # The sloppiness is what ccache needs to cache files that use a precompiled header; paths relative to the tree, and no folder in
  # the hash, let presets with the same flags and other checkouts share objects; a compiler is known by its bytes.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_COMPILERCHECK=content ${SQUAREQ_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()

add_library(squareq_flags INTERFACE)
# Contraction is off everywhere: the slab arithmetic rounds the product before the integer rounding (SQ-QNT-003).
target_compile_options(squareq_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX,C>:-Wall -Wextra -Wpedantic -Wshadow -Werror -ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>
  # GCC 13's check takes every reference returned by a function of temporaries for dangling; GCC 12 does not know it.
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-dangling-reference>)
if(SQUAREQ_SANITIZE)
  target_compile_options(squareq_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(squareq_flags INTERFACE -fsanitize=address,undefined)
endif()

# squareq_measured(TARGET): counts the lines that run, where SQUAREQ_COVERAGE is on (ci/coverage). -O0: one line of source is one line of code.
function(squareq_measured target)
  if(SQUAREQ_COVERAGE)
    target_compile_options(${target} PRIVATE -O0 --coverage -fprofile-update=atomic)
    target_link_options(${target} PUBLIC --coverage)
  endif()
endfunction()

# squareq_glue(TARGET): code that only calls what does the work: commands, trainer, cases, tests. -O1 compiles it in two thirds of the time and
# runs as fast.
function(squareq_glue target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# squareq_library(NAME sources...): a static library of ours, with our flags; found by includes as "squareq/slab/...".
function(squareq_library name)
  add_library(${name} STATIC ${ARGN})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${name} PUBLIC squareq_contract PRIVATE $<BUILD_INTERFACE:squareq_flags>)
endfunction()

# squareq_backend(NAME sources...): libsquareq_NAME.so, hidden symbols, loaded through the contract only.
function(squareq_backend name)
  add_library(squareq_${name}_backend MODULE ${ARGN})
  set_target_properties(squareq_${name}_backend PROPERTIES OUTPUT_NAME squareq_${name} PREFIX lib
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(squareq_${name}_backend PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(squareq_${name}_backend PRIVATE squareq_contract squareq_flags)
  if(NOT SQUAREQ_SANITIZE)
    target_link_options(squareq_${name}_backend PRIVATE -Wl,--no-undefined)
  endif()
endfunction()

# squareq_test(NAME sources... [LIBRARIES ...] [LABELS ...]): a GoogleTest program, one ctest entry per case.
function(squareq_test name)
  if(NOT SQUAREQ_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(arg "" "" "LIBRARIES;LABELS" ${ARGN})
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  squareq_glue(${name})
  if(NOT TARGET squareq_test_places)
    add_library(squareq_test_places STATIC ${PROJECT_SOURCE_DIR}/fixtures/places.cpp)
    target_include_directories(squareq_test_places PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_definitions(squareq_test_places PRIVATE SQUAREQ_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_link_libraries(squareq_test_places PRIVATE squareq_flags)
  endif()
  target_link_libraries(${name} PRIVATE squareq_contract squareq_flags squareq_test_places ${arg_LIBRARIES} GTest::gtest GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  include(GoogleTest)
  gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${arg_LABELS}" ENVIRONMENT
    "SQUAREQ_BACKEND_PATH=${CMAKE_BINARY_DIR}/lib" ${SQUAREQ_TEST_BLAS})
endfunction()
