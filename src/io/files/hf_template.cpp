// The chat template of a Hugging Face folder: chat_template.jinja, else what tokenizer_config.json
// says, which is a string or a list of {name, template}.
#include <filesystem>

#include "base/error.h"
#include "io/files/json_fields.h"
#include "io/files/json_file.h"
#include "io/files/mapped_file.h"
#include "io/files/model_config.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr size_t kMaxTemplateBytes = size_t(1) << 20;

std::string checked_template(std::string text, const std::string& where) {
  require(text.size() <= kMaxTemplateBytes, where, ": found ", text.size(),
          " bytes, expected at most ", kMaxTemplateBytes);
  require(is_utf8(text), where, ": found bytes that are not UTF-8");
  return text;
}

std::string default_template(const json& list, const std::string& where) {
  for (const json& entry : list) {
    require(entry.is_object(), where, ": found ", entry.type_name(),
            " in the list, expected {name, template}");
    const JsonFields fields(entry, where);
    const auto name = fields.text("name"), text = fields.text("template");
    if (name == "default" && text) return checked_template(*text, where);
  }
  return {};
}

}  // namespace

std::string chat_template_from_hf(const std::string& folder) {
  std::error_code error;
  const std::string jinja = (fs::path(folder) / "chat_template.jinja").string();
  if (fs::file_size(jinja, error) > 0 && !error) {
    const MappedFile file(jinja);
    const auto bytes = file.bytes();
    require(bytes.size() <= kMaxTemplateBytes, jinja, ": found ", bytes.size(),
            " bytes, expected at most ", kMaxTemplateBytes);
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    file.check_unchanged();
    return checked_template(std::move(text), jinja);
  }
  const std::string path = (fs::path(folder) / "tokenizer_config.json").string();
  if (!fs::exists(path, error)) return {};
  const json object = read_json_file(path);
  const JsonFields fields(object, path);
  const json* entry = fields.find("chat_template");
  const std::string where = path + ": chat_template";
  if (entry == nullptr) return {};
  if (entry->is_string()) return checked_template(entry->get<std::string>(), where);
  if (entry->is_array()) return default_template(*entry, where);
  fields.wrong("chat_template", *entry, "a string or a list of named templates");
}

}  // namespace longspur::io
