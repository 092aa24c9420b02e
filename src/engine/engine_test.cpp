// The engine over a tiny random model: what a request gets must not depend on what else runs, and a
// request that fails must not harm another.
#include "engine/engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/rng.h"
#include "io/files/safetensors_writer.h"
#include "io/files/xattention_thresholds.h"

namespace longspur::engine {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kVocab = 300, kHidden = 64, kInner = 96, kHeads = 4, kKvHeads = 2, kDim = 16,
                  kLayers = 2, kContext = 512;

// A Hugging Face folder with a llama model of random weights and a tokenizer of single bytes.
class TinyModel {
 public:
  TinyModel() {
    folder_ = fs::temp_directory_path() / concat("longspur-engine-test-", ::getpid());
    fs::create_directories(folder_);
    write_config();
    write_tokenizer();
    write_weights();
  }
  ~TinyModel() { fs::remove_all(folder_); }
  std::string path() const { return folder_.string(); }

 private:
  void write_config() const {
    const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                   {"model_type", "llama"},
                                   {"vocab_size", kVocab},
                                   {"hidden_size", kHidden},
                                   {"intermediate_size", kInner},
                                   {"num_hidden_layers", kLayers},
                                   {"num_attention_heads", kHeads},
                                   {"num_key_value_heads", kKvHeads},
                                   {"head_dim", kDim},
                                   {"max_position_embeddings", kContext},
                                   {"rms_norm_eps", 1e-5},
                                   {"rope_theta", 10000.0},
                                   {"tie_word_embeddings", false},
                                   {"eos_token_id", 299}};
    std::ofstream(folder_ / "config.json") << config;
    std::ofstream(folder_ / "generation_config.json") << nlohmann::json{{"eos_token_id", 299}};
  }

  // GPT-2's bytes as characters: 33-126, 161-172 and 174-255 are themselves, the rest follow 256.
  static std::string byte_character(int byte) {
    const auto itself = [](int b) {
      return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
    };
    int code = byte;
    if (!itself(byte)) {
      code = 256;
      for (int b = 0; b < byte; ++b) code += itself(b) ? 0 : 1;
    }
    if (code < 0x80) return {char(code)};
    return {char(0xC0 | code >> 6), char(0x80 | (code & 0x3F))};
  }

  void write_tokenizer() const {
    nlohmann::json vocab;
    for (int byte = 0; byte < 256; ++byte) vocab[byte_character(byte)] = byte;
    const nlohmann::json level = {{"type", "ByteLevel"},
                                  {"add_prefix_space", false},
                                  {"trim_offsets", true},
                                  {"use_regex", true}};
    const nlohmann::json tokenizer = {
        {"version", "1.0"},
        {"added_tokens", nlohmann::json::array()},
        {"normalizer", nullptr},
        {"pre_tokenizer", level},
        {"post_processor", nullptr},
        {"decoder", level},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
    std::ofstream(folder_ / "tokenizer.json") << tokenizer;
  }

  void write_weights() {
    uint64_t stream = 0;
    std::vector<std::vector<float>> values;
    std::vector<io::TensorToWrite> tensors;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape, float spread) {
      int64_t count = 1;
      for (const int64_t n : shape) count *= n;
      std::vector<float>& data = values.emplace_back(size_t(count));
      ++stream;
      for (size_t i = 0; i < data.size(); ++i) {
        const float uniform = uniform01(philox4x32(5, stream, i)[0]) - 0.5f;
        data[i] = (shape.size() == 1 ? 1.0f : 0.0f) + spread * uniform;
      }
      tensors.push_back({name, DType::kF32, std::move(shape), {}});
    };
    add("model.embed_tokens.weight", {kVocab, kHidden}, 2.0f);
    for (int64_t i = 0; i < kLayers; ++i) {
      const std::string layer = concat("model.layers.", i, ".");
      add(layer + "input_layernorm.weight", {kHidden}, 0.5f);
      add(layer + "post_attention_layernorm.weight", {kHidden}, 0.5f);
      add(layer + "self_attn.q_proj.weight", {kHeads * kDim, kHidden}, 0.5f);
      add(layer + "self_attn.k_proj.weight", {kKvHeads * kDim, kHidden}, 0.5f);
      add(layer + "self_attn.v_proj.weight", {kKvHeads * kDim, kHidden}, 0.5f);
      add(layer + "self_attn.o_proj.weight", {kHidden, kHeads * kDim}, 0.5f);
      add(layer + "mlp.gate_proj.weight", {kInner, kHidden}, 0.5f);
      add(layer + "mlp.up_proj.weight", {kInner, kHidden}, 0.5f);
      add(layer + "mlp.down_proj.weight", {kHidden, kInner}, 0.5f);
    }
    add("model.norm.weight", {kHidden}, 0.5f);
    add("lm_head.weight", {kVocab, kHidden}, 0.7f);
    for (size_t i = 0; i < tensors.size(); ++i)
      tensors[i].data = std::as_bytes(std::span(values[i]));
    io::write_safetensors((folder_ / "model.safetensors").string(), tensors, {{"format", "pt"}});
  }

