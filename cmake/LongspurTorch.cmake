# Imports an installed torch as the target longspur_torch: its headers, libtorch_cpu and libc10, and
# a precompiled header shared by all torch units.
#
# Not through find_package(Torch): with a CUDA wheel that asks for the CUDA toolkit, which only our
# .cu files need. Torch is asked once, through a Python that can import it; the answer is cached
# until torch's version file changes.
include_guard()

set(LONGSPUR_PYTHON "" CACHE FILEPATH "Python whose torch is used; default .venv, else python3")

function(longspur_find_python RESULT)
  if(LONGSPUR_PYTHON)
    set(FOUND "${LONGSPUR_PYTHON}")
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
    set(FOUND "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  else()
    find_program(LONGSPUR_PYTHON3 python3 REQUIRED)
    set(FOUND "${LONGSPUR_PYTHON3}")
  endif()
  set(${RESULT} "${FOUND}" PARENT_SCOPE)
endfunction()

# Sets LONGSPUR_TORCH_{DIR,VERSION,CXX11_ABI} in the cache.
function(longspur_ask_torch)
  longspur_find_python(PYTHON)
  # Finding the package without importing it: importing costs seconds.
  execute_process(
    COMMAND "${PYTHON}" -c "import importlib.util as u, os
s = u.find_spec('torch')
f = os.path.join(os.path.dirname(s.origin), 'version.py') if s and s.origin else ''
print(f, os.stat(f).st_mtime_ns if f else 0, sep=';', end='')"
    OUTPUT_VARIABLE STAMP ERROR_QUIET)
  if(STAMP STREQUAL LONGSPUR_TORCH_STAMP AND EXISTS "${LONGSPUR_TORCH_DIR}/include/torch")
    return()
  endif()
  execute_process(
    COMMAND "${PYTHON}" -c "import os, torch
print(os.path.dirname(torch.__file__), torch.__version__, int(torch._C._GLIBCXX_USE_CXX11_ABI),
      sep=';', end='')"
    OUTPUT_VARIABLE ANSWER ERROR_VARIABLE PROBLEM RESULT_VARIABLE FAILED)
  if(FAILED)
    string(REGEX REPLACE ".*\n([^\n]+)\n?$" "\\1" PROBLEM "${PROBLEM}")
    message(FATAL_ERROR "torch: '${PYTHON}' cannot import it (${PROBLEM}), expected torch 2.11 or "
      "newer; run `make setup`, set LONGSPUR_PYTHON, or configure with -DLONGSPUR_TORCH=OFF")
  endif()
  list(GET ANSWER 0 DIR)
  list(GET ANSWER 1 VERSION)
  list(GET ANSWER 2 ABI)
  if(VERSION VERSION_LESS 2.11)
    message(FATAL_ERROR "torch: found ${VERSION} in ${DIR}, expected 2.11 or newer")
  endif()
  set(LONGSPUR_TORCH_DIR "${DIR}" CACHE INTERNAL "folder of the torch package")
  set(LONGSPUR_TORCH_VERSION "${VERSION}" CACHE INTERNAL "")
  set(LONGSPUR_TORCH_CXX11_ABI "${ABI}" CACHE INTERNAL "")
  set(LONGSPUR_TORCH_STAMP "${STAMP}" CACHE INTERNAL "")
endfunction()

longspur_ask_torch()
message(STATUS "torch ${LONGSPUR_TORCH_VERSION} in ${LONGSPUR_TORCH_DIR}")

function(longspur_import_torch_library NAME)
  add_library(longspur_torch_${NAME} SHARED IMPORTED GLOBAL)
  set_target_properties(longspur_torch_${NAME} PROPERTIES
    IMPORTED_LOCATION "${LONGSPUR_TORCH_DIR}/lib/lib${NAME}.so")
endfunction()
longspur_import_torch_library(c10)
longspur_import_torch_library(torch_cpu)

add_library(longspur_torch INTERFACE)
target_include_directories(longspur_torch SYSTEM INTERFACE
  "${LONGSPUR_TORCH_DIR}/include" "${LONGSPUR_TORCH_DIR}/include/torch/csrc/api/include")
target_compile_definitions(longspur_torch INTERFACE
  _GLIBCXX_USE_CXX11_ABI=${LONGSPUR_TORCH_CXX11_ABI})
target_link_libraries(longspur_torch INTERFACE longspur_torch_torch_cpu longspur_torch_c10)
# gcc 13 sees a copy out of bounds where torch's variable lists, inlined, are copied.
target_compile_options(longspur_torch INTERFACE
  "$<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_GREATER_EQUAL:$<CXX_COMPILER_VERSION>,13>>:-Wno-array-bounds;-Wno-stringop-overflow>")

# Torch's threads are OpenMP's; its wheels bring their own runtime, which must be the only one.
file(GLOB LONGSPUR_TORCH_GOMP "${LONGSPUR_TORCH_DIR}/lib/libgomp*.so*"
                              "${LONGSPUR_TORCH_DIR}/../torch.libs/libgomp*.so*")
add_library(longspur_torch_gomp INTERFACE)
if(LONGSPUR_TORCH_GOMP)
  list(GET LONGSPUR_TORCH_GOMP 0 LONGSPUR_TORCH_GOMP)
  add_library(longspur_torch_gomp_file SHARED IMPORTED GLOBAL)
  set_target_properties(longspur_torch_gomp_file PROPERTIES
    IMPORTED_LOCATION "${LONGSPUR_TORCH_GOMP}")
  target_link_libraries(longspur_torch_gomp INTERFACE longspur_torch_gomp_file)
else()
  target_link_options(longspur_torch_gomp INTERFACE -fopenmp)
endif()

# A program that starts without Python gets CUDA's operators only when something loads
# libtorch_cuda, although no symbol of it is used by name.
if(EXISTS "${LONGSPUR_TORCH_DIR}/lib/libtorch_cuda.so")
  longspur_import_torch_library(torch_cuda)
  add_library(longspur_torch_cuda_runtime INTERFACE)
  target_link_libraries(longspur_torch_cuda_runtime INTERFACE
    -Wl,--no-as-needed longspur_torch_torch_cuda -Wl,--as-needed longspur_torch)
endif()

# One precompiled header for all torch units. Nothing relies on it: LONGSPUR_TORCH_PCH=OFF builds
# the same without.
option(LONGSPUR_TORCH_PCH "precompile torch's headers" ON)
if(LONGSPUR_TORCH_PCH)
  file(WRITE "${CMAKE_BINARY_DIR}/longspur_torch_pch.cpp.in" "// Holds the precompiled header.\n")
  configure_file("${CMAKE_BINARY_DIR}/longspur_torch_pch.cpp.in"
                 "${CMAKE_BINARY_DIR}/longspur_torch_pch.cpp" COPYONLY)
  add_library(longspur_torch_pch OBJECT "${CMAKE_BINARY_DIR}/longspur_torch_pch.cpp")
  target_link_libraries(longspur_torch_pch PRIVATE longspur_options longspur_torch)
  target_precompile_headers(longspur_torch_pch PRIVATE
    <ATen/ATen.h> <torch/csrc/autograd/custom_function.h> <torch/library.h>)
endif()

# longspur_torch_library(NAME SRCS ... DEPS ... PRIVATE_DEPS ...): a longspur_library whose units
# see torch.
function(longspur_torch_library NAME)
  longspur_library(${NAME} ${ARGN})
  target_link_libraries(longspur_${NAME} PUBLIC longspur_torch)
  longspur_use_torch_pch(longspur_${NAME})
endfunction()

function(longspur_use_torch_pch TARGET)
  if(LONGSPUR_TORCH_PCH)
    target_precompile_headers(${TARGET} REUSE_FROM longspur_torch_pch)
  endif()
endfunction()
