"""tools/check_layers.py on a small good tree, and on the same tree with one fault at a time."""

import shutil
from pathlib import Path

import pytest
from check_layers import Checker
from cpp_scan import functions, includes

RULES = """
[external]
torch = ["torch/"]
posix = ["unistd.h"]
test = ["gtest/"]
[tests]
external = ["test"]
uses = ["base"]
[caps]
file_warn = 50
file_fail = 70
host_function_warn = 6
host_function_fail = 10
device_function_warn = 12
device_function_fail = 25
[[folder]]
name = "base"
level = 0
uses = []
external = ["posix"]
[[folder]]
name = "kernels/*"
level = 1
uses = ["base"]
external = []
[[folder]]
name = "cache"
level = 3
uses = ["base", "kernels/*"]
external = ["torch"]
[[folder]]
name = "sched"
level = 4
uses = ["base", "cache/block*"]
external = []
[[restrict]]
files = "cache/block*"
uses = ["base"]
external = []
reason = "pure"
"""

GOOD = {
    "tools/layers.toml": RULES,
    "docs/numerics.md": "| kernels/norm | exact |\n",
    "src/base/CMakeLists.txt": "longspur_library(base SRCS error.cpp DEPS Threads::Threads)\n",
    "src/base/error.h": "#pragma once\n#include <string>\n",
    "src/base/error.cpp": '#include "base/error.h"\n#include <unistd.h>\n',
    "src/kernels/norm/CMakeLists.txt": "longspur_library(norm SRCS norm.cpp DEPS longspur_base)\n",
    "src/kernels/norm/norm.h": "#pragma once\nvoid norm();\nvoid norm_ref();\n",
    "src/kernels/norm/norm.cpp": '#include "base/error.h"\n#include "kernels/norm/norm.h"\n',
    "src/kernels/norm/norm_test.cpp": '#include <gtest/gtest.h>\n#include "kernels/norm/norm.h"\n',
    "src/cache/CMakeLists.txt": """
longspur_library(blocks SRCS block.cpp DEPS longspur_base)  # pure
longspur_library(pool SRCS pool.cpp DEPS longspur_blocks PRIVATE_DEPS longspur_norm)
""",
    "src/cache/block.h": "#pragma once\n",
    "src/cache/block.cpp": '#include "base/error.h"\n#include "cache/block.h"\n',
    "src/cache/pool.h": '#pragma once\n#include "cache/block.h"\n',
    "src/cache/pool.cpp": (
        '#include <torch/types.h>\n#include "cache/pool.h"\n#include "kernels/norm/norm.h"\n'
    ),
    "src/sched/CMakeLists.txt": "longspur_library(sched SRCS sched.cpp DEPS longspur_blocks)\n",
    "src/sched/sched.cpp": '#include "cache/block.h"\n',
}


def long_function(lines: int) -> str:
    return "int f(int x) {\n" + "  ++x;\n" * (lines - 2) + "}\n"


# file, its new text (or text to append after "+"), a part of the expected message
FAULTS = [
    ("src/base/error.h", '+#include "cache/block.h"\n', "base may not use cache"),
    ("src/base/error.h", '+#include "../cache/block.h"\n', "relative include"),
    ("src/base/error.h", '+#include "base/gone.h"\n', "does not exist"),
    ("src/base/error.h", "+#include <mystery/api.h>\n", "unknown header"),
    ("src/base/error.h", "#include <string>\n", "no #pragma once"),
    ("src/base/error.h", "+using namespace std;\n", "using namespace in a header"),
    ("src/kernels/norm/norm.cpp", "+#include <torch/types.h>\n", "may not include torch"),
    ("src/cache/block.cpp", "+#include <torch/types.h>\n", "may not include torch"),
    ("src/cache/block.cpp", '+#include "kernels/norm/norm.h"\n', "cache may not use kernels"),
    ("src/sched/sched.cpp", '+#include "cache/pool.h"\n', "sched may not use cache"),
    ("src/sched/sched.cpp", '+#include "base/error.h"\n', "DEPS lacks longspur_base"),
    ("src/sched/sched.cpp", "int x;\n", "DEPS names longspur_blocks, unused"),
    ("src/stray/x.cpp", "int x;\n", "not in tools/layers.toml"),
    ("src/base/error.cpp", "+" + long_function(11), "f has 11 lines"),
    ("src/base/error.cpp", "+" + "\n" * 71, "lines, at most 70"),
    ("docs/numerics.md", "nothing\n", "docs/numerics.md"),
    ("src/kernels/norm/norm_test.cpp", None, "lacks a test"),
    ("src/kernels/norm/norm.h", "#pragma once\nvoid norm();\n", "lacks a reference"),
    (
        "tools/layers.toml",
        '+[[allow]]\nrule = "file-length"\nwhere = "src/x.cpp"\nreason = "r"\n',
        "not needed any more",
    ),
    ("tools/layers.toml", RULES.replace('uses = ["base"]', 'uses = ["sched"]'), "not above it"),
]


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def check(root: Path) -> Checker:
    checker = Checker(root)
    checker.run()
    return checker


