"""Errors that help, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, and how to mend it.

    The command line prints it and exits with code 2.
    """

    def __init__(self, what: str, *, path=None, expected=None, found=None, mend=None):
        rows = [("file", path), ("expected", expected), ("found", found), ("mend", mend)]
        super().__init__("\n".join([what, *(f"  {key}: {value}" for key, value in rows if value is not None)]))


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` on success, remove it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` on success and is removed on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        yield new
        if folder.exists():
            os.replace(folder, Path(temporary, "old"))
        os.replace(new, folder)


def write_text(path: Path | str, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path | str, table) -> None:
    """A `pandas.DataFrame` without its index, to six digits."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def write_json(path: Path | str, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict:
    """The object in a JSON file. Raises InputError where it is missing, malformed or no object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError("a file is missing", path=path) from None
    except (ValueError, RecursionError) as error:
        raise InputError("not valid JSON", path=path, found=str(error)) from None
    if not isinstance(content, dict):
        raise InputError("not a JSON object", path=path, found=type(content).__name__)
    return content


def printable(name: str) -> str:
    """A file name that is no valid UTF-8 as one that can be written down."""
    return os.fsencode(name).decode(errors="replace")


def sha256_file(path: Path | str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(parts: dict | list) -> str:
    """Hash of what can be written as JSON, whatever the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hash of an array's shape, type and values."""
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
