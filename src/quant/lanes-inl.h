// Body of lanes.h's functions; compiled once for each instruction set, with its flags, without
// contraction of multiplications and additions. Vectors are the compiler's own: it splits them
// where registers are narrower.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "quant/lanes.h"

namespace longspur::quant {
namespace {

namespace nvfp4 = kernels::nvfp4;

typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));

inline F32 load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }
inline F32 all(float x) { return x - F32{}; }
inline U32 bits(F32 v) { return (U32)v; }
inline F32 select(I32 mask, F32 yes, F32 no) {
  return (F32)((bits(yes) & (U32)mask) | (bits(no) & ~(U32)mask));
}
inline F32 magnitude(F32 v) { return (F32)(bits(v) & 0x7fffffffu); }
inline bool any_nonzero(F32 v) {
  const I32 set = v != 0.0f;
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= set[lane];
  return found != 0;
}

// Nearest E2M1 value, as codec.h's e2m1_encode does it.
inline F32 round_e2m1(F32 x) {
  F32 a = magnitude(x);
  a = select(a < 8.0f, a, all(8.0f));
  const U32 field = bits(a) >> 23;
  const U32 below_one = (U32)(field < 127u);
  const U32 exponent = (below_one & 127u) | (~below_one & field);
  const F32 magic = (F32)((exponent + 22u) << 23);
  const F32 rounded = (a + magic) - magic;
  const F32 value = select(rounded < nvfp4::kE2m1Max, rounded, all(nvfp4::kE2m1Max));
  return (F32)(bits(value) | (bits(x) & 0x80000000u));
}

// A block scale of each lane: its value, and what a weight is multiplied with before rounding.
struct Scale {
  F32 value, inverse;
};

inline Scale scale_of(const uint8_t* codes, const TensorScale& tensor) {
  Scale scale;
  for (int lane = 0; lane < kLanes; ++lane) scale.value[lane] = nvfp4::e4m3_decode(codes[lane]);
  const F32 step = scale.value * tensor.dec;
  const F32 inverse = 1.0f / step;
  scale.inverse = select(inverse < FLT_MAX, inverse, all(FLT_MAX));
  scale.inverse = select(step == 0.0f, F32{}, scale.inverse);
  return scale;
}

// c[j] += sum over the 16 rows i of sign * e[i] * rows[i, j], begin <= j < end.
template <int kSign>
inline void add_rows(
    float* c, const F32* e, const float* rows, int64_t ld, int64_t begin, int64_t end) {
  F32 own[kBlock];
  for (int i = 0; i < kBlock; ++i) own[i] = kSign > 0 ? e[i] : -e[i];
  for (int64_t j = begin; j < end; ++j) {
    F32 even = load(c + j * kLanes), odd = F32{};
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; i += 2) {
      even += own[i] * rows[i * ld + j];
      odd += own[i + 1] * rows[(i + 1) * ld + j];
    }
    store(c + j * kLanes, even + odd);
  }
}

// ---- GPTQ ----

struct Group {
  F32 level[kBlock], error[kBlock];  // error: (w - q) / U_jj
};

// Rounds 16 columns one after the other, each taking up the errors of those before it. factor: U at
// the first of them. scales: one for all columns, or one each. Returns sum error^2.
template <bool kEach>
inline F32 round_group(const F32* w,
                       const Scale* scales,
                       const TensorScale& tensor,
                       const float* factor,
                       int64_t ld,
                       Group& out) {
  F32 now[kBlock];
  for (int i = 0; i < kBlock; ++i) now[i] = w[i];
  F32 loss = F32{};
  for (int i = 0; i < kBlock; ++i) {
    const Scale& scale = scales[kEach ? i : 0];
    const float* row = factor + i * ld;
    const F32 level = round_e2m1(now[i] * scale.inverse);
    const F32 error = (now[i] - level * scale.value * tensor.multiplier) / row[i];
    loss += error * error;
    out.level[i] = level;
    out.error[i] = error;
    for (int j = i + 1; j < kBlock; ++j) now[j] -= error * row[j];
  }
  return loss;
}

