// llama.cpp as the thing to compare with: a Python child process that keeps the model loaded and
// answers one run at a time, so that its runs and ours alternate.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/cli/child_process.h"

namespace longspur::app::cli::bench {

struct BaselineRun {
  double prefill_s = 0;
  std::vector<double> step_s;  // one a token
  std::vector<int32_t> best;   // its choice after the prompt and after each token
};

class Baseline {
 public:
  struct Options {
    std::string model;   // a .gguf file
    std::string python;  // interpreter; empty: the source tree's .venv, else python3
    int64_t context = 0;
    int64_t threads = 0;
  };
  // Throws Error when the interpreter, its package or the model is not there.
  explicit Baseline(const Options& options);

  // "llama.cpp (llama-cpp-python 0.3.36)"
  const std::string& title() const { return title_; }

  BaselineRun run(bool flash_attention,
                  const std::vector<int32_t>& prompt,
                  const std::vector<int32_t>& tokens);

 private:
  nlohmann::json ask(const nlohmann::json& request);

  std::string python_;
  std::unique_ptr<ChildProcess> child_;
  std::string title_;
};

}  // namespace longspur::app::cli::bench
