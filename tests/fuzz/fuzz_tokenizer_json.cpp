// A tokenizer.json. One that loads must encode and decode some text without leaving its own ids.
#include <cstdint>

#include "fuzz/memory_file.h"
#include "fuzz/read_tensors.h"
#include "io/tokenizer/tokenizer.h"

using namespace longspur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryFile file("tokenizer");
  file.assign({reinterpret_cast<const char*>(data), size});
  try {
    const auto tokenizer = io::Tokenizer::from_hf(file.path());
    fuzz::promise(tokenizer->vocab_size() > 0);
    const auto ids = tokenizer->encode("Hello <s>wor\xc3\xa9ld\xff 123\n\n'll ab\xe2\x96\x81", {});
    for (const int32_t id : ids) fuzz::promise(id >= 0 && id < tokenizer->vocab_size());
    tokenizer->decode(ids, {.skip_special = true});
  } catch (const Error&) {
  }
  return 0;
}