  fs::path folder_;
};

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = std::make_unique<TinyModel>(); }
  static void TearDownTestSuite() { model_.reset(); }

  static EngineOptions options() {
    EngineOptions options;
    options.model = model_->path();
    options.threads = 2;
    return options;
  }
  static std::unique_ptr<Engine> load(const EngineOptions& options) {
    return Engine::load(options);
  }
  static std::unique_ptr<TinyModel> model_;
};
std::unique_ptr<TinyModel> EngineTest::model_;

Request request(const std::string& id, int64_t prompt_tokens, int64_t max_tokens) {
  Request r;
  r.id = id;
  for (int64_t i = 0; i < prompt_tokens; ++i)
    r.prompt.push_back(int32_t(philox4x32(9, uint64_t(prompt_tokens), uint64_t(i))[0] % 256));
  r.sampling.max_tokens = max_tokens;
  r.sampling.temperature = 0.9;
  r.sampling.seed = 4;
  return r;
}

struct Result {
  std::vector<int32_t> tokens;
  std::string text, error;
  FinishReason finish = FinishReason::kNone;
  std::vector<TokenLogprob> logprobs;
};

std::map<std::string, Result> drain(Engine& engine) {
  std::map<std::string, Result> results;
  while (engine.busy()) {
    for (RequestUpdate& update : engine.step()) {
      Result& result = results[update.id];
      EXPECT_EQ(result.finish, FinishReason::kNone) << "news after the end of " << update.id;
      result.tokens.insert(result.tokens.end(), update.tokens.begin(), update.tokens.end());
      result.logprobs.insert(result.logprobs.end(), update.logprobs.begin(), update.logprobs.end());
      result.text += update.text;
      result.finish = update.finish;
      result.error = update.error;
    }
  }
  return results;
}

Result run_alone(Engine& engine, Request r) {
  const std::string id = r.id;
  engine.submit(std::move(r));
  return drain(engine).at(id);
}

TEST_F(EngineTest, ARequestDoesNotDependOnTheOthers) {
  EngineOptions small = options();
  const auto engine = load(small);
  std::map<std::string, Result> alone;
  const std::vector<int64_t> lengths = {1, 5, 64, 65, 130, 200, 17};
  for (const int64_t n : lengths) alone[concat(n)] = run_alone(*engine, request(concat(n), n, 20));
  for (const bool backwards : {false, true}) {
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int64_t n = lengths[backwards ? lengths.size() - 1 - i : i];
      engine->submit(request(concat(n), n, 20));
    }
    for (const auto& [id, result] : drain(*engine)) {
      EXPECT_EQ(result.tokens, alone[id].tokens) << id;
      EXPECT_EQ(result.finish, alone[id].finish) << id;
    }
  }
}

TEST_F(EngineTest, NeitherChunksNorThreadsChangeTheTokens) {
  std::vector<int32_t> expected;
  for (const int64_t chunk : {512, 1, 7, 64}) {
    for (const int threads : {1, 3}) {
      EngineOptions o = options();
      o.prefill_chunk = chunk;
      o.threads = threads;
      const auto engine = load(o);
      const std::vector<int32_t> tokens = run_alone(*engine, request("a", 150, 16)).tokens;
      if (expected.empty()) expected = tokens;
      EXPECT_EQ(tokens, expected) << "chunk " << chunk << ", threads " << threads;
    }
  }
}

