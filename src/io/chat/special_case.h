// Upper and title case of the characters that become several ("\xC3\x9F" -> "SS").
#pragma once

namespace longspur::io::chat {

struct SpecialCase {
  char32_t code;
  const char* upper;  // UTF-8
  const char* title;
};

const SpecialCase* find_special_case(char32_t code);  // nullptr: simple mappings apply

}  // namespace longspur::io::chat
