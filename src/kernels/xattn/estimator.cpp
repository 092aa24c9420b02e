#include "kernels/xattn/estimator.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace longspur::kernels::xattn {

namespace {

struct TermName {
  std::string_view name;
  Term term;
  bool sized;
  bool norm_bias = true;
};
constexpr std::array<TermName, 8> kNames = {{
    {"antidiagonal", Term::kAntidiagonal, true},
    {"diagonal", Term::kDiagonal, true},
    {"pooled", Term::kPooled, true},
    {"pooled_plain", Term::kPooled, true, false},
    {"sampled", Term::kSampled, true},
    {"outlier", Term::kOutlier, false},
    {"mean", Term::kMean, false},
    {"block_mean", Term::kBlockMean, false},
}};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw UsageError(concat("estimator: ", parts...));
}

const TermName& find_name(std::string_view name) {
  std::string known;
  for (const TermName& entry : kNames) {
    if (entry.name == name) return entry;
    known += concat(known.empty() ? "" : ", ", entry.name);
  }
  fail("term: found '", name, "', expected one of ", known);
}

bool is_strided(Term term) { return term == Term::kAntidiagonal || term == Term::kDiagonal; }

void check_size(const TermName& entry, int64_t size, int64_t block_size) {
  const bool power = size > 0 && (size & (size - 1)) == 0;
  if (is_strided(entry.term)) {
    if (!power || size < 4 || size > 64 || block_size % size != 0)
      fail("stride of '", entry.name, "': found ", size, ", expected 4, 8, 16, 32 or 64");
    return;
  }
  const int64_t most = entry.term == Term::kPooled ? 1024 : 128;
  if (!power || size > most)
    fail("group of '", entry.name, "': found ", size, ", expected a power of two from 1 to ", most);
}

int64_t parse_size(std::string_view term, std::string_view text) {
  int64_t size = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  if (error != std::errc() || end != text.data() + text.size())
    fail("size of '", term, "': found '", text, "', expected an integer");
  return size;
}

double parse_weight(std::string_view part, std::string_view text) {
  double weight = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), weight);
  const bool number = error == std::errc() && end == text.data() + text.size();
  if (!number || !(weight >= 1e-6 && weight <= 1e6))
    fail("weight of '", part, "': found '", text, "', expected a number from 1e-6 to 1e6");
  return weight;
}

int64_t default_size(const TermName& entry, int64_t stride) {
  if (is_strided(entry.term)) return stride;
  return entry.term == Term::kSampled ? 16 : 128;
}

EstimatorTerm parse_term(std::string_view part, int64_t stride, int64_t block_size) {
  EstimatorTerm term;
  std::string_view rest = part;
  if (const size_t star = rest.find('*'); star != std::string_view::npos) {
    term.weight = parse_weight(part, rest.substr(0, star));
    rest.remove_prefix(star + 1);
  }
  const size_t colon = rest.find(':');
  const TermName& entry = find_name(rest.substr(0, colon));
  term.term = entry.term;
  term.norm_bias = entry.norm_bias;
  term.size = default_size(entry, stride);
  if (colon != std::string_view::npos) {
    if (!entry.sized) fail("'", part, "': found a size, expected none for '", entry.name, "'");
    term.size = parse_size(entry.name, rest.substr(colon + 1));
  }
  if (entry.sized) check_size(entry, term.size, block_size);
  return term;
}

std::string weight_text(double weight) {
  std::array<char, 32> digits;
  const auto result = std::to_chars(digits.data(), digits.data() + digits.size(), weight);
  return {digits.data(), result.ptr};
}

}  // namespace

Estimator parse_estimator(std::string_view text,
                          int64_t stride,
                          int64_t block_size,
                          int64_t longest_k) {
  if (block_size != 64 && block_size != 128)
    fail("key block: found ", block_size, ", expected 64 or 128");
  if (text == "default") return default_estimator(longest_k);
  Estimator estimator;
  for (;;) {
    // '+' parts terms, except in a weight such as 1e+2
    size_t plus = text.find('+');
    while (plus != std::string_view::npos && plus > 1 && text[plus - 1] == 'e' &&
           text[plus - 2] >= '0' && text[plus - 2] <= '9')
      plus = text.find('+', plus + 1);
    if (estimator.terms.size() == size_t(kMaxTerms))
      fail("found more than ", kMaxTerms, " terms, expected 1 to ", kMaxTerms);
    estimator.terms.push_back(parse_term(text.substr(0, plus), stride, block_size));
    if (plus == std::string_view::npos) return estimator;
    text.remove_prefix(plus + 1);
  }
}

std::string to_string(const Estimator& estimator) {
  const auto& terms = estimator.terms;
  const bool weighted = std::any_of(terms.begin(), terms.end(), [&](const EstimatorTerm& term) {
    return term.weight != terms.front().weight;
  });
  std::string text;
  for (const EstimatorTerm& term : terms) {
    const auto* entry = std::find_if(kNames.begin(), kNames.end(), [&](const TermName& name) {
      return name.term == term.term &&
             (term.term != Term::kPooled || name.norm_bias == term.norm_bias);
    });
    LONGSPUR_ASSERT(entry != kNames.end());
    if (!text.empty()) text += '+';
    if (weighted) text += weight_text(term.weight) + "*";
    text += entry->name;
    if (entry->sized) text += concat(":", term.size);
  }
  return text;
}

Estimator default_estimator(int64_t longest_k) {
  // Sampled rows of exact scores have the best tail, at a cost that grows with the square of the
  // length; from 32K on the sum costs three eighths of it.
  if (longest_k <= 32'768) return {{{Term::kSampled, 16}}};
  return {{{Term::kPooled, 128}, {Term::kSampled, 128}, {Term::kMean, 128}}};
}

}  // namespace longspur::kernels::xattn