// The cache holds one context only: sequences are preempted and computed again, unseen.
TEST_F(EngineTest, PreemptionIsInvisible) {
  EngineOptions roomy = options(), tight = options();
  tight.kv_bytes = kContext * kLayers * kKvHeads * kDim * 2 * 2;
  const auto expected_engine = load(roomy), engine = load(tight);
  for (int i = 0; i < 6; ++i) {
    expected_engine->submit(request(concat(i), 100 + i, 80));
    engine->submit(request(concat(i), 100 + i, 80));
  }
  auto expected = drain(*expected_engine);
  auto found = drain(*engine);
  ASSERT_EQ(found.size(), 6u);
  for (const auto& [id, result] : found) EXPECT_EQ(result.tokens, expected[id].tokens) << id;
}

TEST_F(EngineTest, GreedyTokensFollowTheLogits) {
  const auto engine = load(options());
  Request r = request("a", 40, 12);
  r.sampling.temperature = 0.0;
  r.sampling.ignore_eos = true;
  std::vector<int32_t> tokens = r.prompt;
  const Result result = run_alone(*engine, r);
  ASSERT_EQ(result.tokens.size(), 12u);
  tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
  engine->logits(tokens, 0, [&](int64_t first, int64_t rows, const float* logits) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t next = first + row + 1;
      if (next < 40 || next >= int64_t(tokens.size())) continue;
      const float* line = logits + row * kVocab;
      EXPECT_EQ(std::max_element(line, line + kVocab) - line, tokens[size_t(next)]) << next;
    }
  });
}

TEST_F(EngineTest, LogprobsAreThoseOfTheRawDistribution) {
  const auto engine = load(options());
  Request r = request("a", 33, 4);
  r.sampling.temperature = 1.7;
  r.sampling.top_k = 5;
  r.sampling.logprobs = 3;
  std::vector<int32_t> tokens = r.prompt;
  const Result result = run_alone(*engine, r);
  ASSERT_EQ(result.logprobs.size(), result.tokens.size());
  tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
  engine->logits(tokens, 0, [&](int64_t first, int64_t rows, const float* logits) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t index = first + row + 1 - 33;
      if (index < 0 || index >= int64_t(result.tokens.size())) continue;
      const float* line = logits + row * kVocab;
      double sum = 0.0;
      for (int64_t v = 0; v < kVocab; ++v) sum += std::exp(double(line[v]));
      const TokenLogprob& found = result.logprobs[size_t(index)];
      EXPECT_EQ(found.id, result.tokens[size_t(index)]);
      EXPECT_NEAR(found.logprob, double(line[found.id]) - std::log(sum), 1e-4);
      ASSERT_EQ(found.top.size(), 3u);
      EXPECT_EQ(found.top[0].first, std::max_element(line, line + kVocab) - line);
    }
  });
}

TEST_F(EngineTest, BadRequestsAreRefusedAndTheOthersGoOn) {
  const auto engine = load(options());
  const Result expected = run_alone(*engine, request("good", 20, 10));
  engine->submit(request("good", 20, 10));
  EXPECT_THROW(engine->submit(request("good", 20, 10)), Error);  // an id in flight
  EXPECT_THROW(engine->submit(request("empty", 0, 10)), Error);
  EXPECT_THROW(engine->submit(request("long", kContext + 1, 10)), Error);
  Request bad = request("id", 4, 4);
  bad.prompt[2] = kVocab;
  EXPECT_THROW(engine->submit(bad), Error);
  bad = request("temperature", 4, 4);
  bad.sampling.temperature = std::nan("");
  EXPECT_THROW(engine->submit(bad), Error);
  EXPECT_EQ(drain(*engine).at("good").tokens, expected.tokens);
}

TEST_F(EngineTest, ACancelledRequestEndsAndFreesItsPlace) {
  EngineOptions o = options();
  o.max_sequences = 1;
  const auto engine = load(o);
  engine->submit(request("first", 10, 400));
  engine->submit(request("second", 10, 5));
  engine->step();
  engine->cancel("first");
  engine->cancel("unknown");
  const auto results = drain(*engine);
  EXPECT_EQ(results.at("first").finish, FinishReason::kCancelled);
  EXPECT_EQ(results.at("second").finish, FinishReason::kLength);
}

