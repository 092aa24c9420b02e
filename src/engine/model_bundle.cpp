#include "engine/model_bundle.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace longspur::engine {

namespace fs = std::filesystem;

namespace {

constexpr std::uintmax_t kMaxTemplateBytes = 1 << 20;
constexpr std::uintmax_t kMaxJsonBytes = 64 << 20;

std::string read_text(const fs::path& path, std::uintmax_t limit) {
  const std::uintmax_t size = fs::file_size(path);
  require(size <= limit, path.string(), ": found ", size, " bytes, expected at most ", limit);
  std::ifstream file(path, std::ios::binary);
  require(bool(file), path.string(), ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The template of an HF folder: chat_template.jinja, else tokenizer_config.json's entry, which is a
// string or a list of {name, template} of which "default" counts.
std::string hf_chat_template(const fs::path& folder) {
  const fs::path jinja = folder / "chat_template.jinja";
  if (fs::is_regular_file(jinja)) return read_text(jinja, kMaxTemplateBytes);
  const fs::path config_path = folder / "tokenizer_config.json";
  if (!fs::is_regular_file(config_path)) return {};
  const auto config = nlohmann::json::parse(read_text(config_path, kMaxJsonBytes), nullptr, false);
  require(config.is_object(), config_path.string(), ": not a JSON object");
  const auto entry = config.find("chat_template");
  if (entry == config.end() || entry->is_null()) return {};
  if (entry->is_string()) return entry->get<std::string>();
  if (entry->is_array()) {
    for (const auto& named : *entry) {
      if (named.is_object() && named.value("name", "") == "default" && named.contains("template") &&
          named["template"].is_string()) {
        return named["template"].get<std::string>();
      }
    }
    return {};
  }
  throw Error(concat(config_path.string(), ": chat_template: found ", entry->type_name(),
                     ", expected a string or a list of named templates"));
}

ModelBundle open_gguf(const std::string& path, bool with_tokenizer) {
  ModelBundle model;
  std::unique_ptr<io::GgufFile> file = io::GgufFile::open(path);
  model.config = io::model_config_from_gguf(*file);
  model.defaults = io::generation_defaults_from_gguf(*file);
  if (with_tokenizer && file->find_strings("tokenizer.ggml.tokens") != nullptr) {
    model.tokenizer = io::Tokenizer::from_gguf(*file);
  }
  model.chat_template = file->get_string("tokenizer.chat_template", "");
  model.file = std::move(file);
  return model;
}

ModelBundle open_hf(const std::string& folder, bool with_tokenizer) {
  ModelBundle model;
  model.config = io::model_config_from_hf(folder);
  model.defaults = io::generation_defaults_from_hf(folder);
  if (with_tokenizer && fs::is_regular_file(fs::path(folder) / "tokenizer.json")) {
    model.tokenizer = io::Tokenizer::from_hf(folder);
  }
  model.chat_template = hf_chat_template(folder);
  model.file = io::open_safetensors(folder);
  return model;
}

}  // namespace

ModelBundle open_model(const std::string& argument, bool with_tokenizer) {
  const ModelFiles files = resolve_model(argument);
  ModelBundle model = files.kind == ModelFiles::Kind::kGguf ? open_gguf(files.path, with_tokenizer)
                                                            : open_hf(files.path, with_tokenizer);
  model.tensors = models::find_decoder_tensors(*model.file, model.config);
  if (model.tokenizer && model.tokenizer->vocab_size() > model.config.vocab) {
    throw Error(concat("model '", argument, "': the tokenizer has ", model.tokenizer->vocab_size(),
                       " entries, expected at most the model's vocabulary of ",
                       model.config.vocab));
  }
  return model;
}

}  // namespace longspur::engine
