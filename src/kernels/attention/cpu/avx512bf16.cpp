// The tile on AVX-512 with bf16 dot products. Compiled with its own flags; nothing here may be
// shared with other units (anonymous namespace).
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

#define LONGSPUR_BF16_DOT 1
#include "kernels/attention/cpu/avx512-inl.h"
//
#include "kernels/attention/cpu/step-inl.h"
// clang-format keeps this order: each body needs the one before.
#include "kernels/attention/cpu/nvfp4_page-inl.h"
//
#include "kernels/attention/cpu/attend-inl.h"
//
#include "kernels/attention/cpu/means-inl.h"
//
#include "kernels/attention/cpu/varlen-inl.h"
//
#include "kernels/attention/cpu/varlen_backward-inl.h"
//
#include "kernels/attention/cpu/scores-inl.h"

constexpr KernelTable kTable = {
    "avx512bf16",
    attend<uint32_t>,
    attend<float>,
    append,
    block_means<uint32_t>,
    block_means<float>,
    {varlen_forward<uint32_t>, varlen_forward<float>, varlen_delta, varlen_backward, varlen_reduce},
    kScores};

}  // namespace

const KernelTable* table_avx512bf16() { return &kTable; }

}  // namespace longspur::kernels::attention
