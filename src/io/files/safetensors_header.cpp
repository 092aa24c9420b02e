#include "io/files/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

constexpr size_t kMaxDims = 32;
constexpr size_t kMaxEntries = size_t(1) << 20;

// Depth 1: the header's object; 2: an entry or __metadata__. An entry's arrays hold numbers only.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(const std::string& path) : path_(path) {}
  std::vector<SafetensorsEntry> entries;

  bool start_object(size_t) override {
    if (in_array_ || depth_ == 2) bad("an object");
    ++depth_;
    if (depth_ == 2 && !metadata_) {
      require(entries.size() < kMaxEntries, path_, ": header: found more than ", kMaxEntries,
              " tensors");
      entries.emplace_back().name = name_;
    }
    fields_.clear();
    return true;
  }

  bool end_object() override {
    if (depth_ == 2 && !metadata_) {
      for (const char* field : {"dtype", "shape", "data_offsets"})
        require(fields_.contains(field), where(), ": ", field, ": missing");
    }
    --depth_;
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1) {
      name_ = text;
      metadata_ = text == "__metadata__";
      // a tensor's second entry is noticed when all of them are put into a table
      require(!metadata_ || !had_metadata_, path_, ": header: __metadata__: found twice, ",
              "expected once");
      had_metadata_ = had_metadata_ || metadata_;
      return true;
    }
    require(fields_.insert(text).second, where(), ": field ", shown(text),
            ": found twice, expected once");
    field_ = text;
    require(metadata_ || text == "dtype" || text == "shape" || text == "data_offsets", where(),
            ": found field ", shown(text), ", expected dtype, shape and data_offsets");
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && metadata_) return true;
    if (depth_ != 2 || in_array_ || field_ != "dtype") bad("a string");
    entries.back().dtype = text;
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || metadata_ || in_array_ || field_ == "dtype") bad("an array");
    in_array_ = true;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) bad("a number");
    require(value <= uint64_t(INT64_MAX), where(), ": ", field_, ": found ", value,
            ", expected at most 2^63 - 1");
    SafetensorsEntry& entry = entries.back();
    auto& list = field_ == "shape" ? entry.shape : entry.offsets;
    const size_t limit = field_ == "shape" ? kMaxDims : 2;
    require(list.size() < limit, where(), ": ", field_, ": found more than ", limit, " numbers");
    list.push_back(int64_t(value));
    return true;
  }

  bool null() override { bad("null"); }
  bool boolean(bool) override { bad("a boolean"); }
  bool number_integer(number_integer_t) override { bad("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    bad("a number that is no integer of 64 bits");
  }
  bool binary(binary_t&) override { bad("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw Error(concat(path_, ": header: found invalid JSON at byte ", position));
  }

 private:
  std::string where() const {
    return metadata_ ? path_ + ": header: __metadata__" : concat(path_, ": tensor ", shown(name_));
  }
  [[noreturn]] void bad(const char* found) const {
    if (depth_ == 2 && metadata_) {
      throw Error(concat(where(), ": ", shown(field_), ": found ", found, ", expected a string"));
    }
    const char* expected = depth_ == 2 && field_ == "dtype" ? "a string"
                           : depth_ == 2                    ? "an array of whole numbers"
                                                            : "an object";
    throw Error(concat(where(), depth_ == 2 ? ": " : "", depth_ == 2 ? field_ : "", ": found ",
                       found, ", expected ", expected));
  }

  const std::string& path_;
  std::string name_, field_;
  std::set<std::string> fields_;  // of the object at depth 2
  int depth_ = 0;
  bool in_array_ = false, metadata_ = false, had_metadata_ = false;
};

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view text,
                                                       const std::string& path) {
  require(!text.empty() && text[0] == '{', path, ": header: found no '{' at its start");
  require(is_utf8(text), path, ": header: found bytes that are not UTF-8");
  // the parser takes a zero byte for the end of its input
  const size_t zero = text.find('\0');
  require(zero == text.npos, path, ": header: found invalid JSON at byte ", zero + 1);
  HeaderHandler handler(path);
  nlohmann::json::sax_parse(text, &handler);
  return std::move(handler.entries);
}

}  // namespace longspur::io
