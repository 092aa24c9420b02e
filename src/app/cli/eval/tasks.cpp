#include "app/cli/eval/tasks.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/rng.h"

namespace longspur::app::cli::eval {

namespace {

using Ids = std::vector<int32_t>;

constexpr std::array kNames = {"passkey", "needle", "quote"};
constexpr int64_t kQuoteCue = 40, kQuoteAnswer = 60;  // tokens of the passage given, and asked for

constexpr std::string_view kFiller =
    "The harbour was calm in the morning. Boats went out and came back before noon. Some carried "
    "fish, others carried stone. Then it was evening and the lamps were lit. ";

// A choice of `words`, one draw.
template <size_t kCount>
std::string_view pick(Noise& noise, const std::array<std::string_view, kCount>& words) {
  return words[noise.bits() % kCount];
}

constexpr std::array<std::string_view, 8> kPlaces = {
    "Lisbon", "Tromso", "Valparaiso", "Galway", "Nagasaki", "Trieste", "Halifax", "Mombasa"};
constexpr std::array<std::string_view, 8> kActs = {
    "ride the yellow tram up the hill at sunset", "eat plum cake beside the old lighthouse",
    "row a small green boat around the island",   "listen to the bells from the castle wall",
    "climb the narrow stairs to the clock tower", "watch the cranes fly over the salt ponds",
    "drink cold tea under the great walnut tree", "walk barefoot across the sand at low tide"};

void add(Ids& ids, const Ids& more) { ids.insert(ids.end(), more.begin(), more.end()); }

// `count` tokens of the text's ids, begun again where they end.
Ids take(const Ids& source, int64_t count) {
  Ids ids;
  ids.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i) ids.push_back(source[size_t(i) % source.size()]);
  return ids;
}

struct Parts {
  std::string opening, hidden, question, answer;
};

// opening + text with `hidden` inside + question + answer, exactly wanted.length tokens.
Sample hide(const Case& wanted, const Parts& parts, const Ids& source, const Encode& encode) {
  const Ids opening = encode(parts.opening), hidden = encode(parts.hidden);
  const Ids question = encode(parts.question), answer = encode(parts.answer);
  const int64_t fixed = int64_t(opening.size() + hidden.size() + question.size() + answer.size());
  if (wanted.length < fixed + 2) {
    throw UsageError(concat("--lengths: found ", wanted.length, ", expected at least ", fixed + 2,
                            " tokens for the task ", task_name(wanted.task)));
  }
  const Ids text = take(source, wanted.length - fixed);
  const auto at = std::llround(wanted.depth * double(text.size()));
  Sample sample;
  sample.tokens = opening;
  sample.tokens.insert(sample.tokens.end(), text.begin(), text.begin() + at);
  add(sample.tokens, hidden);
  sample.tokens.insert(sample.tokens.end(), text.begin() + at, text.end());
  add(sample.tokens, question);
  sample.answer = int64_t(sample.tokens.size());
  add(sample.tokens, answer);
  return sample;
}

Sample passkey(const Case& wanted, const Encode& encode) {
  Noise noise(wanted.seed);
  const std::string key = std::to_string(10000 + noise.bits() % 90000);
  const Parts parts{
      "One fact matters in the long text below. Find it and remember it; a question follows.\n\n",
      concat("The pass key is ", key, ". Remember it. ", key, " is the pass key. "),
      "\n\nWhat is the pass key? The pass key is", concat(" ", key)};
  return hide(wanted, parts, encode(std::string(kFiller)), encode);
}

Sample needle(const Case& wanted, const Ids& source, const Encode& encode) {
  Noise noise(wanted.seed);
  const std::string place(pick(noise, kPlaces)), act(pick(noise, kActs));
  const Parts parts{"", concat("\n\nThe best thing to do in ", place, " is to ", act, ".\n\n"),
                    concat("\n\nQuestion: What is the best thing to do in ", place,
                           "?\nAnswer: The best thing to do in ", place, " is to"),
                    concat(" ", act)};
  return hide(wanted, parts, source, encode);
}

Sample quote(const Case& wanted, const Ids& source, const Encode& encode) {
  const Ids cue = encode("\n\nOne passage of the text, word for word:\n\n");
  const int64_t passage = kQuoteCue + kQuoteAnswer;
  const int64_t room = wanted.length - int64_t(cue.size()) - passage;
  if (room < passage) {
    throw UsageError(concat("--lengths: found ", wanted.length, ", expected at least ",
                            int64_t(cue.size()) + 2 * passage, " tokens for the task quote"));
  }
  const Ids text = take(source, room);
  const auto at = std::llround(wanted.depth * double(room - passage));
  Sample sample;
  sample.tokens = text;
  add(sample.tokens, cue);
  sample.answer = int64_t(sample.tokens.size()) + kQuoteCue;
  sample.tokens.insert(sample.tokens.end(), text.begin() + at, text.begin() + at + passage);
  return sample;
}

}  // namespace

std::string_view task_name(Task task) { return kNames[size_t(task)]; }

Task parse_task(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return Task(int(i));
  throw UsageError(concat("task: found '", name, "', expected passkey, needle or quote"));
}

Sample make_sample(const Case& wanted, const std::string& text, const Encode& encode) {
  if (wanted.task == Task::kPasskey) return passkey(wanted, encode);
  constexpr int64_t kCharactersAToken = 8;  // of English, generously
  const std::string made_up =
      text.empty() ? made_up_text(wanted.length * kCharactersAToken, wanted.seed) : std::string();
  const Ids source = encode(text.empty() ? made_up : text);
  require(!source.empty(), "text: found no tokens, expected some to hide a needle in");
  return wanted.task == Task::kNeedle ? needle(wanted, source, encode)
                                      : quote(wanted, source, encode);
}

std::string made_up_text(int64_t characters, uint64_t seed) {
  static constexpr std::array<std::string_view, 12> kWho = {
      "The baker",        "An old sailor", "The schoolmaster",   "A tall stranger",
      "The miller's son", "Our neighbour", "The ferryman",       "A young clerk",
      "The gardener",     "My aunt",       "The night watchman", "A travelling player"};
  static constexpr std::array<std::string_view, 12> kDid = {
      "carried a basket of apples", "mended the broken gate",   "wrote a long letter",
      "counted the silver coins",   "read the newspaper aloud", "painted a blue door",
      "looked for a lost key",      "spoke about the weather",  "sold three woollen coats",
      "planted a row of beans",     "told an old story",        "measured the wooden beams"};
  static constexpr std::array<std::string_view, 12> kWhere = {
      "behind the church",      "near the stone bridge",     "in the market square",
      "beside the river",       "at the edge of the forest", "in front of the inn",
      "on the narrow stairs",   "under the chestnut trees",  "by the railway station",
      "along the harbour wall", "in the upper town",         "outside the town hall"};
  static constexpr std::array<std::string_view, 10> kWhen = {
      "before breakfast",       "on a cold Tuesday", "late in the summer",
      "when the bells rang",    "after the rain",    "during the long winter",
      "as the sun went down",   "without any hurry", "for the second time",
      "to everybody's surprise"};
  Noise noise(seed);
  std::string text;
  for (int64_t sentence = 1; int64_t(text.size()) < characters; ++sentence) {
    text += concat(pick(noise, kWho), " ", pick(noise, kDid), " ", pick(noise, kWhere), " ",
                   pick(noise, kWhen), sentence % 6 == 0 ? ".\n\n" : ". ");
  }
  return text;
}

}  // namespace longspur::app::cli::eval
