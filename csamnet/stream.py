"""A slide as a stream: tiles are read, run through the network, blended and stored; a stopped slide goes on.

Reading, the network and writing overlap, each with a few batches ahead at most, so that memory does not grow with
the slide but for a few rows of tiles.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import product
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import openslide
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
    blocks_of,
    burden,
    inside_outside,
    write_geojson,
    write_mask,
)
from csamnet.config import RunConfig
from csamnet.data import to_input
from csamnet.datasets import DATASETS
from csamnet.evaluate import autocast, pick_precision, tile_corners, tile_weight
from csamnet.files import InputError, atomic, read_json, sha256_array, write_json
from csamnet.inference import stems
from csamnet.model import extend
from csamnet.slides import Slide

CELL, PART = 256, 16 * CHUNK  # pixels: a side of what is read at once, columns of what is written at once
READERS, AHEAD = 4, 2  # threads, and batches that each stage may be ahead
TILE_BYTES = 1 << 28  # of a GPU's memory that a tile may take


class Grid:
    """Tiles over a frame, where `predict_probability` would put them on the same pixels in memory."""

    def __init__(self, frame: Frame, tile: int, overlap: float):
        self.frame, self.tile = frame, tile
        self.rows, self.columns = (tile_corners(max(n, tile), tile, overlap) for n in (frame.height, frame.width))

    def tiles(self, tissue: np.ndarray | None, coarse: float = 1.0) -> list[tuple[int, int]]:
        """Corners (y, x) of the tiles that hold tissue, of all where it is None, row by row."""
        if tissue is None:
            return list(product(self.rows, self.columns))
        ends = ([at + self.tile for at in axis] for axis in (self.rows, self.columns))
        held = self.frame.tissue_in((self.rows, next(ends), self.columns, next(ends)), tissue, coarse)
        return [(self.rows[i], self.columns[j]) for i, j in np.argwhere(held > 0)]


class Clock(list):
    """Seconds that each part of the work was busy; threads may share it."""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.append((part, time.perf_counter() - started))

    def totals(self) -> dict[str, float]:
        parts: Counter = Counter()
        for part, seconds in self:
            parts[part] += seconds
        return dict(parts)


def ahead(function: Callable, items: Iterable, pool: Executor, most: int) -> Iterator:
    """`function` of each item, in order, computed by a pool; at most `most` are begun and not yet taken."""
    begun: deque = deque()
    for item in items:
        if len(begun) >= most:
            yield begun.popleft().result()
        begun.append(pool.submit(function, item))
    while begun:
        yield begun.popleft().result()


def reader(slide: Slide, grid: Grid) -> Callable[[tuple[int, int]], np.ndarray]:
    """Reads the pixels of a tile (h, w, 3) uint8, less where the frame ends; each part of a slide is decoded once."""
    frame = grid.frame

    @lru_cache(maxsize=2 * ceil(frame.width / CELL) + 4 * READERS)
    def cell(row: int, column: int) -> np.ndarray:
        y, x = row * CELL, column * CELL
        at = frame.corner[0] + x * frame.scale, frame.corner[1] + y * frame.scale
        return slide.read(*at, min(CELL, frame.width - x), min(CELL, frame.height - y), frame.mpp)

    def read(corner: tuple[int, int]) -> np.ndarray:
        y, x = corner
        bottom, right = min(y + grid.tile, frame.height), min(x + grid.tile, frame.width)
        pixels = np.empty((bottom - y, right - x, 3), np.uint8)
        for row, column in product(range(y // CELL, -(-bottom // CELL)), range(x // CELL, -(-right // CELL))):
            part, top, left = cell(row, column), row * CELL, column * CELL
            inner = part[max(y - top, 0) : bottom - top, max(x - left, 0) : right - left]
            a, b = max(top - y, 0), max(left - x, 0)
            pixels[a : a + inner.shape[0], b : b + inner.shape[1]] = inner
        return pixels

    return read


class Network:
    """A model on batches of tiles; where the device runs out of memory, batches are run in halves from then on."""

    def __init__(self, model: nn.Module, tile: int, precision: str):
        self.model, self.tile, self.precision, self.most = model.eval(), tile, precision, 1 << 30
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Foreground probability (n, tile, tile) float32 of (n, h, w, 3) uint8; small tiles are reflected."""
        try:
            parts = torch.from_numpy(pixels).split(self.most)
            return np.concatenate([self._run(part) for part in parts])
        except torch.OutOfMemoryError:
            if (size := min(self.most, len(pixels))) == 1:
                raise
            self.most = size // 2
        return self(pixels)

    def _run(self, pixels: torch.Tensor) -> np.ndarray:
        x = extend(to_input(pixels.to(self.device)).permute(0, 3, 1, 2), self.tile, self.tile)
        with autocast(self.precision, self.device):
            logits = self.model(x.contiguous(memory_format=torch.channels_last)).float()
        return torch.sigmoid(logits[:, 1] - logits[:, 0]).cpu().numpy()


