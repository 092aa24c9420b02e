// Speed of encoding: tokenizer_bench MODEL TEXT_FILE. Megabytes a second of one thread, best of
// many runs, for the text and for runs of one character of the same size (1 MB), and of decoding.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "io/tokenizer/tokenizer.h"

namespace longspur::io {
namespace {

constexpr double kSeconds = 1.0;  // for each row

template <class F>
double best_seconds(F run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9, total = 0;
  while (total < kSeconds) {
    const auto start = Clock::now();
    run();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, took);
    total += took;
  }
  return best;
}

void measure(const Tokenizer& tokenizer, const char* name, const std::string& text) {
  const auto ids = tokenizer.encode(text);
  require(tokenizer.decode(ids) == text, name, ": the text does not come back");
  const double megabytes = double(text.size()) / 1e6;
  const double encode = best_seconds([&] { tokenizer.encode(text); });
  const double decode = best_seconds([&] { tokenizer.decode(ids); });
  std::printf("%-10s %7.2f MB %8zu tokens  encode %7.1f MB/s (%6.1f ms)  decode %7.1f MB/s\n", name,
              megabytes, ids.size(), megabytes / encode, encode * 1e3, megabytes / decode);
}

std::string repeated(const std::string& unit) {
  std::string text;
  while (text.size() < 1'000'000) text += unit;
  return text;
}

void run(const std::string& model, const char* text_path) {
  const auto start = std::chrono::steady_clock::now();
  const auto tokenizer = model.ends_with(".gguf") ? Tokenizer::from_gguf(*GgufFile::open(model))
                                                  : Tokenizer::from_hf(model);
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - start;
  std::printf("load %.1f ms\n", load.count() * 1e3);
  std::ifstream file(text_path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  require(!text.empty(), text_path, ": found no text");
  measure(*tokenizer, "text", text);
  measure(*tokenizer, "4 KB", text.substr(0, 4096));
  measure(*tokenizer, "letter", repeated("a"));
  measure(*tokenizer, "spaces", repeated(" "));
  measure(*tokenizer, "emoji", repeated("\xf0\x9f\x98\x80"));
}

}  // namespace
}  // namespace longspur::io

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_bench MODEL TEXT_FILE\n");
    return 2;
  }
  try {
    longspur::io::run(argv[1], argv[2]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_bench: error: %s\n", error.what());
    return 1;
  }
}
