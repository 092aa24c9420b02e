#include "io/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/error.h"
#include "io/tokenizer/bpe.h"
#include "io/tokenizer/bpe_model.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {
namespace {

using nlohmann::json;

// A tokenizer.json on disk for the life of the object.
class JsonFile {
 public:
  explicit JsonFile(const std::string& text) {
    static int count = 0;
    folder_ = std::filesystem::path(testing::TempDir()) /
              concat("tokenizer_test_", ::getpid(), "_", count++);
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ / "tokenizer.json", std::ios::binary) << text;
  }
  explicit JsonFile(const json& value) : JsonFile(value.dump()) {}
  ~JsonFile() { std::filesystem::remove_all(folder_); }
  void add(const std::string& name, const json& value) const {
    std::ofstream(folder_ / name) << value.dump();
  }
  std::string path() const { return folder_.string(); }
  std::unique_ptr<Tokenizer> load() const { return Tokenizer::from_hf(path()); }

 private:
  std::filesystem::path folder_;
};

// All bytes, some merges, two control tokens and a plain added one.
json byte_level() {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) {
    const char c = char(byte);
    vocab[spell_bytes({&c, 1})] = byte;
  }
  const std::vector<std::string> merges = {"h e", "l l", "he ll", "hell o", "a a", "aa aa", "Ġ Ġ"};
  for (const std::string& merge : merges) {
    std::string piece = merge;
    piece.erase(piece.find(' '), 1);
    vocab[piece] = vocab.size();
  }
  const auto added = [](int id, const char* content, bool special) {
    return json{{"id", id}, {"content", content}, {"special", special}, {"normalized", false}};
  };
  return {{"added_tokens",
           {added(300, "<|a|>", true), added(301, "<|b|>", true), added(302, "<t>", false)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

// SentencePiece-style, with all bytes.
json sentencepiece() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) vocab[fallback_piece(uint8_t(byte))] = 3 + byte;
  for (const char* piece : {"▁", "a", "b", "▁a", "ab", "▁ab", "▁▁"}) vocab[piece] = vocab.size();
  const json space = {{"String", "▁"}};
  return {{"added_tokens",
           {{{"id", 1}, {"content", "<s>"}, {"special", true}},
            {{"id", 2}, {"content", "</s>"}, {"special", true}}}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "▁"}},
              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", space}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"merges", {"▁ a", json::array({"a", "b"}), "▁a b", "▁ ab", "▁ ▁"}}}}};
}

std::vector<std::string> pieces(const Tokenizer& tokenizer,
                                std::string_view text,
                                bool special = true) {
  std::vector<std::string> out;
  for (const int32_t id : tokenizer.encode(text, {.special = special}))
    out.emplace_back(tokenizer.piece(id));
  return out;
}

std::string random_bytes(std::mt19937& random, size_t size) {
  static constexpr std::string_view kFragments[] = {
      "hello", " ",    "aa",       "<|a|>", "<t>", "\xe6\x97\xa5", "\xf0\x9f\x98\x80",
      "\xff",  "\xc3", "\xe2\x96", "\n"};
  std::string out;
  while (out.size() < size) {
    if (random() % 3 == 0) {
      out += char(random() % 256);
    } else {
      out += kFragments[random() % std::size(kFragments)];
    }
  }
  return out;
}

TEST(Unicode, EveryCodePointRoundTrips) {
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    std::string text;
    append_utf8(text, c);
    const Utf8Char found = next_char(text);
    const bool surrogate = c >= 0xd800 && c < 0xe000;
    ASSERT_EQ(found.code_point, surrogate ? kInvalid : c);
    ASSERT_EQ(found.bytes, surrogate ? 1 : text.size());
  }
}

