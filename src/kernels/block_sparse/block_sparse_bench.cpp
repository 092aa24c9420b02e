// Prefill attention under masks of blocks against dense, best of several runs, variants in turns.
// Checks first that a full mask gives the dense result. Prints one JSON object.
//   block_sparse_bench [tokens] [threads] [repeats] [heads] [kv heads] [D]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/block_sparse/api.h"

namespace {

using namespace longspur;
using namespace longspur::kernels;

struct Size {
  int64_t tokens = 8192, heads = 9, kv_heads = 3, dim = 64;
};

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

float noise(uint64_t seed, uint64_t i) {
  const auto bits = philox4x32(seed, 0, i);
  return 1.7f * (uniform01(bits[0]) + uniform01(bits[1]) + uniform01(bits[2]) - 1.5f) * 1.2f;
}

// Causal rows with the first and the last block, others at random; density over visible blocks.
struct Mask {
  Mask(int64_t tokens, int64_t heads, int64_t block_size, double density) {
    view.block_size = block_size;
    view.heads = heads;
    view.query_blocks = ceil_div(tokens, kQueryBlock);
    view.row_words = BlockMask::words_of(ceil_div(tokens, block_size));
    words.resize(size_t(heads * view.query_blocks * view.row_words));
    view.words = words.data();
    int64_t visible = 0, kept = 0;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < view.query_blocks; ++i) {
        uint32_t* row = words.data() + (h * view.query_blocks + i) * view.row_words;
        const VisibleBlocks blocks = visible_blocks(i, tokens, tokens, block_size, true);
        visible += blocks.end;
        for (int64_t j = 0; j < blocks.end; ++j) {
          const bool forced = j == 0 || j >= blocks.diagonal;
          // Forced blocks count: the others make up what is left of the density so far.
          const bool chosen = uniform01(philox4x32(3, uint64_t(h * 4096 + i), uint64_t(j))[0]) <
                              (density * double(visible) - double(kept)) / double(blocks.end);
          if (!forced && !chosen && density < 1.0) continue;
          row[j / 32] |= uint32_t{1} << (j % 32);
          ++kept;
        }
      }
    }
    found = double(kept) / double(visible);
  }
  BlockMask view;
  std::vector<uint32_t> words;
  double found = 0.0;
};

struct Row {
  std::string what;
  double density;
  double best = 1e30;
  std::function<void()> work;
};

void report(const char* title, std::vector<Row>& rows, int repeats, bool last) {
  for (int i = 0; i < repeats; ++i)
    for (Row& row : rows) row.best = std::min(row.best, seconds(row.work));
  std::printf("  \"%s\": [\n", title);
  for (const Row& row : rows) {
    std::printf("    {\"what\": \"%s\", \"density\": %.4f, \"ms\": %.3f, \"of_dense\": %.4f}%s\n",
                row.what.c_str(), row.density, row.best * 1e3, row.best / rows[0].best,
                &row == &rows.back() ? "" : ",");
  }
  std::printf("  ]%s\n", last ? "" : ",");
}

struct Wanted {
  bool shared;  // one mask a KV group
  int64_t block_size;
  double density;
  bool means = false;  // over pages: with mean correction
};
const Wanted kWanted[] = {{false, 128, 1.0}, {false, 128, 0.2},       {false, 128, 0.1},
                          {false, 64, 0.1},  {false, 128, 0.05},      {true, 128, 0.1},
                          {true, 64, 0.1},   {false, 128, 0.1, true}, {false, 64, 0.1, true}};

std::string name_of(const Wanted& w) {
  return concat(w.shared ? "mask a KV group" : "mask a head", ", blocks of ", w.block_size,
                w.means ? ", means of the others" : "");
}

// --- over pages ---

