// The Tokenizer of this folder: an encoding pipeline over a BPE model, and the bytes of every token
// for decoding.
#include <algorithm>

#include "base/error.h"
#include "io/tokenizer/encoder.h"
#include "io/tokenizer/tokenizer_spec.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

std::string replace_all(std::string text, const DecoderSpec::Replacement& replacement) {
  make_replace_step(replacement.from, replacement.to)->apply(text, false);
  return text;
}

// The bytes that a token adds in the middle of a text.
std::string middle_bytes(const DecoderSpec& decoder, std::string_view piece, bool added) {
  switch (decoder.kind) {
    case DecoderSpec::Kind::kByteLevel:
      return added ? std::string(piece) : unspell_bytes(piece).value_or(std::string(piece));
    case DecoderSpec::Kind::kSpaceJoined:
      return concat(" ", piece);
    case DecoderSpec::Kind::kSteps:
    case DecoderSpec::Kind::kMetaspace:
      break;
  }
  std::string text(piece);
  for (const auto& replacement : decoder.replacements) text = replace_all(text, replacement);
  if (decoder.byte_fallback) {
    if (const auto byte = byte_piece(text)) text.assign(1, char(*byte));
  }
  return text;
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(TokenizerSpec spec, Vocabulary vocabulary)
      : name_(std::move(spec.name)),
        vocabulary_(std::move(vocabulary)),
        model_(vocabulary_, spec.in_model, spec.bpe, spec.merges),
        decoder_(std::move(spec.decoder)),
        control_(size_t(vocabulary_.size()), false),
        bos_(spec.bos),
        eos_(spec.eos),
        add_bos_(spec.add_bos) {
    std::vector<AddedToken> raw, normalized;
    for (AddedToken& token : spec.added) {
      control_[size_t(token.id)] = token.control;
      if (token.normalized)
        for (const auto& step : spec.normalizer) step->apply(token.content, false);
      (token.normalized ? normalized : raw).push_back(token);
    }
    write_bytes(spec.added);
    pipeline_.raw = AddedTokenMatcher(std::move(raw));
    pipeline_.normalized = AddedTokenMatcher(std::move(normalized));
    pipeline_.normalizer = std::move(spec.normalizer);
    pipeline_.pre_tokenizer = std::move(spec.pre_tokenizer);
    pipeline_.model = &model_;
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    check_size(text);
    const SpecialRange range{uint32_t(text.size()), options.special};
    return encode_ranges(text, {&range, 1}, options.bos);
  }

  std::vector<int32_t> encode_segments(std::span<const TextSegment> segments,
                                       bool bos) const override {
    std::string text;
    std::vector<SpecialRange> ranges;
    for (const TextSegment& segment : segments) {
      if (segment.text.empty()) continue;
      text += segment.text;
      check_size(text);
      if (ranges.empty() || ranges.back().special != segment.special)
        ranges.push_back({0, segment.special});
      ranges.back().end = uint32_t(text.size());
    }
    return encode_ranges(text, ranges, bos);
  }

  std::string decode(std::span<const int32_t> ids, const DecodeOptions& options) const override {
    std::string text;
    bool first = true;
    for (const int32_t id : ids) {
      check_id(id);
      if ((options.skip_special && is_control(id)) || vocabulary_.piece(id).empty()) continue;
      if (first && decoder_.kind == DecoderSpec::Kind::kMetaspace && decoder_.strip_count > 0) {
        const auto& metaspace = decoder_.replacements.front().from;
        text += replace_all(std::string(vocabulary_.piece(id)), {metaspace, ""});
      } else {
        text += bytes_[size_t(id)];
      }
      first = false;
    }
    strip_start(text);
    return text;
  }

  std::string token_bytes(int32_t id) const override {
    check_id(id);
    return std::string(bytes_[size_t(id)]);
  }
  std::string_view piece(int32_t id) const override {
    check_id(id);
    return vocabulary_.piece(id);
  }
  int32_t vocab_size() const override { return vocabulary_.size(); }
  bool is_control(int32_t id) const override {
    check_id(id);
    return control_[size_t(id)];
  }
  std::optional<int32_t> token_id(std::string_view piece) const override {
    return vocabulary_.find(piece);
  }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  bool add_bos_by_default() const override { return add_bos_; }

 private:
  // Added tokens stand for what was found in the text, normalized or not.
  void write_bytes(const std::vector<AddedToken>& added) {
    std::vector<const AddedToken*> by_id(size_t(vocabulary_.size()), nullptr);
    for (const AddedToken& token : added) by_id[size_t(token.id)] = &token;
    for (int32_t id = 0; id < vocabulary_.size(); ++id) {
      const AddedToken* token = by_id[size_t(id)];
      const std::string_view piece = token ? token->content : vocabulary_.piece(id);
      bytes_.add(middle_bytes(decoder_, piece, token != nullptr));
    }
  }

  void check_id(int32_t id) const {
    require(id >= 0 && id < vocab_size(), name_, ": found the token id ", id, ", expected 0 to ",
            vocab_size() - 1);
  }

  void check_size(std::string_view text) const {
    require(text.size() <= kMaxTextBytes, "text: found ", text.size(), " bytes, expected at most ",
            kMaxTextBytes);
  }

  std::vector<int32_t> encode_ranges(std::string_view text,
                                     std::span<const SpecialRange> ranges,
                                     bool bos) const {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 2);
    if (bos) {
      require(bos_.has_value(), name_, ": found no beginning-of-sequence token to put in front");
      ids.push_back(*bos_);
    }
    if (text.empty()) return ids;
    if (find_invalid_utf8(text) == text.size()) {
      Encoder(pipeline_, text.size(), ids).run(text, ranges);
    } else {
      std::vector<SpecialRange> moved(ranges.begin(), ranges.end());
      const std::string clean = expressible(text, moved);
      Encoder(pipeline_, clean.size(), ids).run(clean, moved);
    }
    return ids;
  }

  // The text with U+FFFD for each invalid byte that the model has no token for.
  std::string expressible(std::string_view text, std::vector<SpecialRange>& ranges) const {
    std::string out;
    out.reserve(text.size());
    auto range = ranges.begin();
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = next_char(text.substr(at));
      const bool keep = c.code_point != kInvalid || model_.has_byte(uint8_t(text[at]));
      out += keep ? text.substr(at, c.bytes) : "\xef\xbf\xbd";
      at += c.bytes;
      // a character cut in two by a boundary belongs to the range where it ends
      for (; range != ranges.end() && range->end <= at; ++range) range->end = uint32_t(out.size());
    }
    return out;
  }

  void strip_start(std::string& text) const {
    if (decoder_.kind == DecoderSpec::Kind::kSpaceJoined) {
      if (!text.empty()) text.erase(0, 1);
      return;
    }
    if (decoder_.kind != DecoderSpec::Kind::kSteps || decoder_.strip.empty()) return;
    size_t begin = 0;
    for (int i = 0; i < decoder_.strip_count; ++i) {
      if (!std::string_view(text).substr(begin).starts_with(decoder_.strip)) break;
      begin += decoder_.strip.size();
    }
    text.erase(0, begin);
  }

  std::string name_;
  Vocabulary vocabulary_;
  BpeModel model_;
  Pipeline pipeline_;
  DecoderSpec decoder_;
  StringList bytes_;  // what each token adds in the middle of a text
  std::vector<bool> control_;
  std::optional<int32_t> bos_, eos_;
  bool add_bos_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(TokenizerSpec spec, Vocabulary vocabulary) {
  return std::make_unique<BpeTokenizer>(std::move(spec), std::move(vocabulary));
}

}  // namespace longspur::io