inline F32 largest_of(const F32* w) {
  F32 bmax = F32{};
  for (int i = 0; i < kBlock; ++i) {
    const F32 a = magnitude(w[i]);
    bmax = select(bmax < a, a, bmax);
  }
  return bmax;
}

// The error of rounding the weights as they stand, without feedback, as quantize() counts it.
inline F32 plain_error(const F32* w, const Scale& scale, const GptqArgs& args, int64_t k) {
  F32 sum = F32{};
  for (int i = 0; i < kBlock; ++i) {
    const F32 q = round_e2m1(w[i] * scale.inverse) * scale.value * args.scale.amax / args.scale.top;
    const F32 difference = q - w[i];
    const float weight = args.importance != nullptr ? args.importance[k + i] : 1.0f;
    const F32 size = magnitude(difference) * weight;
    if (args.metric == nvfp4::Metric::kMse) {
      sum += difference * difference * weight;
    } else if (args.metric == nvfp4::Metric::kMae) {
      sum += size;
    } else {
      sum = select(sum < size, size, sum);
    }
  }
  return sum;
}

// The best of the rule's scales for columns k .. k + 15, written to `best`.
inline void choose_scales(const F32* w, const GptqArgs& args, int64_t k, uint8_t* best) {
  const F32 bmax = largest_of(w);
  const float* factor = args.factor + k * args.k + k;
  const int candidates = candidate_count(args.rule);
  F32 best_loss = F32{};
  for (int c = 0; c < candidates; ++c) {
    uint8_t codes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      codes[lane] = candidate_code(args.rule, c, bmax[lane], args.scale.enc);
    F32 loss = F32{};
    if (candidates > 1) {
      const Scale scale = scale_of(codes, args.scale);
      Group trial;
      loss = args.simulated ? round_group<false>(w, &scale, args.scale, factor, args.k, trial)
                            : plain_error(w, scale, args, k);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (c > 0 && !(loss[lane] < best_loss[lane])) continue;
      best_loss[lane] = loss[lane];
      best[lane] = codes[lane];
    }
  }
}

void gptq(const GptqArgs& args) {
  for (int64_t k = 0; k < args.k; k += kBlock) {
    F32 w[kBlock];
    for (int i = 0; i < kBlock; ++i) w[i] = load(args.w + (k + i) * kLanes);
    const float* factor = args.factor + k * args.k + k;
    Group group;
    if (args.order != nullptr) {
      Scale scales[kBlock];
      for (int i = 0; i < kBlock; ++i)
        scales[i] = scale_of(args.scales + args.order[k + i] / kBlock * kLanes, args.scale);
      round_group<true>(w, scales, args.scale, factor, args.k, group);
    } else {
      uint8_t* codes = args.scales + k / kBlock * kLanes;
      choose_scales(w, args, k, codes);
      const Scale scale = scale_of(codes, args.scale);
      round_group<false>(w, &scale, args.scale, factor, args.k, group);
    }
    for (int i = 0; i < kBlock; ++i) {
      const int64_t column = args.order != nullptr ? args.order[k + i] : k + i;
      store(args.levels + column * kLanes, group.level[i]);
    }
    add_rows<-1>(args.w, group.error, args.factor + k * args.k, args.k, k + kBlock, args.k);
  }
}

// ---- GPTQ with several versions of a row ----

// Codes and losses of every candidate for the group at k, on top of each version's loss so far.
struct Expansion {
  static constexpr int kMost = 16;
  int candidates = 0;
  uint8_t codes[kMost][kLanes];
  float total[kMost][kLanes];
};

