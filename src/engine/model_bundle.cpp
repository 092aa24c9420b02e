#include "engine/model_bundle.h"

#include <filesystem>

#include "base/error.h"

namespace longspur::engine {

namespace fs = std::filesystem;

namespace {

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
  model.chat_template = io::chat_template_from_hf(folder);
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