TEST_F(EngineTest, TextEndsBeforeAStopString) {
  const auto engine = load(options());
  Request r = request("a", 12, 60);
  r.sampling.ignore_eos = true;
  r.sampling.logit_bias = {{'a', 30.0}, {'b', 30.0}, {'c', 30.0}};
  const std::string text = run_alone(*engine, r).text;
  ASSERT_GT(text.size(), 20u);
  r.sampling.stop = {text.substr(15, 4)};
  const Result stopped = run_alone(*engine, r);
  EXPECT_EQ(stopped.text, text.substr(0, text.find(r.sampling.stop[0])));
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
}

TEST_F(EngineTest, TheContextEndsAGeneration) {
  const auto engine = load(options());
  Request r = request("a", kContext - 3, 100);
  r.sampling.ignore_eos = true;
  const Result result = run_alone(*engine, r);
  EXPECT_EQ(result.tokens.size(), 3u);
  EXPECT_EQ(result.finish, FinishReason::kLength);
  EXPECT_EQ(run_alone(*engine, request("full", kContext, 5)).tokens.size(), 1u);
}

TEST_F(EngineTest, MinimumTokensHoldOffTheEnd) {
  const auto engine = load(options());
  Request r = request("a", 10, 30);
  r.sampling.logit_bias = {{299, 100.0}};
  EXPECT_EQ(run_alone(*engine, r).tokens.size(), 1u);
  r.sampling.min_tokens = 7;
  EXPECT_EQ(run_alone(*engine, r).tokens.size(), 8u);
}

TEST_F(EngineTest, ThePlanIsWhatIsUsed) {
  const MemoryPlan plan = plan_memory(options());
  const auto engine = load(options());
  EXPECT_EQ(engine->stats().memory.kv_bytes, plan.kv_bytes);
  EXPECT_NEAR(double(engine->stats().memory.weights_bytes), double(plan.weights_bytes),
              0.1 * double(plan.weights_bytes));
}

TEST_F(EngineTest, EveryTokenIsCountedOnce) {
  const auto engine = load(options());
  run_alone(*engine, request("one", 1, 5));
  EXPECT_EQ(engine->stats().prefill_tokens, 1);
  EXPECT_EQ(engine->stats().decode_tokens, 4);
  engine->reset_stats();
  run_alone(*engine, request("more", 70, 5));
  EXPECT_EQ(engine->stats().prefill_tokens, 70);
  EXPECT_EQ(engine->stats().decode_tokens, 4);
}

// Sparse from the first query block on: four blocks of keys at most, so that some are left out.
EngineOptions sparse(EngineOptions o) {
  o.attention.kind = "xattention";
  o.attention.estimator = "sampled:16";
  o.attention.threshold = 0.3;
  o.attention.block_size = 64;
  o.attention.min_length = 0;
  o.attention.last_tokens_dense = 0;
  return o;
}

// Logits [T, V] of a prompt.
std::vector<float> all_logits(Engine& engine, int64_t tokens) {
  std::vector<float> values;
  engine.logits(request("x", tokens, 1).prompt, 0, [&](int64_t, int64_t rows, const float* row) {
    values.insert(values.end(), row, row + rows * kVocab);
  });
  return values;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, double(std::abs(a[i] - b[i])));
  return largest;
}

TEST_F(EngineTest, SparseAttentionToAllBlocksIsDense) {
  for (const bool fp32 : {false, true}) {
    EngineOptions dense = options();
    dense.compute = fp32 ? Compute::kFp32 : Compute::kDefault;
    EngineOptions forced = sparse(dense), one = sparse(dense);
    forced.attention.sink_blocks = 8;  // every block
    one.attention.threshold = 1.0;
    const std::vector<float> expected = all_logits(*load(dense), 500);
    const auto all = load(forced), ones = load(one);
    const double bound = fp32 ? 1e-4 : 0.15;  // P is rounded to bf16 in other tiles
    EXPECT_LE(largest_difference(all_logits(*all, 500), expected), bound);
    EXPECT_EQ(largest_difference(all_logits(*ones, 500), expected), 0.0);
    EXPECT_EQ(all->stats().attention.density(), 1.0);
    EXPECT_GT(all->stats().attention.sparse_blocks(), 0);
    EXPECT_EQ(ones->stats().attention.sparse_blocks(), 0);
  }
}