inline void expand(
    const F32* w, const GptqArgs& args, int64_t k, const float* so_far, Expansion& out) {
  const F32 bmax = largest_of(w);
  const float* factor = args.factor + k * args.k + k;
  out.candidates = candidate_count(args.rule);
  for (int c = 0; c < out.candidates; ++c) {
    for (int lane = 0; lane < kLanes; ++lane)
      out.codes[c][lane] = candidate_code(args.rule, c, bmax[lane], args.scale.enc);
    const Scale scale = scale_of(out.codes[c], args.scale);
    Group trial;
    const F32 loss = round_group<false>(w, &scale, args.scale, factor, args.k, trial);
    for (int lane = 0; lane < kLanes; ++lane) {
      out.total[c][lane] = so_far[lane] + loss[lane];
      for (int earlier = 0; earlier < c; ++earlier)  // clamped to the same code: the same version
        if (out.codes[earlier][lane] == out.codes[c][lane]) out.total[c][lane] = INFINITY;
    }
  }
}

// The `beam` best of one row's versions and candidates, best first, into its lanes.
inline void keep_best(
    const Expansion& from, int first, int beam, uint8_t* parents, uint8_t* codes, float* so_far) {
  int count = 0;
  int lanes[kLanes], candidates[kLanes];
  float totals[kLanes];
  for (int c = 0; c < from.candidates; ++c) {
    for (int lane = first; lane < first + beam; ++lane) {
      const float total = from.total[c][lane];
      int at = count;
      while (at > 0 && total < totals[at - 1]) --at;
      if (at == beam) continue;
      count = count < beam ? count + 1 : beam;
      for (int i = count - 1; i > at; --i) {
        totals[i] = totals[i - 1];
        lanes[i] = lanes[i - 1];
        candidates[i] = candidates[i - 1];
      }
      totals[at] = total;
      lanes[at] = lane;
      candidates[at] = c;
    }
  }
  for (int i = 0; i < beam; ++i) {
    parents[first + i] = uint8_t(lanes[i]);
    codes[first + i] = from.codes[candidates[i]][lanes[i]];
    so_far[first + i] = totals[i];
  }
}

inline void shuffle(float* w, int64_t begin, int64_t end, const uint8_t* parents) {
  bool moves = false;
  for (int lane = 0; lane < kLanes; ++lane) moves = moves || parents[lane] != lane;
  for (int64_t j = begin; moves && j < end; ++j) {
    float* at = w + j * kLanes;
    float old[kLanes];
    std::memcpy(old, at, sizeof old);
    for (int lane = 0; lane < kLanes; ++lane) at[lane] = old[parents[lane]];
  }
}

// From each row's best version back to its start, into the row's first lane.
inline void trace_back(const BeamArgs& args) {
  for (int first = 0; first < kLanes; first += args.beam) {
    int lane = first;
    for (int64_t block = args.gptq.k / kBlock - 1; block >= 0; --block) {
      for (int64_t k = block * kBlock; k < (block + 1) * kBlock; ++k)
        args.gptq.levels[k * kLanes + first] = args.gptq.levels[k * kLanes + lane];
      args.gptq.scales[block * kLanes + first] = args.gptq.scales[block * kLanes + lane];
      lane = args.parents[block * kLanes + lane];
    }
  }
}

void gptq_beam(const BeamArgs& args) {
  const GptqArgs& gptq = args.gptq;
  float so_far[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) so_far[lane] = lane % args.beam == 0 ? 0 : INFINITY;
  for (int64_t k = 0; k < gptq.k; k += kBlock) {
    F32 w[kBlock];
    for (int i = 0; i < kBlock; ++i) w[i] = load(gptq.w + (k + i) * kLanes);
    Expansion expansion;
    expand(w, gptq, k, so_far, expansion);
    uint8_t* codes = gptq.scales + k / kBlock * kLanes;
    uint8_t* parents = args.parents + k / kBlock * kLanes;
    for (int first = 0; first < kLanes; first += args.beam)
      keep_best(expansion, first, args.beam, parents, codes, so_far);
    shuffle(gptq.w, k, gptq.k, parents);
    for (int i = 0; i < kBlock; ++i) w[i] = load(gptq.w + (k + i) * kLanes);
    const Scale scale = scale_of(codes, gptq.scale);
    Group group;
    round_group<false>(w, &scale, gptq.scale, gptq.factor + k * gptq.k + k, gptq.k, group);
    for (int i = 0; i < kBlock; ++i) store(gptq.levels + (k + i) * kLanes, group.level[i]);
    add_rows<-1>(gptq.w, group.error, gptq.factor + k * gptq.k, gptq.k, k + kBlock, gptq.k);
  }
  trace_back(args);
}

