"""The Python package: the wheel that `pip install .` makes, and how the library is found. The CMake
step is not repeated: the wheel gets the library that is built already."""

import os
import subprocess
import sys
import zipfile

import pytest
import torch

USE = """
import longspur, torch
cu = torch.tensor([0, 3], dtype=torch.int32)
q = torch.ones(3, 2, 4)
out, lse = longspur.attention(q, q[:, :1], q[:, :1], cu, cu, 3, 3)
assert torch.allclose(out, q)
print(longspur.library_path())
"""


def run_python(code, cwd, **environment):
    """Runs code with this torch and nothing of the checkout on the path."""
    site = os.path.dirname(os.path.dirname(torch.__file__))
    path = os.pathsep.join([*environment.pop("paths", []), site])
    hidden = {"LONGSPUR_LIBRARY", "PYTHONPATH"}
    inherited = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def wheel(op_library, tmp_path_factory):
    import wheel_backend

    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheel_backend, "_build_library", lambda _: op_library)
        return folder / wheel_backend.build_wheel(folder)


def test_wheel_installs_and_works(wheel, tmp_path):
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", target, wheel], check=True, timeout=120)
    done = run_python(USE, tmp_path, paths=[str(target)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(target / "longspur" / "liblongspur_torch.so")
    assert (target / "longspur" / "py.typed").exists()


def test_wheel_has_what_its_record_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (record,) = [n for n in names if n.endswith(".dist-info/RECORD")]
        recorded = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
        assert sorted(recorded) == sorted(names)
        metadata = archive.read(record.replace("RECORD", "METADATA")).decode()
    assert "Requires-Dist: torch>=2.11" in metadata
    assert "-py3-none-linux_" in wheel.name


def test_editable_wheel_points_to_the_checkout(repo_root, tmp_path):
    import wheel_backend

    with zipfile.ZipFile(tmp_path / wheel_backend.build_editable(tmp_path)) as archive:
        text = archive.read("longspur_checkout.pth").decode().strip()
    assert text == str(repo_root / "python")


def test_named_library(op_library, repo_root, tmp_path):
    paths = [str(repo_root / "python")]
    done = run_python(USE, tmp_path, paths=paths, LONGSPUR_LIBRARY=str(op_library))
    assert done.stdout.strip() == str(op_library), done.stderr
    done = run_python(USE, tmp_path, paths=paths, LONGSPUR_LIBRARY="/nowhere/lib.so")
    assert "ImportError: LONGSPUR_LIBRARY: found /nowhere/lib.so, expected" in done.stderr


def test_a_file_that_is_no_library(repo_root, tmp_path):
    broken = tmp_path / "liblongspur_torch.so"
    broken.write_bytes(b"not a library")
    paths = [str(repo_root / "python")]
    done = run_python(USE, tmp_path, paths=paths, LONGSPUR_LIBRARY=str(broken))
    assert done.returncode == 1
    assert f"ImportError: {broken}: cannot be loaded" in done.stderr
    assert f"found torch {torch.__version__}" in done.stderr
