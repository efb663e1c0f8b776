"""Slides as jobs: each leaves its results in a folder, goes on where it was stopped, and is not done twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import pandas as pd
import torch
import zarr
from torch import nn

from csamnet.burden import (
    CHUNK,
    STEPS,
    Frame,
    Nuclei,
    annotated,
    annotation,
    blocks_of,
    burden,
    inside_outside,
    write_geojson,
    write_mask,
)
from csamnet.config import RunConfig
from csamnet.evaluate import pick_device
from csamnet.files import (
    InputError,
    atomic,
    printable,
    read_json,
    sha256_array,
    sha256_file,
    write_csv,
    write_json,
    write_text,
)
from csamnet.inference import learned_mpp, load, stems, target_of
from csamnet.processes import fresh_processes
from csamnet.results import code_sha256
from csamnet.slides import Slide, find_tissue
from csamnet.stream import Clock, Grid, Network, infer

TILE_BYTES = 1 << 28  # of a GPU's memory that a tile may take
RESULTS = ("probability.zarr", "nuclei.geojson", "mask.ome.tiff", "burden.npy", "burden.csv", "burden.png",
           "report.png", "summary.csv")  # fmt: skip
OURS = {*RESULTS, "progress.json", ".nuclei"}
"""All that is ever removed from a slide's folder, besides files that were being written when a job was stopped."""


class Options(NamedTuple):
    """What a user may ask for; see `csamnet slide --help`."""

    mpp: float | None = None  # of slides that do not say it
    at: float | None = None  # to work at; None: what the weights have learned from
    region: tuple[int, int, int, int] | None = None  # x, y, width, height on level 0
    whole: bool = False
    batch: int | None = None
    workers: int = 1
    threshold: float | None = None
    tta: bool = False  # mean over eight flips and turns; else as the weights' run did


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
    check(options, out)
    weights, rows = _weights_sha256(model), []
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


def check(options: Options, out: Path | str) -> None:
    """Raises InputError for an impossible resolution, and where the results cannot have a folder."""
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
    check(options, out)
    weights, kind = _weights_sha256(load(name_or_path, "cpu")), pick_device(device).type
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
    return row | ((read_summary(path.parent) or {}) if status == "done" else {})


def _status(job: dict, folder: Path) -> str:
    if job["status"] == "done":
        return "done"
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return "stopped"
    except OSError:  # it is locked, or another user's
        return "at work"


def read_job(path: Path) -> dict:
    """A slide's progress.json. Raises InputError where it is not as it was written."""
    try:
        job = read_json(path)
        height = job["settings"]["frame"]["height"]
        known = {"status", "identity", "fingerprint"} <= job.keys()
        sound = known and 0 <= job["rows"] <= height and min(height, job["batch"]) > 0 and job["seconds"] >= 0
        sound &= isinstance(job["rows"], int) and isinstance(job["batch"], int)
    except (InputError, KeyError, TypeError):
        sound = False
    if not sound:
        mend = "remove this file and the results beside it: the slide is then done anew"
        raise InputError("the progress of a slide cannot be read", path=path, mend=mend)
    return job


def read_summary(folder: Path) -> dict | None:
    """The row of a slide's summary.csv; None where there is none, or it is damaged."""
    try:
        row = pd.read_csv(folder / "summary.csv").iloc[0].to_dict()
        float(row["nuclei"]), float(row["tissue_mm2"])
    except (OSError, ValueError, LookupError):
        return None
    return row


def write_overview(out: Path | str) -> None:
    """`overview` as slides.csv beside the folders."""
    with suppress(InputError):  # where no slide was begun
        write_csv(Path(out) / "slides.csv", overview(out))


def run_slide(
    model: nn.Module,
    path: Path,
    folder: Path,
    options: Options,
    *,
    weights: str | None = None,
    clock: Clock | None = None,
    on_tile: Callable[[int, int], None] = lambda done, all_: None,
) -> dict:
    """Probability, nuclei, mask, burden, figures and summary of one slide in `folder`; returns the summary.

    A folder that another process is working on is left alone; one that was stopped goes on where it was; one that
    is finished is not done again, unless the slide, the weights or a setting has changed. Raises InputError where
    the slide or its annotation cannot be read, its resolution is not known, or the folder is of another slide.
    """
    config = getattr(model, "config", RunConfig())
    config = replace(config, tta=options.tta or config.tta)
    config = config if options.threshold is None else replace(config, threshold=options.threshold)
    slide = Slide(path, options.mpp)
    frame = frame_of(slide, learned_mpp(model), options)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=1):  # `overview` takes it for a moment
            job = _begin(model, slide, frame, folder, config, options, weights or _weights_sha256(model))
            if job["status"] == "done":
                return {"status": "already done"} | read_summary(folder)
            clock = Clock() if clock is None else clock
            return {"status": "done"} | _work(model, slide, frame, folder, config, options, job, clock, on_tile)
    except filelock.Timeout:
        if (folder / "progress.json").exists():
            check_identity(read_job(folder / "progress.json"), slide, folder)
        return {"status": "at work elsewhere"}


