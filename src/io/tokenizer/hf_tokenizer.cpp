// Tokenizer::from_hf: tokenizer.json with a BPE model, and from tokenizer_config.json the names of
// the beginning and end tokens.
#include <algorithm>
#include <filesystem>
#include <map>

#include "io/files/json_file.h"
#include "io/files/printable.h"
#include "io/tokenizer/hf_pipeline.h"

namespace longspur::io {

namespace {

namespace fs = std::filesystem;

class HfLoader {
 public:
  HfLoader(const JsonNode& root, const JsonNode& config) : root_(root), config_(config) {
    spec_.name = root.where().substr(0, root.where().size() - 2);
  }

  std::unique_ptr<Tokenizer> load() {
    const JsonNode model = read_model_kind();
    read_pieces(model["vocab"].object());
    read_added_tokens();
    vocabulary_ = Vocabulary(spec_.pieces, spec_.name);
    read_pipeline();
    read_options(model);
    read_merges(model["merges"].array());
    read_special_tokens();
    return make_bpe_tokenizer(std::move(spec_), std::move(vocabulary_));
  }

 private:
  JsonNode read_model_kind() const {
    const JsonNode model = root_["model"].object();
    const bool bpe =
        model["type"].is_null() ? model.has("merges") : model["type"].string() == "BPE";
    if (!bpe) model["type"].unsupported("BPE");
    const JsonNode dropout = model["dropout"];
    if (!dropout.is_null()) {
      dropout.expect(dropout.value().is_number(), "a number");
      if (dropout.value().get<double>() != 0) dropout.unsupported("0: encoding is not random");
    }
    if (!model["end_of_word_suffix"].string("").empty())
      model["end_of_word_suffix"].unsupported("none");
    return model;
  }

  // Ids need not be without gaps, but a few entries cannot make a large table.
  int64_t id_limit() const {
    const auto added = root_["added_tokens"];
    const auto count =
        int64_t(root_["model"]["vocab"].size() + (added.is_null() ? 0 : added.size()));
    return std::min(kMaxVocabulary, 2 * count + 1024);
  }

  void place(int64_t id, std::string_view piece, const std::string& where) {
    require(piece.size() <= kMaxPieceBytes, where, ": found a piece of ", piece.size(),
            " bytes, expected at most ", kMaxPieceBytes);
    if (size_t(id) >= spec_.pieces.size()) {
      spec_.pieces.resize(size_t(id) + 1);
      taken_.resize(size_t(id) + 1);
    }
    require(!taken_[size_t(id)], where, ": found the id ", id, " for ", shown(piece), " and ",
            shown(spec_.pieces[size_t(id)]), ", expected each id once");
    taken_[size_t(id)] = true;
    spec_.pieces[size_t(id)] = piece;
  }

  void read_pieces(const JsonNode& vocab) {
    const int64_t limit = id_limit();
    for (const auto& [piece, value] : vocab.value().items()) {
      if (!JsonNode::is_integer(value, 0, limit - 1))
        JsonNode(value, concat(vocab.where(), ".", shown(piece))).integer(0, limit - 1);  // throws
      place(value.get<int64_t>(), piece, vocab.where());
    }
    require(!spec_.pieces.empty(), vocab.where(), ": found no pieces, expected some");
    spec_.in_model = taken_;
  }

  void read_added_tokens() {
    const JsonNode list = root_["added_tokens"];
    if (list.is_null()) return;
    const int64_t limit = id_limit();
    std::map<std::string, int64_t> seen;
    const auto& vocab = root_["model"]["vocab"].value();
    for (size_t i = 0; i < list.array().size(); ++i) {
      const JsonNode token = list.element(i).object();
      const std::string& content = token["content"].string();
      const int64_t id = token["id"].integer(0, limit - 1);
      const auto [before, fresh] = seen.emplace(content, id);
      if (before->second != id)
        token["id"].fail(concat(before->second, ", as before for ", shown(content)));
      if (content.empty() || !fresh) continue;
      if (const auto in_model = vocab.find(content); in_model != vocab.end()) {
        if (*in_model != id)
          token["id"].fail(
              concat("the id of ", shown(content), " in the vocabulary, ", in_model->dump()));
      } else {
        place(id, content, token.where());
      }
      spec_.added.push_back({int32_t(id), content, token["special"].boolean(false),
                             token["normalized"].boolean(false), token["lstrip"].boolean(false),
                             token["rstrip"].boolean(false), token["single_word"].boolean(false)});
    }
    spec_.in_model.resize(spec_.pieces.size(), false);
  }

  void read_pipeline() {
    spec_.normalizer = read_normalizer(root_["normalizer"]);
    HfPreTokenizer pre_tokenizer = read_pre_tokenizer(root_["pre_tokenizer"]);
    spec_.pre_tokenizer = std::move(pre_tokenizer.steps);
    spec_.bpe.byte_level = pre_tokenizer.byte_level;
    spec_.decoder = read_decoder(root_["decoder"]);
  }

