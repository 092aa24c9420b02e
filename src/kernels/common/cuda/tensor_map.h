// The driver's encoder of tensor maps (what the tensor memory accelerator copies by), found at run
// time: machines without a driver build and load these libraries too. For .cu files only.
#pragma once

#include <cuda.h>

namespace longspur::kernels {

using EncodeTiled = CUresult (*)(CUtensorMap*,
                                 CUtensorMapDataType,
                                 cuuint32_t,
                                 void*,
                                 const cuuint64_t*,
                                 const cuuint64_t*,
                                 const cuuint32_t*,
                                 const cuuint32_t*,
                                 CUtensorMapInterleave,
                                 CUtensorMapSwizzle,
                                 CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

// Null where there is no driver or it is older than CUDA 12.
EncodeTiled encode_tiled();

}  // namespace longspur::kernels