def stitch(grid: Grid, done: Iterable[tuple[tuple[int, int], np.ndarray]], first: int = 0) -> Iterator[np.ndarray]:
    """Blended probability (n, width) float32, stretch by stretch from row `grid.rows[first]` down.

    `done`: tiles in order, corner and probability. A tile that is not there counts as zeros.
    """
    tile, rows, frame = grid.tile, grid.rows, grid.frame
    weight = tile_weight(tile, torch.device("cpu")).numpy()
    line = np.zeros((tile, max(frame.width, tile)), np.float32)  # sum of the weights of one row of tiles
    for x in grid.columns:
        line[:, x : x + tile] += weight
    total, used, tiles = np.zeros_like(line), 0, iter(done)
    corner, probability = next(tiles, (None, None))
    for i, top in enumerate(rows[first:], first):
        while corner and corner[0] == top:
            total[:, corner[1] : corner[1] + tile] += weight * probability
            used = top + tile
            corner, probability = next(tiles, (None, None))
        count = (rows[i + 1] if i + 1 < len(rows) else frame.height) - top
        out = np.zeros((count, frame.width), np.float32)
        if used > top:
            norm = np.zeros_like(total[:count])
            for above in (top - y for y in rows[: i + 1] if y + tile > top):
                met = line[above : above + count]
                norm[: len(met)] += met
            out = (total[:count] / norm)[:, : frame.width]
            total[:-count] = total[count:]
            total[-count:] = 0
        yield out


