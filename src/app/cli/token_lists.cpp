#include "app/cli/token_lists.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

using Json = nlohmann::json;

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 40) text = text.substr(0, 37) + "...";
  return text;
}

Json parse_array(const std::string& text, const std::string& name, const char* expected) {
  // Lists of lists of numbers need no depth; a document of only brackets would cost memory.
  const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
    require(depth <= 3, name, ": found JSON nested deeper than 3, expected ", expected);
    return true;
  };
  Json json;
  try {
    json = Json::parse(text, shallow);
  } catch (const Json::parse_error& error) {
    throw Error(concat(name, ": found invalid JSON at byte ", error.byte, ", expected ", expected));
  }
  require(json.is_array(), name, ": found ", shown(json), ", expected ", expected);
  return json;
}

std::vector<int32_t> ids_of(const Json& list, const std::string& name, int64_t vocab) {
  require(list.is_array(), name, ": found ", shown(list), ", expected a list of token ids");
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& item : list) {
    const bool fits = item.is_number_integer() &&
                      (item.is_number_unsigned() ? item.get<uint64_t>() < uint64_t(vocab) : false);
    require(fits, name, ": found ", shown(item), " at place ", ids.size(),
            ", expected a token id from 0 to ", vocab - 1);
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

}  // namespace

std::vector<int32_t> parse_token_list(const std::string& text,
                                      const std::string& name,
                                      int64_t vocab) {
  return ids_of(parse_array(text, name, "a list of token ids"), name, vocab);
}

std::vector<std::vector<int32_t>> parse_token_lists(const std::string& text,
                                                    const std::string& name,
                                                    int64_t vocab,
                                                    int64_t longest) {
  const Json json = parse_array(text, name, "a list of lists of token ids");
  require(!json.empty(), name, ": found an empty list, expected at least one list of token ids");
  std::vector<std::vector<int32_t>> lists;
  for (const Json& item : json) {
    const std::string list_name = concat(name, ": list ", lists.size());
    lists.push_back(ids_of(item, list_name, vocab));
    const int64_t length = int64_t(lists.back().size());
    require(length > 0, list_name, ": found no ids, expected at least 1");
    require(length <= longest, list_name, ": found ", length,
            " ids, expected at most the context of ", longest);
  }
  return lists;
}

}  // namespace longspur::app::cli