TEST_F(EngineTest, SparseAttentionDoesNotDependOnChunksOrThreads) {
  for (const KvStorage kv : {KvStorage::kBF16, KvStorage::kNVFP4}) {
    std::vector<int32_t> expected;
    for (const int64_t chunk : {512, 1, 200, 256}) {
      for (const int threads : {1, 3}) {
        EngineOptions o = sparse(options());
        o.kv_type = kv;
        o.prefill_chunk = chunk;
        o.threads = threads;
        const auto engine = load(o);
        const std::vector<int32_t> tokens = run_alone(*engine, request("a", 460, 16)).tokens;
        EXPECT_LT(engine->stats().attention.density(), 0.95);
        if (expected.empty()) expected = tokens;
        EXPECT_EQ(tokens, expected) << "chunk " << chunk << ", threads " << threads;
      }
    }
  }
}

TEST_F(EngineTest, ASparseRequestDoesNotDependOnTheOthers) {
  EngineOptions o = sparse(options());
  o.prefill_chunk = 256;
  const auto engine = load(o);
  std::map<std::string, Result> alone;
  const std::vector<int64_t> lengths = {1, 450, 130, 64, 300, 129};
  const auto make = [](int64_t n) {
    Request r = request(concat(n), n, 20);
    if (n == 300) r.attention_threshold = 0.6;
    if (n == 129) r.attention_threshold = 1.0;
    return r;
  };
  for (const int64_t n : lengths) alone[concat(n)] = run_alone(*engine, make(n));
  for (const int64_t n : lengths) engine->submit(make(n));
  for (const auto& [id, result] : drain(*engine)) EXPECT_EQ(result.tokens, alone[id].tokens) << id;
}

TEST_F(EngineTest, PreemptionOfSparsePromptsIsInvisible) {
  EngineOptions roomy = sparse(options()), tight = sparse(options());
  tight.kv_bytes = kContext * kLayers * kKvHeads * kDim * 2 * 2;
  const auto expected_engine = load(roomy), engine = load(tight);
  for (int i = 0; i < 4; ++i) {
    expected_engine->submit(request(concat(i), 250 + i, 80));
    engine->submit(request(concat(i), 250 + i, 80));
  }
  auto expected = drain(*expected_engine);
  for (const auto& [id, result] : drain(*engine))
    EXPECT_EQ(result.tokens, expected[id].tokens) << id;
}

TEST_F(EngineTest, SparseAttentionIsCounted) {
  EngineOptions o = sparse(options());
  o.attention.first_layers_dense = 1;
  o.attention.last_tokens_dense = 100;
  const auto engine = load(o);
  engine->submit(request("a", 500, 2));
  drain(*engine);
  const AttentionStats stats = engine->stats().attention;
  // One layer of two KV heads: the blocks that hold the last 100 tokens, 400 on, are dense.
  EXPECT_EQ(stats.blocks, kKvHeads * 4);
  EXPECT_EQ(stats.dense_blocks, kKvHeads);
  EXPECT_EQ(stats.visible_keys, kKvHeads * (2 + 4 + 6 + 8));
  EXPECT_LT(stats.kept_keys, stats.visible_keys);
  EXPECT_GE(stats.kept_share_sum, 0.3 * double(stats.sparse_blocks()));
  EXPECT_GE(stats.min_kept_share, 0.3 - 1e-6);
  EXPECT_GT(stats.prefill_s, 0);
  engine->reset_stats();
  EXPECT_EQ(engine->stats().attention.blocks, 0);
}

TEST_F(EngineTest, TheGuardBoundsWhatIsMissing) {
  EngineOptions o = sparse(options());
  o.attention.rule = "of_max";
  o.attention.threshold = 0.9;
  const auto loose = load(o);
  o.attention.guard = 0.1;
  const auto guarded = load(o);
  for (Engine* engine : {loose.get(), guarded.get()}) run_alone(*engine, request("a", 500, 2));
  EXPECT_EQ(loose->stats().attention.guarded_blocks, 0);
  EXPECT_LT(loose->stats().attention.min_kept_share, 0.9);
  EXPECT_GT(guarded->stats().attention.guarded_blocks, 0);
  EXPECT_GE(guarded->stats().attention.min_kept_share, 0.9 - 1e-6);
}

