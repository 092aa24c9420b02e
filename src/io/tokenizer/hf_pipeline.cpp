#include "io/tokenizer/hf_pipeline.h"

#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

constexpr size_t kMaxStringBytes = 256;  // prefixes and replacements: they multiply a text's size

std::string short_string(const JsonNode& node) {
  node.expect(node.string().size() <= kMaxStringBytes, "a string of at most 256 bytes");
  return node.string();
}

std::string one_character(const JsonNode& node) {
  const std::string& text = node.string();
  node.expect(!text.empty() && next_char(text).bytes == text.size(), "one character");
  return text;
}

std::string literal_pattern(const JsonNode& pattern) {
  if (!pattern.object().has("String")) pattern.unsupported("a pattern of the kind String");
  return short_string(pattern["String"]);
}

void read_normalizer_step(const JsonNode& node, Normalizer& steps) {
  const std::string& type = node["type"].string();
  if (type == "Sequence") {
    const JsonNode list = node["normalizers"];
    for (size_t i = 0; i < list.array().size(); ++i) read_normalizer_step(list.element(i), steps);
  } else if (type == "NFC") {
    steps.push_back(make_unicode_step(UnicodeForm::kNfc));
  } else if (type == "NFD") {
    steps.push_back(make_unicode_step(UnicodeForm::kNfd));
  } else if (type == "NFKC") {
    steps.push_back(make_unicode_step(UnicodeForm::kNfkc));
  } else if (type == "NFKD") {
    steps.push_back(make_unicode_step(UnicodeForm::kNfkd));
  } else if (type == "Lowercase") {
    steps.push_back(make_lowercase_step());
  } else if (type == "Prepend") {
    steps.push_back(make_prepend_step(short_string(node["prepend"])));
  } else if (type == "Replace") {
    steps.push_back(
        make_replace_step(literal_pattern(node["pattern"]), short_string(node["content"])));
  } else {
    node["type"].unsupported("Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend or Replace");
  }
}

SplitBehavior read_behavior(const JsonNode& node) {
  const std::string& name = node.string();
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  node.expect(false, "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
  return SplitBehavior::kRemoved;
}

// "prepend_scheme", or the older "add_prefix_space".
Prepend read_prepend(const JsonNode& node) {
  const JsonNode scheme = node["prepend_scheme"];
  const bool prefix = node["add_prefix_space"].boolean(true);
  if (scheme.is_null()) return prefix ? Prepend::kAlways : Prepend::kNever;
  const std::string& name = scheme.string();
  if (name == "never") return Prepend::kNever;
  node.expect(prefix, "an add_prefix_space that agrees with prepend_scheme");
  if (name == "first") return Prepend::kFirst;
  scheme.expect(name == "always", "never, first or always");
  return Prepend::kAlways;
}

void read_split(const JsonNode& node, PreTokenizer& steps) {
  const JsonNode pattern = node["pattern"].object();
  const SplitBehavior behavior = read_behavior(node["behavior"]);
  const bool invert = node["invert"].boolean(false);
  if (pattern.has("Regex")) {
    const JsonNode regex = pattern["Regex"];
    steps.push_back(make_regex_step(regex.string(), behavior, invert, regex.where()));
  } else {
    steps.push_back(make_literal_step(pattern["String"].string(), behavior, invert));
  }
}

void read_pre_tokenizer_step(const JsonNode& node, HfPreTokenizer& out) {
  const std::string& type = node["type"].string();
  if (out.byte_level) node.unsupported("ByteLevel as the last pre-tokenizer");
  if (type == "Sequence") {
    const JsonNode list = node["pretokenizers"];
    for (size_t i = 0; i < list.array().size(); ++i) read_pre_tokenizer_step(list.element(i), out);
  } else if (type == "ByteLevel") {
    out.byte_level = true;
    if (node["add_prefix_space"].boolean(true)) out.steps.push_back(make_prefix_space_step());
    if (node["use_regex"].boolean(true))
      out.steps.push_back(make_pattern_step(KnownPattern::kGpt2));
  } else if (type == "Split") {
    read_split(node, out.steps);
  } else if (type == "Digits") {
    out.steps.push_back(make_digits_step(node["individual_digits"].boolean(false)));
  } else if (type == "Metaspace") {
    out.steps.push_back(make_metaspace_step(one_character(node["replacement"]), read_prepend(node),
                                            node["split"].boolean(true)));
  } else {
    node["type"].unsupported("Sequence, ByteLevel, Split, Digits or Metaspace");
  }
}

// Replace..., ByteFallback, Fuse, Strip: each at most in this order, since the tokens are decoded
// one by one and only the start of the text is stripped.
void read_decoder_step(const JsonNode& node, DecoderSpec& spec, bool& fused) {
  const std::string& type = node["type"].string();
  if (type == "Replace") {
    if (spec.byte_fallback || fused) node.unsupported("Replace before ByteFallback and Fuse");
    spec.replacements.push_back({literal_pattern(node["pattern"]), short_string(node["content"])});
  } else if (type == "ByteFallback") {
    if (fused) node.unsupported("ByteFallback before Fuse");
    spec.byte_fallback = true;
  } else if (type == "Fuse") {
    fused = true;
  } else if (type == "Strip") {
    if (!fused || spec.strip_count > 0) node.unsupported("one Strip, after Fuse");
    spec.strip = one_character(node["content"]);
    spec.strip_count = int(node["start"].integer(0, 1));
    if (node["stop"].integer(0, INT32_MAX) != 0) node["stop"].unsupported("0");
  } else {
    node["type"].unsupported(
        "ByteLevel, Metaspace or a Sequence of Replace, ByteFallback, Fuse "
        "and Strip");
  }
}

// The first token that a TemplateProcessing's "single" puts before the text.
std::string leading_template_token(const JsonNode& node) {
  const JsonNode single = node["single"].array();
  std::string leading;
  for (size_t i = 0; i < single.size(); ++i) {
    const JsonNode item = single.element(i).object();
    if (!item.has("SpecialToken")) break;
    if (!leading.empty()) single.unsupported("at most one token before the text");
    leading = item["SpecialToken"]["id"].string();
  }
  return leading;
}

}  // namespace

