#include "io/tokenizer/encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "io/tokenizer/vocabulary.h"

namespace longspur::io {

namespace {

constexpr size_t kMostWords = 4096;  // entries of 32 bytes: they stay in the second-level cache

// The ranges of text[begin, end), shifted to begin at 0.
std::vector<SpecialRange> ranges_inside(std::span<const SpecialRange> ranges,
                                        uint32_t begin,
                                        uint32_t end) {
  std::vector<SpecialRange> out;
  for (const SpecialRange& range : ranges) {
    if (range.end <= begin) continue;
    out.push_back({std::min(range.end, end) - begin, range.special});
    if (range.end >= end) break;
  }
  return out;
}

}  // namespace

// A short text has few words to repeat; its cache is not worth clearing.
WordCache::WordCache(size_t text_bytes)
    : entries_(text_bytes < 256 ? 0 : std::min(kMostWords, std::bit_ceil(text_bytes / 8))) {}

template <class Encode>
void WordCache::append(std::string_view word, std::vector<int32_t>& out, Encode encode) {
  if (entries_.empty() || word.size() > kLongestWord || word.empty()) return encode();
  Entry wanted;
  std::memcpy(wanted.key, word.data(), word.size());
  wanted.bytes = uint16_t(word.size());
  const uint64_t hash = mix_hash(wanted.key[0] ^ std::rotl(wanted.key[1], 21) ^
                                 std::rotl(wanted.key[2], 43) ^ word.size());
  Entry& entry = entries_[hash & (entries_.size() - 1)];
  if (entry.bytes == wanted.bytes && std::equal(entry.key, entry.key + 3, wanted.key)) {
    const size_t end = out.size();
    out.resize(end + entry.count);
    std::copy_n(out.begin() + entry.begin, entry.count, out.begin() + ptrdiff_t(end));
    return;
  }
  wanted.begin = uint32_t(out.size());
  encode();
  wanted.count = uint16_t(out.size() - wanted.begin);
  entry = wanted;
}

void Encoder::run(std::string_view text, std::span<const SpecialRange> ranges) {
  for (const TextPart& part : pipeline_.raw.split(text, ranges)) {
    if (part.id >= 0) {
      out_.push_back(part.id);
    } else {
      encode_raw_part(text.substr(part.begin, part.end - part.begin),
                      ranges_inside(ranges, part.begin, part.end), part.begin == 0);
    }
  }
}

void Encoder::encode_raw_part(std::string_view part,
                              std::vector<SpecialRange> ranges,
                              bool at_start) {
  std::string normalized;
  if (!pipeline_.normalizer.empty()) {
    normalized = normalize(part, ranges);
    part = normalized;
  }
  if (pipeline_.normalized.empty()) return encode_normalized_part(part, at_start);
  for (const TextPart& inner : pipeline_.normalized.split(part, ranges)) {
    if (inner.id >= 0) {
      out_.push_back(inner.id);
    } else {
      encode_normalized_part(part.substr(inner.begin, inner.end - inner.begin),
                             at_start && inner.begin == 0);
    }
  }
}

// Moves the ends of the ranges to where they are in the normalized text. Where the normal form of
// the whole is not that of the ranges one after another (a combining mark after a boundary), no
// boundary can be given, and control tokens stay text.
std::string Encoder::normalize(std::string_view text, std::vector<SpecialRange>& ranges) const {
  const auto apply = [&](std::string_view from, bool continued) {
    std::string out(from);
    for (const auto& step : pipeline_.normalizer) {
      step->apply(out, continued);
      require(out.size() <= kMaxTextBytes, "normalized text: found ", out.size(),
              " bytes, expected at most ", kMaxTextBytes);
    }
    return out;
  };
  std::string whole = apply(text, false);
  if (ranges.size() > 1 && !pipeline_.normalized.empty()) {
    std::string pieced;
    uint32_t begin = 0;
    for (SpecialRange& range : ranges) {
      pieced += apply(text.substr(begin, range.end - begin), begin > 0);
      begin = range.end;
      range.end = uint32_t(pieced.size());
    }
    if (pieced != whole) ranges = {{uint32_t(whole.size()), false}};
  } else {
    const bool special = std::all_of(ranges.begin(), ranges.end(),
                                     [](const SpecialRange& range) { return range.special; });
    ranges = {{uint32_t(whole.size()), special}};
  }
  return whole;
}

void Encoder::encode_normalized_part(std::string_view part, bool at_start) {
  if (part.empty()) return;
  Pieces pieces{part, {}, {{0, uint32_t(part.size())}}, at_start};
  for (const auto& step : pipeline_.pre_tokenizer) step->apply(pieces);
  for (size_t i = 0; i < pieces.spans.size(); ++i) encode_piece(pieces[i]);
}

void Encoder::encode_piece(std::string_view piece) {
  const BpeModel& model = *pipeline_.model;
  if (!model.may_cut_at_metaspace()) return encode_word(piece, true);
  if (model.options().ignore_merges) {
    if (const auto id = model.find_whole(piece)) {
      out_.push_back(*id);
      return;
    }
  }
  encode_at_metaspaces(piece);
}

// Words are cut off before each "▁" that follows another character.
void Encoder::encode_at_metaspaces(std::string_view piece) {
  while (!piece.empty()) {
    size_t end = 0;
    while (piece.substr(end).starts_with(kMetaspace)) end += kMetaspace.size();
    end = std::min(piece.find(kMetaspace, end), piece.size());
    encode_word(piece.substr(0, end), false);
    piece.remove_prefix(end);
  }
}

void Encoder::encode_word(std::string_view word, bool whole) {
  cache_.append(word, out_, [&] { pipeline_.model->encode(word, whole, scratch_, out_); });
}

}  // namespace longspur::io