def check_identity(job: dict, slide: Slide, folder: Path) -> None:
    if job["identity"] != slide.identity:
        expected, found = f"results of {slide.path}", "those of another slide, or of a file that was replaced"
        mend = "choose another --out, or remove the folder"
        raise InputError("a folder is of another slide", path=folder, expected=expected, found=found, mend=mend)


def frame_of(slide: Slide, learned: float | None, options: Options) -> Frame:
    """The frame that is asked for; without `options.at` in the resolution that was `learned`, micrometres a pixel.

    A plain image that does not say its resolution is taken as it is. Raises InputError where the resolution of a
    slide or of the weights is not known, and for a region that is not on the slide.
    """
    if learned is options.at is None and slide.mpp and not slide.plain:
        expected, mend = "the resolution to work at", f"--at {slide.mpp:.3g} works at the slide's own"
        raise InputError("the weights do not say what they have learned", path=slide.path, expected=expected, mend=mend)
    mpp = (None if slide.plain and slide.mpp is None else learned) if options.at is None else options.at
    scale = slide.scale(mpp)
    x, y, width, height = options.region or (0, 0, *slide.size)
    if min(x, y, width - 1, height - 1) < 0 or x + width > slide.size[0] or y + height > slide.size[1]:
        expected = f"x,y,w,h within {slide.size[0]} x {slide.size[1]} pixels"
        raise InputError("the region is not on the slide", path=slide.path, expected=expected, found=options.region)
    size = (max(1, round(n / scale)) for n in (width, height))
    return Frame((x, y), slide.offset, *size, scale, mpp or slide.mpp)


def _weights_sha256(model: nn.Module) -> str:
    hashes = {key: sha256_array(value.cpu().numpy()) for key, value in model.state_dict().items()}
    return _sha256([hashes])


def _begin(
    model: nn.Module, slide: Slide, frame: Frame, folder: Path, config: RunConfig, options: Options, weights: str
) -> dict:
    """The state of a folder's job, from its progress.json where that is of the same job; what is stale is removed.

    Where only what follows the probability is stale, such as the threshold, the probability stays.
    """
    path, file, identity, xml = folder / "progress.json", slide.path.stat(), slide.identity, annotation(slide.path)
    settings = {key: getattr(config, key) for key in ("tile", "overlap", "tta", "precision")}
    settings |= {"whole": options.whole, "frame": asdict(frame), "weights": weights, "bytes": file.st_size}
    settings |= {"code": code_sha256("stream", config.model)}
    if identity == str(slide.path.resolve()):  # else it is a hash of what the slide holds
        settings |= {"changed": file.st_mtime_ns}
    inference = _sha256([identity, settings])
    settings |= {"threshold": config.threshold}
    fingerprint, outlined = _sha256([inference, settings, code_sha256("slide")]), sha256_file(xml) if xml else ""
    job = read_job(path) if path.exists() else {"identity": identity, "fingerprint": None}
    check_identity(job, slide, folder)
    _sweep(folder, kept=path.exists())
    if job["fingerprint"] == fingerprint and (folder / "probability.zarr").exists():
        whole = all((folder / name).exists() for name in RESULTS) and read_summary(folder)
        if job.get("annotation") != outlined or not whole:
            job |= {"status": "begun", "annotation": outlined}
        return job
    kept = {"probability.zarr"} if job.get("inference") == inference else set()
    if not kept:
        batch = options.batch or fitting_batch(next(model.parameters()).device, config.batch)
        job = {"identity": identity, "inference": inference, "batch": batch, "rows": 0, "seconds": 0}
    job |= {"status": "begun", "fingerprint": fingerprint, "annotation": outlined, "settings": settings}
    write_json(path, job | {"inference": None, "fingerprint": None})  # should the removal be stopped
    for name in OURS - kept - {path.name}:
        _remove(folder / name)
    if not (folder / "probability.zarr").exists():
        job["rows"] = 0
        _create(folder, frame)
    write_json(path, job)
    return job


