"""Checks the folder rules of tools/layers.toml; prints one line a violation, exit code 1 on any.

    tools/check_layers.py [ROOT]

1. A file includes only folders that its own folder may use, all of them below it.
2. Third-party and system headers only where their group is allowed; unknown ones are errors.
3. DEPS of each longspur_library in CMake equal the libraries its includes use, directly.
4. Headers have #pragma once and no `using namespace`; no include path with "..".
5. Files and functions stay under the length caps (half-way values are warnings).
6. Each kernel family has a reference, a test and a line in docs/numerics.md.
No compiler is run; see cpp_scan.py for what "function" means here.
"""

import re
import sys
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from cpp_scan import functions, includes, strip

SUFFIXES = {".h", ".cpp", ".cuh", ".cu", ".inc", ".in"}
HEADERS = {".h", ".cuh"}


@dataclass
class Library:
    name: str
    folder: str
    sources: list[str]
    deps: list[str]
    where: str
    files: set[str] = field(default_factory=set)


@dataclass
class Source:
    path: str  # as included: "io/files/gguf.h"
    shown: str  # as a person finds it: "src/io/files/gguf.h"
    text: str

    @property
    def is_header(self) -> bool:
        return Path(self.path).suffix in HEADERS

    @property
    def is_device(self) -> bool:
        return Path(self.path).suffix in {".cu", ".cuh"}

    @property
    def is_test(self) -> bool:
        name = Path(self.path).stem
        return bool(re.search(r"(_test|_bench|_cases|_fuzz|_probe)$|^(fuzz|test)_|test_util", name))


