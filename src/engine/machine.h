// What this machine and this installation can run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::engine {

struct KernelChoice {
  std::string family;  // "qgemm", "attention"
  std::string isa;     // the instruction set its kernels run on: "avx512vnni"
};

// A model that can be named without its path, and where it is.
struct KnownModelFile {
  std::string name, file;
  std::string path;                 // empty: found nowhere
  std::vector<std::string> looked;  // folders, in order
};

struct CudaDevice {
  std::string name;
  int64_t memory_total = 0, memory_free = 0;
};

struct CudaReport {
  std::string library;  // path of the plugin
  bool loaded = false;
  std::string reason;  // why there is no device; empty when there is one
  std::vector<CudaDevice> devices;
};

struct Machine {
  std::string processor;                      // empty: the system does not say
  int threads = 0;                            // that this process may use
  int processors = 0;                         // online
  std::vector<std::string> instruction_sets;  // of those that kernels care for
  int64_t memory_total = 0, memory_available = 0;
  std::string huge_pages;  // "always", "madvise", "never"; empty: the system has none
  std::vector<KernelChoice> kernels;
  std::vector<KnownModelFile> models;
  CudaReport cuda;
  std::string torch_ops;  // path of the op library beside the program
  bool torch_ops_present = false;
};

// Bytes of an entry of /proc/meminfo ("MemAvailable:"); 0 where there is none.
int64_t meminfo_bytes(std::string_view entry);

// Loads the CUDA plugin when it is there, which takes seconds.
Machine describe_machine();

std::vector<KnownModelFile> known_models();

}  // namespace longspur::engine
