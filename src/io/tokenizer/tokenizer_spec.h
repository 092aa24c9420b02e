// What the loaders of tokenizer.json and GGUF agree on: everything that a BPE tokenizer does, as
// data.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/bpe_model.h"
#include "io/tokenizer/normalizer.h"
#include "io/tokenizer/pre_tokenizer.h"
#include "io/tokenizer/tokenizer.h"

namespace longspur::io {

// How ids become text. Every token has its bytes; only the start of the text is special.
struct DecoderSpec {
  enum class Kind {
    kByteLevel,   // pieces in GPT-2's spelling of bytes; added tokens as they are
    kSteps,       // replacements, then "<0x..>" pieces as bytes, then strip
    kMetaspace,   // the replacement is a space, and nothing in the first token
    kSpaceJoined  // no decoder: pieces with a space between them
  };
  struct Replacement {
    std::string from, to;
  };

  Kind kind = Kind::kByteLevel;
  std::vector<Replacement> replacements;  // of kSteps; of kMetaspace: one
  bool byte_fallback = false;
  std::string strip;    // kSteps: this is taken off the start of the text, up to strip_count times
  int strip_count = 0;  // kMetaspace: 1 when the first token loses its replacements
};

struct TokenizerSpec {
  std::string name;                      // of the file, for errors
  std::vector<std::string_view> pieces;  // by id, empty where no piece is; borrowed until built
  std::vector<bool> in_model;            // by id: BPE may produce it
  std::vector<Merge> merges;
  BpeOptions bpe;
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  DecoderSpec decoder;
  std::optional<int32_t> bos, eos;
  bool add_bos = false;
};

// The vocabulary must have been checked: ids of merges and added tokens lie inside.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(TokenizerSpec spec, Vocabulary vocabulary);

// Ids come from files: a vocabulary has at most this many.
inline constexpr int64_t kMaxVocabulary = int64_t(1) << 24;
// Longer pieces are not in any vocabulary; merging them would take quadratic time.
inline constexpr size_t kMaxPieceBytes = 4096;

}  // namespace longspur::io
