// The way of one text to ids: added tokens, normalization, pre-tokenization, BPE. An Encoder lives
// for one call; what it keeps (buffers, words seen before) is bounded and its own, so calls from
// many threads share nothing that changes.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/bpe_model.h"
#include "io/tokenizer/normalizer.h"
#include "io/tokenizer/pre_tokenizer.h"

namespace longspur::io {

// Positions have 32 bits, and a pre-tokenizer may write three bytes for one.
inline constexpr size_t kMaxTextBytes = size_t(1) << 30;

struct Pipeline {
  AddedTokenMatcher raw;         // tokens looked for in the text as it is
  AddedTokenMatcher normalized;  // tokens looked for after normalization
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  const BpeModel* model = nullptr;
};

// Words that this call has encoded before, by content: where their ids stand in the output. A word
// has one place; the newest stays.
class WordCache {
 public:
  explicit WordCache(size_t text_bytes);
  // Appends the ids of `word`, which `encode` appends if they are not known.
  template <class Encode>
  void append(std::string_view word, std::vector<int32_t>& out, Encode encode);

 private:
  static constexpr size_t kLongestWord = 24;
  struct Entry {
    uint64_t key[3] = {};  // the word, then zeros
    uint32_t begin = 0;    // its ids in the output
    uint16_t count = 0;
    uint16_t bytes = 0;  // 0: free
  };
  std::vector<Entry> entries_;
};

class Encoder {
 public:
  Encoder(const Pipeline& pipeline, size_t text_bytes, std::vector<int32_t>& out)
      : pipeline_(pipeline), cache_(text_bytes), out_(out) {}

  // `ranges` cover the text.
  void run(std::string_view text, std::span<const SpecialRange> ranges);

 private:
  void encode_raw_part(std::string_view part, std::vector<SpecialRange> ranges, bool at_start);
  std::string normalize(std::string_view text, std::vector<SpecialRange>& ranges) const;
  void encode_normalized_part(std::string_view part, bool at_start);
  void encode_piece(std::string_view piece);
  void encode_at_metaspaces(std::string_view piece);
  void encode_word(std::string_view word, bool whole);

  const Pipeline& pipeline_;
  WordCache cache_;
  BpeScratch scratch_;
  std::vector<int32_t>& out_;
};

}  // namespace longspur::io
