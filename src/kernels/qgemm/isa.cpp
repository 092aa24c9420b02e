#include "kernels/qgemm/isa.h"

#include "kernels/common/isa_choice.h"
#include "kernels/qgemm/api.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace longspur::kernels::qgemm {

namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  if (has_avx512() && __builtin_cpu_supports("avx512vnni")) tables.push_back(&kAvx512Kernels);
  if (has_avx2()) tables.push_back(&kAvx2Kernels);
#elif defined(__aarch64__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) tables.push_back(&kNeonKernels);
#endif
  tables.push_back(&kScalarKernels);
  return tables;
}

IsaChoice<KernelTable>& choice() {
  static IsaChoice<KernelTable> choice(available_tables());
  return choice;
}

}  // namespace

const KernelTable& active_kernels() { return choice().active(); }
std::vector<std::string_view> available_isas() { return choice().names(); }
std::string_view active_isa() { return active_kernels().isa; }
void limit_isa(std::string_view isa) { choice().limit(isa); }

}  // namespace longspur::kernels::qgemm
