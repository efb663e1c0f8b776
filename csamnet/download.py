"""The files of a release from their host, whole or absent."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from csamnet import __version__
from csamnet.datasets import File, get_dataset
from csamnet.files import InputError

WAITS = (0, 1, 3, 6)
"""Seconds before each try of a connection that fails or drops."""

Tick = Callable[[int, int | None], None]
Progress = Callable[[str], AbstractContextManager[Tick]]


def _silent(label: str) -> AbstractContextManager[Tick]:
    return nullcontext(lambda done, total: None)


def download(name: str, out: Path | str, *, progress: Progress = _silent) -> Path:
    """Fetch the files of a data set into `out`/NAME, check them, and return that folder.

    A file that is there with its checksum stays; of one that was stopped only the rest is fetched, where the host
    can send a part. `progress(file name)` is a context manager that yields `tick(done, total)`, in bytes; `total`
    is None where the host does not say. Raises InputError where no host serves plain files (see `steps`), without
    a connection, for a refused file, for a wrong checksum and for a full disk.
    """
    dataset = get_dataset(name)
    if not dataset.download:
        raise InputError(f"no host serves {dataset.name} as plain files", mend=dataset.how_to_get)
    for file in dataset.download:
        with progress(file.name) as tick:
            path = _retrieve(file, Path(out, dataset.name), tick)
            tick(path.stat().st_size, path.stat().st_size)
    return Path(out, dataset.name)


def _retrieve(file: File, folder: Path, tick: Tick) -> Path:
    """The file's place; it is fetched unless it is there."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    part = folder / f"{file.name}.part"
    fetch = partial(_fetch, part=part, tick=tick)
    try:
        return Path(pooch.retrieve(file.url, file.checksum, file.name, folder, downloader=fetch))
    except InputError:
        raise
    except ValueError as error:  # pooch says what was expected and found, and has removed the file
        mend = "start again; if it stays so, the host has changed the file"
        raise InputError("a file with a wrong checksum", path=file.url, found=error, mend=mend) from None
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else "a file cannot be written"
        mend = "mend that and start again: what has come is kept"
        raise InputError(what, path=error.filename or part, found=error.strerror or error, mend=mend) from error


def _fetch(url: str, target: str, _: object, *, part: Path, tick: Tick) -> None:
    """A downloader for pooch that goes on where it was, now and in the next call: in `part`, then moved."""
    import requests

    for wait in WAITS:
        time.sleep(wait)
        try:
            _append(url, part, tick)
        except requests.RequestException as error:
            found = error
        else:
            os.replace(part, target)
            return
    mend = "look at the network and start again: what has come is kept"
    raise InputError("a file cannot be fetched", path=url, found=found, mend=mend)


def _append(url: str, part: Path, tick: Tick) -> None:
    """Add to `part` what it lacks of the file, or where the host sends no parts, write it anew."""
    import requests

    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"csamnet/{__version__}", "Accept-Encoding": "identity"}  # Zenodo refuses requests' own
    headers |= {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        status, said = response.status_code, f"HTTP {response.status_code} {response.reason}"
        follows = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if status == 416 or (status == 206 and not follows):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError(f"{said}: not the rest of what was here")
        if status == 429 or status >= 500:
            raise requests.ConnectionError(said)
        if status not in (200, 206):  # 202 among them: figshare's puzzle for browsers
            mend = f"fetch it with a browser as {part.with_suffix('')}, and start again"
            raise InputError("the host does not serve a file", path=url, expected="HTTP 200", found=said, mend=mend)
        done = done if follows else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with open(part, "ab" if follows else "wb") as stream:
            for block in response.iter_content(2**16):
                stream.write(block)
                done += len(block)
                tick(done, total)


def steps(name: str) -> str:
    """What a person has to do to get a data set, in lines."""
    entry = get_dataset(name)
    rows = {
        "how to get it": entry.how_to_get,
        "source": entry.source,
        "DOI": ", ".join(f"https://doi.org/{doi}" for doi in entry.doi),
        "licence": entry.licence,
        "then": f"csamnet prepare {entry.name} --from FOLDER",
    }
    head = f"{entry.title or entry.name} ({entry.modality}, {entry.organ})"
    return "\n".join([head, *(f"  {what}: {text}" for what, text in rows.items() if text)])
