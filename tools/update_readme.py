"""Fills the figures of README.md from bench/results/*.json, and those of docs/nvfp4.md from
bench/results/nvfp4/*.json: update_readme.py [--check].

Everything between the two `figures` markers is rewritten; --check only compares, for CI. The result
files' format is in bench/README.md.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- figures: written by tools/update_readme.py from bench/results -->\n"
END = "<!-- end of figures -->\n"
NONE = "No results are recorded yet; this section stays empty until `bench/results/` holds some.\n"
DOCUMENTS = (("README.md", "bench/results"), ("docs/nvfp4.md", "bench/results/nvfp4"))
REQUIRED = ("title", "device", "date", "columns", "rows")


def cell(value: object) -> str:
    """Numbers with three significant digits, at least all of their integer part."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def source_name(path: Path) -> str:
    parts = path.parts
    return "/".join(parts[parts.index("bench") :]) if "bench" in parts else path.name


def table(path: Path) -> str:
    result = json.loads(path.read_text())
    missing = [key for key in REQUIRED if key not in result]
    if missing:
        raise SystemExit(f"{path}: lacks {', '.join(missing)}")
    columns = result["columns"]  # key -> heading
    lines = [f"**{result['title']}**", ""]
    lines.append("| " + " | ".join(columns.values()) + " |")
    lines.append("|" + " --- |" * len(columns))
    for row in result["rows"]:
        lines.append("| " + " | ".join(cell(row.get(key)) for key in columns) + " |")
    facts = [result["device"], result["date"]]
    if result.get("baseline"):
        facts.append(f"baseline: {result['baseline']}")
    if result.get("note"):
        facts.append(result["note"])
    lines += ["", f"{'; '.join(facts)}. From `{source_name(path)}`.", ""]
    return "\n".join(lines)


def figures(folder: Path) -> str:
    tables = [table(path) for path in sorted(folder.glob("*.json"))]
    return "\n".join(tables) if tables else NONE


def updated(readme: str, folder: Path) -> str:
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit("the markers of the figures are missing")
    return before + BEGIN + "\n" + figures(folder) + "\n" + END + after


def main() -> int:
    check = "--check" in sys.argv[1:]
    differing = []
    for name, folder in DOCUMENTS:
        path = ROOT / name
        old = path.read_text()
        new = updated(old, ROOT / folder)
        if old != new:
            differing.append(name)
        if not check:
            path.write_text(new)
    if check and differing:
        print(
            f"error: {', '.join(differing)}: figures differ from bench/results; "
            "run tools/update_readme.py"
        )
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
