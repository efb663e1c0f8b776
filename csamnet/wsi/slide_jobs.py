"""Many slides: one after another or shared among devices, and how far all of them are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import filelock
import pandas as pd
import torch
from torch import nn

from csamnet.evaluate import pick_device
from csamnet.files import InputError, printable, write_csv, write_text
from csamnet.inference import load, stems, weights_sha256
from csamnet.processes import fresh_processes
from csamnet.slides import Slide
from csamnet.wsi.slide_run import Options, config_of, read_job, read_row, run_slide


def run_slides(
    model: nn.Module,
    paths: Sequence[Path | str],
    out: Path | str,
    options: Options,
    *,
    on_row: Callable[[dict], None] = lambda row: None,
    on_tile: Callable[[int, int], None] = lambda done, all_: None,
) -> list[dict]:
    """Run slides one after another, each into `out/<stem>/`; a row a slide: slide, folder, status, and its summary.

    A status is done, already done, or at work elsewhere; or for a slide that cannot be used `broken`, with its error.
    """
    check(model, options, out)
    weights, rows = weights_sha256(model), []
    for path, folder in _folders(paths, out).items():
        rows.append(_row(model, path, folder, options, weights, on_tile=on_tile))
        on_row(rows[-1])
    return rows


def _folders(paths: Sequence[Path | str], out: Path | str) -> dict[Path, Path]:
    """Slide -> folder of its results; a slide that is given twice, or as several DICOM files, has one."""
    slides: dict[str, Path] = {}
    for path in map(Path, paths):
        key = str(path.resolve())
        if path.suffix.lower() == ".dcm":
            with suppress(InputError):  # it is reported when its turn comes
                key = Slide(path).identity
        slides.setdefault(key, path)
    return {slide: Path(out) / stem for slide, stem in zip(slides.values(), stems([*slides.values()]), strict=True)}


def check(model: nn.Module, options: Options, out: Path | str) -> None:
    """Raises InputError for settings that no slide can be run with, and where the results cannot have a folder."""
    config_of(model, options)  # or an error
    for key in ("mpp", "at"):
        value = getattr(options, key)
        if value is not None and not 0.02 <= value <= 20:
            raise InputError(f"--{key} cannot be used", expected="0.02 to 20 micrometres a pixel", found=value)
    if Path(out).exists() and not Path(out).is_dir():
        raise InputError("the results need a folder", path=out, found="a file", mend="choose another --out")


def share_slides(
    name_or_path: Path | str,
    paths: Sequence[Path | str],
    out: Path | str,
    options: Options,
    *,
    device: str = "auto",
    devices: int = 2,
    on_row: Callable[[dict], None] = lambda row: None,
    on_slide: Callable[[int, int], None] = lambda done, all_: None,
) -> list[dict]:
    """`run_slides` by as many processes as `devices`, each on one of its own; a process that is free takes a slide.

    Raises InputError where there are not so many devices, and where a process is killed; what was done is kept.
    """
    check(model := load(name_or_path, "cpu"), options, out)
    weights, kind = weights_sha256(model), pick_device(device).type
    if not 1 <= devices <= (most := torch.cuda.device_count() if kind == "cuda" else os.cpu_count()):
        raise InputError("there are not so many devices", expected=f"1 to {most}", found=devices)
    numbers, folders, rows = get_context("spawn").SimpleQueue(), _folders(paths, out), []
    for number in range(devices):
        numbers.put(number)
    threads = max(1, os.cpu_count() // devices)
    try:
        with fresh_processes(devices, _start_worker, name_or_path, kind, threads, numbers) as pool:
            jobs = pool.map(_shared, folders, folders.values(), repeat(options), repeat(weights))
            for done, row in enumerate(jobs, 1):
                rows.append(row)
                on_row(row)
                on_slide(done, len(folders))
    except BrokenProcessPool:
        mend = "the same command goes on where they were; it may need fewer devices or smaller batches"
        raise InputError("a process was killed, maybe for want of memory", path=out, mend=mend) from None
    return rows


def _start_worker(name_or_path: Path | str, kind: str, threads: int, numbers) -> None:
    """Load the network into this process, on the device of its number."""
    global _model
    number = numbers.get()
    if kind == "cuda":
        torch.cuda.set_device(number)
    torch.set_num_threads(threads)
    _model = load(name_or_path, kind)


def _shared(path: Path, folder: Path, options: Options, weights: str) -> dict:
    return _row(_model, path, folder, options, weights)


def _row(model: nn.Module, path: Path, folder: Path, options: Options, weights: str, **hooks) -> dict:
    row, told = {"slide": str(path), "folder": str(folder)}, folder.with_name(f"{folder.name}.error.txt")
    try:
        told.unlink(missing_ok=True)
        return row | run_slide(model, path, folder, options, weights=weights, **hooks)
    except InputError as error:
        text = str(error)
    except (OSError, RuntimeError, MemoryError, ValueError) as error:
        mend = f"for want of memory --batch 1, fewer --workers; if its results are damaged, remove {folder}"
        text = f"{error or 'no memory'}\n  file: {path}\n  mend: {mend}"
    with suppress(OSError):
        write_text(told, printable(text) + "\n")
    return row | {"status": "broken", "error": text}


def overview(out: Path | str) -> pd.DataFrame:
    """A row a slide that was begun in `out`: `folder`, `status`, `done` (share of its rows), `seconds`, its summary.

    A status is done, at work, stopped, broken or unreadable; `error` is that of the last call, where it failed.
    Raises InputError where there is no folder of a slide.
    """
    told = {path.name.removesuffix(".error.txt"): path for path in Path(out).glob("*.error.txt")}
    begun = {path.parent.name: path for path in Path(out).glob("*/progress.json")}
    if not told and not begun:
        raise InputError("no slide was begun here", path=out, expected="folders that csamnet slide has written")
    return pd.DataFrame([_how_far(name, begun.get(name), told.get(name)) for name in sorted({*told, *begun})])


def _how_far(name: str, path: Path | None, told: Path | None) -> dict:
    row = {"folder": name, "status": "broken"}
    row |= {"error": told.read_text(errors="replace").split("\n")[0]} if told else {}
    if path is None:
        return row
    try:
        job = read_job(path)
    except InputError:
        return row | {"status": "unreadable"}
    status = _status(job, path.parent)
    row |= {"status": "broken" if told and status == "stopped" else status, "seconds": job["seconds"]}
    row["done"] = job["rows"] / job["settings"]["frame"]["height"]
    return row | ((read_row(path.parent) or {}) if status == "done" else {})


def _status(job: dict, folder: Path) -> str:
    if job["status"] == "done":
        return "done"
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return "stopped"
    except OSError:  # it is locked, or another user's
        return "at work"


def write_overview(out: Path | str) -> None:
    """`overview` as slides.csv beside the folders."""
    with suppress(InputError):  # where no slide was begun
        write_csv(Path(out) / "slides.csv", overview(out))
