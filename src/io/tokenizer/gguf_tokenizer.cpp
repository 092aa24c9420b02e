// Tokenizer::from_gguf: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama") from the
// tokenizer.ggml.* keys. SentencePiece merges are not in the file: every way to put a piece
// together from two others has the piece's score.
#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "io/files/gguf.h"
#include "io/files/printable.h"
#include "io/tokenizer/tokenizer_spec.h"

namespace longspur::io {

namespace {

const std::string kPrefix = "tokenizer.ggml.";

// Values of tokenizer.ggml.token_type.
enum TokenType : int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// What a name in tokenizer.ggml.pre stands for.
struct NamedPreTokenizer {
  std::string_view name;
  KnownPattern pattern;
  bool digits = false;         // every digit alone, before the pattern
  bool ignore_merges = false;  // a piece that is in the vocabulary is one token
  bool add_bos = false;        // where the file does not say
};

constexpr NamedPreTokenizer kPreTokenizers[] = {
    {"default", KnownPattern::kGpt2},
    {"gpt-2", KnownPattern::kGpt2},
    {"smollm", KnownPattern::kGpt2, true},
    {"llama-bpe", KnownPattern::kLlama3, false, true, true},
    {"llama-3", KnownPattern::kLlama3, false, true, true},
    {"llama3", KnownPattern::kLlama3, false, true, true},
    {"llama-v3", KnownPattern::kLlama3, false, true, true},
    {"qwen2", KnownPattern::kQwen2},
    {"deepseek-r1-qwen", KnownPattern::kQwen2},
};

const NamedPreTokenizer& find_pre_tokenizer(const std::string& name) {
  std::string known;
  for (const NamedPreTokenizer& entry : kPreTokenizers) {
    if (entry.name == name) return entry;
    known += concat(known.empty() ? "" : ", ", entry.name);
  }
  throw UnsupportedError(concat(kPrefix, "pre: found ", shown(name), ", expected one of ", known));
}

class GgufLoader {
 public:
  explicit GgufLoader(const GgufFile& file) : file_(file) {
    const auto* tokens = file.find_strings(kPrefix + "tokens");
    require(tokens != nullptr, kPrefix, "tokens: not found, expected the pieces of the vocabulary");
    require(!tokens->empty() && int64_t(tokens->size()) <= kMaxVocabulary, kPrefix,
            "tokens: found ", tokens->size(), " pieces, expected 1 to ", kMaxVocabulary);
    spec_.name = kPrefix + "tokens";
    spec_.pieces.assign(tokens->begin(), tokens->end());
    for (size_t id = 0; id < tokens->size(); ++id)
      require((*tokens)[id].size() <= kMaxPieceBytes, kPrefix, "tokens: piece ", id, ": found ",
              (*tokens)[id].size(), " bytes, expected at most ", kMaxPieceBytes);
    vocabulary_ = Vocabulary(spec_.pieces, spec_.name);
    read_types();
    read_special_ids();
  }

  std::unique_ptr<Tokenizer> load() {
    const std::string model = file_.get_string(kPrefix + "model");
    if (model == "gpt2") {
      load_byte_level();
    } else if (model == "llama") {
      load_sentencepiece();
    } else {
      throw UnsupportedError(
          concat(kPrefix, "model: found ", shown(model), ", expected gpt2 or llama"));
    }
    require(!spec_.add_bos || spec_.bos, kPrefix, "add_bos_token: found true, but no ", kPrefix,
            "bos_token_id");
    return make_bpe_tokenizer(std::move(spec_), std::move(vocabulary_));
  }

 private:
  size_t size() const { return spec_.pieces.size(); }

  void read_types() {
    types_ = file_.get_ints(kPrefix + "token_type");
    if (types_.empty()) types_.assign(size(), kNormal);
    require(types_.size() == size(), kPrefix, "token_type: found ", types_.size(),
            " entries, expected ", size(), ", one for each piece");
    spec_.in_model.assign(size(), true);
    for (size_t id = 0; id < size(); ++id) {
      const int64_t type = types_[id];
      require(type >= 0 && type <= kByte, kPrefix, "token_type: entry ", id, ": found ", type,
              ", expected 0 to 6");
      const bool control = type == kControl || type == kUnknown;
      if (control || type == kByte) spec_.in_model[id] = false;
      if (control || type == kUserDefined)
        spec_.added.push_back({int32_t(id), std::string(spec_.pieces[id]), control});
    }
  }

  std::optional<int32_t> read_id(const std::string& key) {
    const int64_t id = file_.get_int(kPrefix + key, -1);
    if (id == -1) return std::nullopt;
    // llama.cpp writes 2^32 - 1 for "none"
    if (id == 0xffffffff) return std::nullopt;
    require(id >= 0 && id < int64_t(size()), kPrefix, key, ": found ", id, ", expected 0 to ",
            size() - 1);
    return int32_t(id);
  }

  void read_special_ids() {
    spec_.bos = read_id("bos_token_id");
    spec_.eos = read_id("eos_token_id");
    unknown_ = read_id("unknown_token_id");
  }

