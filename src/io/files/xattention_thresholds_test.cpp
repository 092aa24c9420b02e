#include "io/files/xattention_thresholds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::refusal;

std::string file(const std::string& changed_key = "", const std::string& value = "") {
  const std::pair<const char*, const char*> kParts[] = {
      {"format", R"("longspur-xattention-thresholds")"},
      {"version", "1"},
      {"model", R"({"name":"m","layers":2,"heads":4,"kv_heads":2,"head_dim":8})"},
      {"estimator", R"("sampled:16")"},
      {"block_size", "64"},
      {"rule", R"("share")"},
      {"target", R"({"kept":0.9})"},
      {"thresholds", "[[0,0.5,0.9,1],[0.1,0.2,0.3,0.4]]"}};
  std::string text;
  bool replaced = changed_key.empty();
  for (const auto& [key, part] : kParts) {
    const bool change = key == changed_key;
    replaced = replaced || change;
    if (change && value.empty()) continue;  // left out
    text += (text.empty() ? "{\"" : ",\"") + std::string(key) + "\":" + (change ? value : part);
  }
  if (!replaced) text += ",\"" + changed_key + "\":" + value;
  return text + "}";
}

std::string why(const std::string& key, const std::string& value) {
  return refusal([&] { parse_xattention_thresholds(file(key, value), "t.json"); });
}

ModelConfig model() {
  ModelConfig config;
  config.name = "m";
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  return config;
}

TEST(XattentionThresholds, WhatIsWrittenIsRead) {
  const XattentionThresholds table = parse_xattention_thresholds(file(), "t.json");
  EXPECT_EQ(table.estimator, "sampled:16");
  EXPECT_EQ(table.block_size, 64);
  EXPECT_FALSE(table.of_max);
  EXPECT_EQ(table.target, R"({"kept":0.9})");
  EXPECT_THAT(table.thresholds,
              ::testing::ElementsAre(0.f, 0.5f, 0.9f, 1.f, 0.1f, 0.2f, 0.3f, 0.4f));
  check_thresholds_fit(table, model(), "t.json");

  XattentionThresholds again = table;
  again.of_max = true;
  again.thresholds[0] = 0.1234567f;
  const testing::TempFolder folder;
  folder.write("t.json", xattention_thresholds_json(again));
  const XattentionThresholds read = read_xattention_thresholds((folder.path() / "t.json").string());
  EXPECT_EQ(read.thresholds, again.thresholds);
  EXPECT_TRUE(read.of_max);
  EXPECT_EQ(xattention_thresholds_json(read), xattention_thresholds_json(again));
}

TEST(XattentionThresholds, OptionalKeys) {
  EXPECT_EQ(parse_xattention_thresholds(file("block_size", ""), "t").block_size, 128);
  EXPECT_EQ(parse_xattention_thresholds(file("target", ""), "t").target, "{}");
  EXPECT_TRUE(parse_xattention_thresholds(file("rule", R"("of_max")"), "t").of_max);
}

TEST(XattentionThresholds, WhatIsWrongIsNamed) {
  EXPECT_THAT(why("format", R"("other")"), AllOf(HasSubstr("t.json: format"), HasSubstr("other")));
  EXPECT_THAT(why("version", "2"), HasSubstr("version: found 2, expected 1"));
  EXPECT_THAT(why("estimator", ""), HasSubstr("estimator: missing"));
  EXPECT_THAT(why("block_size", "32"), HasSubstr("block_size: found 32, expected 64 or 128"));
  EXPECT_THAT(why("rule", R"("top")"), HasSubstr("rule: found 'top'"));
  EXPECT_THAT(why("target", "3"), HasSubstr("target"));
  EXPECT_THAT(why("surprise", "3"), HasSubstr("surprise"));
  EXPECT_THAT(why("model", ""), HasSubstr("model: missing"));
  EXPECT_THAT(why("model", R"({"layers":2,"heads":4,"kv_heads":3,"head_dim":8})"),
              HasSubstr("kv_heads: found 3"));
  EXPECT_THAT(why("model", R"({"layers":0,"heads":4,"kv_heads":2,"head_dim":8})"),
              HasSubstr("layers: found 0"));
  EXPECT_THAT(why("thresholds", ""), HasSubstr("thresholds: missing"));
  EXPECT_THAT(why("thresholds", "3"), HasSubstr("thresholds"));
  EXPECT_THAT(why("thresholds", "[[0,0,0,0]]"), HasSubstr("found 1 rows"));
  EXPECT_THAT(why("thresholds", "[[0,0,0,0],[0,0,0]]"), HasSubstr("thresholds[1]: found 3"));
  EXPECT_THAT(why("thresholds", "[[0,0,0,0],4]"), HasSubstr("thresholds[1]: found number"));
  EXPECT_THAT(why("thresholds", "[[0,0,0,0],[0,0,null,0]]"), HasSubstr("thresholds[1][2]"));
  EXPECT_THAT(why("thresholds", "[[0,1.1,0,0],[0,0,0,0]]"),
              HasSubstr("thresholds[0][1]: found 1.1, expected a number from 0 to 1"));
  EXPECT_THAT(why("thresholds", "[[0,-0.1,0,0],[0,0,0,0]]"), HasSubstr("thresholds[0][1]"));
}

TEST(XattentionThresholds, AnotherModelIsRefused) {
  const XattentionThresholds table = parse_xattention_thresholds(file(), "t.json");
  for (int64_t ModelConfig::*field : {&ModelConfig::layers, &ModelConfig::heads,
                                      &ModelConfig::kv_heads, &ModelConfig::head_dim}) {
    ModelConfig other = model();
    other.*field += 1;
    EXPECT_THAT(refusal([&] { check_thresholds_fit(table, other, "t.json"); }),
                AllOf(HasSubstr("t.json: model: "), HasSubstr("another model")));
  }
}

}  // namespace
}  // namespace longspur::io
