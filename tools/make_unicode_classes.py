"""Writes the character classes of the `tokenizers` package to src/io/tokenizer/unicode_*.cpp.

Published vocabularies were made with the regular expressions of that package, so its idea of a
letter or a number is the one that counts (it mixes the Unicode of its regex engine with that of its
language). The classes are read off by giving every code point to it.
tests/python/test_tokenizer.py checks the result.

    .venv/bin/python tools/make_unicode_classes.py
"""

import subprocess
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

FOLDER = Path(__file__).resolve().parents[1] / "src/io/tokenizer"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
BATCH = 20000
TOP = 0x110000
NORMALIZES = 32  # kNormalizes

HEADER = """// Made by tools/make_unicode_classes.py from tokenizers {version}; not to be edited.
#include "io/tokenizer/unicode.h"

namespace longspur::io {{

// first code point, how many, {meaning}
const ClassRange {name}Ranges[] = {{
{rows}
}};
const int {name}RangeCount = int(sizeof({name}Ranges) / sizeof({name}Ranges[0]));

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


def word_characters() -> set[int]:
    """What may not stand in front of an added token that is a single word."""
    tokenizer = Tokenizer(models.WordLevel({"unknown": 0}, unk_token="unknown"))
    tokenizer.add_tokens([AddedToken("word", single_word=True)])
    found: set[int] = set()
    for i in range(0, len(CODE_POINTS), BATCH):
        batch = CODE_POINTS[i : i + BATCH]
        encodings = tokenizer.encode_batch([f"{chr(c)}word" for c in batch])
        found.update(c for c, encoding in zip(batch, encodings, strict=True) if encoding.ids == [0])
    return found


def changed_by_normalization() -> set[int]:
    """What decomposes, is part of a decomposition, or moves as a combining mark."""
    decompose, compatible = normalizers.NFD(), normalizers.NFKD()
    last = chr(0x345)  # of the highest combining class
    found: set[int] = {ord(last)}
    for c in CODE_POINTS:
        canonical = decompose.normalize_str(chr(c))
        if canonical != chr(c):
            found.update(map(ord, canonical))
        compatibly = compatible.normalize_str(chr(c)) != chr(c)
        if compatibly or decompose.normalize_str(last + chr(c)) != last + chr(c):
            found.add(c)
    return found


def runs(values: list[int]) -> list[tuple[int, int, int]]:
    """(first, count, value) of the runs of equal values that are not 0."""
    found = []
    first = 0
    for c in range(1, TOP + 1):
        if c == TOP or values[c] != values[first]:
            if values[first]:
                found.append((first, c - first, values[first]))
            first = c
    return found


def write(file: str, name: str, meaning: str, values: list[int]) -> None:
    rows = ",\n".join(f"{{0x{first:x}, {count}, {value}}}" for first, count, value in runs(values))
    version = tokenizers.__version__
    text = HEADER.format(version=version, name=name, meaning=meaning, rows=rows)
    (FOLDER / file).write_text(text)
    subprocess.run(["clang-format", "-i", FOLDER / file], check=True)


def main() -> None:
    def regex(pattern: str) -> set[int]:
        return split_off(pre_tokenizers.Split(Regex(pattern), "removed"))

    classes = [regex(r"\p{L}"), regex(r"\p{N}"), regex(r"\s"), numeric(), word_characters()]
    bits = [sum((c in members) << bit for bit, members in enumerate(classes)) for c in range(TOP)]
    changing = changed_by_normalization()
    changing = [(c in changing) * NORMALIZES for c in range(TOP)]
    write("unicode_classes.cpp", "kClass", "bits of CharClass", bits)
    write("unicode_normalizing.cpp", "kNormalizing", "kNormalizes", changing)


if __name__ == "__main__":
    main()