  void load_byte_level() {
    const std::string pre = file_.get_string(kPrefix + "pre", "default");
    const NamedPreTokenizer& named = find_pre_tokenizer(pre);
    if (named.digits) spec_.pre_tokenizer.push_back(make_digits_step(true));
    spec_.pre_tokenizer.push_back(make_pattern_step(named.pattern));
    spec_.bpe.byte_level = true;
    spec_.bpe.ignore_merges = named.ignore_merges;
    spec_.decoder.kind = DecoderSpec::Kind::kByteLevel;
    spec_.add_bos =
        file_.get_bool(kPrefix + "add_bos_token", named.add_bos && spec_.bos.has_value());
    read_merges();
  }

  void read_merges() {
    const auto* lines = file_.find_strings(kPrefix + "merges");
    require(lines != nullptr, kPrefix, "merges: not found, expected the merges of the vocabulary");
    spec_.merges.reserve(lines->size());
    std::string joined;
    for (size_t i = 0; i < lines->size(); ++i) {
      const std::string_view line = (*lines)[i];
      // a piece may begin with a space in files that spell none of their bytes
      const size_t space = line.find(' ', 1);
      require(space != std::string_view::npos && space + 1 < line.size(), kPrefix, "merges: entry ",
              i, ": found ", shown(line), ", expected two pieces with a space between them");
      joined.assign(line.substr(0, space));
      joined += line.substr(space + 1);
      spec_.merges.push_back({merge_piece(line.substr(0, space), i),
                              merge_piece(line.substr(space + 1), i), merge_piece(joined, i),
                              uint32_t(i)});
    }
  }

  int32_t merge_piece(std::string_view piece, size_t merge) const {
    const auto id = vocabulary_.find(piece);
    require(id.has_value(), kPrefix, "merges: entry ", merge, ": found ", shown(piece),
            ", expected a piece of the vocabulary");
    return *id;
  }

  void load_sentencepiece() {
    for (size_t id = 0; id < size(); ++id)
      require(types_[id] != kByte || byte_piece(spec_.pieces[id]), kPrefix, "tokens: piece ", id,
              ": found ", shown(spec_.pieces[id]), ", expected <0x00> to <0xFF> for a byte");
    spec_.bpe.byte_fallback = std::find(types_.begin(), types_.end(), kByte) != types_.end();
    spec_.bpe.fuse_unknown = true;
    spec_.bpe.unknown = unknown_ ? unknown_ : first_unknown();
    if (file_.get_bool(kPrefix + "add_space_prefix", true))
      spec_.normalizer.push_back(make_prepend_step(std::string(kMetaspace)));
    spec_.normalizer.push_back(make_replace_step(" ", std::string(kMetaspace)));
    spec_.decoder.kind = DecoderSpec::Kind::kSteps;
    spec_.decoder.replacements = {{std::string(kMetaspace), " "}};
    spec_.decoder.byte_fallback = spec_.bpe.byte_fallback;
    spec_.decoder.strip.assign(1, ' ');
    spec_.decoder.strip_count = file_.get_bool(kPrefix + "add_space_prefix", true) ? 1 : 0;
    spec_.add_bos = file_.get_bool(kPrefix + "add_bos_token", spec_.bos.has_value());
    merge_by_score();
  }

  std::optional<int32_t> first_unknown() const {
    const auto found = std::find(types_.begin(), types_.end(), kUnknown);
    if (found == types_.end()) return std::nullopt;
    return int32_t(found - types_.begin());
  }

  // rank 0 is the best score; equal scores have equal ranks, so the leftmost pair goes first.
  std::vector<uint32_t> ranks_by_score() const {
    const auto scores = file_.get_floats(kPrefix + "scores");
    require(scores.size() == size(), kPrefix, "scores: found ", scores.size(),
            " entries, expected ", size(), ", one for each piece");
    std::vector<uint32_t> order(size());
    for (size_t id = 0; id < size(); ++id) {
      require(!std::isnan(scores[id]), kPrefix, "scores: entry ", id, ": found NaN");
      order[id] = uint32_t(id);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
    std::vector<uint32_t> ranks(size());
    uint32_t rank = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && scores[order[i]] != scores[order[i - 1]]) ++rank;
      ranks[order[i]] = rank;
    }
    return ranks;
  }

  void merge_by_score() {
    const std::vector<uint32_t> ranks = ranks_by_score();
    for (size_t id = 0; id < size(); ++id) {
      if (!spec_.in_model[id]) continue;
      const std::string_view piece = spec_.pieces[id];
      for (size_t cut = 1; cut < piece.size(); ++cut) {
        const auto left = vocabulary_.find(piece.substr(0, cut));
        if (!left || !spec_.in_model[size_t(*left)]) continue;
        const auto right = vocabulary_.find(piece.substr(cut));
        if (!right || !spec_.in_model[size_t(*right)]) continue;
        spec_.merges.push_back({*left, *right, int32_t(id), ranks[id]});
      }
    }
  }

  const GgufFile& file_;
  TokenizerSpec spec_;
  Vocabulary vocabulary_;
  std::vector<int64_t> types_;
  std::optional<int32_t> unknown_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  return GgufLoader(file).load();
}

}  // namespace longspur::io