def test_good_tree_passes(tmp_path):
    write_tree(tmp_path, GOOD)
    assert check(tmp_path).errors == []


def test_header_only_folder_needs_no_library(tmp_path):
    use = {"src/sched/sched.cpp": GOOD["src/sched/sched.cpp"] + '#include "base/tiny/tiny.h"\n'}
    tiny = {"src/base/tiny/tiny.h": "#pragma once\n"}
    cmake = {"src/base/error/CMakeLists.txt": GOOD["src/base/CMakeLists.txt"]}
    moved = {name.replace("base/", "base/error/"): text for name, text in GOOD.items()}
    files = {name: text.replace('"base/error.h"', '"base/error/error.h"')
             for name, text in (moved | cmake | use | tiny).items()}  # fmt: skip
    write_tree(tmp_path, files)
    assert check(tmp_path).errors == []
    write_tree(tmp_path, {"src/base/tiny/tiny.cpp": '#include "base/tiny/tiny.h"\n'})
    assert any("belongs to no library" in error for error in check(tmp_path).errors)


@pytest.mark.parametrize(("name", "text", "message"), FAULTS)
def test_each_fault_is_found(tmp_path, name, text, message):
    files = dict(GOOD)
    if text is None:
        del files[name]
    elif text.startswith("+"):
        files[name] = files.get(name, "") + text[1:]
    else:
        files[name] = text
    write_tree(tmp_path, files)
    errors = check(tmp_path).errors
    assert any(message in error for error in errors), errors


def test_allowance_needs_a_reason(tmp_path):
    allowance = '[[allow]]\nrule = "function-length"\nwhere = "src/base/error.cpp:f"\n'
    allowance += 'reason = "{}"\n'
    files = dict(GOOD)
    files["src/base/error.cpp"] += long_function(11)
    write_tree(tmp_path, files | {"tools/layers.toml": RULES + allowance.format("one table")})
    assert check(tmp_path).errors == []
    shutil.rmtree(tmp_path / "src")
    write_tree(tmp_path, files | {"tools/layers.toml": RULES + allowance.format("")})
    assert any("f has 11 lines" in error for error in check(tmp_path).errors)


def test_half_way_is_a_warning(tmp_path):
    files = dict(GOOD)
    files["src/base/error.cpp"] += long_function(8)
    write_tree(tmp_path, files)
    checker = check(tmp_path)
    assert checker.errors == []
    assert any("f has 8 lines" in warning for warning in checker.warnings)


SOURCE = r"""
#include "a/b.h"  // why
// #include "no/no.h"
#define TWICE(x) \
  { x; x; }
namespace longspur {
template <class T, int N>
struct Foo : Bar<T> {
  int size() const { return size_; }
  Foo(int a)
      : a_{a}, b_(f(a)) {
    run();
  }
  int a_{3};
};
static const int kTable[] = {1, 2, 3};
const char* text = "} not a brace {";
char c = '{';
int big = 1'000'000;
std::string raw = R"x({{{)x";
extern "C" {
int entry() { return 0; }
}
auto f(int x = int{3}) -> int {
  auto g = [&] {
    return x;
  };
  return g();
}
TEST(Suite, Case) {
  EXPECT_EQ(1, 1);
}
}  // namespace longspur
"""


def test_scanner_sees_functions_and_includes():
    assert [(i.path, i.line) for i in includes(SOURCE)] == [("a/b.h", 2)]
    found = [(f.name, f.length) for f in functions(SOURCE)]
    assert found == [("size", 1), ("Foo", 4), ("entry", 1), ("f", 6), ("TEST", 3)]
