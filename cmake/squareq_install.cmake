# `cmake --install`: the program, the backends, and a package that find_package(squareq) finds.
#   squareq::contract   headers of the contract (an implementation or a host needs no more)
#   squareq::slab       read, validate and write slabs
#   squareq::architecture, squareq::streaming, squareq::builder
include(CMakePackageConfigHelpers)

set(squareq_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/squareq)
set(squareq_parts slab architecture streaming builder)

foreach(part IN LISTS squareq_parts)
  set_target_properties(squareq_${part} PROPERTIES EXPORT_NAME ${part})
  install(TARGETS squareq_${part} EXPORT squareq_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/squareq/${part} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/squareq
    FILES_MATCHING PATTERN "*.hpp" PATTERN "tests" EXCLUDE)
endforeach()
install(TARGETS squareq_contract EXPORT squareq_targets)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/spec/include/squareq DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT squareq_targets NAMESPACE squareq:: DESTINATION ${squareq_package_dir})

install(TARGETS squareq RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS squareq_reference_backend squareq_cpu_backend LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/squareq)
if(SQUAREQ_WITH_CUDA)
  install(TARGETS squareq_cuda_backend LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/squareq)
endif()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/squareqConfig.cmake.in ${CMAKE_BINARY_DIR}/squareqConfig.cmake
  INSTALL_DESTINATION ${squareq_package_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/squareqConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/squareqConfig.cmake ${CMAKE_BINARY_DIR}/squareqConfigVersion.cmake DESTINATION ${squareq_package_dir})