// ---- Coordinate descent ----

// The 16 columns of a block: their part of H, and what the other columns contribute to the
// gradient.
struct BlockProblem {
  const float* gram;  // H[k, k], rows at stride ld
  int64_t ld;
  F32 w[kBlock], outside[kBlock];
};
struct BlockState {
  F32 level[kBlock], q[kBlock], gradient[kBlock];
};

inline void take_gradient(const BlockProblem& problem, BlockState& state) {
  for (int j = 0; j < kBlock; ++j) state.gradient[j] = problem.outside[j];
  for (int i = 0; i < kBlock; ++i) {
    const F32 error = state.q[i] - problem.w[i];
    const float* row = problem.gram + i * problem.ld;
    for (int j = 0; j < kBlock; ++j) state.gradient[j] += error * row[j];
  }
}

// The part of tr(E H E^T) that depends on the block.
inline F32 loss_of(const BlockProblem& problem, const BlockState& state) {
  F32 loss = F32{};
  for (int i = 0; i < kBlock; ++i)
    loss += (state.q[i] - problem.w[i]) * (state.gradient[i] + problem.outside[i]);
  return loss;
}

// Each code in turn to the nearest of its best real value, until none changes.
inline void descend(const BlockProblem& problem,
                    const Scale& scale,
                    float multiplier,
                    BlockState& state) {
  constexpr int kPasses = 3;
  for (int pass = 0; pass < kPasses; ++pass) {
    F32 changed = F32{};
    for (int i = 0; i < kBlock; ++i) {
      const float* row = problem.gram + i * problem.ld;
      const F32 best = state.q[i] - state.gradient[i] / row[i];
      const F32 level = round_e2m1(best * scale.inverse);
      const F32 q = level * scale.value * multiplier;
      const F32 move = q - state.q[i];
      state.level[i] = level;
      state.q[i] = q;
      changed += magnitude(move);
      for (int j = 0; j < kBlock; ++j) state.gradient[j] += move * row[j];
    }
    if (!any_nonzero(changed)) break;
  }
}

inline void keep_better(I32 better, const BlockState& from, BlockState& to) {
  for (int i = 0; i < kBlock; ++i) {
    to.level[i] = select(better, from.level[i], to.level[i]);
    to.q[i] = select(better, from.q[i], to.q[i]);
  }
}

// Tries the scales around the present ones; `state` and `codes` become the best.
inline void improve_block(const BlockProblem& problem,
                          const TensorScale& tensor,
                          BlockState& state,
                          uint8_t* codes) {
  constexpr int kOffsets[] = {0, -4, -3, -2, -1, 1, 2, 3, 4};
  const BlockState before = state;
  uint8_t present[kLanes], tried[kLanes];
  std::memcpy(present, codes, kLanes);
  F32 best = loss_of(problem, state);
  const F32 margin = 1e-6f * magnitude(best);
  for (const int offset : kOffsets) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int code = int(present[lane]) + offset;
      tried[lane] = uint8_t(code < 0 ? 0 : code > nvfp4::kE4m3MaxCode ? nvfp4::kE4m3MaxCode : code);
    }
    const Scale scale = scale_of(tried, tensor);
    BlockState trial = before;
    for (int i = 0; i < kBlock && offset != 0; ++i) {
      trial.level[i] = round_e2m1(before.q[i] * scale.inverse);
      trial.q[i] = trial.level[i] * scale.value * tensor.multiplier;
    }
    take_gradient(problem, trial);
    descend(problem, scale, tensor.multiplier, trial);
    const F32 loss = loss_of(problem, trial);
    const I32 better = loss < best - margin;
    best = select(better, loss, best);
    keep_better(better, trial, state);
    for (int lane = 0; lane < kLanes; ++lane)
      if (better[lane] != 0) codes[lane] = tried[lane];
  }
}

