"""What the Python tests share: where the repository, the built binary and the default model are.

`LONGSPUR_BUILD` names the build folder (default build/release). When it is set, a missing binary is
a failure; when it is not, tests that need the binary are skipped, so that single files can be run
by hand in a half-built tree.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL_FILE = "smollm2-135m-instruct-q4_1.gguf"
sys.path.insert(0, str(ROOT / "python"))
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def build_dir() -> Path:
    return Path(os.environ.get("LONGSPUR_BUILD", ROOT / "build/release")).resolve()


@pytest.fixture(scope="session")
def longspur(build_dir: Path) -> Path:
    """The built binary."""
    binary = build_dir / "bin" / "longspur"
    if not binary.exists():
        if "LONGSPUR_BUILD" in os.environ:
            pytest.fail(f"{binary}: not built")
        pytest.skip(f"{binary}: not built")
    return binary


@pytest.fixture(scope="session")
def run_longspur(longspur: Path) -> Callable[..., subprocess.CompletedProcess]:
    """run_longspur("tokenize", "-p", "hi", stdin=b"", timeout=60): bytes in, bytes out."""

    def run(*arguments: object, stdin: bytes = b"", timeout: float = 120, **options):
        command = [str(longspur), *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, timeout=timeout, check=False, **options
        )

    return run


@pytest.fixture(scope="session")
def longspur_json(run_longspur) -> Callable[..., dict]:
    """Runs a verb with --json, expects success, returns the one object on stdout."""

    def run(*arguments: object, **options) -> dict:
        done = run_longspur(*arguments, "--json", **options)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def op_library(build_dir: Path) -> Path:
    """The built op library, registered with torch."""
    library = build_dir / "lib" / "liblongspur_torch.so"
    if not library.exists():
        if "LONGSPUR_BUILD" in os.environ:
            pytest.fail(f"{library}: not built")
        pytest.skip(f"{library}: not built")
    os.environ["LONGSPUR_LIBRARY"] = str(library)
    import longspur.ops  # noqa: F401  # registers the operations

    return library


def _model_candidates() -> list[Path]:
    folders = [ROOT / ".cache/models", ROOT / ".cache", Path.home() / ".cache/longspur/models"]
    if "LONGSPUR_MODELS" in os.environ:
        folders.insert(0, Path(os.environ["LONGSPUR_MODELS"]))
    return [folder / MODEL_FILE for folder in folders]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's GGUF file."""
    for path in _model_candidates():
        if path.exists():
            return path
    pytest.skip(f"{MODEL_FILE}: not found, `make setup` fetches it")
