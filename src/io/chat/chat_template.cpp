// Ties parser and interpreter together, and brings the conversation in as values that are not the
// template's.
#include "io/chat/chat_template.h"

#include "io/chat/interpreter.h"
#include "io/chat/nesting.h"
#include "io/chat/parser.h"

namespace longspur::io::chat {
namespace {

using Json = nlohmann::ordered_json;

constexpr bool kForeign = false;  // not from the template

// JSON to values; pays for what it copies.
class Importer {
 public:
  explicit Importer(Budget& budget) : budget_(budget) {}

  Value value(const Json& json) {
    budget_.allocate(sizeof(Value));
    switch (json.type()) {
      case Json::value_t::boolean:
        return Value::boolean(json.get<bool>(), kForeign);
      case Json::value_t::number_integer:
        return Value::integer(json.get<int64_t>(), kForeign);
      case Json::value_t::number_unsigned:
        return Value::integer(static_cast<Integer>(json.get<uint64_t>()), kForeign);
      case Json::value_t::number_float:
        return Value::real(json.get<double>(), kForeign);
      case Json::value_t::string:
        return string(json.get_ref<const std::string&>());
      case Json::value_t::array:
        return array(json);
      case Json::value_t::object:
        return object(json);
      default:
        return {Value::Data(None{}), kForeign};
    }
  }

 private:
  Value string(const std::string& bytes) {
    budget_.allocate(static_cast<int64_t>(bytes.size() + sizeof(Text)));
    return Value::text(bytes, kForeign);
  }

  Value array(const Json& json) {
    const Nested nested(depth_left_);
    std::vector<Value> items;
    items.reserve(json.size());
    for (const Json& item : json) items.push_back(value(item));
    return make_sequence(std::move(items), false, kForeign);
  }

  Value object(const Json& json) {
    const Nested nested(depth_left_);
    budget_.allocate(sizeof(Dict));
    auto dict = std::make_shared<Dict>();
    for (const auto& [key, item] : json.items()) dict->set(string(key), value(item));
    return make_dict(std::move(dict), kForeign);
  }

  Budget& budget_;
  int depth_left_ = kMaxValueDepth / 2;
};

std::vector<TextSegment> segments_of(const Text& text) {
  std::vector<TextSegment> out;
  text.for_each_run([&out](std::string_view bytes, bool special) {
    out.push_back({std::string(bytes), special});
  });
  return out;
}

class ParsedTemplate : public ChatTemplate {
 public:
  ParsedTemplate(Template parsed, const ChatTemplateLimits& limits)
      : template_(std::move(parsed)), limits_(limits) {}

  std::vector<TextSegment> render(const ChatInput& input) const override {
    Interpreter interpreter(template_, limits_, input.now);
    try {
      define(interpreter, input);
      return segments_of(interpreter.run());
    } catch (const Error& error) {
      fail_at(interpreter.position(), error.what());
    }
  }

 private:
  static void define(Interpreter& interpreter, const ChatInput& input) {
    Importer importer(interpreter.budget());
    interpreter.define("messages", importer.value(input.messages));
    interpreter.define("tools", importer.value(input.tools));
    interpreter.define("documents", importer.value(input.documents));
    interpreter.define("add_generation_prompt", Value::boolean(input.add_generation_prompt));
    interpreter.define("bos_token", Value::text(input.bos_token, true));
    interpreter.define("eos_token", Value::text(input.eos_token, true));
    require(input.extra.is_object() || input.extra.is_null(), "found ", input.extra.type_name(),
            " as extra variables, expected an object");
    for (const auto& [name, json] : input.extra.items()) {
      interpreter.define(name, importer.value(json));
    }
  }

  Template template_;
  ChatTemplateLimits limits_;
};

}  // namespace
}  // namespace longspur::io::chat

namespace longspur::io {

std::unique_ptr<ChatTemplate> ChatTemplate::parse(std::string source,
                                                  const ChatTemplateLimits& limits) {
  require(static_cast<int64_t>(source.size()) <= limits.template_bytes, "chat template: found ",
          source.size(), " bytes, expected at most ", limits.template_bytes);
  return std::make_unique<chat::ParsedTemplate>(chat::parse_template(source, limits.depth), limits);
}

}  // namespace longspur::io