void paged(const Size& size, attention::KvType type, ThreadPool& pool, int repeats) {
  const int64_t width = (size.heads + 2 * size.kv_heads) * size.dim, half = size.dim / 2;
  const int64_t blocks =
      ceil_div(size.tokens, attention::kPageTokens) + attention::side_blocks(type);
  AlignedBuffer pages(size_t(size.kv_heads * blocks * attention::page_bytes(type, size.dim)));
  std::vector<int32_t> table(size_t(size.kv_heads * blocks));
  for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(i);
  const attention::PagedKv kv{type, size.dim, size.kv_heads, pages.data(), table.data(), blocks};
  std::vector<float> qkv(size_t(size.tokens * width));
  for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = noise(1, i);
  const std::vector<float> cos(size_t(size.tokens * half), 1.0f),
      sin(size_t(size.tokens * half), 0.0f);
  const int32_t cu[2] = {0, int32_t(size.tokens)}, length = int32_t(size.tokens);
  const attention::BatchShape shape{1, cu, &length};
  attention::RopeAppendArgs append;
  append.qkv = qkv.data();
  append.ld = width;
  append.heads = size.heads;
  append.cos = cos.data();
  append.sin = sin.data();
  append.rotary_dim = size.dim;
  std::vector<float> out(size_t(size.tokens * size.heads * size.dim));
  attention::AttentionArgs args;
  args.q = qkv.data();
  args.ldq = width;
  args.out = out.data();
  args.ldo = size.heads * size.dim;
  args.heads = size.heads;
  args.scale = 1.0f / std::sqrt(float(size.dim));
  std::vector<Mask> masks;
  std::vector<attention::PagedMask> views;
  for (const Wanted& w : kWanted)
    masks.emplace_back(size.tokens, w.shared ? size.kv_heads : size.heads, w.block_size, w.density);
  int64_t bytes = 0;
  for (size_t i = 0; i < masks.size(); ++i) {
    views.push_back({masks[i].view, nullptr, kWanted[i].means});
    bytes =
        std::max(bytes, attention::workspace_bytes(shape, size.heads, kv, pool.size(), &views[i]));
  }
  AlignedBuffer workspace{size_t(bytes)};
  pool.run([&](Team& team) { attention::rope_append(team, append, shape, kv); });
  const auto attend = [&](const attention::PagedMask* mask) {
    pool.run([&](Team& team) {
      attention::paged_attention(team, args, shape, kv, workspace.data(), mask);
    });
  };
  attend(nullptr);
  const std::vector<float> dense = out;
  attend(&views[0]);
  if (out != dense) throw Error("paged: a full mask does not give the dense result");
  std::vector<Row> rows{{"dense", 1.0, 1e30, [&] { attend(nullptr); }}};
  for (size_t i = 0; i < masks.size(); ++i)
    rows.push_back({name_of(kWanted[i]), masks[i].found, 1e30, [&, i] { attend(&views[i]); }});
  report(type == attention::KvType::kBF16 ? "paged bf16" : "paged nvfp4", rows, repeats, false);
}

// --- packed sequences, bf16 ---

struct Packed {
  explicit Packed(const Size& size)
      : out(size_t(size.tokens * size.heads * size.dim)),
        dq(out),
        dk(size_t(size.tokens * size.kv_heads * size.dim)),
        dv(dk),
        lse(size_t(size.heads * size.tokens)),
        cu{0, int32_t(size.tokens)} {
    for (auto* x : {&q, &grad_out}) x->resize(out.size());
    for (auto* x : {&k, &v}) x->resize(dk.size());
    uint64_t seed = 10;
    for (auto* x : {&q, &k, &v, &grad_out}) {
      ++seed;
      for (size_t i = 0; i < x->size(); ++i) (*x)[i] = float_to_bf16(noise(seed, i));
    }
    const int64_t ld = size.heads * size.dim, ld_kv = size.kv_heads * size.dim, d = size.dim;
    forward.shape = {
        cu, cu, 1, size.heads, size.kv_heads, d, true, 1.0 / std::sqrt(double(d)), DType::kBF16};
    forward.q = {q.data(), ld, d};
    forward.k = {k.data(), ld_kv, d};
    forward.v = {v.data(), ld_kv, d};
    forward.out = {out.data(), ld, d};
    forward.lse = lse.data();
    forward.lse_stride = size.tokens;
    backward.shape = forward.shape;
    backward.q = forward.q;
    backward.k = forward.k;
    backward.v = forward.v;
    backward.out = {out.data(), ld, d};
    backward.grad_out = {grad_out.data(), ld, d};
    backward.lse = lse.data();
    backward.lse_stride = size.tokens;
    backward.dq = {dq.data(), ld, d};
    backward.dk = {dk.data(), ld_kv, d};
    backward.dv = {dv.data(), ld_kv, d};
  }
  std::vector<uint16_t> q, k, v, grad_out, out, dq, dk, dv;
  std::vector<float> lse;
  int32_t cu[2];
  attention::VarlenForwardArgs forward;
  attention::VarlenBackwardArgs backward;
};