class Checker:
    def __init__(self, root: Path):
        self.root = root
        self.rules = tomllib.loads((root / "tools/layers.toml").read_text())
        self.order = [f["name"] for f in self.rules["folder"]]
        self.folders = {f["name"]: f for f in self.rules["folder"]}
        self.allowed = self.rules.get("allow", [])
        self.used_allowances: set[int] = set()
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.sources = self._read_sources()
        self.libraries = self._read_libraries()

    def run(self) -> None:
        self._check_rule_file()
        for source in self.sources.values():
            self._check_includes(source)
            self._check_header(source)
            self._check_lengths(source)
        self._check_deps()
        self._check_families()
        for index, allowance in enumerate(self.allowed):
            if index not in self.used_allowances:
                self.errors.append(
                    f"tools/layers.toml: allowance for {allowance['where']} is not needed any more"
                )

    # --- reading ----------------------------------------------------------------------------

    def _read_sources(self) -> dict[str, Source]:
        result = {}
        for base in ("src", "bindings"):
            for path in sorted((self.root / base).rglob("*")):
                if path.suffix not in SUFFIXES:
                    continue
                shown = path.relative_to(self.root).as_posix()
                # "x.h.in" is what CMake writes x.h from
                included = shown.removeprefix("src/").removesuffix(".in")
                result[included] = Source(included, shown, path.read_text())
        return result

    def _read_libraries(self) -> dict[str, Library]:
        result: dict[str, Library] = {}
        for base in ("src", "bindings"):
            for cmake in sorted((self.root / base).rglob("CMakeLists.txt")):
                folder = cmake.parent.relative_to(self.root).as_posix().removeprefix("src/")
                text = re.sub(r"#[^\n]*", "", cmake.read_text())
                for match in re.finditer(
                    r"\blongspur_(?:cuda_|torch_)?library\s*\(([^)]*)\)", text
                ):
                    library = self._library(match.group(1).split(), folder, cmake)
                    result[library.name] = library
        for library in result.values():
            library.files |= {f"{library.folder}/{s}" for s in library.sources}
        for source in self.sources.values():
            if source.is_header and not source.is_test:
                owners = self._owners(source.path, result)
                if len(owners) == 1:
                    result[owners[0]].files.add(source.path)
        return result

    def _library(self, words: list[str], folder: str, cmake: Path) -> Library:
        groups: dict[str, list[str]] = {"SRCS": [], "DEPS": [], "PRIVATE_DEPS": []}
        current: list[str] = []
        for word in words[1:]:
            if word in groups:
                current = groups[word]
            elif not word.startswith("$"):
                current.append(word)
        where = cmake.relative_to(self.root).as_posix()
        deps = groups["DEPS"] + groups["PRIVATE_DEPS"]
        return Library(f"longspur_{words[0]}", folder, groups["SRCS"], deps, where)

    def _owners(self, header: str, libraries: dict[str, Library]) -> list[str]:
        """The libraries a header may belong to: by its .cpp, else all of the nearest folder."""
        folder = Path(header).parent
        while folder != Path():
            here = [lib for lib in libraries.values() if lib.folder == folder.as_posix()]
            if here:
                stem = re.sub(r"(-inl|_impl)?$", "", Path(header).stem)
                if self._built_otherwise(f"{folder}/{stem}", here):
                    return []
                twins = [lib.name for lib in here
                         if any(Path(s).stem == stem for s in lib.sources)]  # fmt: skip
                return twins or [lib.name for lib in here]
            folder = folder.parent
        return []

    def _built_otherwise(self, stem: str, libraries: list[Library]) -> bool:
        """True for a header whose own .cpp exists but is in none of the folder's libraries."""
        twin = f"{stem}.cpp"
        return twin in self.sources and not any(
            f"{lib.folder}/{source}" == twin for lib in libraries for source in lib.sources
        )

    # --- rules ------------------------------------------------------------------------------

    def _allow(self, rule: str, where: str) -> bool:
        for index, entry in enumerate(self.allowed):
            if entry["rule"] == rule and entry["where"] == where and entry.get("reason"):
                self.used_allowances.add(index)
                return True
        return False

    def _folder_of(self, path: str) -> str | None:
        parent = Path(path).parent.as_posix()
        best = None
        for name in self.order:
            depth = name.count("/") + 1
            prefix = "/".join(parent.split("/")[:depth])
            longer = best is None or name.count("/") > best.count("/") or "*" in best
            if fnmatch(prefix, name) and prefix.count("/") == name.count("/") and longer:
                best = name
        return best

    def _check_rule_file(self) -> None:
        level = 0
        for index, name in enumerate(self.order):
            entry = self.folders[name]
            if entry["level"] < level:
                self.errors.append(f"tools/layers.toml: {name}: level falls below its predecessor")
            level = entry["level"]
            for used in entry["uses"]:
                target = used if used in self.folders else used.split("/")[0]
                if target not in self.order[:index]:
                    self.errors.append(f"tools/layers.toml: {name} uses {used}, not above it")

    def _check_includes(self, source: Source) -> None:
        folder = self._folder_of(source.path)
        if folder is None:
            self.errors.append(f"{source.shown}: its folder is not in tools/layers.toml")
            return
        for include in includes(source.text):
            where = f"{source.shown}:{include.line}"
            if ".." in include.path.split("/"):
                self.errors.append(f"{where}: relative include {include.path}")
            elif include.path in self.sources:
                self._check_internal(source, folder, include.path, where)
            elif include.quoted and self._folder_of(include.path) is not None:
                self.errors.append(f"{where}: {include.path} does not exist")
            else:
                self._check_external(source, folder, include.path, where)

    def _check_internal(self, source: Source, folder: str, path: str, where: str) -> None:
        target = self._folder_of(path)
        own = "/".join(source.path.split("/")[: folder.count("/") + 1])
        if path.startswith(own + "/"):
            return  # the same folder
        uses = list(self.folders[folder]["uses"])
        for limit in self._limits(source):
            uses = limit["uses"]
        if source.is_test:
            uses += self.rules["tests"]["uses"]
        for used in uses:
            if fnmatch(path, used + "/*") or fnmatch(path, used):
                return
        self.errors.append(f"{where}: {folder} may not use {target} ({path})")

    def _limits(self, source: Source) -> list[dict]:
        return [r for r in self.rules.get("restrict", [])
                if fnmatch(source.path, r["files"]) and not source.is_test]  # fmt: skip

    def _check_external(self, source: Source, folder: str, path: str, where: str) -> None:
        if re.fullmatch(r"[a-z_0-9]+", path):
            return  # the C++ standard library
        group = next((name for name, prefixes in self.rules["external"].items()
                      if any(path.startswith(p) for p in prefixes)), None)  # fmt: skip
        entry = self.folders[folder]
        groups = list(entry["external"])
        if "cuda" in Path(source.path).parent.parts:
            groups += entry.get("device_external", [])
        for limit in self._limits(source):
            groups = limit["external"]
        if source.is_test:
            groups += self.rules["tests"]["external"]
        if group is None:
            self.errors.append(f"{where}: unknown header {path}; add it to tools/layers.toml")
        elif group not in groups:
            self.errors.append(f"{where}: {folder} may not include {group} headers ({path})")

    def _check_header(self, source: Source) -> None:
        if not source.is_header:
            return
        # a body, included once an instruction set, maybe several times in one unit
        body = source.path.endswith("-inl.h")
        if "#pragma once" not in source.text and not body:
            self.errors.append(f"{source.shown}: no #pragma once")
        if re.search(r"\busing\s+namespace\b", strip(source.text)):
            self.errors.append(f"{source.shown}: using namespace in a header")

    def _check_lengths(self, source: Source) -> None:
        caps = self.rules["caps"]
        lines = source.text.count("\n")
        if lines > caps["file_fail"] and not self._allow("file-length", source.shown):
            self.errors.append(f"{source.shown}: {lines} lines, at most {caps['file_fail']}")
        elif lines > caps["file_warn"]:
            self.warnings.append(f"{source.shown}: {lines} lines, better under {caps['file_warn']}")
        kind = "device" if source.is_device else "host"
        warn, fail = caps[f"{kind}_function_warn"], caps[f"{kind}_function_fail"]
        for function in functions(source.text):
            if function.length <= warn:
                continue
            where = f"{source.shown}:{function.name}"
            text = f"{source.shown}:{function.line}: {function.name} has {function.length} lines"
            if function.length > fail and not self._allow("function-length", where):
                self.errors.append(f"{text}, at most {fail}")
            else:
                self.warnings.append(f"{text}, better under {warn}")

    def _check_deps(self) -> None:
        for library in self.libraries.values():
            used: dict[str, str] = {}  # every library an include could stand for -> the include
            for path in sorted(library.files & self.sources.keys()):
                for include in includes(self.sources[path].text):
                    if include.path not in self.sources or include.path in library.files:
                        continue
                    owners = self._owners(include.path, self.libraries)
                    if library.name in owners:
                        continue
                    used.update(dict.fromkeys(owners, include.path))
                    self._check_edge(library, owners, path, include.path)
            for dep in library.deps:
                known = dep in self.libraries
                if known and dep not in used and not self._allow("deps", f"{library.name}:{dep}"):
                    self.errors.append(f"{library.where}: {library.name}: DEPS names {dep}, unused")

    def _check_edge(self, library: Library, owners: list[str], path: str, include: str) -> None:
        if not owners and self._header_only(include):
            return
        if not owners:
            self.errors.append(f"{path}: includes {include}, which belongs to no library")
        elif not set(owners) & set(library.deps):
            self.errors.append(
                f"{library.where}: {library.name}: DEPS lacks {' or '.join(owners)} "
                f"({path} includes {include})"
            )

    def _header_only(self, header: str) -> bool:
        """True when there is nothing to link: no translation unit stands in the header's folder."""
        folder = Path(header).parent
        return all(
            s.is_header or s.is_test for s in self.sources.values() if Path(s.path).parent == folder
        )

    def _check_families(self) -> None:
        numerics = self.root / "docs/numerics.md"
        listed = numerics.read_text() if numerics.exists() else ""
        families = {lib.folder.split("/")[1] for lib in self.libraries.values()
                    if lib.folder.startswith("kernels/")} - {"common"}  # fmt: skip
        for family in sorted(families):
            prefix = f"kernels/{family}"
            files = [s for s in self.sources.values() if s.path.startswith(prefix + "/")]
            host = any(s.path.endswith(".cpp") and not s.is_test for s in files)
            tests = [s for s in files if s.path.endswith("_test.cpp" if host else "_test.cu")]
            referred = any(re.search(r"\bref\b|_ref\b|\bRef[A-Z]", strip(s.text)) for s in files)
            for rule, met, thing in (
                ("reference", referred, "a reference (ref.cpp, namespace ref or *_ref)"),
                ("test", bool(tests), "a test"),
                ("numerics", prefix in listed, f"a line on {prefix} in docs/numerics.md"),
            ):
                if not met and not self._allow(rule, f"src/{prefix}"):
                    self.errors.append(f"src/{prefix}: lacks {thing}")


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    checker = Checker(root)
    checker.run()
    for warning in checker.warnings:
        print(f"warning: {warning}")
    for error in checker.errors:
        print(f"error: {error}")
    if not checker.errors:
        count = len(checker.sources)
        print(f"layers: {count} files, {len(checker.libraries)} libraries, no violation")
    return 1 if checker.errors else 0


if __name__ == "__main__":
    sys.exit(main())