def stored_rows(
    stretches: Iterable[np.ndarray], top: int, start: int, shape: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Stretches that begin at row `top` as (y, CHUNK rows of uint16 as they are stored), from row `start` on."""
    y, filled, values = start, 0, np.zeros((min(CHUNK, shape[0] - start), shape[1]), np.uint16)
    for stretch in stretches:
        rows, top = stretch[max(y + filled - top, 0) :], top + len(stretch)
        while len(rows):
            part, rows = np.split(rows, [len(values) - filled])
            if part.any():
                values[filled : filled + len(part)] = np.rint(part * STEPS)
            filled += len(part)
            if filled == len(values):
                yield y, values
                y, filled = y + filled, 0
                values = np.zeros((min(CHUNK, shape[0] - y), shape[1]), np.uint16)


def infer(
    slide: Slide,
    network: Callable[[np.ndarray], np.ndarray],
    grid: Grid,
    tiles: Sequence[tuple[int, int]],
    array: zarr.Array,
    *,
    batch: int,
    start: int = 0,
    clock: Clock,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_tile: Callable[[int, int], None] = lambda done, all_: None,
) -> None:
    """Fill `array` with the probability of a slide from row `start` on; `on_rows` hears how many rows are there.

    Batches are the same wherever it begins, and so are the values.
    """
    read = reader(slide, grid)
    late = next((i for i, (y, _) in enumerate(tiles) if y + grid.tile > start), len(tiles)) // batch * batch
    groups = [tiles[i : i + batch] for i in range(late, len(tiles), batch)]
    first = min(i for i, y in enumerate(grid.rows) if y + grid.tile > start)
    first = min(first, grid.rows.index(groups[0][0][0])) if groups else first

    def load(group):
        with clock("reading"):
            return group, np.stack([read(corner) for corner in group])

    def run(loaded):
        with clock("network"):
            return loaded[0], network(loaded[1])

    def store(piece):
        y, values = piece
        with clock("writing"):
            for x in range(0, values.shape[1], PART):  # all at once, zarr would hold three times as much
                if (part := values[:, x : x + PART]).any():
                    array[y : y + len(values), x : x + PART] = part
            on_rows(y + len(values))

    def singly(results):
        for number, (group, probabilities) in enumerate(results):
            with clock("stitching"):  # while others wait for the next tile
                yield from zip(group, probabilities, strict=True)
            on_tile(late + number * batch + len(group), len(tiles))

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as runner, ThreadPoolExecutor(1) as writer:
        loaded = ahead(load, groups, readers, READERS + AHEAD)
        results = ahead(run, loaded, runner, AHEAD)
        pieces = stored_rows(stitch(grid, singly(results), first), grid.rows[first], start, array.shape)
        for _ in ahead(store, pieces, writer, 1):
            pass


# ----------------------------------------------------------------------------------------- whole slides


class Options(NamedTuple):
    """What a user may ask for; see `csamnet slide --help`."""

    mpp: float | None = None  # of slides that do not say it
    at: float | None = None  # to work at; None: what the weights have learned from
    region: tuple[int, int, int, int] | None = None  # x, y, width, height on level 0
    whole: bool = False
    batch: int | None = None
    workers: int = 1
    threshold: float | None = None
    min_area: int = 30


def run_slides(model: nn.Module, paths: Sequence[Path | str], out: Path | str, options: Options, **hooks) -> list[dict]:
    """Run slides one after another, each into `out/<stem>/`; a row a slide: slide, folder, status, and its summary.

    A status is done, already done, or at work elsewhere; or for a slide that cannot be used `broken`, with its error.
    """
    rows, weights = [], _weights_sha256(model)
    for path, stem in zip(map(Path, paths), stems(paths), strict=True):
        row = {"slide": str(path), "folder": str(Path(out) / stem)}
        try:
            rows.append(row | run_slide(model, path, Path(out) / stem, options, weights=weights, **hooks))
        except InputError as error:
            rows.append(row | {"status": "broken", "error": str(error)})
    return rows


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
    config = config if options.threshold is None else replace(config, threshold=options.threshold)
    slide = Slide(path, options.mpp)
    frame = frame_of(slide, config, options)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            job = _begin(model, slide, frame, folder, config, options, weights or _weights_sha256(model))
            if job["status"] != "done":
                return {"status": "done"} | _work(
                    model, slide, frame, folder, config, options, job, Clock() if clock is None else clock, on_tile
                )
            return {"status": "already done"} | pd.read_csv(folder / "summary.csv").iloc[0].to_dict()
    except filelock.Timeout:
        return {"status": "at work elsewhere"}


def frame_of(slide: Slide, config: RunConfig, options: Options) -> Frame:
    """The frame that is asked for. A plain image that does not say its resolution is taken as it is.

    Raises InputError where the resolution of a slide is not known, and for a region that is not on the slide.
    """
    learned = DATASETS[config.dataset].mpp if config.dataset in DATASETS else None
    plain = openslide.OpenSlide.detect_format(slide.path) is None
    mpp = options.at or (None if plain and slide.mpp is None else learned)
    scale = slide.scale(mpp)
    x, y, width, height = options.region or (0, 0, *slide.size)
    if min(x, y, width - 1, height - 1) < 0 or x + width > slide.size[0] or y + height > slide.size[1]:
        expected = f"x,y,w,h within {slide.size[0]} x {slide.size[1]} pixels"
        raise InputError("the region is not on the slide", path=slide.path, expected=expected, found=options.region)
    size = (max(1, round(n / scale)) for n in (width, height))
    return Frame((x, y), slide.offset, *size, scale, mpp or slide.mpp)


def _weights_sha256(model: nn.Module) -> str:
    hashes = {key: sha256_array(value.cpu().numpy()) for key, value in model.state_dict().items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _begin(
    model: nn.Module, slide: Slide, frame: Frame, folder: Path, config: RunConfig, options: Options, weights: str
) -> dict:
    """The state of a folder's job, from its progress.json where that is of the same job; what is stale is removed."""
    device, path, file = next(model.parameters()).device, folder / "progress.json", slide.path.stat()
    keys = ("tile", "overlap", "threshold")
    settings = {key: getattr(config, key) for key in keys} | {"precision": pick_precision(config.precision, device)}
    settings |= {"whole": options.whole, "min_area": options.min_area, "frame": asdict(frame), "weights": weights}
    settings |= {"bytes": file.st_size, "changed": file.st_mtime_ns}
    identity = slide.identity
    fingerprint = hashlib.sha256(json.dumps([identity, settings], sort_keys=True).encode()).hexdigest()
    job = read_json(path) if path.exists() else {"identity": identity, "fingerprint": None}
    if job["identity"] != identity:
        raise InputError("a folder is of another slide", path=folder, mend="choose another --out")
    for rest in [*folder.glob(".*"), *folder.glob(".nuclei/.*"), *folder.glob("probability.zarr/**/*.partial")]:
        if rest.name not in (".lock", ".nuclei"):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    if job["fingerprint"] == fingerprint:
        return job
    for rest in folder.iterdir():
        if rest.name != ".lock":
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    _create(folder, frame)
    batch = options.batch or fitting_batch(device, config.batch)
    job = {"status": "begun", "identity": identity, "fingerprint": fingerprint, "batch": batch, "rows": 0, "seconds": 0}
    write_json(path, job | {"settings": settings})
    return read_json(path)


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
    grid = Grid(frame, config.tile, config.overlap)
    tissue, coarse = (np.ones((1, 1), bool), max(slide.size)) if options.whole else slide.tissue()
    tiles = grid.tiles(tissue, coarse)

    def keep(rows: int) -> None:
        job.update(rows=rows, seconds=before + time.perf_counter() - began)
        write_json(folder / "progress.json", job)

    network, array = Network(model, config.tile, config.precision), zarr.open_array(folder / "probability.zarr")
    with clock("inference"):
        if job["rows"] < frame.height:
            infer(slide, network, grid, tiles, array, batch=job["batch"], start=job["rows"], clock=clock,
                  on_rows=keep, on_tile=on_tile)  # fmt: skip
    with clock("post-processing"):
        blocks = blocks_of(tiles, grid.tile, frame)
        find = Nuclei(folder, frame, folder.name, cut, options.min_area)
        if options.workers > 1:
            with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
                deque(pool.map(find, blocks), 0)
        else:
            deque(map(find, blocks), 0)
        count = write_geojson(folder, blocks)
        write_mask(folder, frame, cut)
        fraction, foreground = burden(folder, frame, cut, tissue, coarse)
    summary = _summary(slide, frame, fraction, foreground, count, frame.share_of(tissue, coarse))
    cancer = annotated(xml) if (xml := slide.path.with_suffix(".xml")).exists() else []
    summary |= inside_outside(fraction, frame, cancer) if cancer else {}
    with clock("figures"):
        _draw(slide, frame, folder, tissue, fraction, cancer)
    keep(frame.height)
    summary |= {"seconds": job["seconds"]}
    with atomic(folder / "summary.csv") as temporary:
        pd.DataFrame([summary]).to_csv(temporary, index=False, float_format="%.6g")
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
        "cells": int(np.count_nonzero(~np.isnan(fraction))),
        "burden": float(np.nanmean(fraction)) if not np.isnan(fraction).all() else np.nan,
    }


def _draw(slide: Slide, frame: Frame, folder: Path, tissue: np.ndarray, fraction: np.ndarray, cancer: list) -> None:
    """burden.npy, burden.csv and burden.png, and report.png."""
    from csamnet.slide_figures import burden_map, report, save_png

    with atomic(folder / "burden.npy") as temporary:
        np.save(temporary, fraction)
    rows, columns = np.nonzero(~np.isnan(fraction))
    table = pd.DataFrame({"row": rows, "column": columns, "fraction": fraction[rows, columns]})
    corners = frame.on_slide(np.stack([columns, rows], 1) * frame.cell)
    with atomic(folder / "burden.csv") as temporary:
        table.assign(x=corners[:, 0], y=corners[:, 1]).to_csv(temporary, index=False, float_format="%.6g")
    outlines = [(points - slide.offset - frame.corner) / frame.scale for points in cancer]
    picture, coarse = slide.thumbnail(), slide.coarseness()
    save_png(burden_map(fraction, frame, outlines, slide.path.name), folder / "burden.png")
    save_png(report(picture, coarse, tissue, frame, fraction, outlines, slide.path.name), folder / "report.png")