  void read_options(const JsonNode& model) {
    BpeOptions& bpe = spec_.bpe;
    bpe.byte_fallback = model["byte_fallback"].boolean(false);
    bpe.ignore_merges = model["ignore_merges"].boolean(false);
    bpe.fuse_unknown = model["fuse_unk"].boolean(false);
    bpe.continuing_prefix = model["continuing_subword_prefix"].string("");
    if (bpe.byte_fallback && (bpe.byte_level || !bpe.continuing_prefix.empty()))
      model["byte_fallback"].unsupported("false with ByteLevel or continuing_subword_prefix");
    const JsonNode unknown = model["unk_token"];
    if (unknown.is_null() || unknown.string().empty()) return;
    bpe.unknown = model_id(unknown.string());
    unknown.expect(bpe.unknown || never_unknown(), "a piece of the vocabulary");
  }

  std::optional<int32_t> model_id(std::string_view piece) const {
    const auto id = vocabulary_.find(piece);
    return id && spec_.in_model[size_t(*id)] ? id : std::nullopt;
  }

  // Every byte has a piece, so the unknown token is not needed.
  bool never_unknown() const {
    for (int byte = 0; byte < 256; ++byte) {
      const char c = char(byte);
      if (spec_.bpe.byte_level && !model_id(spell_bytes({&c, 1}))) return false;
      if (!spec_.bpe.byte_level && !model_id(fallback_piece(uint8_t(byte)))) return false;
    }
    return spec_.bpe.byte_level || spec_.bpe.byte_fallback;
  }

  // "a b", or ["a", "b"] since pieces may hold spaces.
  void read_merges(const JsonNode& merges) {
    spec_.merges.reserve(merges.size());
    for (size_t i = 0; i < merges.size(); ++i) {
      const auto& value = merges.value()[i];
      std::string_view left, right;
      if (value.is_string()) {
        const auto& line = value.get_ref<const std::string&>();
        const size_t space = line.find(' ');
        if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
          merges.element(i).fail("two pieces with a space between them");
        left = std::string_view(line).substr(0, space);
        right = std::string_view(line).substr(space + 1);
      } else {
        const bool pair =
            value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string();
        if (!pair) merges.element(i).fail("two strings");
        left = value[0].get_ref<const std::string&>();
        right = value[1].get_ref<const std::string&>();
      }
      add_merge(merges, i, left, right);
    }
  }

  void add_merge(const JsonNode& merges, size_t i, std::string_view left, std::string_view right) {
    const std::string& prefix = spec_.bpe.continuing_prefix;
    require(right.starts_with(prefix), merges.where(), "[", i, "]: found ", shown(right),
            ", expected it to begin with ", shown(prefix));
    const std::string result = concat(left, right.substr(prefix.size()));
    const auto id = [&](std::string_view piece) {
      const auto found = model_id(piece);
      require(found.has_value(), merges.where(), "[", i, "]: found ", shown(piece),
              ", expected a piece of the vocabulary");
      return *found;
    };
    spec_.merges.push_back({id(left), id(right), id(result), uint32_t(i)});
  }

  // A token of tokenizer_config.json: a string, or an object with its content.
  std::optional<int32_t> configured_token(const std::string& key) const {
    const JsonNode token = config_[key];
    if (token.is_null()) return std::nullopt;
    const std::string& content = token.is_object() ? token["content"].string() : token.string();
    if (content.empty()) return std::nullopt;
    const auto id = vocabulary_.find(content);
    token.expect(id.has_value(), "a token of tokenizer.json");
    return id;
  }

  void read_special_tokens() {
    spec_.bos = configured_token("bos_token");
    spec_.eos = configured_token("eos_token");
    const JsonNode post_processor = root_["post_processor"];
    const std::string leading = read_leading_token(post_processor);
    std::optional<int32_t> id;
    if (!leading.empty()) {
      id = vocabulary_.find(leading);
      require(id.has_value(), post_processor.where(), ": found the token ", shown(leading),
              ", expected a token of the vocabulary");
      if (!spec_.bos) spec_.bos = id;
    }
    spec_.add_bos = id.has_value() && id == spec_.bos;
    // Llama's tokenizer classes build their post-processor from this
    const JsonNode add_bos = config_["add_bos_token"];
    const bool decides = config_["tokenizer_class"].is_string() &&
                         config_["tokenizer_class"].string().starts_with("Llama");
    if (decides && !add_bos.is_null()) spec_.add_bos = add_bos.boolean() && spec_.bos.has_value();
  }

  const JsonNode& root_;
  const JsonNode& config_;
  TokenizerSpec spec_;
  Vocabulary vocabulary_;
  std::vector<bool> taken_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_hf(const std::string& folder) {
  const fs::path path =
      fs::is_directory(folder) ? fs::path(folder) / "tokenizer.json" : fs::path(folder);
  const fs::path config_path = path.parent_path() / "tokenizer_config.json";
  const nlohmann::json root = read_json_file(path.string());
  const nlohmann::json config =
      fs::exists(config_path) ? read_json_file(config_path.string()) : nlohmann::json::object();
  return HfLoader({root, path.string() + ": "}, {config, config_path.string() + ": "}).load();
}

}  // namespace longspur::io
