"""Turns what `longspur bench --output` wrote into a result file:

    record_bench.py OUTPUT TITLE INPUT...      (an empty TITLE: the default model on the CPU)

Every key of a row becomes a column, in the order of the first row, but for lists and objects, which
are kept in the file; so are the name of the baseline and the note. Device and date are this
machine's, now. The format is in bench/README.md.
"""

import datetime
import json
import os
import re
import sys
from pathlib import Path


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    have = set(flags.group(1).split()) if flags else set()
    best = next((f for f in ("avx512_vnni", "avx512f", "avx2") if f in have), "no AVX2")
    name = names[0] if names else os.uname().machine
    return f"{name}, {len(os.sched_getaffinity(0))} threads, {best}"


TITLE = "SmolLM2-135M-Instruct (Q4_1) on the CPU"


def record(raw: dict, device: str, date: str, title: str = TITLE) -> dict:
    rows = raw["rows"]
    if not rows:
        raise SystemExit("bench: found no rows, expected at least one")
    shown = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
    result = {"title": title, "device": device, "date": date}
    if raw.get("baseline"):
        result["baseline"] = raw["baseline"]
    if raw.get("note"):
        result["note"] = raw["note"]
    result["columns"] = {key: key.replace("_per_s", "/s").replace("_", " ") for key in shown}
    result["rows"] = rows
    return result


def main(target: str, title: str, *sources: str) -> None:
    parts = [json.loads(Path(source).read_text()) for source in sources]
    raw = parts[0] | {"rows": [row for part in parts for row in part["rows"]]}
    result = record(raw, processor(), datetime.date.today().isoformat(), title or TITLE)
    Path(target).write_text(json.dumps(result, indent=1) + "\n")
    print(f"bench: wrote {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
