"""Finds and loads the C++ library that registers ``torch.ops.longspur``."""

import os
from pathlib import Path

import torch

_NAME = "liblongspur_torch.so"


def _candidates() -> list[Path]:
    """Where the library may be, first choice first."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1]
    return [
        package / _NAME,  # an installed package
        checkout / "build" / "release" / "lib" / _NAME,  # a checkout after `make build`
        checkout / "build" / "cuda" / "lib" / _NAME,
    ]


def library_path() -> Path:
    """The library's file: ``$LONGSPUR_LIBRARY`` if set, else inside the package, else in the build
    folder of the checkout that the package is in.

    Raises ImportError when there is none.
    """
    named = os.environ.get("LONGSPUR_LIBRARY")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ImportError(f"LONGSPUR_LIBRARY: found {named}, expected the file {_NAME}")
        return path
    candidates = _candidates()
    for path in candidates:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in candidates)
    raise ImportError(
        f"{_NAME}: found none of {looked}; expected one after `make build` or `pip install .`, "
        "or LONGSPUR_LIBRARY to name it"
    )


def load() -> None:
    """Registers the operations; a second call does nothing."""
    path = library_path()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"{path}: cannot be loaded ({error}); found torch {torch.__version__}, expected the "
            "one it was built with: build it again"
        ) from error
