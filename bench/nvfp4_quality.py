"""Measures the NVFP4 quality table and writes bench/results/nvfp4/quality.json:

    bench/nvfp4_quality.py [--windows 0,16,8,24,4] [--rows SUBSTRING] [--plan] [--table-only]

Texts: Python's pydoc topics (first 32 windows of 2,048 tokens to evaluate on, the next 8 to
calibrate on) and the licences of /usr/share/common-licenses. The work is in nvfp4_quality_bench;
what it has measured stays in build/nvfp4_quality/, so that a stopped run goes on where it was. All
rows on all windows take some three hours on two idle cores, the five windows of the default half an
hour.
"""

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from record_bench import processor  # noqa: E402

WORK = ROOT / "build/nvfp4_quality"
TARGET = ROOT / "bench/results/nvfp4/quality.json"
LICENCES = ("GPL-3", "Apache-2.0", "GFDL-1.3", "MPL-2.0", "Artistic")
BASELINE = {"W4A16": "W4A16 static_6", "W4A4": "W4A4 static_6 / static_6"}


def write_texts() -> tuple[Path, Path]:
    WORK.mkdir(parents=True, exist_ok=True)
    text, licence = WORK / "pydoc.txt", WORK / "licences.txt"
    text.write_text("\n".join(topics.values()))
    folder = Path("/usr/share/common-licenses")
    licence.write_text("".join((folder / name).read_text() for name in LICENCES))
    return text, licence


def standard_error(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def row_of(name: str, windows: dict, results: dict) -> dict:
    """Means over the windows; shares of static_6 over those that both have."""
    kinds = list(windows.values())
    gaps = [w["nll"] - w["nll_fp32"] for w in kinds]
    row = {
        "row": name,
        "windows": len(kinds),
        "perplexity": math.exp(statistics.fmean(w["nll"] for w in kinds)),
        "nll_gap": statistics.fmean(gaps),
        "nll_gap_se": standard_error(gaps),
        "kl": statistics.fmean(w["kl"] for w in kinds),
        "kl_se": standard_error([w["kl"] for w in kinds]),
        "top1": statistics.fmean(w["top1"] for w in kinds),
    }
    base = results.get(BASELINE[name.split()[0]], {})
    shared = [key for key in windows if key in base]
    if shared:
        row["kl_share"] = sum(windows[k]["kl"] for k in shared) / sum(base[k]["kl"] for k in shared)
        gap = sum(windows[k]["nll"] - windows[k]["nll_fp32"] for k in shared)
        row["gap_closed"] = 1 - gap / sum(base[k]["nll"] - base[k]["nll_fp32"] for k in shared)
    return row


def table(results: dict) -> dict:
    return {
        "title": "NVFP4 quality, SmolLM2-135M-Instruct, pydoc text at context 2,048",
        "device": processor(),
        "date": datetime.date.today().isoformat(),
        "baseline": "static_6 of the same kind (W4A16 or W4A4)",
        "note": "KL from the model in fp32; .same and .licence name the calibration text",
        "columns": {
            "row": "weights / activations",
            "perplexity": "perplexity",
            "nll_gap": "NLL above fp32",
            "kl": "KL",
            "kl_share": "KL / static_6",
            "gap_closed": "gap closed",
            "top1": "top-1",
        },
        "rows": [row_of(name, windows, results) for name, windows in results.items()],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--windows", default="0,16,8,24,4", help="of 0 to 31, or 'all'")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--plan", action="store_true", help="only list the rows")
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    text, licence = write_texts()
    raw = WORK / "results.json"
    command = [ROOT / "build/release/bin/nvfp4_quality_bench", "--text", text]
    command += ["--licence", licence, "--results", raw, "--cache", WORK / "models"]
    if arguments.windows != "all":
        command += ["--windows", arguments.windows]
    if arguments.rows:
        command += ["--rows", arguments.rows]
    if arguments.plan:
        command += ["--plan"]
    if not arguments.table_only:
        code = subprocess.run([str(part) for part in command], check=False).returncode
        if code != 0 or arguments.plan:
            return code
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(table(json.loads(raw.read_text())), indent=1) + "\n")
    print(f"nvfp4_quality: wrote {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
