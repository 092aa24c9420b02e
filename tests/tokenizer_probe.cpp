// tokenizer_probe MODEL: reads one JSON object a line from stdin, writes one a line to stdout.
//   {"text": s, "special": b, "bos": b} or {"bytes": [...]} -> {"ids": [...]}
//   {"segments": [[s, b], ...], "bos": b}                   -> {"ids": [...]}
//   {"ids": [...], "skip_special": b}  -> {"bytes": [...], "stream": s}
//   {}                                 -> what the tokenizer says about itself
// Thousands of texts take one process (tests/python/test_tokenizer.py).
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/tokenizer/tokenizer.h"

namespace longspur::io {
namespace {

using nlohmann::json;

std::unique_ptr<Tokenizer> open(const std::string& path) {
  if (path.ends_with(".gguf")) return Tokenizer::from_gguf(*GgufFile::open(path));
  return Tokenizer::from_hf(path);
}

std::string bytes_of(const json& request) {
  if (request.contains("text")) return request["text"].get<std::string>();
  std::string bytes;
  for (const auto& byte : request["bytes"]) bytes += char(byte.get<int>());
  return bytes;
}

json decode(const Tokenizer& tokenizer, const json& request) {
  const auto ids = request["ids"].get<std::vector<int32_t>>();
  const DecodeOptions options{.skip_special = request.value("skip_special", false)};
  const std::string text = tokenizer.decode(ids, options);
  StreamDecoder stream(tokenizer, options);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.push(id);
  streamed += stream.flush();
  json bytes = json::array();
  for (const char c : text) bytes.push_back(uint8_t(c));
  return {{"bytes", bytes}, {"stream", streamed}};
}

json describe(const Tokenizer& tokenizer) {
  json control = json::array();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (tokenizer.is_control(id)) control.push_back(id);
  return {{"vocab_size", tokenizer.vocab_size()},
          {"control", control},
          {"bos", tokenizer.bos_id().value_or(-1)},
          {"eos", tokenizer.eos_id().value_or(-1)},
          {"add_bos", tokenizer.add_bos_by_default()}};
}

json answer(const Tokenizer& tokenizer, const json& request) {
  if (request.empty()) return describe(tokenizer);
  if (request.contains("ids")) return decode(tokenizer, request);
  const bool bos = request.value("bos", false);
  if (request.contains("segments")) {
    std::vector<TextSegment> segments;
    for (const auto& segment : request["segments"])
      segments.push_back({segment[0].get<std::string>(), segment[1].get<bool>()});
    return {{"ids", tokenizer.encode_segments(segments, bos)}};
  }
  const EncodeOptions options{.special = request.value("special", true), .bos = bos};
  return {{"ids", tokenizer.encode(bytes_of(request), options)}};
}

}  // namespace
}  // namespace longspur::io

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: tokenizer_probe MODEL\n");
    return 2;
  }
  try {
    std::ios::sync_with_stdio(false);
    const auto tokenizer = longspur::io::open(argv[1]);
    std::string line;
    while (std::getline(std::cin, line))
      std::cout << longspur::io::answer(*tokenizer, nlohmann::json::parse(line)).dump() << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_probe: error: %s\n", error.what());
    return 1;
  }
}
