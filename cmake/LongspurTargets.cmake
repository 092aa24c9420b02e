# One helper per kind of target. Each folder's CMakeLists.txt lists its sources and its
# dependencies by hand; nothing is globbed, so an unused or missing edge is visible in review.
include_guard()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(LONGSPUR_CCACHE ccache)
if(LONGSPUR_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Without these leniences ccache does not store units that use a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      "${LONGSPUR_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${LONGSPUR_CCACHE}")
endif()

find_package(Threads REQUIRED)

add_library(longspur_options INTERFACE)
target_include_directories(longspur_options INTERFACE "${PROJECT_SOURCE_DIR}/src")
target_compile_options(longspur_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${LONGSPUR_WERROR}>>:-Werror>)
# gcc 13's takes every reference that a function with a temporary argument returns for dangling.
target_compile_options(longspur_options INTERFACE
  $<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_GREATER_EQUAL:$<CXX_COMPILER_VERSION>,13>>:-Wno-dangling-reference>)
if(LONGSPUR_SANITIZE STREQUAL "address")
  target_compile_options(longspur_options INTERFACE
    -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(longspur_options INTERFACE -fsanitize=address,undefined)
elseif(LONGSPUR_SANITIZE STREQUAL "thread")
  target_compile_options(longspur_options INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(longspur_options INTERFACE -fsanitize=thread)
elseif(NOT LONGSPUR_SANITIZE STREQUAL "")
  message(FATAL_ERROR "LONGSPUR_SANITIZE: found '${LONGSPUR_SANITIZE}', expected address or thread")
endif()

if(LONGSPUR_FUZZ)
  # libFuzzer sees the coverage of the libraries, not only that of its own file
  target_compile_options(longspur_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# longspur_library(NAME SRCS a.cpp... [DEPS targets...] [PRIVATE_DEPS targets...])
# A static library, `longspur_<name>`, that links the project's warnings and include root.
function(longspur_library NAME)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(longspur_${NAME} STATIC ${ARG_SRCS})
    target_link_libraries(longspur_${NAME} PUBLIC longspur_options ${ARG_DEPS}
                                           PRIVATE ${ARG_PRIVATE_DEPS})
  else()
    add_library(longspur_${NAME} INTERFACE)
    target_link_libraries(longspur_${NAME} INTERFACE longspur_options ${ARG_DEPS})
  endif()
endfunction()

# longspur_cuda_library(NAME SRCS a.cu... [DEPS targets...])
# Torch-free CUDA kernels, `longspur_<name>`; all of them are built by the target
# longspur_cuda_kernels. Does nothing without LONGSPUR_CUDA.
function(longspur_cuda_library NAME)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  if(NOT LONGSPUR_CUDA)
    return()
  endif()
  add_library(longspur_${NAME} STATIC ${ARG_SRCS})
  target_include_directories(longspur_${NAME} PUBLIC "${PROJECT_SOURCE_DIR}/src")
  target_link_libraries(longspur_${NAME} PUBLIC ${ARG_DEPS})
  # -arch=sm_90a would also run a plain sm_90 pass, which refuses Hopper's own instructions.
  target_compile_options(longspur_${NAME} PRIVATE
    "SHELL:-gencode arch=compute_90a,code=sm_90a" -O3 --expt-relaxed-constexpr
    -Werror all-warnings -Xcompiler=-Wall,-Wextra)
  if(NOT TARGET longspur_cuda_kernels)
    add_custom_target(longspur_cuda_kernels)
  endif()
  add_dependencies(longspur_cuda_kernels longspur_${NAME})
endfunction()

# longspur_cuda_test(NAME SRCS a_test.cu... DEPS targets...): a GoogleTest executable with the label
# sm90; its tests skip themselves where no device is.
function(longspur_cuda_test NAME)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  if(NOT LONGSPUR_CUDA OR NOT LONGSPUR_TESTS)
    return()
  endif()
  find_package(GTest REQUIRED)
  add_executable(${NAME} ${ARG_SRCS})
  target_include_directories(${NAME} PRIVATE "${PROJECT_SOURCE_DIR}/src")
  target_compile_options(${NAME} PRIVATE "SHELL:-gencode arch=compute_90a,code=sm_90a")
  target_link_libraries(${NAME} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gtest_main)
  add_test(NAME ${NAME} COMMAND ${NAME})
  set_tests_properties(${NAME} PROPERTIES LABELS sm90 TIMEOUT 300)
  add_dependencies(longspur_cuda_kernels ${NAME})
endfunction()

# longspur_test(NAME SRCS a_test.cpp... DEPS targets... [LABELS cpu|sm90|slow...])
# A GoogleTest executable `<name>`, registered with CTest as one test with the given labels.
function(longspur_test NAME)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT LONGSPUR_TESTS)
    return()
  endif()
  find_package(GTest REQUIRED)
  add_executable(${NAME} ${ARG_SRCS})
  target_link_libraries(${NAME} PRIVATE longspur_options ${ARG_DEPS} GTest::gtest GTest::gmock
                                        GTest::gtest_main)
  target_compile_definitions(${NAME} PRIVATE LONGSPUR_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME ${NAME} COMMAND ${NAME} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  if(NOT ARG_LABELS)
    set(ARG_LABELS cpu)
  endif()
  set_tests_properties(${NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 300)
endfunction()

# longspur_fuzz(NAME SRCS fuzz.cpp CORPUS dir DEPS targets...)
# The file defines LLVMFuzzerTestOneInput. With LONGSPUR_FUZZ it becomes a libFuzzer binary, built by
# the target longspur_fuzzers; without, it is linked to a main that runs every file of the corpus
# once, as a CTest test.
function(longspur_fuzz NAME)
  cmake_parse_arguments(ARG "" "CORPUS" "SRCS;DEPS" ${ARGN})
  if(LONGSPUR_FUZZ)
    add_executable(${NAME} ${ARG_SRCS})
    target_link_options(${NAME} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${NAME} PRIVATE longspur_options ${ARG_DEPS})
    if(NOT TARGET longspur_fuzzers)
      add_custom_target(longspur_fuzzers)
    endif()
    add_dependencies(longspur_fuzzers ${NAME})
  elseif(LONGSPUR_TESTS)
    add_executable(${NAME} ${ARG_SRCS} "${PROJECT_SOURCE_DIR}/tests/fuzz/corpus_main.cpp")
    target_link_libraries(${NAME} PRIVATE longspur_options ${ARG_DEPS})
    add_test(NAME ${NAME}_corpus COMMAND ${NAME} "${ARG_CORPUS}")
    set_tests_properties(${NAME}_corpus PROPERTIES LABELS "cpu;fuzz" TIMEOUT 120)
  endif()
endfunction()

# Adds each folder that has a CMakeLists.txt; a folder appears once it has something in it.
function(longspur_add_folders)
  foreach(FOLDER IN LISTS ARGN)
    if(EXISTS "${PROJECT_SOURCE_DIR}/${FOLDER}/CMakeLists.txt")
      add_subdirectory("${PROJECT_SOURCE_DIR}/${FOLDER}")
    endif()
  endforeach()
endfunction()
