// From a pre-tokenized piece to ids: the first symbols of BPE are bytes (byte-level vocabularies)
// or characters, with bytes or the unknown token for characters that the vocabulary lacks.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/bpe.h"
#include "io/tokenizer/vocabulary.h"

namespace longspur::io {

inline constexpr std::string_view kMetaspace = "\xe2\x96\x81";  // U+2581, SentencePiece's space

// GPT-2's spelling of bytes as printable characters: byte 0x20 is "Ġ".
std::string spell_bytes(std::string_view bytes);
// The byte that a character of that spelling stands for.
std::optional<uint8_t> spelled_byte(uint32_t code_point);
// The bytes that a spelled piece stands for; nullopt when a character is not of the spelling.
std::optional<std::string> unspell_bytes(std::string_view piece);

// "<0x0A>", SentencePiece's piece for a byte; and back, nullopt for any other piece.
std::string fallback_piece(uint8_t byte);
std::optional<uint8_t> byte_piece(std::string_view piece);

struct BpeOptions {
  bool byte_level = false;     // symbols are bytes, spelled in GPT-2's alphabet
  bool byte_fallback = false;  // a missing character becomes its bytes' "<0x..>" pieces
  bool ignore_merges = false;  // a piece that is in the vocabulary is one token
  bool fuse_unknown = false;   // neighbouring missing characters become one unknown token
  std::optional<int32_t> unknown;
  std::string continuing_prefix;  // begins each piece that does not begin a word ("##")
};

class BpeModel {
 public:
  // `in_model`: ids that symbols and whole pieces may have (not those that are only added tokens).
  BpeModel(const Vocabulary& vocabulary,
           const std::vector<bool>& in_model,
           BpeOptions options,
           std::span<const Merge> merges);

  // Appends the ids of one pre-tokenized piece. `whole`: the piece may be one token as it stands
  // (only with ignore_merges).
  void encode(std::string_view piece, bool whole, BpeScratch& s, std::vector<int32_t>& out) const;
  // The id that the whole piece has, if any.
  std::optional<int32_t> find_whole(std::string_view piece) const;

  const BpeOptions& options() const { return options_; }
  // Whether an invalid byte in the text can be kept as it is.
  bool has_byte(uint8_t byte) const { return byte_ids_[byte] >= 0; }
  // No merge reaches from one word to the space in front of the next: "▁" after another character
  // may be cut off without any change to the ids.
  bool may_cut_at_metaspace() const { return may_cut_at_metaspace_; }

 private:
  std::optional<int32_t> find(std::string_view piece) const;
  int32_t character_id(uint32_t code_point, std::string_view text, bool first) const;
  void byte_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;
  void character_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;
  bool append_bytes(std::string_view bytes, std::vector<int32_t>& symbols) const;

  const Vocabulary& vocabulary_;
  std::vector<bool> in_model_;
  BpeOptions options_;
  MergeTable table_;
  std::array<int32_t, 256> byte_ids_{};        // byte symbols or "<0x..>" pieces; -1: none
  std::array<int32_t, 256> continuing_ids_{};  // byte symbols that do not begin a word
  std::array<int32_t, 128> ascii_ids_{};       // one-character pieces; -1: none
  bool may_cut_at_metaspace_ = false;
};

}  // namespace longspur::io