def _sha256(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sweep(folder: Path, *, kept: bool) -> None:
    """Remove what a kill left half-written. Raises InputError for a folder that is not one of ours."""
    temporary = [path for name in OURS for path in folder.glob(f".{Path(name).stem}.*")]
    strange = {path.name for path in folder.iterdir()} - OURS - {".lock"} - {path.name for path in temporary}
    if strange and not kept:
        expected, found = "none of this name, or one that csamnet slide has written", ", ".join(sorted(strange))
        mend = "choose another --out"
        raise InputError("a folder holds other things", path=folder, expected=expected, found=found, mend=mend)
    for path in [*temporary, *folder.glob(".nuclei/.*"), *folder.glob("probability.zarr/**/*.partial")]:
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _create(folder: Path, frame: Frame) -> None:
    """An empty array of probability. `scale_factor` tells readers of NetCDF conventions what a step is."""
    zarr.create_array(
        folder / "probability.zarr",
        shape=(frame.height, frame.width),
        chunks=(CHUNK, CHUNK),
        dtype=np.uint16,
        fill_value=0,
        dimension_names=("y", "x"),
        attributes={"scale_factor": 1 / STEPS, "mpp": frame.mpp, "level_0_pixels": frame.scale,
                    "level_0_corner": frame.on_slide([[0, 0]])[0].tolist()},
    )  # fmt: skip


def fitting_batch(device: torch.device, batch: int) -> int:
    """As many tiles as a GPU's free memory will hold, 64 at most; on a CPU 4, or fewer where the run took fewer."""
    return min(64, max(1, torch.cuda.mem_get_info(device)[0] // TILE_BYTES)) if device.type == "cuda" else min(4, batch)


def _work(
    model: nn.Module,
    slide: Slide,
    frame: Frame,
    folder: Path,
    config: RunConfig,
    options: Options,
    job: dict,
    clock: Clock,
    on_tile: Callable[[int, int], None],
) -> dict:
    """Everything of a job that is not there yet. Its progress is kept after every CHUNK rows."""
    began, before, cut = time.perf_counter(), job["seconds"], round(config.threshold * STEPS)
    cancer = annotated(slide.path)
    grid = Grid(frame, config.tile, config.overlap)
    picture, coarse = slide.thumbnail(), slide.coarseness()
    tissue, coarse = (np.ones((1, 1), bool), max(slide.size)) if options.whole else (find_tissue(picture), coarse)
    tiles = grid.tiles(tissue, coarse)

    def keep(rows: int) -> None:
        job.update(rows=rows, seconds=before + time.perf_counter() - began)
        write_json(folder / "progress.json", job)

    network = Network(model, config.tile, config.precision, config.tta, most=options.batch)
    array = zarr.open_array(folder / "probability.zarr")
    with clock("inference"):
        if job["rows"] < frame.height:
            infer(slide, network, grid, tiles, array, batch=job["batch"], start=job["rows"], clock=clock,
                  on_rows=keep, on_tile=on_tile)  # fmt: skip
    with clock("post-processing"):
        blocks = blocks_of(tiles, grid.tile, frame)
        kind = target_of(model)[0].capitalize()
        find = Nuclei(folder, frame, printable(folder.name), cut, kind)
        if options.workers > 1:
            with fresh_processes(options.workers) as pool:
                deque(pool.map(find, blocks), 0)
        else:
            deque(map(find, blocks), 0)
        count = write_geojson(folder, blocks)
        write_mask(folder, frame, cut)
        fraction, foreground = burden(folder, frame, cut, tissue, coarse)
    summary = _summary(slide, frame, fraction, foreground, count, frame.share_of(tissue, coarse))
    summary |= inside_outside(fraction, frame, cancer) if cancer else {}
    with clock("figures"):
        _draw(slide, frame, folder, picture, tissue, fraction, cancer)
    keep(frame.height)
    summary |= {"seconds": job["seconds"]}
    write_csv(folder / "summary.csv", pd.DataFrame([summary]))
    shutil.rmtree(folder / ".nuclei", ignore_errors=True)
    write_json(folder / "progress.json", job | {"status": "done"})
    return summary


def _summary(slide: Slide, frame: Frame, fraction: np.ndarray, foreground: int, count: int, tissue: float) -> dict:
    """One row on a slide; areas are NaN where the resolution is not known."""
    mm2 = frame.width * frame.height * tissue * (frame.mpp or np.nan) ** 2 / 1e6
    pixels = frame.width * frame.height * tissue
    return {
        "name": slide.path.name,
        "mpp": frame.mpp,
        "tissue_mm2": mm2,
        "nuclei": count,
        "nuclei_per_mm2": count / mm2 if mm2 else np.nan,
        "area_fraction": foreground / pixels if pixels else np.nan,
        "squares": int(np.count_nonzero(~np.isnan(fraction))),
        "burden": float(np.nanmean(fraction)) if not np.isnan(fraction).all() else np.nan,
    }


def _draw(slide: Slide, frame: Frame, folder: Path, picture, tissue, fraction: np.ndarray, cancer: list) -> None:
    """burden.npy, burden.csv and burden.png, and report.png."""
    from csamnet.slide_figures import burden_map, report, save_png

    with atomic(folder / "burden.npy") as temporary:
        np.save(temporary, fraction)
    rows, columns = np.nonzero(~np.isnan(fraction))
    table = pd.DataFrame({"row": rows, "column": columns, "fraction": fraction[rows, columns]})
    corners = frame.on_slide(np.stack([columns, rows], 1) * frame.cell)
    write_csv(folder / "burden.csv", table.assign(x=corners[:, 0], y=corners[:, 1]))
    outlines = [(points - slide.offset - frame.corner) / frame.scale for points in cancer]
    name, coarse = slide.path.name, slide.coarseness()
    save_png(burden_map(fraction, frame, outlines, name), folder / "burden.png")
    save_png(report(picture, coarse, tissue, frame, fraction, outlines, name), folder / "report.png")
