#include "io/files/json_file.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/error.h"
#include "io/files/mapped_file.h"
#include "io/files/printable.h"

namespace longspur::io {

nlohmann::json parse_json_object(std::string_view text, const std::string& name) {
  require(int64_t(text.size()) <= kMaxJsonBytes, name, ": found ", text.size(),
          " bytes, expected at most ", kMaxJsonBytes);
  std::vector<std::set<std::string>> keys;
  int depth = 0;
  const auto watch = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      require(++depth <= kMaxJsonDepth, name, ": found JSON nested deeper than ", kMaxJsonDepth);
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::object_end || event == Event::array_end) {
      --depth;
      if (event == Event::object_end) keys.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      require(keys.back().insert(key).second, name, ": found key ", shown(key),
              " twice, expected once");
    }
    return true;
  };
  // the parser takes a zero byte for the end of its input; JSON text has none
  const size_t zero = text.find('\0');
  require(zero == text.npos, name, ": found invalid JSON at byte ", zero + 1);
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text, watch);
  } catch (const nlohmann::json::parse_error& error) {
    throw Error(concat(name, ": found invalid JSON at byte ", error.byte));
  } catch (const nlohmann::json::out_of_range&) {
    throw Error(concat(name, ": found a number beyond the range of double"));
  }
  require(json.is_object(), name, ": found ", json.type_name(), ", expected a JSON object");
  return json;
}

nlohmann::json read_json_file(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  nlohmann::json json =
      parse_json_object({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
  file.check_unchanged();
  return json;
}

}  // namespace longspur::io
