"""Writes the demo's document, about 7,000 tokens of real English; prints a question about it.

    make_demo_document.py OUTPUT

The text is what every Debian or Ubuntu machine with Python holds: chapters of Python's language
reference (pydoc_data) and a licence from /usr/share/common-licenses. Nothing is made up for the
model; the answer stands in one chapter. A model of 135 million parameters finds it in the last
chapter reliably, far less so thousands of tokens earlier. SmolLM2's tokenizer takes about four
characters a token here, so the length is cut by characters.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

CHARACTERS = 28_500
CHAPTERS = ("while", "pass", "del", "return", "raise", "for", "global", "nonlocal", "break",
            "continue", "try", "with", "import", "if", "context-managers", "naming", "truth",
            "comparisons", "function", "class")  # fmt: skip
ASKED = "assert"  # stands last
LICENCE = Path("/usr/share/common-licenses/BSD")
QUESTION = "What does the document say assert statements are a convenient way to insert?"


def document() -> str:
    parts = []
    if LICENCE.exists():
        parts.append(LICENCE.read_text(encoding="utf-8", errors="replace").strip())
    parts += [topics[name].strip() for name in CHAPTERS if name in topics]
    text = "\n\n\n".join(parts)
    last = topics[ASKED].strip()
    room = CHARACTERS - len(last)
    if len(text) < room:
        raise SystemExit(f"pydoc_data: found {len(text)} characters of text, expected {room}")
    # whole paragraphs only
    return text[: text.rindex("\n\n", 0, room)] + "\n\n\n" + last


def main(output: str) -> None:
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(), encoding="utf-8")
    print(QUESTION)


if __name__ == "__main__":
    main(sys.argv[1])
