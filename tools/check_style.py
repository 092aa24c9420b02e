"""Text rules that clang-format and ruff do not know; prints one line a violation, exit code 1.

    tools/check_style.py [ROOT]

Over the files that git tracks: no tabs or trailing blanks in sources, a newline at the end, a
comment at the head of each source file, no left-over markers, no disabled tests, no printing or
exiting in library code, no oversized files.
"""

import re
import subprocess
import sys
from pathlib import Path

CPP = {".h", ".cpp", ".cuh", ".cu"}
TEXT = CPP | {".py", ".sh", ".md", ".toml", ".txt", ".cmake", ".json"}
LIMIT = 300_000  # bytes a tracked file
GOLDEN_LIMIT = 2_000_000  # bytes of tests/golden together

LEFT_OVER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
DISABLED = re.compile(r"\bDISABLED_\w|@unittest\.skip\(|@pytest\.mark\.skip\b(?!if)")
PRINTS = re.compile(
    r"\bstd::(cout|cerr|clog|print|puts|exit|abort|terminate|quick_exit)\b"
    r"|(?<![\w:.>])(printf|puts|exit|abort|_exit)\s*\("
    r"|\bfprintf\s*\(\s*std(out|err)"
)
# The folders of the program itself may print; tests, benches and fuzz mains too.
MAY_PRINT = re.compile(r"^(src/app/|tests/|bench/)|(_test|_bench|_fuzz|_probe)\.(cpp|cu)$|/fuzz_")


def tracked(root: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name]


def check_text(root: Path, name: str, text: str) -> list[str]:
    """The violations of one text file."""
    suffix = Path(name).suffix
    found = []
    if text and not text.endswith("\n"):
        found.append(f"{name}: no newline at the end")
    if suffix != ".json" and "\r" in text:
        found.append(f"{name}: carriage returns")
    for number, line in enumerate(text.splitlines(), 1):
        if line != line.rstrip() and suffix != ".md":
            found.append(f"{name}:{number}: blanks at the end of the line")
        if "\t" in line and suffix in CPP | {".py"}:
            found.append(f"{name}:{number}: a tab")
        if suffix in CPP | {".py", ".sh"} and (match := LEFT_OVER.search(line)):
            found.append(f"{name}:{number}: left-over marker {match.group(0)}")
        if suffix in CPP | {".py"} and DISABLED.search(line):
            found.append(f"{name}:{number}: a disabled test")
    if suffix in CPP:
        found += check_cpp(root, name, text)
    if suffix == ".py" and text.strip() and not re.match(r'(#!.*\n)?("""|#)', text):
        found.append(f"{name}: no docstring at the head")
    return found


def check_cpp(root: Path, name: str, text: str) -> list[str]:
    found = []
    # a .cpp beside a header of its name is explained there, a test by its cases
    own_header = (root / name).with_suffix(".h").exists()
    test = Path(name).stem.endswith("_test")
    explained = Path(name).suffix in {".cpp", ".cu"} and (own_header or test)
    if not explained and not re.match(r"\s*//|\s*/\*", text):
        found.append(f"{name}: no comment at the head that says what the file computes")
    if MAY_PRINT.search(name):
        return found
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r'"(?:\\.|[^"\\])*"', '""', line).split("//")[0]
        if match := PRINTS.search(code):
            what = match.group(0).strip()
            found.append(f"{name}:{number}: library code prints or exits ({what})")
    return found


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    errors = []
    golden = 0
    for name in tracked(root):
        path = root / name
        if not path.is_file():
            continue
        size = path.stat().st_size
        golden += size if name.startswith("tests/golden/") else 0
        if size > LIMIT:
            errors.append(f"{name}: {size} bytes, at most {LIMIT}")
        if path.suffix in TEXT or path.name in {"Makefile", "CMakeLists.txt"}:
            errors += check_text(root, name, path.read_text(encoding="utf-8"))
    if golden > GOLDEN_LIMIT:
        errors.append(f"tests/golden: {golden} bytes together, at most {GOLDEN_LIMIT}")
    for error in errors:
        print(f"error: {error}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
