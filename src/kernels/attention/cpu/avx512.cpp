// The tile on AVX-512. Compiled with its own flags; nothing here may be shared with other
// units (anonymous namespace).
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

#include "kernels/attention/cpu/avx512-inl.h"
// clang-format keeps the order: the body needs Simd.
#include "kernels/attention/cpu/attend-inl.h"

constexpr KernelTable kTable = {"avx512", attend<uint32_t>, attend<float>, append};

}  // namespace

const KernelTable* table_avx512() { return &kTable; }

}  // namespace longspur::kernels::attention
