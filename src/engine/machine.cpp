#include "engine/machine.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/qgemm/api.h"
#include "runtime/plugin.h"

namespace longspur::engine {

namespace fs = std::filesystem;

namespace {

// Names in /proc/cpuinfo: x86-64, then 64-bit ARM.
constexpr std::string_view kInstructionSets[] = {
    "avx",      "f16c",        "fma",         "avx2",     "avx_vnni", "avx512f",
    "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd",
    "asimdhp",  "asimddp",     "i8mm",        "bf16",     "sve"};

// Value of the first line "key : value".
std::string cpuinfo(std::initializer_list<std::string_view> keys) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) continue;
    const size_t begin = line.find_first_not_of(' ', colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return {};
}

std::vector<std::string> instruction_sets() {
  std::istringstream words(cpuinfo({"flags", "Features"}));
  std::vector<std::string> found;
  for (std::string word; words >> word;) {
    const auto wanted = std::find(std::begin(kInstructionSets), std::end(kInstructionSets), word);
    if (wanted != std::end(kInstructionSets)) found.push_back(word);
  }
  return found;
}

// "always [madvise] never" -> "madvise"
std::string huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text;
  std::getline(file, text);
  const size_t begin = text.find('['), end = text.find(']');
  if (begin == std::string::npos || end == std::string::npos) return {};
  return text.substr(begin + 1, end - begin - 1);
}

CudaReport cuda_report() {
  CudaReport report;
  report.library = runtime::cuda_plugin_path();
  try {
    const runtime::DevicePlugin& plugin = runtime::load_cuda_plugin();
    report.loaded = true;
    for (int device = 0;; ++device) {
      const runtime::DeviceMemory memory = plugin.memory(device);
      report.devices.push_back({plugin.name(device), memory.total, memory.free});
    }
  } catch (const UnsupportedError& error) {  // also how the end of the devices shows
    if (report.devices.empty()) report.reason = error.what();
  }
  return report;
}

fs::path torch_ops_path() {
  std::error_code error;
  const fs::path binary = fs::read_symlink("/proc/self/exe", error);
  return binary.parent_path().parent_path() / "lib" / "liblongspur_torch.so";
}

}  // namespace

int64_t meminfo_bytes(std::string_view entry) {
  std::ifstream file("/proc/meminfo");
  std::string key, rest;
  for (int64_t kilobytes = 0; file >> key >> kilobytes; std::getline(file, rest))
    if (key == entry) return kilobytes * 1024;
  return 0;
}

Machine describe_machine() {
  Machine machine;
  machine.processor = cpuinfo({"model name", "Model"});
  machine.threads = available_threads();
  machine.processors = int(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  machine.instruction_sets = instruction_sets();
  machine.memory_total = meminfo_bytes("MemTotal:");
  machine.memory_available = meminfo_bytes("MemAvailable:");
  machine.huge_pages = huge_pages();
  machine.kernels = {{"qgemm", std::string(kernels::qgemm::active_isa())},
                     {"attention", std::string(kernels::attention::active_isa())}};
  machine.models = known_models();
  machine.cuda = cuda_report();
  const fs::path ops = torch_ops_path();
  std::error_code error;
  machine.torch_ops = ops.string();
  machine.torch_ops_present = fs::is_regular_file(ops, error);
  return machine;
}

}  // namespace longspur::engine
