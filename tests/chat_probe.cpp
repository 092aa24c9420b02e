// Renders templates for the Python tests: one JSON request a line on stdin, one JSON answer a line
// on stdout: {"template", "messages", "tools", ...} -> {"text", "segments"} or {"error"}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "io/chat/chat_template.h"

namespace {

using Json = nlohmann::ordered_json;

Json answer(const Json& request) {
  longspur::io::ChatInput input;
  input.messages = request.value("messages", Json::array());
  input.tools = request.value("tools", Json());
  input.documents = request.value("documents", Json());
  input.extra = request.value("extra", Json::object());
  input.add_generation_prompt = request.value("add_generation_prompt", true);
  input.bos_token = request.value("bos_token", "");
  input.eos_token = request.value("eos_token", "");
  input.now = request.value("now", 0);
  const auto parsed = longspur::io::ChatTemplate::parse(request.at("template").get<std::string>());
  Json segments = Json::array();
  std::string text;
  for (const auto& segment : parsed->render(input)) {
    text += segment.text;
    segments.push_back({segment.text, segment.special});
  }
  return {{"text", text}, {"segments", segments}};
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    Json out;
    try {
      out = answer(Json::parse(line));
    } catch (const longspur::Error& error) {
      out = {{"error", error.what()}};
    }
    std::cout << out.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
  }
  return 0;
}
