// Dates, in UTC and English whatever the machine's settings.
#pragma once

#include <ctime>
#include <string>
#include <string_view>

namespace longspur::io::chat {

std::string format_time(std::string_view format, std::time_t now);

}  // namespace longspur::io::chat
