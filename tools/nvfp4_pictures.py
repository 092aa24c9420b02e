"""Draws docs/images/nvfp4_error.svg and docs/images/nvfp4_share_of_4.svg:

    nvfp4_pictures.py [REPORT]

REPORT is what `longspur quantize --rule four_over_six --report REPORT` wrote; its shares of blocks
that took 4 are kept in docs/images/nvfp4_share_of_4.json, from which the second picture is drawn.
The first is a simulation in plain Python: the error of blocks of 16 normal numbers by rule.
"""

import json
import math
import random
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"
SHARES = IMAGES / "nvfp4_share_of_4.json"

GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MIDDLES = tuple((a + b) / 2 for a, b in pairwise(GRID))
COLOURS = {"static_6": "#8a8a8a", "four_over_six": "#2a6fb0", "sweep": "#c4552d"}
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
BLOCKS = 6000


def e4m3(code: int) -> float:
    mantissa, exponent = code & 7, code >> 3
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


SCALES = [e4m3(code) for code in range(0x7F)]


def nearest_scale(value: float) -> int:
    return min(range(0x7F), key=lambda code: (abs(SCALES[code] - value), code & 1))


def block_error(block: list[float], scale: float) -> float:
    total = 0.0
    for value in block:
        steps = abs(value) / scale
        total += (abs(value) - scale * GRID[sum(steps > middle for middle in MIDDLES)]) ** 2
    return total


def candidates(rule: str, wanted: float) -> list[int]:
    if rule == "static_6":
        return [nearest_scale(wanted)]
    if rule == "four_over_six":
        return [nearest_scale(wanted), nearest_scale(1.5 * wanted)]
    six = nearest_scale(wanted)
    return [min(max(six + step, 1), 0x7E) for step in (0, -1, 1, 4, 5)]


def simulate() -> dict[str, list[float]]:
    """Relative squared error of each block, in dB, by rule."""
    numbers = random.Random(1)
    blocks = [[numbers.gauss(0, 1) for _ in range(16)] for _ in range(BLOCKS)]
    amax = max(abs(value) for block in blocks for value in block)
    errors: dict[str, list[float]] = {}
    for rule in COLOURS:
        factor = (2688 if rule == "static_6" else 1536) / amax
        errors[rule] = []
        for block in blocks:
            wanted = max(map(abs, block)) / 6 * factor
            error = min(block_error(block, SCALES[c] / factor) for c in candidates(rule, wanted))
            errors[rule].append(10 * math.log10(error / sum(v * v for v in block)))
    return errors


def svg(width: int, height: int, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join(
        [head, f'<rect width="{width}" height="{height}" fill="white"/>', *body, "</svg>\n"]
    )


def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def histogram(errors: dict[str, list[float]]) -> str:
    low, high, bins, left, top, width, height = -28.0, -15.0, 52, 50, 20, 620, 260
    body = []
    counts = {}
    for rule, values in errors.items():
        counts[rule] = [0] * bins
        for value in values:
            at = int((value - low) / (high - low) * bins)
            counts[rule][min(max(at, 0), bins - 1)] += 1
    tallest = max(max(row) for row in counts.values())
    for rule, row in counts.items():
        points = []
        for at, count in enumerate(row):
            y = top + height * (1 - count / tallest)
            points += [f"{left + width * at / bins:.1f},{y:.1f}"]
            points += [f"{left + width * (at + 1) / bins:.1f},{y:.1f}"]
        body.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{COLOURS[rule]}" '
            'stroke-width="2"/>'
        )
    base = top + height
    body.append(f'<line x1="{left}" y1="{base}" x2="{left + width}" y2="{base}" stroke="#222"/>')
    for tick in range(int(low), int(high) + 1, 2):
        body.append(text(left + width * (tick - low) / (high - low), base + 18, f"{tick} dB"))
    body.append(
        text(left + width / 2, base + 38, "squared error of a block, relative to its squares")
    )
    for at, (rule, values) in enumerate(errors.items()):
        mean = 10 * math.log10(sum(10 ** (v / 10) for v in values) / len(values))
        words = f"{rule}: mean {mean:.1f} dB"
        body.append(text(left + 10, top + 18 + 18 * at, words, "start", COLOURS[rule]))
    return svg(700, 330, body)


def keep_shares(report: Path) -> None:
    shares: list[list[float]] = []
    for at, tensor in enumerate(json.loads(report.read_text())["tensors"]):
        if at % len(ROLES) == 0:
            shares.append([])
        shares[-1].append(round(tensor["share_of_4"], 4))
    SHARES.write_text(json.dumps({"roles": ROLES, "share_of_4": shares}) + "\n")


def share_map(shares: list[list[float]]) -> str:
    cell, left, top = 20, 60, 30
    flat = [share for layer in shares for share in layer]
    low, high = min(flat), max(flat)
    body = []
    for row, role in enumerate(ROLES):
        body.append(text(left - 8, top + cell * row + 14, role, "end"))
        for layer, of_layer in enumerate(shares):
            level = (of_layer[row] - low) / (high - low or 1)
            colour = (
                f"rgb({int(245 - 203 * level)},{int(245 - 134 * level)},{int(245 - 69 * level)})"
            )
            body.append(
                f'<rect x="{left + cell * layer}" y="{top + cell * row}" width="{cell - 1}" '
                f'height="{cell - 1}" fill="{colour}"><title>layer {layer}, {role}: '
                f"{100 * of_layer[row]:.1f} %</title></rect>"
            )
    base = top + cell * len(ROLES)
    for layer in range(0, len(shares), 5):
        body.append(text(left + cell * layer + cell / 2, base + 16, str(layer)))
    middle = left + cell * len(shares) / 2
    body.append(text(middle, base + 36, "layer"))
    words = f"share of blocks that took 4: {100 * low:.0f} % (light) to {100 * high:.0f} % (dark)"
    body.append(text(middle, 18, words))
    return svg(left + cell * len(shares) + 20, base + 50, body)


def main(*arguments: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    if arguments:
        keep_shares(Path(arguments[0]))
    (IMAGES / "nvfp4_error.svg").write_text(histogram(simulate()))
    shares = json.loads(SHARES.read_text())["share_of_4"]
    (IMAGES / "nvfp4_share_of_4.svg").write_text(share_map(shares))


if __name__ == "__main__":
    main(*sys.argv[1:])
