#include "engine/text_output.h"

#include <gtest/gtest.h>

namespace longspur::engine {
namespace {

// Feeds `text` in pieces of `step` bytes.
std::string run(const std::vector<std::string>& stops,
                const std::string& text,
                size_t step,
                bool& stopped) {
  StopMatcher matcher(stops);
  std::string out;
  for (size_t i = 0; i < text.size(); i += step) out += matcher.push(text.substr(i, step));
  out += matcher.flush();
  stopped = matcher.stopped();
  return out;
}

TEST(StopMatcher, CutsBeforeTheFirstStopWhateverThePieces) {
  bool stopped = false;
  for (size_t step : {1, 2, 3, 7, 100}) {
    EXPECT_EQ(run({"END", "\n\n"}, "one\ntwo\n\nthree END", step, stopped), "one\ntwo");
    EXPECT_TRUE(stopped);
    EXPECT_EQ(run({"ababc"}, "xabababcx", step, stopped), "xab");
    EXPECT_TRUE(stopped);
    EXPECT_EQ(run({"END"}, "EN EN", step, stopped), "EN EN");
    EXPECT_FALSE(stopped);
    EXPECT_EQ(run({}, "plain", step, stopped), "plain");
    EXPECT_EQ(run({""}, "plain", step, stopped), "plain");
    EXPECT_FALSE(stopped);
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.push("a st"), "a ");
  EXPECT_EQ(matcher.push("ay"), "stay");
  EXPECT_EQ(matcher.push("s"), "");
  EXPECT_EQ(matcher.push("top!"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("more"), "");
}

}  // namespace
}  // namespace longspur::engine
