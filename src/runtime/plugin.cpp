#include "runtime/plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"

namespace longspur::runtime {

namespace fs = std::filesystem;

std::string cuda_plugin_path() {
  if (const char* path = std::getenv("LONGSPUR_CUDA_LIBRARY"); path != nullptr && *path != '\0')
    return path;
  std::error_code error;
  const fs::path binary = fs::read_symlink("/proc/self/exe", error);
  return (binary.parent_path().parent_path() / "lib" / "liblongspur_cuda.so").string();
}

const DevicePlugin& load_cuda_plugin() {
  const std::string path = cuda_plugin_path();
  // Never closed: CUDA and torch do not survive being unloaded.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    throw UnsupportedError(concat("device cuda: ", path, " cannot be loaded (",
                                  reason ? reason : "no reason given",
                                  "); build with the cuda preset on a machine with a GPU"));
  }
  void* symbol = dlsym(library, kCudaPluginSymbol);
  if (symbol == nullptr) {
    throw UnsupportedError(
        concat("device cuda: ", path, " has no ", kCudaPluginSymbol, ": it is of another version"));
  }
  return *static_cast<const DevicePlugin*>(symbol);
}

}  // namespace longspur::runtime
