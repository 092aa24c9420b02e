// Standard output and error of the program: unbuffered, every failure seen.
#pragma once

#include <exception>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace longspur::app::cli {

// The reader of stdout has gone (`| head`): the program ends quietly.
class BrokenPipe : public std::exception {};

// Writes at once. Throws BrokenPipe, or Error ("stdout: cannot be written: ...").
void write_stdout(std::string_view text);
// One object and a newline. Bytes that are not UTF-8 become U+FFFD.
void write_json(const nlohmann::ordered_json& object);
// JSON text in one line, the same way.
std::string json_line(const nlohmann::ordered_json& object);

// A line to stderr; failures are ignored, there is nowhere left to tell.
void write_stderr(std::string_view text);

bool stdin_is_terminal();
bool stdout_is_terminal();
bool stderr_is_terminal();

// All of stdin, byte for byte.
std::string read_stdin();
// All of a file; "-" is stdin. Throws Error with the name.
std::string read_file(const std::string& path);

// Before a model is loaded for nothing: can a file be made where the result will go?
void check_can_create(const std::string& path);

// For messages: control characters, line breaks included, become blanks.
std::string one_line(std::string_view text);

}  // namespace longspur::app::cli
