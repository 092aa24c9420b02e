// Choice of the instruction set: an ordered list of kernel tables, best first; the last is scalar.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {

const KernelTable& active_kernels();

// Names that limit_isa takes on this machine, best first.
std::vector<std::string_view> available_isas();

}  // namespace longspur::kernels::qgemm