template <class Pass>
void run_forward(ThreadPool& pool, const Pass& pass) {
  pool.run([&](Team& team) {
    AlignedBuffer scratch(size_t(pass.scratch_bytes()));
    team.dynamic_for(pass.items(), 1, [&](int64_t i, int64_t) { pass.run(i, scratch.data()); });
  });
}

template <class Pass>
void run_backward(ThreadPool& pool, const Pass& pass, std::byte* workspace) {
  pool.run([&](Team& team) {
    AlignedBuffer scratch(size_t(pass.scratch_bytes()));
    for (int phase = 0; phase < Pass::kPhases; ++phase) {
      team.dynamic_for(pass.items(phase), 1,
                       [&](int64_t i, int64_t) { pass.run(phase, i, scratch.data(), workspace); });
    }
  });
}

void packed(const Size& size, ThreadPool& pool, int repeats) {
  Packed p(size);
  std::vector<Mask> masks;
  for (const Wanted& w : kWanted)
    masks.emplace_back(size.tokens, w.shared ? size.kv_heads : size.heads, w.block_size, w.density);
  run_forward(pool, attention::VarlenForward(p.forward));
  const std::vector<uint16_t> dense = p.out;
  run_forward(pool, block_sparse::Forward({p.forward, masks[0].view}));
  if (p.out != dense) throw Error("packed: a full mask does not give the dense result");
  std::vector<Row> rows{
      {"dense", 1.0, 1e30, [&] { run_forward(pool, attention::VarlenForward(p.forward)); }}};
  for (size_t i = 0; i < masks.size(); ++i) {
    if (kWanted[i].means) continue;
    rows.push_back({name_of(kWanted[i]), masks[i].found, 1e30, [&, i] {
                      run_forward(pool, block_sparse::Forward({p.forward, masks[i].view}));
                    }});
  }
  report("packed bf16 forward", rows, repeats, false);

  const attention::VarlenBackward whole(p.backward);
  AlignedBuffer workspace(size_t(whole.workspace_bytes()));
  rows = {{"dense", 1.0, 1e30, [&] { run_backward(pool, whole, workspace.data()); }}};
  for (const size_t i : {size_t{2}, size_t{5}}) {
    rows.push_back({name_of(kWanted[i]), masks[i].found, 1e30, [&, i] {
                      const block_sparse::Backward pass({p.backward, masks[i].view});
                      run_backward(pool, pass, workspace.data());
                    }});
  }
  report("packed bf16 backward", rows, std::min(repeats, 3), true);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  const Size size{argument(1, 8192), argument(4, 9), argument(5, 3), argument(6, 64)};
  ThreadPool pool(int(argument(2, 2)));
  const int repeats = int(argument(3, 5));
  std::printf("{\n  \"isa\": \"%s\", \"tokens\": %lld, \"threads\": %d,\n",
              std::string(attention::active_isa()).c_str(), static_cast<long long>(size.tokens),
              pool.size());
  paged(size, attention::KvType::kBF16, pool, repeats);
  paged(size, attention::KvType::kNVFP4, pool, repeats);
  packed(size, pool, repeats);
  std::printf("}\n");
  return 0;
}
