"""A slide as a stream: tiles are read, run through the network, blended and stored; a stopped slide goes on.

Reading, the network and writing overlap, each with a few batches ahead at most, so that memory does not grow with
the slide but for a few rows of tiles.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from math import ceil

import numpy as np
import torch
import zarr
from torch import nn

from csamnet.config import RunConfig
from csamnet.data import change_to, restained, stain_of, stain_wanted
from csamnet.evaluate import network_inputs, tile_corners, tile_probability, tile_weight
from csamnet.slides import CHUNK, STEPS, Frame, Slide

CELL, PART = 256, 16 * CHUNK  # pixels: a side of what is read at once, columns of what is written at once
READERS, AHEAD = 4, 2  # threads, and batches that each stage may be ahead


class Grid:
    """Tiles over a frame, where `predict_probability` would put them on the same pixels in memory."""

    def __init__(self, frame: Frame, tile: int, overlap: float):
        self.frame, self.tile = frame, tile
        self.rows, self.columns = (tile_corners(max(n, tile), tile, overlap) for n in (frame.height, frame.width))

    def tiles(self, tissue: np.ndarray, coarse: float) -> list[tuple[int, int]]:
        """Corners (y, x) of the tiles that hold tissue, row by row; `tissue` and `coarse` as of `Slide.tissue`."""
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
        return {part: sum(seconds for name, seconds in self if name == part) for part in dict(self)}


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

    @lru_cache(maxsize=(ceil(grid.tile / CELL) + 1) * ceil(frame.width / CELL) + 4 * READERS)
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
    """A model on batches of tiles, normalised by `change` if there is one: see `tile_probability`.

    Where the device runs out of memory, batches are run in halves from then on.
    """

    def __init__(self, model: nn.Module, config: RunConfig, most: int | None = None, change: Sequence = ()):
        self.model, self.config, self.most, self.change = model.eval(), config, most or 1 << 30, change
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Foreground probability (n, tile, tile) float32 of (n, h, w, 3) uint8; small tiles are reflected."""
        try:
            return np.concatenate([self._run(part) for part in torch.from_numpy(pixels).split(self.most)])
        except torch.OutOfMemoryError:
            if (size := min(self.most, len(pixels))) == 1:
                raise
            self.most = size // 2
        return self(pixels)

    def _run(self, pixels: torch.Tensor) -> np.ndarray:
        config, pixels = self.config, pixels.to(self.device)
        both = [pixels, restained(pixels, *self.change)] if self.change else [pixels]
        inputs = network_inputs(both, config.tile, config.tta)
        return tile_probability(self.model, inputs, config.precision, config.tta).cpu().numpy()


def normalising(slide: Slide, model: nn.Module, config: RunConfig, grid: Grid, tiles: Sequence[tuple]) -> Sequence:
    """The `change` of all tiles of a slide that brings its stain to what was learned; empty where none is wanted.

    The slide's stain is that of 64 of its tiles, drawn at random, always the same ones. Raises InputError as
    `stain_wanted`.
    """
    if (wanted := stain_wanted(model, config)) is None or not tiles:
        return ()
    read, drawn = reader(slide, grid), np.random.default_rng(0).permutation(len(tiles))[:64]
    pixels = np.concatenate([read(tiles[number]).reshape(-1, 3) for number in drawn])
    return change_to(stain_of(pixels), wanted, config.normalise)


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
