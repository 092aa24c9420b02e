"""Writes src/io/tokenizer/unicode_ranges.cpp: the character classes of the `tokenizers` package.

Published vocabularies were made with the regular expressions of that package, so its idea of a
letter or a number is the one that counts (it mixes two versions of Unicode: one in its regex
engine, one in its standard library). The classes are read off by splitting every code point.
tests/python/test_tokenizer.py checks the result.

    .venv/bin/python tools/make_unicode_classes.py
"""

from pathlib import Path

from tokenizers import Regex, pre_tokenizers

OUTPUT = Path(__file__).resolve().parents[1] / "src/io/tokenizer/unicode_ranges.cpp"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
BATCH = 20000

HEADER = """// Made by tools/make_unicode_classes.py from tokenizers {version}; not to be edited.
#include "io/tokenizer/unicode.h"

namespace longspur::io {{

// first code point, how many, bits of CharClass
const ClassRange kClassRanges[] = {{
{rows}
}};
const int kClassRangeCount = int(sizeof(kClassRanges) / sizeof(kClassRanges[0]));

}}  // namespace longspur::io
"""


def split_off(splitter: pre_tokenizers.PreTokenizer) -> set[int]:
    """The code points that `splitter` (behaviour "removed") takes away."""
    kept: set[int] = set()
    for i in range(0, len(CODE_POINTS), BATCH):
        text = "".join(map(chr, CODE_POINTS[i : i + BATCH]))
        for piece, _ in splitter.pre_tokenize_str(text):
            kept.update(map(ord, piece))
    return set(CODE_POINTS) - kept


def numeric() -> set[int]:
    """What the Digits pre-tokenizer isolates: asked one code point at a time, between letters."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    found: set[int] = set()
    for i in range(0, len(CODE_POINTS), BATCH):
        batch = CODE_POINTS[i : i + BATCH]
        text = "a" + "".join(f"{chr(c)}a" for c in batch)
        pieces = digits.pre_tokenize_str(text)
        found.update(ord(piece) for piece, _ in pieces if len(piece) == 1 and piece != "a")
    return found


def main() -> None:
    import tokenizers

    def regex(pattern: str) -> set[int]:
        return split_off(pre_tokenizers.Split(Regex(pattern), "removed"))

    classes = [
        regex(r"\p{L}"),
        regex(r"\p{N}"),
        regex(r"\s"),
        numeric(),
        regex(r"\p{M}"),
        regex(r"\w"),
    ]
    bits = [
        sum((c in members) << bit for bit, members in enumerate(classes)) for c in range(0x110000)
    ]
    rows = []
    start = 0
    for c in range(1, 0x110000 + 1):
        if c < 0x110000 and bits[c] == bits[start]:
            continue
        if bits[start]:
            rows.append(f"{{0x{start:x}, {c - start}, {bits[start]}}},")
        start = c
    lines = []
    for row in rows:
        if lines and len(lines[-1]) + 1 + len(row) <= 98:
            lines[-1] += " " + row
        else:
            lines.append("    " + row)
    OUTPUT.write_text(HEADER.format(version=tokenizers.__version__, rows="\n".join(lines)))


if __name__ == "__main__":
    main()
