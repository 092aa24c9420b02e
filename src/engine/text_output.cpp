#include "engine/text_output.h"

#include <algorithm>
#include <utility>

namespace longspur::engine {

std::string StopMatcher::push(const std::string& text) {
  if (stopped_) return {};
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    if (!stop.empty()) first = std::min(first, held_.find(stop));
  }
  if (first != std::string::npos) {
    stopped_ = true;
    held_.resize(first);
    return std::exchange(held_, {});
  }
  // Hold back the longest tail that begins some stop string.
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    size_t length = std::min(held_.size(), stop.size() - std::min<size_t>(stop.size(), 1));
    while (length > hold && held_.compare(held_.size() - length, length, stop, 0, length) != 0)
      --length;
    hold = std::max(hold, length);
  }
  std::string out = held_.substr(0, held_.size() - hold);
  held_.erase(0, out.size());
  return out;
}

std::string StopMatcher::flush() { return stopped_ ? std::string() : std::exchange(held_, {}); }

}  // namespace longspur::engine
