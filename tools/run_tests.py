"""Runs the C++ tests through CTest and the Python tests through pytest; counts test cases.

    tools/run_tests.py [--build build/release] [--no-pytest] [--tests REGEX]

A GoogleTest executable is one CTest test with many cases: each writes an XML report, and the cases
in it are what is counted. A test that dies without a report counts as one failure. Tests whose
label asks for a GPU run only where one is found; elsewhere they are counted as skipped, by name.
The last line is 'N passed, N failed, N skipped'; the exit code is 1 when anything failed or when
nothing ran.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: "Counts") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count_report(path: Path) -> Counts:
    """Counts a JUnit-style report, GoogleTest's or pytest's."""
    counts = Counts()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            counts.failed += 1
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            counts.skipped += 1
        else:
            counts.passed += 1
    return counts


def local_tool(name: str) -> str:
    """A tool of .venv where set-up had to put one there, else the system's."""
    own = ROOT / ".venv" / "bin" / name
    return str(own) if own.exists() else name


def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def listed_tests(build: Path, pattern: str | None) -> dict[str, list[str]]:
    """CTest's names with their labels."""
    command = [local_tool("ctest"), "--test-dir", str(build), "--show-only=json-v1"]
    if pattern:
        command += ["-R", pattern]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    result = {}
    for test in json.loads(shown.stdout)["tests"]:
        labels = [p["value"] for p in test.get("properties", []) if p["name"] == "LABELS"]
        result[test["name"]] = labels[0] if labels else []
    return result


def run_ctest(build: Path, pattern: str | None) -> Counts:
    tests = listed_tests(build, pattern)
    gpu = has_gpu()
    wanted = [name for name, labels in tests.items() if gpu or "cpu" in labels]
    counts = Counts(skipped=len(tests) - len(wanted))
    for name in sorted(set(tests) - set(wanted)):
        print(f"skipped (no GPU here): {name} [{', '.join(tests[name])}]", flush=True)
    if not wanted:
        return counts
    reports = build / "test-reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    command = [local_tool("ctest"), "--test-dir", str(build), "--output-on-failure"]
    command += ["--output-junit", str(reports.resolve() / "ctest.xml")]
    command += ["-j", str(max(1, (os.cpu_count() or 1) // 2))]
    if not gpu:
        command += ["-L", "^cpu$"]
    if pattern:
        command += ["-R", pattern]
    # A folder with the trailing slash: each executable writes <name>.xml there.
    environment = dict(os.environ, GTEST_OUTPUT=f"xml:{reports.resolve()}/")
    subprocess.run(command, env=environment, check=False)
    counts.add(count_ctest(reports, wanted))
    return counts


def count_ctest(reports: Path, wanted: list[str]) -> Counts:
    """Cases from each executable's own report; CTest's verdict where there is none."""
    counts = Counts()
    if not (reports / "ctest.xml").exists():
        print("ctest: wrote no report, all its tests count as failed", flush=True)
        return Counts(failed=len(wanted))
    verdicts = {}
    for case in ElementTree.parse(reports / "ctest.xml").getroot().iter("testcase"):
        verdicts[case.get("name")] = case.get("status")
    for name in wanted:
        own = reports / f"{name}.xml"
        cases = count_report(own) if own.exists() else Counts()
        passed = verdicts.get(name) == "run"
        if passed and not own.exists():
            cases.passed += 1
        if not passed and cases.failed == 0:
            print(f"{name}: {verdicts.get(name, 'not run')} without a failed case", flush=True)
            cases.failed += 1
        counts.add(cases)
    return counts


def run_pytest(build: Path) -> Counts:
    report = build / "test-reports" / "pytest.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [str(ROOT / ".venv/bin/python"), "-m", "pytest", "-q", "tests/python"]
    command += [f"--junitxml={report.resolve()}", "--durations=5"]
    environment = dict(os.environ, LONGSPUR_BUILD=str(build.resolve()))
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if not report.exists():
        print(f"pytest: exit code {done.returncode} and no report", flush=True)
        return Counts(failed=1)
    counts = count_report(report)
    if done.returncode != 0 and counts.failed == 0:
        counts.failed = 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("--no-pytest", action="store_true")
    parser.add_argument("--tests", help="only CTest tests whose name matches")
    options = parser.parse_args()
    total = run_ctest(options.build, options.tests)
    print(f"C++: {total}", flush=True)
    if not options.no_pytest:
        python = run_pytest(options.build)
        print(f"Python: {python}", flush=True)
        total.add(python)
    (options.build / "test-reports").mkdir(parents=True, exist_ok=True)
    (options.build / "test-reports" / "counts.json").write_text(json.dumps(vars(total)) + "\n")
    print(total, flush=True)
    return 0 if total.failed == 0 and total.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