TEST_F(EngineTest, ShortPromptsStayDense) {
  EngineOptions o = sparse(options());
  o.attention.min_length.reset();  // the cost model
  const auto engine = load(o);
  const Result expected = run_alone(*load(options()), request("a", 200, 10));
  EXPECT_EQ(run_alone(*engine, request("a", 200, 10)).tokens, expected.tokens);
  EXPECT_EQ(engine->stats().attention.sparse_blocks(), 0);
}

TEST_F(EngineTest, ImpossibleAttentionIsRefused) {
  const auto refused = [](auto change) {
    EngineOptions o = sparse(options());
    change(o.attention);
    try {
      load(o);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  using O = AttentionOptions;
  const std::pair<std::string, std::string> cases[] = {
      {refused([](O& o) { o.threshold = 1.5; }), "xattn-threshold: found 1.5, expected 0 to 1"},
      {refused([](O& o) { o.threshold = std::nan(""); }), "xattn-threshold: found nan"},
      {refused([](O& o) { o.threshold = -0.1; }), "xattn-threshold: found -0.1"},
      {refused([](O& o) { o.guard = 2; }), "xattn-guard: found 2"},
      {refused([](O& o) { o.estimator = "magic:3"; }), "magic"},
      {refused([](O& o) { o.estimator = "antidiagonal:5"; }), "5"},
      {refused([](O& o) { o.block_size = 32; }), "xattn-block: found 32, expected 64 or 128"},
      {refused([](O& o) { o.rule = "best"; }), "xattn-rule: found 'best'"},
      {refused([](O& o) { o.sink_blocks = -1; }), "xattn-sink: found -1"},
      {refused([](O& o) { o.thresholds_file = "t.json"; }), "expected one of them"},
      {refused([](O& o) { o.kind = "duo"; }), "attention: found 'duo'"},
  };
  for (const auto& [found, expected] : cases) EXPECT_NE(found.find(expected), found.npos) << found;
  const auto dense = load(options());
  Request r = request("a", 10, 1);
  r.attention_threshold = 0.5;
  EXPECT_THROW(dense->submit(r), Error);
  r.attention_threshold = 2;
  EXPECT_THROW(load(sparse(options()))->submit(r), Error);
}

TEST_F(EngineTest, ThresholdsOfAFile) {
  io::XattentionThresholds table;
  table.layers = kLayers;
  table.heads = kHeads;
  table.kv_heads = kKvHeads;
  table.head_dim = kDim;
  table.estimator = "sampled:16";
  table.block_size = 64;
  table.thresholds.assign(kLayers * kHeads, 1.0f);
  for (int i = 0; i < kHeads; ++i) table.thresholds[size_t(i)] = 0.2f;
  const std::string path = model_->path() + "/thresholds.json";
  const auto load_table = [&](auto change) {
    io::XattentionThresholds changed = table;
    EngineOptions o = sparse(options());
    o.attention.threshold.reset();
    o.attention.estimator.clear();
    o.attention.block_size = 0;
    o.attention.thresholds_file = path;
    change(changed, o.attention);
    std::ofstream(path) << io::xattention_thresholds_json(changed);
    return load(o);
  };
  const auto engine = load_table([](auto&, auto&) {});
  run_alone(*engine, request("a", 500, 1));
  const AttentionStats stats = engine->stats().attention;
  EXPECT_EQ(stats.dense_blocks, stats.blocks / 2);  // the second layer's
  EXPECT_LT(stats.density(), 1);
  EXPECT_THROW(load_table([](auto& t, auto&) { t.head_dim = 32; }), Error);
  EXPECT_THROW(load_table([](auto& t, auto&) { t.estimator = "magic"; }), Error);
  EXPECT_THROW(load_table([](auto&, auto& o) { o.block_size = 128; }), UsageError);
  EXPECT_THROW(load_table([](auto&, auto& o) { o.estimator = "sampled:32"; }), UsageError);
  load_table([](auto&, auto& o) { o.estimator = "sampled:16"; });
}

TEST_F(EngineTest, ImpossibleOptionsAreRefused) {
  EngineOptions o = options();
  o.threads = -1;
  EXPECT_THROW(load(o), UsageError);
  o = options();
  o.attention.kind = "magic";
  EXPECT_THROW(load(o), Error);
  o = options();
  o.model = "/nowhere";
  EXPECT_THROW(load(o), Error);
  o = options();
  o.kv_bytes = 1;
  EXPECT_THROW(load(o), Error);
}

}  // namespace
}  // namespace longspur::engine
