#include "app/cli/report.h"

#include <fmt/format.h>

#include <fstream>
#include <limits>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

double rate(int64_t tokens, double seconds) { return seconds > 0 ? double(tokens) / seconds : 0; }

double mebibytes(int64_t bytes) { return double(bytes) / (1 << 20); }

// Prompts can be ids, so a model without a tokenizer runs too.
const io::Tokenizer* tokenizer_or_null(const engine::Engine& engine) {
  try {
    return &engine.tokenizer();
  } catch (const Error&) {
    return nullptr;
  }
}

Json token_json(int32_t id, double logprob, const io::Tokenizer* tokenizer) {
  Json item = {{"id", id}};
  // Ids beyond the tokenizer's pad the model's vocabulary.
  if (tokenizer != nullptr && id < tokenizer->vocab_size())
    item["token"] = tokenizer->token_bytes(id);
  item["logprob"] = logprob;
  return item;
}

}  // namespace

int64_t peak_rss_bytes() {
  std::ifstream file("/proc/self/status");
  std::string key;
  while (file >> key) {
    int64_t kilobytes = 0;
    if (key == "VmHWM:" && file >> kilobytes) return kilobytes * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

Json usage_json(int64_t prompt_tokens, int64_t completion_tokens) {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens}};
}

Json timing_json(const engine::EngineStats& stats) {
  return {{"load_s", stats.load_s},
          {"prefill_s", stats.prefill_s},
          {"decode_s", stats.decode_s},
          {"prefill_tokens_per_s", rate(stats.prefill_tokens, stats.prefill_s)},
          {"decode_tokens_per_s", rate(stats.decode_tokens, stats.decode_s)},
          {"prefill_attention_s", stats.attention.prefill_s}};
}

Json memory_json(const engine::EngineStats& stats) {
  return {{"weights_bytes", stats.memory.weights_bytes},
          {"kv_bytes", stats.memory.kv_bytes},
          {"peak_rss_bytes", peak_rss_bytes()}};
}

// Density counts dense blocks too: it is the share of a dense prefill's work that was done.
Json attention_json(const Settings& settings, const engine::EngineStats& stats) {
  Json json = {{"kind", settings.text("attention")}, {"kv_type", settings.text("kv-type")}};
  const engine::AttentionStats& a = stats.attention;
  if (json["kind"] == "dense") return json;
  const int64_t sparse = a.sparse_blocks();
  json["density"] = a.density();
  json["estimated_kept_share"] = sparse > 0 ? a.kept_share_sum / double(sparse) : 1.0;
  json["min_kept_share"] = a.min_kept_share;
  json["query_blocks"] = a.blocks;
  json["dense_blocks"] = a.dense_blocks;
  json["dense_fallback"] = sparse == 0;
  json["guarded_blocks"] = a.guarded_blocks;
  return json;
}

Json logprobs_json(const std::vector<TokenLogprob>& logprobs,
                   const SamplingParams& params,
                   const engine::Engine& engine) {
  if (!params.logprobs) return nullptr;
  const io::Tokenizer* tokenizer = tokenizer_or_null(engine);
  Json items = Json::array();
  for (const TokenLogprob& logprob : logprobs) {
    Json item = token_json(logprob.id, logprob.logprob, tokenizer);
    Json top = Json::array();
    for (const auto& [id, value] : logprob.top) top.push_back(token_json(id, value, tokenizer));
    item["top"] = std::move(top);
    items.push_back(std::move(item));
  }
  return items;
}

std::string statistics(const engine::EngineStats& stats,
                       int64_t prompt_tokens,
                       const TimedAnswer& timed) {
  return fmt::format(
      "prompt {} tokens at {:.1f} tokens/s, first token after {:.2f} s (load {:.2f} s)\n"
      "answer {} tokens at {:.1f} tokens/s, ended by {}\n"
      "memory weights {:.0f} MiB, cache {:.0f} MiB, peak {:.0f} MiB\n",
      prompt_tokens, rate(stats.prefill_tokens, stats.prefill_s), timed.first_token_s, stats.load_s,
      timed.answer.tokens.size(), rate(stats.decode_tokens, stats.decode_s),
      finish_reason_name(timed.answer.finish), mebibytes(stats.memory.weights_bytes),
      mebibytes(stats.memory.kv_bytes), mebibytes(peak_rss_bytes()));
}

}  // namespace longspur::app::cli
