// cuda_decode_bench FOLDER [LAYERS] [bf16|nvfp4]
// Decode of a Llama-3-8B-shaped model with random weights through the engine on CUDA, beside a
// plain read of device memory in the same run. nvfp4: the layers' matrices, not the embedding and
// the head. Writes the model to FOLDER first (16 GB, NVFP4 6 GB, best in memory: /dev/shm/...),
// unless it is there. Checks before it times that runs repeat and that equal
// sequences of a batch stay equal. Prints one JSON object in the format of bench/README.md.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/engine.h"
#include "plain_read.h"
#include "random_model.h"

namespace longspur::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kContext = 2048;
constexpr double kWarmSeconds = 0.12, kTimedSeconds = 0.5;

testing::RandomModelShape llama3_8b(int64_t layers, bool nvfp4) {
  testing::RandomModelShape shape;
  shape.vocab = 128256;
  shape.hidden = 4096;
  shape.intermediate = 14336;
  shape.layers = layers;
  shape.heads = 32;
  shape.kv_heads = 8;
  shape.head_dim = 128;
  shape.nvfp4 = nvfp4;
  return shape;
}

Request request(const std::string& id, int64_t seed, int64_t prompt_tokens, int64_t max_tokens) {
  Request r;
  r.id = id;
  for (int64_t i = 0; i < prompt_tokens; ++i)
    r.prompt.push_back(int32_t((i * 7919 + seed * 104729 + i * i) % 128000));
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  return r;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::map<std::string, std::vector<int32_t>> run_all(engine::Engine& engine) {
  std::map<std::string, std::vector<int32_t>> tokens;
  while (engine.busy()) {
    for (const RequestUpdate& update : engine.step()) {
      auto& own = tokens[update.id];
      own.insert(own.end(), update.tokens.begin(), update.tokens.end());
    }
  }
  return tokens;
}

// Runs repeat, and equal sequences of one batch stay equal. (Alone and in a batch they may differ:
// cuBLAS adds in another order when a prompt is prefilled together with others.)
void check_tokens(engine::Engine& engine) {
  constexpr int64_t kTokens = 40;
  const auto batch = [&](int n) {
    for (int i = 0; i < n; ++i) engine.submit(request(concat("b", i), 1, 64, kTokens));
    return run_all(engine);
  };
  const auto alone = batch(1);
  require(alone.at("b0").size() == size_t(kTokens) && alone == batch(1),
          "check: a sequence's tokens changed from run to run");
  for (const auto& [id, tokens] : batch(5))
    require(tokens.size() == size_t(kTokens) && tokens == batch(5).at("b0"),
            "check: equal sequences of a batch differ");
}

struct Setting {
  int64_t batch, context;
  bool sampled;
};

// Seconds of a decode step, median.
double step_seconds(engine::Engine& engine, const Setting& setting) {
  for (int64_t b = 0; b < setting.batch; ++b) {
    Request r = request(concat("t", b), 10 + b, setting.context, 100000);
    if (setting.sampled) {
      r.sampling.temperature = 0.8;
      r.sampling.top_p = 0.95;
      r.sampling.top_k = 50;
    }
    engine.submit(std::move(r));
  }
  std::vector<double> times;
  int64_t decoded = 0;
  double total = 0;
  while (decoded < 3 || total < kWarmSeconds + kTimedSeconds) {
    const auto begin = Clock::now();
    int64_t tokens = 0;
    for (const RequestUpdate& update : engine.step()) {
      require(update.error.empty(), "request ", update.id, ": ", update.error);
      tokens += int64_t(update.tokens.size());
    }
    const double seconds = seconds_since(begin);
    if (tokens < setting.batch || decoded++ < 3) continue;  // prefill, recording
    if (total >= kWarmSeconds) times.push_back(seconds);
    total += seconds;
  }
  for (int64_t b = 0; b < setting.batch; ++b) engine.cancel(concat("t", b));
  while (engine.busy()) engine.step();
  std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
  return times[times.size() / 2];
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", std::gmtime(&now));
  return text;
}

nlohmann::ordered_json measure(engine::Engine& engine, const PlainRead& read) {
  const io::ModelConfig& config = engine.config();
  const engine::MemoryPlan memory = engine.stats().memory;
  // Every weight but the embedding's, of which a token reads a row.
  const double weights = double(memory.weights_bytes) - 2.0 * double(config.vocab * config.hidden);
  auto rows = nlohmann::ordered_json::array();
  for (const Setting& setting : {Setting{1, kContext, false},
                                 {1, kContext, true},
                                 {1, 128, false},
                                 {1, 8192, false},
                                 {2, kContext, false},
                                 {4, kContext, false},
                                 {8, kContext, false},
                                 {16, kContext, false}}) {
    const double seconds = step_seconds(engine, setting);
    const double bytes =
        weights + double(setting.batch * setting.context) * double(memory.kv_bytes_per_token);
    const double rate = bytes / seconds / 1e12;
    rows.push_back({{"batch", setting.batch},
                    {"context", setting.context},
                    {"sampling", setting.sampled ? "temperature, top-k, top-p" : "greedy"},
                    {"ms_per_step", seconds * 1e3},
                    {"tokens_per_s", double(setting.batch) / seconds},
                    {"gb_per_step", bytes / 1e9},
                    {"tb_per_s", rate},
                    {"share_of_read", rate / read.tb_per_s}});
    std::fprintf(stderr, "%s\n", rows.back().dump().c_str());
  }
  return rows;
}

double prefill_rate(engine::Engine& engine) {
  engine.reset_stats();
  engine.submit(request("warm", 1, kContext, 1));
  while (engine.busy()) engine.step();
  engine.reset_stats();
  engine.submit(request("timed", 2, kContext, 1));
  while (engine.busy()) engine.step();
  return double(engine.stats().prefill_tokens) / engine.stats().prefill_s;
}

void run(const std::string& folder, int64_t layers, const std::string& weights) {
  require(weights == "bf16" || weights == "nvfp4", "weights: found '", weights,
          "', expected bf16 or nvfp4");
  const PlainRead before = plain_read();
  auto begin = Clock::now();
  if (!std::filesystem::exists(std::filesystem::path(folder) / "model.safetensors"))
    testing::write_random_model(folder, llama3_8b(layers, weights == "nvfp4"), 1);
  const double write_s = seconds_since(begin);
  engine::EngineOptions options;
  options.model = folder;
  options.device = "cuda";
  options.max_context = 12288;
  options.max_sequences = 16;
  options.prefill_chunk = 1024;
  options.kv_bytes = int64_t(16) << 30;
  begin = Clock::now();
  const auto engine = engine::Engine::load(options);
  const double load_s = seconds_since(begin);
  std::fprintf(stderr, "written in %.1f s, loaded in %.1f s\n", write_s, load_s);
  check_tokens(*engine);
  const auto rows = measure(*engine, before);
  const double prefill = prefill_rate(*engine);
  const PlainRead after = plain_read();
  const nlohmann::ordered_json result = {
      {"title", concat("Decode on CUDA, Llama-3-8B-shaped random ", weights, " model")},
      {"device", before.device},
      {"date", today()},
      {"baseline", "plain read of 2 GiB in the same run"},
      {"note", concat("read ", before.tb_per_s, " TB/s before and ", after.tb_per_s, " after")},
      {"columns",
       {{"batch", "sequences"},
        {"context", "context"},
        {"sampling", "sampling"},
        {"ms_per_step", "ms a step"},
        {"tokens_per_s", "tokens/s"},
        {"tb_per_s", "TB/s"},
        {"share_of_read", "share of a plain read"}}},
      {"rows", rows},
      {"plain_read_tb_per_s", before.tb_per_s},
      {"plain_read_after_tb_per_s", after.tb_per_s},
      {"max_clock_mhz", before.clock_mhz},
      {"layers", layers},
      {"weights_bytes", engine->stats().memory.weights_bytes},
      {"load_s", load_s},
      {"prefill_tokens_per_s", prefill}};
  std::printf("%s\n", result.dump(1).c_str());
}

}  // namespace
}  // namespace longspur::bench

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: cuda_decode_bench FOLDER [LAYERS] [bf16|nvfp4]\n");
    return 2;
  }
  try {
    longspur::bench::run(argv[1], argc > 2 ? std::atol(argv[2]) : 32, argc > 3 ? argv[3] : "bf16");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