Normalizer read_normalizer(const JsonNode& node) {
  Normalizer steps;
  if (!node.is_null()) read_normalizer_step(node, steps);
  return steps;
}

HfPreTokenizer read_pre_tokenizer(const JsonNode& node) {
  HfPreTokenizer out;
  if (!node.is_null()) read_pre_tokenizer_step(node, out);
  return out;
}

DecoderSpec read_decoder(const JsonNode& node) {
  DecoderSpec spec;
  if (node.is_null()) {
    spec.kind = DecoderSpec::Kind::kSpaceJoined;
    return spec;
  }
  const std::string& type = node["type"].string();
  if (type == "Sequence") {
    const JsonNode list = node["decoders"].array();
    if (list.size() == 1) return read_decoder(list.element(0));
    spec.kind = DecoderSpec::Kind::kSteps;
    bool fused = false;
    for (size_t i = 0; i < list.size(); ++i) read_decoder_step(list.element(i), spec, fused);
  } else if (type == "ByteLevel") {
    spec.kind = DecoderSpec::Kind::kByteLevel;
  } else if (type == "Metaspace") {
    spec.kind = DecoderSpec::Kind::kMetaspace;
    spec.replacements.push_back({one_character(node["replacement"]), " "});
    spec.strip_count = read_prepend(node) == Prepend::kNever ? 0 : 1;
  } else {
    spec.kind = DecoderSpec::Kind::kSteps;
    bool fused = false;
    read_decoder_step(node, spec, fused);
  }
  return spec;
}

std::string read_leading_token(const JsonNode& node) {
  if (node.is_null()) return {};
  const std::string& type = node["type"].string();
  if (type == "TemplateProcessing") return leading_template_token(node);
  if (type == "ByteLevel") return {};
  if (type != "Sequence") node["type"].unsupported("Sequence, ByteLevel or TemplateProcessing");
  const JsonNode list = node["processors"];
  std::string leading;
  for (size_t i = 0; i < list.array().size(); ++i) {
    const std::string inner = read_leading_token(list.element(i));
    if (inner.empty()) continue;
    if (!leading.empty()) list.unsupported("at most one token before the text");
    leading = inner;
  }
  return leading;
}

}  // namespace longspur::io
