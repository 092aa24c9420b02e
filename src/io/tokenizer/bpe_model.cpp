#include "io/tokenizer/bpe_model.h"

#include <algorithm>

#include "base/error.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

// Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and up.
struct ByteSpelling {
  std::array<uint16_t, 256> code_points{};
  std::array<int16_t, 0x144> bytes{};

  ByteSpelling() {
    bytes.fill(-1);
    uint16_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const uint16_t code_point = printable ? uint16_t(byte) : next++;
      code_points[size_t(byte)] = code_point;
      bytes[code_point] = int16_t(byte);
    }
  }
};

const ByteSpelling& spelling() {
  static const ByteSpelling table;
  return table;
}

bool crosses_metaspace(std::string_view left, std::string_view right) {
  return !left.ends_with(kMetaspace) && right.starts_with(kMetaspace);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(out, spelling().code_points[uint8_t(c)]);
  return out;
}

std::optional<uint8_t> spelled_byte(uint32_t code_point) {
  const auto& bytes = spelling().bytes;
  if (code_point >= bytes.size() || bytes[code_point] < 0) return std::nullopt;
  return uint8_t(bytes[code_point]);
}

std::optional<std::string> unspell_bytes(std::string_view piece) {
  std::string out;
  while (!piece.empty()) {
    const Utf8Char c = next_char(piece);
    const auto byte = spelled_byte(c.code_point);
    if (!byte) return std::nullopt;
    out += char(*byte);
    piece.remove_prefix(c.bytes);
  }
  return out;
}

std::string fallback_piece(uint8_t byte) {
  constexpr const char* kHex = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
}

std::optional<uint8_t> byte_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  const int high = hex_digit(piece[3]);
  const int low = hex_digit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return uint8_t(high * 16 + low);
}

BpeModel::BpeModel(const Vocabulary& vocabulary,
                   const std::vector<bool>& in_model,
                   BpeOptions options,
                   std::span<const Merge> merges)
    : vocabulary_(vocabulary), in_model_(in_model), options_(std::move(options)), table_(merges) {
  byte_ids_.fill(-1);
  continuing_ids_.fill(-1);
  for (int i = 0; i < 256; ++i) {
    const char c = char(i);
    const std::string spelled = spell_bytes({&c, 1});
    const auto byte = size_t(i);
    if (options_.byte_level) {
      byte_ids_[byte] = find(spelled).value_or(-1);
      continuing_ids_[byte] = find(options_.continuing_prefix + spelled).value_or(-1);
    } else if (options_.byte_fallback) {
      byte_ids_[byte] = vocabulary.find(fallback_piece(uint8_t(i))).value_or(-1);
    }
    if (i < 128) ascii_ids_[byte] = find({&c, 1}).value_or(-1);
  }
  may_cut_at_metaspace_ =
      !options_.byte_level && options_.continuing_prefix.empty() && find(kMetaspace) &&
      std::none_of(merges.begin(), merges.end(), [&](const Merge& merge) {
        return crosses_metaspace(vocabulary.piece(merge.left), vocabulary.piece(merge.right));
      });
}

std::optional<int32_t> BpeModel::find(std::string_view piece) const {
  const auto id = vocabulary_.find(piece);
  return id && in_model_[size_t(*id)] ? id : std::nullopt;
}

std::optional<int32_t> BpeModel::find_whole(std::string_view piece) const {
  return options_.byte_level ? find(spell_bytes(piece)) : find(piece);
}

void BpeModel::encode(std::string_view piece,
                      bool whole,
                      BpeScratch& s,
                      std::vector<int32_t>& out) const {
  if (whole && options_.ignore_merges) {
    if (const auto id = find_whole(piece)) {
      out.push_back(*id);
      return;
    }
  }
  s.symbols.clear();
  if (options_.byte_level) {
    byte_symbols(piece, s.symbols);
  } else {
    character_symbols(piece, s.symbols);
  }
  merge_symbols(table_, s);
  out.insert(out.end(), s.symbols.begin(), s.symbols.end());
}

void BpeModel::byte_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
  bool after_unknown = false;
  const auto* ids = &byte_ids_;
  for (const char c : piece) {
    const int32_t id = (*ids)[uint8_t(c)];
    if (id >= 0) {
      symbols.push_back(id);
    } else if (options_.unknown && !(options_.fuse_unknown && after_unknown)) {
      symbols.push_back(*options_.unknown);
    }
    after_unknown = id < 0;
    ids = &continuing_ids_;
  }
}

int32_t BpeModel::character_id(uint32_t code_point, std::string_view text, bool first) const {
  if (!first && !options_.continuing_prefix.empty())
    return find(concat(options_.continuing_prefix, text)).value_or(-1);
  return code_point < 128 ? ascii_ids_[code_point] : find(text).value_or(-1);
}

// All of the bytes, or nothing when a byte has no piece.
bool BpeModel::append_bytes(std::string_view bytes, std::vector<int32_t>& symbols) const {
  for (const char c : bytes)
    if (byte_ids_[uint8_t(c)] < 0) return false;
  for (const char c : bytes) symbols.push_back(byte_ids_[uint8_t(c)]);
  return true;
}

// An unknown token waits until the next character that is in the vocabulary, or the end: with fused
// unknown tokens more may join it, and byte pieces go in front of it, as in `tokenizers`.
void BpeModel::character_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
  bool first = true;
  bool unknown_waits = false;
  const auto flush = [&] {
    if (unknown_waits) symbols.push_back(*options_.unknown);
    unknown_waits = false;
  };
  while (!piece.empty()) {
    const Utf8Char c = next_char(piece);
    const std::string_view text = piece.substr(0, c.bytes);
    piece.remove_prefix(c.bytes);
    const int32_t id = character_id(c.code_point, text, first);
    first = false;
    if (id >= 0) {
      flush();
      symbols.push_back(id);
    } else if (!options_.byte_fallback || !append_bytes(text, symbols)) {
      if (!options_.fuse_unknown) flush();
      unknown_waits = options_.unknown.has_value();
    }
  }
  flush();
}

}  // namespace longspur::io
