"""Prints the lines of a requirements file that the running Python does not meet exactly.

Only `name==version` lines and comments are understood; local version parts ("+cpu") are ignored.
Reads package metadata, imports nothing, so it takes a fraction of a second.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def unmet(path: Path) -> list[str]:
    result = []
    for raw in path.read_text().splitlines():
        line = raw.split("#")[0].strip()
        if not line:
            continue
        name, _, wanted = line.partition("==")
        if not wanted:
            raise SystemExit(f"{path}: found '{line}', expected name==version")
        try:
            met = version(name).split("+")[0] == wanted
        except PackageNotFoundError:
            met = False
        if not met:
            result.append(line)
    return result


if __name__ == "__main__":
    print("\n".join(unmet(Path(sys.argv[1]))))
