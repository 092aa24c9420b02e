// Normalization of the text between added tokens. Invalid bytes pass through as they are.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::io {

class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  // `continued`: the text goes on from a part normalized before it, so that nothing belongs in
  // front.
  virtual void apply(std::string& text, bool continued) const = 0;
};

using Normalizer = std::vector<std::unique_ptr<const NormalizerStep>>;

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

std::unique_ptr<NormalizerStep> make_unicode_step(UnicodeForm form);
std::unique_ptr<NormalizerStep> make_lowercase_step();
std::unique_ptr<NormalizerStep> make_prepend_step(const std::string& prefix);
std::unique_ptr<NormalizerStep> make_replace_step(const std::string& from, const std::string& to);

}  // namespace longspur::io
