"""Builds the Python package: the PEP 517 hooks that pip calls, from the standard library alone.

The wheel holds python/longspur and the op library, which CMake builds for the torch of the
environment that pip runs in. Editable installs (PEP 660) point to the checkout and build nothing:
there the library is the one in build/release.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "liblongspur_torch.so"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEM = f"{PROJECT['name']}-{PROJECT['version']}"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {
        path.relative_to(ROOT / "python").as_posix(): path.read_bytes()
        for path in sorted((ROOT / "python/longspur").iterdir())
        if path.suffix == ".py" or path.name == "py.typed"
    }
    with tempfile.TemporaryDirectory() as folder:
        files[f"longspur/{LIBRARY}"] = _build_library(Path(folder)).read_bytes()
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return _write_wheel(Path(wheel_directory), f"py3-none-{platform}", files)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    files = {"longspur_checkout.pth": f"{ROOT / 'python'}\n".encode()}
    return _write_wheel(Path(wheel_directory), "py3-none-any", files)


def build_sdist(sdist_directory, config_settings=None):
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "PKG-INFO"
        about.write_text(_metadata())
        with tarfile.open(Path(sdist_directory) / f"{STEM}.tar.gz", "w:gz") as archive:
            archive.add(about, f"{STEM}/PKG-INFO")
            for name in filter(None, listed.stdout.split("\0")):
                archive.add(ROOT / name, f"{STEM}/{name}")
    return f"{STEM}.tar.gz"


def _build_library(folder: Path) -> Path:
    # An isolated build hides the environment's packages by means of PYTHONPATH; the torch to build
    # for is the one in the environment.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    own = ROOT / ".venv/bin/cmake"
    cmake = str(own) if own.exists() else shutil.which("cmake")
    if cmake is None:
        raise SystemExit("cmake: not found, expected 3.25 or newer on PATH (pip install cmake)")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SKIP_RPATH": "ON",  # torch is loaded before and brings its libraries
        "LONGSPUR_PROGRAM": "OFF",
        "LONGSPUR_PYTHON": sys.executable,
        "LONGSPUR_TESTS": "OFF",
        "LONGSPUR_WERROR": "OFF",  # of whatever compiler the machine has
    }
    configure = ["-S", ROOT, "-B", folder, *(f"-D{key}={value}" for key, value in options.items())]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    build = ["--build", folder, "--target", "longspur_bindings", "-j", os.cpu_count() or 1]
    for arguments in (configure, build):
        subprocess.run([cmake, *map(str, arguments)], env=environment, check=True)
    return folder / "lib" / LIBRARY


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {PROJECT['name']}",
        f"Version: {PROJECT['version']}",
        f"Summary: {PROJECT['description']}",
        f"Requires-Python: {PROJECT['requires-python']}",
        *(f"Requires-Dist: {dependency}" for dependency in PROJECT["dependencies"]),
        "License: Apache-2.0",
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join(lines) + "\n\n" + (ROOT / PROJECT["readme"]).read_text()


def _write_wheel(directory: Path, tag: str, files: dict[str, bytes]) -> str:
    info = f"{STEM}.dist-info"
    pure = str(tag.endswith("-any")).lower()
    about = f"Wheel-Version: 1.0\nGenerator: longspur\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"
    files = files | {
        f"{info}/METADATA": _metadata().encode(),
        f"{info}/WHEEL": about.encode(),
        f"{info}/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    name = f"{STEM}-{tag}.whl"
    with zipfile.ZipFile(directory / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
    return name


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
