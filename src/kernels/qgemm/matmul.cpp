// Distribution of a product over the team: the input stage once, then pieces of (row groups x
// tokens) to whichever thread is free. A single token is quantised by every thread for itself,
// which is shorter than meeting at a barrier.
#include <algorithm>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/qgemm/isa.h"
#include "kernels/qgemm/packed.h"

namespace longspur::kernels::qgemm {

namespace {

// Threads that get a copy of their own of a single token's activations; in larger teams rank 0
// makes one for all.
constexpr int64_t kPrivateCopies = 16;

constexpr int64_t kCacheLine = 64;
// Activations that a piece of work runs through again for each row group: half a 1 MiB L2.
constexpr int64_t kActivationCache = 512 << 10;

// Up to here a product is too short for threads to drift apart.
constexpr int64_t kStaticTokens = 32;

// Padded so that rows of a tile fall into different cache sets.
int64_t float_stride(int64_t k) { return round_up(k, 16) + 16; }

int64_t token_bytes(WeightKind kind, int64_t k, ActPrecision precision) {
  if (kind >= kF32Kind) return float_stride(k) * 4;
  return k / kBlock * activation_block_bytes(precision == ActPrecision::kInt15);
}

int64_t copy_bytes(WeightKind kind, int64_t k, ActPrecision precision) {
  return round_up(token_bytes(kind, k, precision), kCacheLine) + kCacheLine;
}

InputParams make_input(const PackedRows& w, const MatmulArgs& args, std::byte* out) {
  return InputParams{.x = args.x,
                     .ldx = args.ldx,
                     .t = args.t,
                     .k = w.k(),
                     .input = InputKind(args.input),
                     .norm_weight = args.norm_weight,
                     .eps = args.eps,
                     .kind = w.kind(),
                     .int15 = args.precision == ActPrecision::kInt15,
                     .out = out,
                     .float_stride = float_stride(w.k())};
}

ProductParams make_product(const PackedRows& w,
                           const MatmulArgs& args,
                           const std::byte* activations) {
  return ProductParams{.weight = w.data(),
                       .group_bytes = w.group_bytes(),
                       .n = w.n(),
                       .k = w.k(),
                       .activations = activations,
                       .float_stride = float_stride(w.k()),
                       .int15 = args.precision == ActPrecision::kInt15,
                       .t = args.t,
                       .y = args.y,
                       .ldy = args.ldy,
                       .accumulate = args.accumulate,
                       .bias = args.bias};
}

// Each thread takes a contiguous share of the groups: a stream of its own from memory, and lines of
// y that no other thread writes. Against handing out single groups: 2.4 instead of 4.6 ms a decode
// step of 96 MB (two threads). With many tokens a step is long enough for threads to drift apart,
// so the last eighth is handed to whoever is free.
void multiply(Team& team,
              const KernelTable& kernels,
              const ProductParams& p,
              WeightKind kind,
              int64_t column_tokens) {
  const int64_t groups = ceil_div(p.n, kGroupRows);
  const ProductFunction product = kernels.product[kind];
  if (p.t <= kStaticTokens) {
    const Team::Range share = team.static_range(groups);
    product(p, share.begin, share.end, 0, p.t);
    team.barrier();
    return;
  }
  const int64_t own = groups * 7 / 8 / team.size();
  const int64_t begin = own * team.rank(), taken = own * team.size(), left = groups - taken;
  for (int64_t token = 0; token < p.t; token += column_tokens)
    product(p, begin, begin + own, token, std::min(token + column_tokens, p.t));
  team.dynamic_for(left * ceil_div(p.t, column_tokens), 1, [&](int64_t item, int64_t) {
    const int64_t group = taken + item % left, token = item / left * column_tokens;
    product(p, group, group + 1, token, std::min(token + column_tokens, p.t));
  });
}

}  // namespace

int64_t workspace_bytes(DType dtype, int64_t t, int64_t k) {
  const WeightKind kind = kind_of(dtype);
  return std::max(kPrivateCopies * copy_bytes(kind, k, ActPrecision::kInt15),
                  round_up(t * token_bytes(kind, k, ActPrecision::kInt15), kCacheLine));
}

void validate(const PackedWeight& w, const MatmulArgs& args) {
  const int64_t columns = args.input == Input::kSwiGlu ? 2 * w.k() : w.k();
  require(args.t >= 1, "matmul: found T = ", args.t, ", expected at least 1");
  require(args.x != nullptr && args.y != nullptr,
          "matmul: found no x or y, expected arrays of fp32");
  require(args.t == 1 || args.ldx >= columns, "matmul: found a row stride of x of ", args.ldx,
          ", expected at least ", columns);
  require(args.t == 1 || args.ldy >= w.n(), "matmul: found a row stride of y of ", args.ldy,
          ", expected at least ", w.n());
  require(args.input != Input::kRmsNorm || args.norm_weight != nullptr,
          "matmul: found no norm weight, expected ", w.k(), " values for RMSNorm");
}

void matmul(Team& team, const PackedWeight& weight, const MatmulArgs& args, std::byte* workspace) {
  const KernelTable& kernels = active_kernels();
  const auto& w = static_cast<const PackedRows&>(weight);
  if (args.t == 1 && team.size() <= kPrivateCopies) {
    std::byte* copy = workspace + team.rank() * copy_bytes(w.kind(), w.k(), args.precision);
    kernels.input(make_input(w, args, copy), 0, 1);
    multiply(team, kernels, make_product(w, args, copy), w.kind(), kTileTokens);
    return;
  }
  const InputParams input = make_input(w, args, workspace);
  const Team::Range share = team.static_range(args.t);
  kernels.input(input, share.begin, share.end);
  team.barrier();
  const int64_t fitting = kActivationCache / token_bytes(w.kind(), w.k(), args.precision);
  multiply(team, kernels, make_product(w, args, workspace), w.kind(),
           std::max<int64_t>(1, fitting / kTileTokens) * kTileTokens);
}

}  // namespace longspur::kernels::qgemm
