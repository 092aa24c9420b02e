#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <set>

#include "base/error.h"
#include "base/shape.h"
#include "base/thread_pool.h"
#include "engine/batch_builder.h"
#include "engine/device.h"
#include "engine/memory_plan.h"
#include "engine/model_bundle.h"
#include "engine/sampling.h"
#include "engine/sequence.h"
#include "sched/scheduler.h"

namespace longspur::engine {

namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineOptions& options, ModelBundle model, const Progress& progress)
      : options_(options),
        model_(std::move(model)),
        pool_(options.threads > 0 ? options.threads : available_threads()),
        plan_(plan_memory(options, model_.config, model_.tensors)),
        blocks_(plan_.pages, model_.config.layers * model_.config.kv_heads, plan_.side_blocks),
        align_(prefill_align(options.attention)),
        scheduler_({options.prefill_chunk, options.max_sequences, align_}),
        samplers_(size_t(pool_.size())) {
    if (!model_.chat_template.empty()) {
      try {
        template_ = io::ChatTemplate::parse(model_.chat_template);
      } catch (const Error& error) {
        template_error_ = error.what();  // a model without --chat must still run
      }
    }
    const int64_t total = model_.file->file_bytes();
    executor_ = make_executor(options, plan_.attention, model_.config, model_.tensors,
                              plan_.max_context, pool_, [&](int64_t done) {
                                if (progress) progress(std::min(done, total), total);
                              });
    executor_->allocate_pages(plan_.pages);
    model_.file->check_unchanged();
    model_.tensors = {};
    model_.file.reset();  // weights are packed; the mapping is not needed any more
    stats_.memory = plan_.bytes;
    stats_.memory.weights_bytes = executor_->weights_bytes();
  }

  const io::ModelConfig& config() const override { return model_.config; }
  const io::Tokenizer& tokenizer() const override {
    require(model_.tokenizer != nullptr, "model '", options_.model, "': has no tokenizer");
    return *model_.tokenizer;
  }
  const io::ChatTemplate* chat_template() const override {
    require(template_error_.empty(), "model '", options_.model,
            "': chat template: ", template_error_);
    return template_.get();
  }
  const io::GenerationDefaults& defaults() const override { return model_.defaults; }
  int64_t max_context() const override { return plan_.max_context; }

  void submit(Request request) override {
    validate_prompt(request.prompt);
    validate(request.sampling, model_.config.vocab);
    if (request.attention_threshold) {
      validate_threshold("attention_threshold", *request.attention_threshold);
      require(plan_.attention.xattention.has_value(), "attention_threshold: found attention ",
              options_.attention.kind, ", expected xattention");
    }
    require(!request.id.empty() && !sequences_.contains(request.id), "request '", request.id,
            "': an id must be unique and not empty");
    const std::string id = request.id;
    auto sequence = std::make_unique<Sequence>(std::move(request), blocks_, random_stream(id));
    if (model_.tokenizer)
      sequence->text.emplace(*model_.tokenizer, sequence->request.sampling.stop);
    scheduler_.add(*sequence);
    sequences_.emplace(id, std::move(sequence));
  }

  void cancel(const std::string& id) override {
    const std::lock_guard<std::mutex> lock(cancel_mutex_);
    cancelled_.insert(id);
  }

  std::vector<RequestUpdate> step() override {
    std::vector<RequestUpdate> updates = drop_cancelled();
    const std::vector<sched::Work> works = scheduler_.plan();
    if (works.empty()) return updates;
    const double start = now_s();
    const BatchBuilder& batch = build_batch(works);
    executor_->forward(batch.view());
    const int64_t prefill = prompt_tokens(works);
    sched::Scheduler::complete(works);
    sample_outputs(batch.finished(), updates);  // ends sequences: works lead nowhere from here on
    count_time(prefill, int64_t(batch.view().tokens.size()) - prefill, now_s() - start);
    return updates;
  }

  bool busy() const override { return !sequences_.empty(); }

  void logits(std::span<const int32_t> tokens, int64_t first, const LogitsSink& sink) override {
    validate_prompt(tokens);
    require(first >= 0 && first < int64_t(tokens.size()), "logits: found first row ", first,
            ", expected 0 to ", tokens.size() - 1);
    cache::BlockTable table(blocks_);
    const int64_t total = int64_t(tokens.size());
    require(table.grow(total), "logits: ", total, " tokens do not fit in the ",
            blocks_.free_blocks() * cache::kBlockTokens, " free tokens of the cache");
    const int64_t chunk = std::max(align_, options_.prefill_chunk / align_ * align_);
    for (int64_t begin = 0; begin < total; begin += chunk) {
      const int64_t end = std::min(total, begin + chunk);
      const int64_t wanted = std::max(begin, first), rows = std::max<int64_t>(0, end - wanted);
      builder_.clear();
      builder_.add(tokens.subspan(size_t(begin), size_t(end - begin)), end, total, table, rows);
      builder_.build(model_.config.layers, model_.config.kv_heads);
      executor_->forward(builder_.view());
      for (int64_t row = 0; row < rows; row += runtime::Executor::kLogitRows) {
        const int64_t count = std::min(runtime::Executor::kLogitRows, rows - row);
        sink(wanted + row, count, executor_->logits(row, count));
      }
    }
  }

  EngineStats stats() const override {
    EngineStats stats = stats_;
    stats.attention = executor_->attention_stats();
    return stats;
  }
  void reset_stats() override {
    EngineStats fresh;
    fresh.load_s = stats_.load_s;
    fresh.memory = stats_.memory;
    stats_ = fresh;
    executor_->reset_attention_stats();
  }
  void set_load_seconds(double seconds) { stats_.load_s = seconds; }

 private:
  void validate_prompt(std::span<const int32_t> tokens) const {
    require(!tokens.empty(), "prompt: found no tokens, expected at least 1");
    require(int64_t(tokens.size()) <= plan_.max_context, "prompt: found ", tokens.size(),
            " tokens, expected at most the context of ", plan_.max_context);
    for (int32_t token : tokens) {
      require(token >= 0 && token < model_.config.vocab, "prompt: found token id ", token,
              ", expected 0 to ", model_.config.vocab - 1);
    }
  }

  std::vector<RequestUpdate> drop_cancelled() {
    std::set<std::string> ids;
    {
      const std::lock_guard<std::mutex> lock(cancel_mutex_);
      ids.swap(cancelled_);
    }
    std::vector<RequestUpdate> updates;
    for (const std::string& id : ids) {
      const auto found = sequences_.find(id);
      if (found == sequences_.end()) continue;
      RequestUpdate& update = updates.emplace_back();
      update.id = id;
      update.finish = FinishReason::kCancelled;
      if (found->second->text) update.text = found->second->text->flush();
      remove(id);
    }
    return updates;
  }

  void remove(const std::string& id) {
    const auto found = sequences_.find(id);
    scheduler_.remove(*found->second);
    sequences_.erase(found);
  }

  const BatchBuilder& build_batch(const std::vector<sched::Work>& works) {
    builder_.clear();
    for (const sched::Work& work : works) {
      auto& sequence = static_cast<Sequence&>(*work.sequence);
      const int64_t begin = work.sequence->computed, end = begin + work.tokens;
      const int64_t outputs = end == work.sequence->total ? 1 : 0;
      builder_.add(
          std::span<const int32_t>(sequence.tokens).subspan(size_t(begin), size_t(work.tokens)),
          end, sequence.prompt_tokens(), work.sequence->blocks, outputs, &sequence);
    }
    builder_.build(model_.config.layers, model_.config.kv_heads);
    return builder_;
  }

  // Draws the next token of every sequence whose known tokens are all computed.
  void sample_outputs(const std::vector<Sequence*>& finished, std::vector<RequestUpdate>& updates) {
    const int64_t outputs = int64_t(finished.size());
    const int64_t vocab = model_.config.vocab;
    std::vector<Sampled> sampled(static_cast<size_t>(outputs));
    const bool drawn = sample_on_device(*executor_, finished, vocab, model_.defaults, sampled);
    for (int64_t first = 0; first < outputs && !drawn; first += runtime::Executor::kLogitRows) {
      const int64_t count = std::min(runtime::Executor::kLogitRows, outputs - first);
      const float* rows = executor_->logits(first, count);
      const auto draw = [&](Sampler& sampler, int64_t i) {
        const auto index = size_t(first + i);
        sampled[index] = sampler.sample(*finished[index], rows + i * vocab, vocab, model_.defaults);
      };
      if (count == 1) {
        draw(samplers_[0], 0);
        continue;
      }
      pool_.run([&](Team& team) {
        team.dynamic_for(
            count, 1, [&](int64_t begin, int64_t) { draw(samplers_[size_t(team.rank())], begin); });
      });
    }
    for (size_t i = 0; i < finished.size(); ++i)
      updates.push_back(accept(*finished[i], sampled[i]));
  }

  // Appends the token, decides whether the sequence ends, and says what is new.
  RequestUpdate accept(Sequence& sequence, const Sampled& sampled) {
    const SamplingParams& params = sequence.request.sampling;
    RequestUpdate update;
    update.id = sequence.request.id;
    if (!sampled.error.empty()) {
      update.finish = FinishReason::kError;
      update.error = sampled.error;
    } else {
      sequence.tokens.push_back(sampled.token);
      ++sequence.total;
      update.tokens.push_back(sampled.token);
      if (params.logprobs) update.logprobs.push_back(sampled.logprob);
      const bool ends = ends_sequence(sampled.token, params, model_.defaults);
      if (sequence.text && !ends) update.text = sequence.text->push(sampled.token);
      if (ends || (sequence.text && sequence.text->stopped())) {
        update.finish = FinishReason::kStop;
      } else if (sequence.output_tokens() >= params.max_tokens ||
                 int64_t(sequence.tokens.size()) >= plan_.max_context) {
        update.finish = FinishReason::kLength;
      }
    }
    if (update.finish != FinishReason::kNone) {
      if (sequence.text) update.text += sequence.text->flush();
      remove(update.id);
    }
    return update;
  }

  // Tokens of a step that belong to prompts or are computed again after a preemption.
  static int64_t prompt_tokens(const std::vector<sched::Work>& works) {
    int64_t tokens = 0;
    for (const sched::Work& work : works) {
      const auto& sequence = static_cast<const Sequence&>(*work.sequence);
      if (work.tokens > 1 || sequence.computed < sequence.prompt_tokens()) tokens += work.tokens;
    }
    return tokens;
  }

  // Steps that mix prefill and decode share their time by tokens.
  void count_time(int64_t prefill, int64_t decode, double seconds) {
    const double share = double(prefill) / double(prefill + decode);
    stats_.prefill_tokens += prefill;
    stats_.decode_tokens += decode;
    stats_.prefill_s += seconds * share;
    stats_.decode_s += seconds * (1.0 - share);
  }

  EngineOptions options_;
  ModelBundle model_;
  ThreadPool pool_;
  EnginePlan plan_;
  cache::BlockManager blocks_;
  int64_t align_;  // of pieces of prompts
  sched::Scheduler scheduler_;
  std::unique_ptr<runtime::Executor> executor_;
  std::unique_ptr<io::ChatTemplate> template_;
  std::string template_error_;
  std::map<std::string, std::unique_ptr<Sequence>> sequences_;
  BatchBuilder builder_;
  std::vector<Sampler> samplers_;  // one a thread
  std::mutex cancel_mutex_;
  std::set<std::string> cancelled_;
  EngineStats stats_;
};

}  // namespace

std::unique_ptr<Engine> Engine::load(const EngineOptions& options, const Progress& progress) {
  const double start = now_s();
  validate_options(options);
  auto engine = std::make_unique<EngineImpl>(options, open_model(options.model), progress);
  engine->set_load_seconds(now_s() - start);
  return engine;
}

}  // namespace longspur::engine
