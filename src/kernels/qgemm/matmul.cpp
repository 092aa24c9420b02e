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

// Padded so that rows of a tile fall into different cache sets.
int64_t float_stride(int64_t k) { return round_up(k, 16) + 16; }

int64_t token_bytes(WeightKind kind, int64_t k, ActPrecision precision) {
  if (kind >= kF32Kind) return float_stride(k) * 4;
  return k / kBlock * (8 + kBlock * (precision == ActPrecision::kInt15 ? 2 : 1));
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

void multiply_one(Team& team,
                  const KernelTable& kernels,
                  const PackedRows& w,
                  const MatmulArgs& args,
                  std::byte* workspace) {
  const bool own_copy = team.size() <= kPrivateCopies;
  std::byte* copy =
      own_copy ? workspace + team.rank() * copy_bytes(w.kind(), w.k(), args.precision) : workspace;
  if (own_copy || team.rank() == 0) kernels.input(make_input(w, args, copy), 0, 1);
  if (!own_copy) team.barrier();
  const ProductParams product = make_product(w, args, copy);
  const int64_t groups = ceil_div(w.n(), kGroupRows);
  const int64_t grain = std::max<int64_t>(1, (16 << 10) / w.group_bytes());
  team.dynamic_for(groups, grain, [&](int64_t begin, int64_t end) {
    kernels.product[w.kind()](product, begin, end, 0, 1);
  });
}

void multiply_many(Team& team,
                   const KernelTable& kernels,
                   const PackedRows& w,
                   const MatmulArgs& args,
                   std::byte* workspace) {
  const InputParams input = make_input(w, args, workspace);
  team.dynamic_for(args.t, 4,
                   [&](int64_t begin, int64_t end) { kernels.input(input, begin, end); });
  const ProductParams product = make_product(w, args, workspace);
  const int64_t groups = ceil_div(w.n(), kGroupRows);
  const int64_t tokens =
      std::max(kTileTokens, kActivationCache / token_bytes(w.kind(), w.k(), args.precision) /
                                kTileTokens * kTileTokens);
  const int64_t columns = ceil_div(args.t, tokens);
  team.dynamic_for(groups * columns, 1, [&](int64_t begin, int64_t) {
    const int64_t group = begin % groups, token = begin / groups * tokens;
    kernels.product[w.kind()](product, group, group + 1, token, std::min(token + tokens, args.t));
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

void matmul(Team& team, const PackedWeight& w, const MatmulArgs& args, std::byte* workspace) {
  const KernelTable& kernels = active_kernels();
  const auto& packed = static_cast<const PackedRows&>(w);
  if (args.t == 1)
    multiply_one(team, kernels, packed, args, workspace);
  else
    multiply_many(team, kernels, packed, args, workspace);
}

}  // namespace longspur::kernels::qgemm
