"""Measures estimators of block importance on the default model's own queries and keys:

    bench/xattn_study.py [--prompts ABCDEF] [--table-only]

Writes bench/results/xattn/study.json and prints its table. Six prompts of 8,192 tokens: A plain
text, B licences in chat form, C text and code with a key to find, D to F end with 200 tokens quoted
from thousands of tokens back. The work is in xattn_study (build with -DLONGSPUR_BENCH=ON); ten
minutes on two idle cores.
"""

import argparse
import heapq
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from record_bench import processor  # noqa: E402

BUILD = ROOT / "build/release/bin"
WORK = ROOT / "build/xattn_study"
TARGET = ROOT / "bench/results/xattn/study.json"
TOKENS, QUOTED = 8192, 200
LAYERS = 30
LICENCES = Path("/usr/share/common-licenses")
TEXT = "\n\n".join(topics[name].strip() for name in sorted(topics))
CODE = "\n\n".join(inspect.getsource(module) for module in (heapq, textwrap, argparse))
LICENCE = "\n\n".join((LICENCES / name).read_text() for name in ("GPL-3", "Apache-2.0"))
NEEDLE = " The pass key is 48213. Remember it. 48213 is the pass key. "


def encode(text: str) -> list[int]:
    """Control tokens are read; the model's files ask for no token in front."""
    result = subprocess.run(
        [BUILD / "longspur", "tokenize", "--json"],
        input=text.encode(),
        capture_output=True,
        check=True,
    )
    return json.loads(result.stdout)["ids"]


def chat(instruction: str) -> tuple[str, str]:
    return f"<|im_start|>user\n{instruction}\n\n", "<|im_end|>\n<|im_start|>assistant\n"


def filled(head: str, body: str, tail: str, room: int = TOKENS) -> list[int]:
    """head, as much of the body as fits, tail: `room` tokens."""
    first, last = encode(head), encode(tail)
    middle = encode(body)[: room - len(first) - len(last)]
    assert len(first) + len(middle) + len(last) == room, "the text is too short"
    return first + middle + last


def quoting(name: str, body: str, offset: int, copy_only: bool) -> dict:
    head, tail = chat("Quote one passage of the following text exactly.")
    tokens = filled(head, body, tail, TOKENS - QUOTED)
    begin = len(encode(head)) + offset
    tokens += tokens[begin : begin + QUOTED]
    return {
        "name": name,
        "tokens": tokens,
        "layers": list(range(2, LAYERS, 3)),
        "quote": [begin, QUOTED],
        "copy_only": copy_only,
    }


def prompts() -> list[dict]:
    def plain(name, tokens, layers):
        return {"name": name, "tokens": tokens, "layers": layers, "quote": None, "copy_only": False}

    summary = chat("Read the following licence texts and summarise the obligations.")
    search = chat("Read the following text. A question about it follows.")
    mixed = TEXT[:12000] + NEEDLE + TEXT[12000:20000] + CODE
    question = "\n\nWhat is the pass key?" + search[1]
    return [
        plain("A", filled("", TEXT, ""), list(range(0, LAYERS, 2))),
        plain("B", filled(summary[0], LICENCE, summary[1]), list(range(0, LAYERS, 3))),
        plain("C", filled(search[0], mixed, question), list(range(1, LAYERS, 2))),
        quoting("D", TEXT, 2900, False),
        quoting("E", CODE + TEXT, 5600, True),
        quoting("F", LICENCE, 1500, True),
    ]


def table(result: dict) -> str:
    lines = []
    for block, rows in result["blocks"].items():
        lines += [
            f"| 128 x {block} | R5 | R10 | R20 | p5 @10 | tau .9: density / recall | D(.9) | L1 |"
            " copy 10 / 20 / tau .9 @ density |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            numbers = [f"{row[k]:.3f}" for k in ("recall_5", "recall_10", "recall_20", "p5_10")]
            tau = f"{row['tau_90_density']:.3f} / {row['tau_90_recall']:.3f}"
            copy = (
                f"{row['copy_10']:.2f} / {row['copy_20']:.2f} / {row['copy_tau_90']:.2f} @ "
                f"{row['copy_density']:.2f}"
            )
            cells = [row["estimator"], *numbers, tau, f"{row['density_for_90']:.3f}"]
            lines.append("| " + " | ".join([*cells, f"{row['l1_10']:.3f}", copy]) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", default="ABCDEF")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table_only:
        WORK.mkdir(parents=True, exist_ok=True)
        chosen = [prompt for prompt in prompts() if prompt["name"] in arguments.prompts]
        (WORK / "prompts.json").write_text(json.dumps(chosen))
        files = ["smollm2", WORK / "prompts.json", WORK / "result.json"]
        subprocess.run([BUILD / "xattn_study", *files], check=True)
        result = {
            "model": "smollm2",
            "prompts": arguments.prompts,
            "machine": processor(),
            "blocks": json.loads((WORK / "result.json").read_text()),
        }
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(json.dumps(result, indent=1) + "\n")
    print(table(json.loads(TARGET.read_text())))


if __name__ == "__main__":
    main()
