// The result file of `generate --output y.jsonl`: one line a finished request, each written whole
// with one write and never touched again, so that a run can be killed at any moment and started
// again. Holds a lock, so that two runs cannot share a file.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>

namespace longspur::app::cli {

class BatchOutput {
 public:
  // Opens or makes the file and reads which ids it already has; a torn last line is dropped. Throws
  // Error when it cannot be written, another run holds it, or a line is no result of ours.
  explicit BatchOutput(const std::string& path);
  ~BatchOutput();
  BatchOutput(const BatchOutput&) = delete;
  BatchOutput& operator=(const BatchOutput&) = delete;

  // Ids (as JSON text) with a result, and how many of those are errors.
  const std::set<std::string>& finished() const { return finished_; }
  int64_t failed() const { return failed_; }

  // Throws Error when the line cannot be written; what was written of it is taken back.
  void append(const nlohmann::ordered_json& result);
  // Asks the system to keep what was appended.
  void sync();

 private:
  void read_finished();
  void read_line(const std::string& line, int64_t number);

  std::string path_;
  int descriptor_ = -1;
  bool regular_ = false;  // else a pipe or device: nothing to resume
  int64_t size_ = 0;      // of the whole lines
  std::set<std::string> finished_;
  int64_t failed_ = 0;
  std::chrono::steady_clock::time_point last_sync_;
};

}  // namespace longspur::app::cli