TEST(Unicode, InvalidSequences) {
  EXPECT_EQ(to_valid_utf8("a\xff"
                          "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(to_valid_utf8("\xe2\x82"), "\xef\xbf\xbd");              // cut off: one
  EXPECT_EQ(to_valid_utf8("\xc0\x80"), "\xef\xbf\xbd\xef\xbf\xbd");  // overlong: each byte
  EXPECT_EQ(find_invalid_utf8("twelve bytes\xff"), 12u);
  EXPECT_EQ(incomplete_utf8_suffix("a\xf0\x9f\x98"), 3u);
  EXPECT_EQ(incomplete_utf8_suffix("a\xf0\x9f\x98\x80"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("\xe0\x80"), 0u);  // no character begins like this
  EXPECT_EQ(incomplete_utf8_suffix("\x80\x80\x80\x80"), 0u);
}

// The definition, slowly: join the best, leftmost pair until there is none.
std::vector<int32_t> reference_merge(const MergeTable& table, std::vector<int32_t> symbols) {
  while (true) {
    size_t best = symbols.size();
    uint32_t best_rank = MergeTable::kNoRank;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const uint32_t rank = table.find(symbols[i], symbols[i + 1]).rank;
      if (rank < best_rank) best_rank = rank, best = i;
    }
    if (best == symbols.size()) return symbols;
    symbols[best] = table.find(symbols[best], symbols[best + 1]).result;
    symbols.erase(symbols.begin() + ptrdiff_t(best) + 1);
  }
}

TEST(Bpe, ShortAndLongWordsFollowTheDefinition) {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<Merge> merges;
    for (uint32_t i = 0; i < 60; ++i)  // few ranks: many ties
      merges.push_back({int32_t(random() % 12), int32_t(random() % 12), int32_t(random() % 12),
                        uint32_t(random() % 20)});
    const MergeTable table(merges);
    BpeScratch scratch;
    for (const size_t length : {0u, 1u, 2u, 3u, 95u, 96u, 97u, 331u}) {
      std::vector<int32_t> symbols(length);
      for (auto& symbol : symbols) symbol = int32_t(random() % 4);
      scratch.symbols = symbols;
      merge_symbols(table, scratch);
      ASSERT_EQ(scratch.symbols, reference_merge(table, symbols)) << "length " << length;
    }
  }
}

TEST(Tokenizer, AddedAndControlTokens) {
  const auto tokenizer = JsonFile(byte_level()).load();
  using List = std::vector<std::string>;
  EXPECT_EQ(pieces(*tokenizer, "hello<|a|><t>"), (List{"hello", "<|a|>", "<t>"}));
  EXPECT_EQ(pieces(*tokenizer, "<|a|>", false), (List{"<", "|", "a", "|", ">"}));
  EXPECT_EQ(pieces(*tokenizer, "<t>", false), (List{"<t>"}));
  EXPECT_EQ(pieces(*tokenizer, "aaaaaaa"), (List{"aaaa", "aa", "a"}));
  EXPECT_TRUE(tokenizer->is_control(300));
  EXPECT_FALSE(tokenizer->is_control(302));
  EXPECT_EQ(tokenizer->vocab_size(), 303);
  EXPECT_EQ(tokenizer->token_id("hello"), tokenizer->encode("hello").at(0));
  EXPECT_TRUE(tokenizer->encode("").empty());
}

TEST(Tokenizer, SegmentsReadControlTokensOnlyWhereTheyMay) {
  const auto tokenizer = JsonFile(byte_level()).load();
  const std::vector<TextSegment> segments = {
      {"<|a|>", true}, {"<|b|>hel", false}, {"lo<|", true}, {"b|>", false}, {"<|b|>", true}};
  const auto ids = tokenizer->encode_segments(segments);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 300), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 301), 1);  // the last segment's
  EXPECT_EQ(tokenizer->decode(ids), "<|a|><|b|>hello<|b|><|b|>");
  // words are not cut at segment boundaries
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer->token_id("hello")), 1);
  const std::vector<TextSegment> word = {{"he", true}, {"llo", false}};
  EXPECT_EQ(tokenizer->encode_segments(word), tokenizer->encode("hello"));
}

TEST(Tokenizer, UserTextNeverBecomesControlTokens) {
  const auto tokenizer = JsonFile(byte_level()).load();
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TextSegment> segments;
    for (int i = 0; i < 4; ++i) {
      std::string text = random_bytes(random, 12);
      const bool special = i % 2 == 0;
      if (special) text = "|>" + text.substr(0, 2) + "<|";
      segments.push_back({text, special});
    }
    for (const int32_t id : tokenizer->encode_segments(segments))
      ASSERT_FALSE(tokenizer->is_control(id));
  }
}

TEST(Tokenizer, AnyBytesRoundTrip) {
  std::mt19937 random(3);
  for (const json& file : {byte_level(), sentencepiece()}) {
    const auto tokenizer = JsonFile(file).load();
    for (int round = 0; round < 3000; ++round) {
      const std::string text = random_bytes(random, random() % 60);
      if (text.find(kMetaspace) != std::string::npos) continue;  // a space for SentencePiece
      const auto ids = tokenizer->encode(text);
      ASSERT_EQ(tokenizer->decode(ids), text);
      StreamDecoder stream(*tokenizer);
      std::string streamed;
      for (const int32_t id : ids) {
        const std::string part = stream.push(id);
        ASSERT_EQ(find_invalid_utf8(part), part.size());
        streamed += part;
      }
      streamed += stream.flush();
      ASSERT_EQ(streamed, to_valid_utf8(text));
    }
  }
}

