// Categories and simple case mappings come from utf8proc; what Python does beyond is here.
#include "io/chat/unicode.h"

#include <utf8proc.h>

#include "io/chat/special_case.h"

namespace longspur::io::chat {
namespace {

constexpr char32_t kFinalSigma = 0x3C2, kSigma = 0x3C3, kCapitalSigma = 0x3A3;

utf8proc_int32_t point(char32_t code) { return static_cast<utf8proc_int32_t>(code); }

utf8proc_category_t category(char32_t code) { return utf8proc_category(point(code)); }

bool is_case_ignorable(char32_t code) {
  switch (category(code)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return code == '\'' || code == '.' || code == ':' || code == 0xB7 || code == 0x2019 ||
             code == 0x2018 || code == 0x387 || code == 0x55F || code == 0x5F4 || code == 0x2024 ||
             code == 0x2027 || code == 0xFE13 || code == 0xFE52 || code == 0xFE55 ||
             code == 0xFF07 || code == 0xFF0E || code == 0xFF1A;
  }
}

// A capital sigma at the end of a word becomes the final form.
bool is_final_sigma(std::string_view bytes, size_t at, size_t after) {
  const auto cased_ahead = [&](size_t from) {
    for (size_t i = from, length = 0; i < bytes.size(); i += length) {
      const char32_t code = decode_at(bytes, i, &length);
      if (!is_case_ignorable(code)) return is_cased(code);
    }
    return false;
  };
  const auto cased_behind = [&] {
    for (size_t end = at; end > 0;) {
      end = previous_code_point(bytes, end);
      size_t length = 0;
      const char32_t code = decode_at(bytes, end, &length);
      if (!is_case_ignorable(code)) return is_cased(code);
    }
    return false;
  };
  return cased_behind() && !cased_ahead(after);
}

void append_upper(std::string& out, char32_t code) {
  if (const auto* special = find_special_case(code)) {
    out += special->upper;
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_toupper(point(code))));
  }
}

void append_title(std::string& out, char32_t code) {
  const auto* special = find_special_case(code);
  if (special != nullptr) {
    out += special->title;
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_totitle(point(code))));
  }
}

void append_lower(
    std::string& out, std::string_view bytes, size_t at, size_t length, char32_t code) {
  if (code == 0x130) {
    out += "i\xCC\x87";
  } else if (code == kCapitalSigma) {
    append_utf8(out, is_final_sigma(bytes, at, at + length) ? kFinalSigma : kSigma);
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(point(code))));
  }
}

void append_folded(std::string& out, char32_t code) {
  utf8proc_int32_t folded[4];
  int last_boundclass = 0;
  const auto count =
      utf8proc_decompose_char(point(code), folded, 4, UTF8PROC_CASEFOLD, &last_boundclass);
  if (count < 0 || count > 4) {
    append_utf8(out, code);
    return;
  }
  for (int i = 0; i < count; ++i) append_utf8(out, static_cast<char32_t>(folded[i]));
}

}  // namespace

bool is_space(char32_t code) {
  if (code < 0x80) return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
         code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_line_break(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
         code == 0x2028 || code == 0x2029;
}

bool is_alpha(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }

bool is_digit(char32_t code) {
  if (is_decimal(code)) return true;
  return code == 0xB2 || code == 0xB3 || code == 0xB9 || (code >= 0x1369 && code <= 0x1371) ||
         code == 0x19DA || code == 0x2070 || (code >= 0x2074 && code <= 0x2079) ||
         (code >= 0x2080 && code <= 0x2089) || (code >= 0x2460 && code <= 0x2468) ||
         (code >= 0x2474 && code <= 0x247C) || (code >= 0x2488 && code <= 0x2490) ||
         code == 0x24EA || (code >= 0x24F5 && code <= 0x24FD) || code == 0x24FF ||
         (code >= 0x2776 && code <= 0x277E) || (code >= 0x2780 && code <= 0x2788) ||
         (code >= 0x278A && code <= 0x2792) || (code >= 0x10A40 && code <= 0x10A43) ||
         (code >= 0x10E60 && code <= 0x10E68) || (code >= 0x11052 && code <= 0x1105A) ||
         (code >= 0x1F100 && code <= 0x1F10A);
}

bool is_numeric(char32_t code) {
  const auto kind = category(code);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool is_printable(char32_t code) {
  if (code >= 0x20 && code < 0x7F) return true;
  switch (category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_upper(char32_t code) {
  return category(code) == UTF8PROC_CATEGORY_LU || utf8proc_isupper(point(code));
}
bool is_lower(char32_t code) {
  return category(code) == UTF8PROC_CATEGORY_LL || utf8proc_islower(point(code));
}
bool is_title(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LT; }
bool is_cased(char32_t code) { return is_upper(code) || is_lower(code) || is_title(code); }

Text change_case(const Text& text, Case to) {
  const std::string_view bytes = text.bytes();
  Text out;
  std::string piece;
  bool in_word = false;
  for (size_t at = 0, length = 0; at < bytes.size(); at += length) {
    const char32_t code = decode_at(bytes, at, &length);
    piece.clear();
    const bool first = to == Case::title ? !in_word : at == 0;
    if (to == Case::upper || (to == Case::swap && is_lower(code))) {
      append_upper(piece, code);
    } else if ((to == Case::title || to == Case::capitalize) && first) {
      append_title(piece, code);
    } else if (to == Case::fold) {
      append_folded(piece, code);
    } else if (to == Case::swap && !is_upper(code)) {
      piece = bytes.substr(at, length);
    } else {
      append_lower(piece, bytes, at, length, code);
    }
    in_word = is_cased(code);
    out.append(piece, text.special_at(at));
  }
  return out;
}

size_t skip_spaces(std::string_view bytes, size_t begin) {
  while (begin < bytes.size()) {
    size_t length = 0;
    if (!is_space(decode_at(bytes, begin, &length))) break;
    begin += length;
  }
  return begin;
}

size_t trim_end(std::string_view bytes, size_t begin, size_t end) {
  while (end > begin) {
    const size_t previous = previous_code_point(bytes.substr(0, end), end);
    size_t length = 0;
    if (previous < begin || !is_space(decode_at(bytes, previous, &length))) break;
    end = previous;
  }
  return end;
}

}  // namespace longspur::io::chat
