"""The repository's own tools: test counting, style rules, README figures, requirement check."""

import json

import check_style
import make_demo_document
import pytest
import record_bench
import run_tests
import unmet_requirements
import update_readme

GTEST_REPORT = """<?xml version="1.0"?>
<testsuites tests="4" failures="1">
  <testsuite name="A">
    <testcase name="ok" status="run" result="completed"/>
    <testcase name="bad" status="run" result="completed"><failure message="x"/></testcase>
    <testcase name="skip" status="run" result="skipped"><skipped message="no gpu"/></testcase>
    <testcase name="off" status="notrun" result="suppressed"/>
  </testsuite>
</testsuites>
"""


def ctest_report(**verdicts: str) -> str:
    cases = "".join(f'<testcase name="{n}" status="{s}"/>' for n, s in verdicts.items())
    return f"<testsuite>{cases}</testsuite>"


def test_cases_are_counted_not_executables(tmp_path):
    (tmp_path / "a_test.xml").write_text(GTEST_REPORT)
    (tmp_path / "ctest.xml").write_text(ctest_report(a_test="fail", corpus="run"))
    counts = run_tests.count_ctest(tmp_path, ["a_test", "corpus"])
    assert str(counts) == "2 passed, 1 failed, 2 skipped"


def test_a_death_without_report_is_a_failure(tmp_path):
    passing = GTEST_REPORT.replace('<failure message="x"/>', "")
    (tmp_path / "leaks.xml").write_text(passing)  # fails after its cases, e.g. a leak report
    (tmp_path / "ctest.xml").write_text(ctest_report(leaks="fail", crash="fail"))
    counts = run_tests.count_ctest(tmp_path, ["leaks", "crash", "never_started"])
    assert str(counts) == "2 passed, 3 failed, 2 skipped"


def test_no_ctest_report_fails_everything(tmp_path):
    assert run_tests.count_ctest(tmp_path, ["a", "b"]).failed == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.cpp", "// x\nint a; \n", "blanks"),
        ("a.cpp", "// x\n\tint a;\n", "a tab"),
        ("a.cpp", "// x\nint a;", "no newline"),
        ("a.cpp", "// x\n// " + "TO" + "DO: later\n", "left-over"),
        ("a.cpp", "// x\nTEST(A, DISABLED" + "_b) {}\n", "disabled test"),
        ("a.cpp", "int a;\n", "no comment at the head"),
        ("a.h", "#pragma once\n", "no comment at the head"),
        ("src/io/a.cpp", "// x\nvoid f() { std::cout << 1; }\n", "prints or exits"),
        ("src/io/a.cpp", "// x\nvoid f() { exit(1); }\n", "prints or exits"),
        ("a.py", "import os\n", "no docstring"),
    ],
)
def test_style_finds(tmp_path, name, text, message):
    assert any(message in error for error in check_style.check_text(tmp_path, name, text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.cpp", "// x\nint a;\n"),
        ("src/app/a.cpp", "// x\nvoid f() { std::cout << 1; }\n"),
        ("src/io/a.cpp", '// x\nauto s = "printf(";  // exit(1)\nvoid on_exit(int);\n'),
        ("a_test.cpp", "TEST(A, b) {}\n"),
        ("a.py", '"""What it does."""\n'),
    ],
)
def test_style_accepts(tmp_path, name, text):
    assert check_style.check_text(tmp_path, name, text) == []


README = f"top\n{update_readme.BEGIN}old\n{update_readme.END}bottom\n"
RESULT = {
    "title": "Decode",
    "device": "2 threads",
    "date": "2026-01-02",
    "baseline": "other 1.0",
    "columns": {"context": "context", "ours": "tokens/s", "ratio": "ratio"},
    "rows": [{"context": 4096, "ours": 98.74, "ratio": 2.5961}],
}


def test_readme_figures(tmp_path):
    (tmp_path / "decode.json").write_text(json.dumps(RESULT))
    text = update_readme.updated(README, tmp_path)
    assert "| 4,096 | 98.7 | 2.6 |" in text
    assert "baseline: other 1.0" in text
    assert text.startswith("top\n")
    assert text.endswith("bottom\n")
    assert "old" not in text
    assert update_readme.updated(text, tmp_path) == text


def test_readme_without_results_says_so(tmp_path):
    assert update_readme.NONE in update_readme.updated(README, tmp_path)


def test_readme_names_missing_keys(tmp_path):
    (tmp_path / "decode.json").write_text(json.dumps({"title": "Decode", "rows": []}))
    with pytest.raises(SystemExit, match="lacks device, date, columns"):
        update_readme.updated(README, tmp_path)


def test_unmet_requirements(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text(f"# c\npytest=={pytest.__version__}\nno-such-package==1.0\npytest==0.0.1\n")
    assert unmet_requirements.unmet(path) == ["no-such-package==1.0", "pytest==0.0.1"]


def test_recorded_bench_fits_the_readme(tmp_path):
    raw = {"rows": [{"context": 512, "decode_tokens_per_s": 221.4, "samples": [1, 2]}]}
    result = record_bench.record(raw | {"baseline": "other 1.0"}, "a processor", "2026-01-02")
    assert result["columns"] == {"context": "context", "decode_tokens_per_s": "decode tokens/s"}
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    assert "| 512 | 221 |" in update_readme.updated(README, tmp_path)


def test_demo_document_is_about_7000_tokens():
    text = make_demo_document.document()
    assert 28_000 < len(text) <= make_demo_document.CHARACTERS
    assert "Assert statements are a convenient way to insert debugging assertions" in " ".join(
        text.split()
    )