TEST(Tokenizer, BytesWithoutATokenBecomeReplacementCharacters) {
  json file = byte_level();
  const std::string spelled = spell_bytes("\xff");
  file["model"]["vocab"].erase(spelled);
  const auto tokenizer = JsonFile(file).load();
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\xff"
                                                "b\xfe")),
            "a\xef\xbf\xbd"
            "b\xfe");
}

TEST(Tokenizer, SentencePieceSpaces) {
  const auto tokenizer = JsonFile(sentencepiece()).load();
  using List = std::vector<std::string>;
  EXPECT_EQ(pieces(*tokenizer, "ab a"), (List{"▁ab", "▁a"}));
  EXPECT_EQ(pieces(*tokenizer, "<s>a"), (List{"<s>", "▁a"}));
  EXPECT_EQ(pieces(*tokenizer, "é"), (List{"▁", "<0xC3>", "<0xA9>"}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("ab a")), "ab a");
  EXPECT_EQ(tokenizer->token_bytes(*tokenizer->token_id("▁ab")), " ab");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_TRUE(tokenizer->add_bos_by_default());
  EXPECT_EQ(tokenizer->encode("a", {.bos = true}).front(), 1);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{1, *tokenizer->token_id("▁a")},
                              {.skip_special = true}),
            "a");
}

TEST(Tokenizer, ConfigurationNamesTheSpecialTokens) {
  const JsonFile file(byte_level());
  EXPECT_FALSE(file.load()->bos_id());
  EXPECT_THROW(file.load()->encode("a", {.bos = true}), Error);
  file.add("tokenizer_config.json",
           {{"bos_token", "<|a|>"}, {"eos_token", {{"content", "<|b|>"}}}});
  const auto tokenizer = file.load();
  EXPECT_EQ(tokenizer->bos_id(), 300);
  EXPECT_EQ(tokenizer->eos_id(), 301);
  EXPECT_FALSE(tokenizer->add_bos_by_default());
  EXPECT_EQ(tokenizer->encode("a", {.bos = true}).front(), 300);
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreRefused) {
  const auto tokenizer = JsonFile(byte_level()).load();
  for (const int32_t id : {-1, 303, INT32_MIN, INT32_MAX}) {
    EXPECT_THROW(tokenizer->decode({&id, 1}), Error);
    EXPECT_THROW(tokenizer->token_bytes(id), Error);
    EXPECT_THROW(tokenizer->piece(id), Error);
  }
  const int32_t gap = 280;  // inside, without a piece
  EXPECT_EQ(tokenizer->decode({&gap, 1}), "");
}

TEST(Tokenizer, LongRunsTakeNoQuadraticTime) {
  constexpr size_t kSize = 1'000'000;
  for (const json& file : {byte_level(), sentencepiece()}) {
    const auto tokenizer = JsonFile(file).load();
    for (const std::string unit :
         {"a", " ", "\n", "\xf0\x9f\x98\x80", "\xff", "<", "'", "1", "\xcc\x81", "ab"}) {
      std::string text;
      while (text.size() < kSize) text += unit;
      const auto start = std::chrono::steady_clock::now();
      const auto ids = tokenizer->encode(text);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      // a quadratic algorithm would take minutes; sanitizers and busy machines take some seconds
      EXPECT_LT(took.count(), 20) << unit;
      ASSERT_EQ(tokenizer->decode(ids), text) << unit;
    }
  }
}

