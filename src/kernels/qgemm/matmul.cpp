// Distribution of a product over the team: the input stage once, then pieces of (row groups x
// tokens) to whichever thread is free. A single token is quantised by every thread for itself,
// which is shorter than meeting at a barrier.
#include <algorithm>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/qgemm/isa.h"
#include "kernels/qgemm/nvfp4_input.h"
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

// Only NVFP4 weights are multiplied with NVFP4 activations.
CodeKind codes_of(WeightKind kind, ActPrecision precision) {
  const auto codes = CodeKind(precision);
  return codes == kNvfp4Codes && kind != kNvfp4Kind ? kPeakCodes : codes;
}

// What products read of a token.
int64_t token_bytes(WeightKind kind, int64_t k, CodeKind codes) {
  if (kind >= kF32Kind) return float_stride(k) * 4;
  return k / kBlock * activation_block_bytes(kind, codes);
}

// Scratch of T tokens' activations.
int64_t input_bytes(WeightKind kind, int64_t t, int64_t k, CodeKind codes) {
  if (codes == kNvfp4Codes) return nvfp4_input_bytes(t, k, float_stride(k));
  return round_up(t * token_bytes(kind, k, codes), kCacheLine);
}

// A cache line more keeps the threads' copies apart.
int64_t copy_bytes(WeightKind kind, int64_t k, CodeKind codes) {
  return input_bytes(kind, 1, k, codes) + kCacheLine;
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
                     .codes = codes_of(w.kind(), args.precision),
                     .out = out,
                     .float_stride = float_stride(w.k())};
}

// What a product reads of the activations, once all of their tokens are written.
struct Activations {
  const std::byte* tiles;
  const float* token_scale;
};

ProductParams make_product(const PackedRows& w,
                           const MatmulArgs& args,
                           const Activations& activations) {
  return ProductParams{.weight = w.data(),
                       .group_bytes = w.group_bytes(),
                       .n = w.n(),
                       .k = w.k(),
                       .activations = activations.tiles,
                       .float_stride = float_stride(w.k()),
                       .codes = codes_of(w.kind(), args.precision),
                       .row_scale = w.row_scale(),
                       .token_scale = activations.token_scale,
                       .t = args.t,
                       .y = args.y,
                       .ldy = args.ldy,
                       .accumulate = args.accumulate,
                       .bias = args.bias};
}

// Writes tokens [begin, end) of the input into scratch for all T.
Activations write_input(const KernelTable& kernels,
                        const PackedRows& w,
                        const MatmulArgs& args,
                        std::byte* scratch,
                        int64_t begin,
                        int64_t end) {
  InputParams input = make_input(w, args, scratch);
  if (input.codes != kNvfp4Codes) {
    kernels.input(input, begin, end);
    return {scratch, nullptr};
  }
  const Nvfp4Input parts = nvfp4_input(scratch, args.t, w.k(), input.float_stride);
  input.kind = kF32Kind;  // the transform alone
  input.out = reinterpret_cast<std::byte*>(parts.rows);
  kernels.input(input, begin, end);
  encode_nvfp4(parts, args.act_rule, begin, end);
  return {parts.tiles, parts.multiplier};
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

int64_t workspace_bytes(DType dtype, int64_t t, int64_t k, bool any_precision) {
  const WeightKind kind = kind_of(dtype);
  const auto bytes = [&](CodeKind codes) {
    return std::max(kPrivateCopies * copy_bytes(kind, k, codes), input_bytes(kind, t, k, codes));
  };
  const bool nvfp4 = any_precision && kind == kNvfp4Kind;
  return std::max(bytes(kInt15Codes), nvfp4 ? bytes(kNvfp4Codes) : 0);
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
  const CodeKind codes = codes_of(w.kind(), args.precision);
  if (args.t == 1 && team.size() <= kPrivateCopies) {
    std::byte* copy = workspace + team.rank() * copy_bytes(w.kind(), w.k(), codes);
    const Activations own = write_input(kernels, w, args, copy, 0, 1);
    multiply(team, kernels, make_product(w, args, own), w.kind(), kTileTokens);
    return;
  }
  const Team::Range share = team.static_range(args.t);
  const Activations all = write_input(kernels, w, args, workspace, share.begin, share.end);
  team.barrier();
  const int64_t fitting = kActivationCache / token_bytes(w.kind(), w.k(), codes);
  multiply(team, kernels, make_product(w, args, all), w.kind(),
           std::max<int64_t>(1, fitting / kTileTokens) * kTileTokens);
}

void matmul(ThreadPool& pool, const PackedWeight& w, const MatmulArgs& args) {
  const bool nvfp4 = args.precision == ActPrecision::kNvfp4;
  AlignedBuffer workspace(size_t(workspace_bytes(w.dtype(), args.t, w.k(), nvfp4)));
  pool.run([&](Team& team) { matmul(team, w, args, workspace.data()); });
}

}  // namespace longspur::kernels::qgemm