inline void refine_block(const RefineArgs& args, int64_t k) {
  BlockProblem problem;
  problem.gram = args.gram + k * args.k + k;
  problem.ld = args.k;
  uint8_t* codes = args.scales + k / kBlock * kLanes;
  const Scale scale = scale_of(codes, args.scale);
  BlockState state;
  F32 old[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    problem.w[i] = load(args.w + (k + i) * kLanes);
    problem.outside[i] = state.gradient[i] = load(args.gradient + (k + i) * kLanes);
    state.level[i] = load(args.levels + (k + i) * kLanes);
    old[i] = state.q[i] = state.level[i] * scale.value * args.scale.multiplier;
  }
  for (int i = 0; i < kBlock; ++i) {
    const F32 error = old[i] - problem.w[i];
    const float* row = problem.gram + i * problem.ld;
    for (int j = 0; j < kBlock; ++j) problem.outside[j] -= error * row[j];
  }
  improve_block(problem, args.scale, state, codes);
  F32 move[kBlock], changed = F32{};
  for (int i = 0; i < kBlock; ++i) {
    move[i] = state.q[i] - old[i];
    changed += magnitude(move[i]);
    store(args.levels + (k + i) * kLanes, state.level[i]);
  }
  if (any_nonzero(changed))
    add_rows<1>(args.gradient, move, args.gram + k * args.k, args.k, 0, args.k);
}

void refine(const RefineArgs& args) {
  for (int sweep = 0; sweep < args.sweeps; ++sweep) {
    // Afresh in each sweep: the updates' rounding errors do not pile up.
    std::memset(args.gradient, 0, size_t(args.k) * kLanes * sizeof(float));
    for (int64_t k = 0; k < args.k; k += kBlock) {
      const Scale scale = scale_of(args.scales + k / kBlock * kLanes, args.scale);
      F32 error[kBlock];
      for (int i = 0; i < kBlock; ++i) {
        const int64_t at = (k + i) * kLanes;
        error[i] = load(args.levels + at) * scale.value * args.scale.multiplier - load(args.w + at);
      }
      add_rows<1>(args.gradient, error, args.gram + k * args.k, args.k, 0, args.k);
    }
    for (int64_t k = 0; k < args.k; k += kBlock) refine_block(args, k);
  }
}

void multiply(float* out, const float* in, const float* m, int64_t k, int64_t columns) {
  for (int64_t i = 0; i < k; i += kBlock) {
    F32 rows[kBlock];
    for (int j = 0; j < kBlock; ++j) rows[j] = load(in + (i + j) * kLanes);
    add_rows<1>(out, rows, m + i * columns, columns, 0, columns);
  }
}

void subtract_rows(
    double* c, const double* a, const double* b, int64_t ldb, int64_t depth, int64_t n) {
  constexpr int kColumns = 32;
  int64_t i = 0;
  for (; i + kColumns <= n; i += kColumns) {
    double sum[kColumns] = {};
    for (int64_t t = 0; t < depth; ++t)
      for (int j = 0; j < kColumns; ++j) sum[j] += a[t] * b[t * ldb + i + j];
    for (int j = 0; j < kColumns; ++j) c[i + j] -= sum[j];
  }
  for (; i < n; ++i) {
    double sum = 0;
    for (int64_t t = 0; t < depth; ++t) sum += a[t] * b[t * ldb + i];
    c[i] -= sum;
  }
}

}  // namespace
}  // namespace longspur::quant