TEST(Tokenizer, NormalizationSortsLongRunsOfMarks) {
  json file = byte_level();
  file["normalizer"] = {{"type", "NFC"}};
  const auto tokenizer = JsonFile(file).load();
  std::string text = "a", sorted = "a";
  for (int i = 0; i < 100'000; ++i) text += "\xcc\x95\xcc\x96";  // U+0315 (232), U+0316 (220)
  for (int i = 0; i < 100'000; ++i) sorted += "\xcc\x96";
  for (int i = 0; i < 100'000; ++i) sorted += "\xcc\x95";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), sorted);
}

TEST(Tokenizer, ManyThreadsAgree) {
  const auto tokenizer = JsonFile(byte_level()).load();
  std::mt19937 random(9);
  const std::string text = random_bytes(random, 20'000);
  const auto expected = tokenizer->encode(text);
  std::vector<std::thread> threads;
  std::vector<int> same(4, 0);
  for (size_t t = 0; t < same.size(); ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) same[t] += tokenizer->encode(text) == expected;
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(same, std::vector<int>(4, 10));
}

// ---- refused files

struct BadFile {
  const char* name;
  const char* pointer;  // JSON pointer; the value there is replaced
  json value;
  const char* message;  // part of it
};

std::ostream& operator<<(std::ostream& out, const BadFile& file) { return out << file.name; }

class BadFiles : public testing::TestWithParam<BadFile> {};

TEST_P(BadFiles, AreRefusedInOneLine) {
  json file = byte_level();
  file[json::json_pointer(GetParam().pointer)] = GetParam().value;
  try {
    JsonFile(file).load();
    FAIL() << "loaded";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
    EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

const BadFile kBadFiles[] = {
    {"model_missing", "/model", nullptr, "model: found null"},
    {"model_type", "/model/type", "Unigram", "found \"Unigram\", expected BPE"},
    {"vocab_type", "/model/vocab", json::array(), "model.vocab: found an array"},
    {"vocab_empty", "/model/vocab", json::object(), "expected"},
    {"id_negative", "/model/vocab/hello", -1, "found -1"},
    {"id_huge", "/model/vocab/hello", 4294967296, "found 4294967296"},
    {"id_float", "/model/vocab/hello", 1.5, "found 1.5"},
    {"id_string", "/model/vocab/hello", "7", "found \"7\""},
    {"id_twice", "/model/vocab/hello", 3, "expected each id once"},
    {"id_far", "/model/vocab/hello", 1000000, "found 1000000"},
    {"merges_missing", "/model/merges", nullptr, "model.merges: found null"},
    {"merge_unknown", "/model/merges/0", "zz q", "found 'zz'"},
    {"merge_result", "/model/merges/0", "z q", "found 'zq'"},
    {"merge_one", "/model/merges/0", "he", "two pieces"},
    {"merge_three", "/model/merges/0", "h e l", "two pieces"},
    {"merge_number", "/model/merges/0", 3, "two strings"},
    {"merge_list", "/model/merges/0", json::array({"h"}), "two strings"},
    {"dropout", "/model/dropout", 0.1, "not random"},
    {"suffix", "/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
    {"unknown_flag", "/model/fuse_unk", "yes", "true or false"},
    {"normalizer", "/normalizer", {{"type", "Precompiled"}}, "Precompiled"},
    {"normalizer_type", "/normalizer", "NFC", "expected an object"},
    {"pre_tokenizer", "/pre_tokenizer/type", "BertPreTokenizer", "BertPreTokenizer"},
    {"split_regex",
     "/pre_tokenizer",
     {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}},
     "PCRE2"},
    {"split_behavior",
     "/pre_tokenizer",
     {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Odd"}},
     "Odd"},
    {"decoder", "/decoder/type", "WordPiece", "WordPiece"},
    {"post_processor", "/post_processor", {{"type", "Other"}}, "Other"},
    {"added_type", "/added_tokens", "none", "added_tokens"},
    {"added_id", "/added_tokens/0/id", -5, "found -5"},
    {"added_id_taken", "/added_tokens/0/id", 301, "expected each id once"},
    {"added_content", "/added_tokens/0/content", 5, "expected a string"},
    {"added_other_id", "/added_tokens/0/content", "hello", "id of 'hello'"},
    {"piece_long", "/model/vocab/", 0, "expected"},
};

INSTANTIATE_TEST_SUITE_P(Json, BadFiles, testing::ValuesIn(kBadFiles), [](const auto& info) {
  return std::string(info.param.name);
});

TEST(BadText, IsRefused) {
  for (const std::string text :
       {"", "{", "[]", "null", "{}", "{\"model\":{}}", "\xff", "{\"model\":1}"})
    EXPECT_THROW(JsonFile(text).load(), Error) << text;
  EXPECT_THROW(Tokenizer::from_hf("/nowhere"), Error);
}

TEST(Regex, RunawayExpressionsStop) {
  json file = byte_level();
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "(?:a+)+[bc]"}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const auto tokenizer = JsonFile(file).load();
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("xaabbcx")), "xaabbcx");
  EXPECT_THROW(tokenizer->encode(std::string(5000, 'a')), Error);
}

}  // namespace
}  // namespace longspur::io
