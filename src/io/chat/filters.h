// Tables of filters, by what they work on; builtins.cpp searches them all.
#pragma once

#include <string_view>
#include <unordered_map>

#include "io/chat/ast.h"

namespace longspur::io::chat {

using FilterTable = std::unordered_map<std::string_view, Filter>;
const FilterTable& text_filters();
const FilterTable& number_filters();
const FilterTable& sequence_filters();
const FilterTable& selection_filters();

}  // namespace longspur::io::chat
