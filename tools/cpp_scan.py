"""A light reading of C++ sources for the checkers: includes, and functions with their lengths.

No compiler: comments and literals are blanked out, braces are counted. It is right for the house
format (clang-format's output) and an estimate for anything stranger.
"""

import re
from dataclasses import dataclass

_BLANKED = re.compile(
    r"//[^\n]*"
    r"|/\*.*?\*/"
    r'|R"(?P<tag>[^\s()\\]{0,16})\(.*?\)(?P=tag)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",
    re.DOTALL,
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_SCOPE = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b")
_INITIALISER_LIST = re.compile(r"\)\s*(?:noexcept\b[^:]*)?:(?!:)")
_NAME = re.compile(r"((?:\w+(?:<[^<>()]*>)?::)*(?:~?\w+|operator\s*(?:\(\)|[^\s(]+)))\s*\(")


@dataclass
class Include:
    path: str
    quoted: bool
    line: int


@dataclass
class Function:
    name: str
    line: int
    length: int


def _blank(match: re.Match) -> str:
    text = match.group(0)
    kept = "".join(c if c == "\n" else " " for c in text)
    # a literal stays one token, so that `extern "C" {` and `f("x")` keep their shape
    return kept if text.startswith("/") else '"' + kept[1:]


def strip(source: str) -> str:
    """The source with comments and literals blanked, line by line as long as before."""
    return _BLANKED.sub(_blank, source)


def includes(source: str) -> list[Include]:
    kept = re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group(0)), source,
                  flags=re.DOTALL)  # fmt: skip
    found = []
    for match in _INCLUDE.finditer(kept):
        line = kept.count("\n", 0, match.start()) + 1
        found.append(Include(match.group(1) or match.group(2), bool(match.group(1)), line))
    return found


def _without_templates(head: str) -> str:
    """Drops `template <...>` prefixes, whose `class T` is no class."""
    while match := re.search(r"\btemplate\s*<", head):
        depth, end = 1, match.end()
        while end < len(head) and depth:
            depth += {"<": 1, ">": -1}.get(head[end], 0)
            end += 1
        head = head[: match.start()] + head[end:]
    return head


def _kind(head: str) -> str:
    """What an opening brace after `head` begins: scope, function, member (initialiser) or value."""
    bare = _without_templates(head)
    before_parameters = bare.split("(")[0]
    if re.search(r"\bextern\s+\"\s*$", bare) or _SCOPE.search(before_parameters):
        return "scope"
    if ")" not in bare:
        return "value"
    if _INITIALISER_LIST.search(bare) and re.search(r"[\w>]\s*$", bare):
        return "member"
    return "function"


def functions(source: str) -> list[Function]:
    """Functions with bodies, outermost only: lambdas count to the function around them."""
    text = _DIRECTIVE.sub(lambda m: re.sub(r"[^\n]", " ", m.group(0)), strip(source))
    found: list[Function] = []
    stack: list[str] = []  # of open braces outside functions
    head_start, parentheses, inner = 0, 0, 0  # inner: open braces of a function, member or value
    opened, begin = "", 0
    for match in re.finditer(r"[{}();]", text):
        char, at = match.group(0), match.start()
        if inner:
            inner += {"{": 1, "}": -1}.get(char, 0)
            if inner == 0 and opened == "function":
                found.append(_function(text, begin, at))
            if inner == 0 and opened != "member":
                head_start = at + 1
        elif char in "()":
            parentheses += 1 if char == "(" else -1
        elif char == "{":
            head = text[head_start:at]
            opened = "member" if parentheses else _kind(head)
            if opened == "scope":
                stack.append(opened)
                head_start = at + 1
            else:
                inner, begin = 1, head_start
        elif parentheses == 0:
            if char == "}" and stack:
                stack.pop()
            head_start = at + 1
    return found


def _function(text: str, begin: int, end: int) -> Function:
    head = text[begin:end]
    begin += len(head) - len(head.lstrip())
    name = _NAME.search(_without_templates(text[begin:end]))
    first = text.count("\n", 0, begin) + 1
    last = text.count("\n", 0, end) + 1
    return Function(name.group(1) if name else "?", first, last - first + 1)
