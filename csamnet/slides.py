"""Whole slides, and plain images as if they were slides: regions at any resolution, thumbnails, tissue, frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor
from pathlib import Path

import numpy as np
import openslide
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_array
from skimage.filters import threshold_otsu

from csamnet.files import InputError
from csamnet.images import IMAGE_SUFFIXES, read_image

STEPS = 10_000
"""Probability is stored in whole steps, uint16: within 5e-5 of what the network said, and glass takes no room."""
CHUNK = 512  # pixels a side of what is stored at once, and of a tile of the mask
_AT_ONCE = 1 << 22  # pixels of a level that are held in memory, more are read in parts
_BLOCK = 512  # see `_stretches`
CELL_UM, CELL_PIXELS = 100, 400  # side of a cell of the burden, in pixels where the resolution is not known


class Slide:
    """A slide in any format that OpenSlide reads, or a plain image, which is held in memory and has no resolution.

    `mpp`: micrometres per pixel of level 0, from the slide (unless beyond 0.02 to 20, as from 72 dpi), else as
    given, else None. `size` (width, height) and `offset` (x, y): the scanned area in pixels of level 0, smaller
    than the level where the file gives bounds. Threads may share a slide. Raises InputError for a file that
    cannot be read, on opening or on reading.
    """

    def __init__(self, path: Path | str, mpp: float | None = None):
        self.path, self.mpp, self.offset = Path(path), mpp, (0, 0)
        self._slide, self._plain, self._downsamples = None, None, (1.0,)
        try:
            if openslide.OpenSlide.detect_format(self.path) or self.path.suffix.lower() not in IMAGE_SUFFIXES:
                self._slide = openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError) as error:
            raise self._broken(error) from error
        if self._slide is None:
            self._plain = Image.fromarray(read_image(self.path))
            self.size = self._plain.size
        else:
            about, full = self._slide.properties, self._slide.dimensions
            self._downsamples = self._slide.level_downsamples
            self.offset = tuple(int(about.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
            sides = zip(("width", "height"), full, self.offset, strict=True)
            self.size = tuple(int(about.get(f"openslide.bounds-{key}", n - start)) for key, n, start in sides)
            said = np.mean([float(about.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy"])
            self.mpp = float(said) if 0.02 <= said <= 20 else mpp

    @property
    def plain(self) -> bool:
        return self._slide is None

    @property
    def identity(self) -> str:
        """The same for all files of one slide, such as those of a DICOM series."""
        about = self._slide.properties if self._slide else {}
        return about.get("openslide.quickhash-1", str(self.path.resolve()))

    def scale(self, mpp: float | None) -> float:
        """Pixels of level 0 per pixel at `mpp` (None: 1). Raises InputError where the resolution is not known."""
        if mpp is not None and self.mpp is None:
            expected, mend = "micrometres per pixel (mpp)", "give it: --mpp 0.25 for 40x, --mpp 0.5 for 20x"
            raise InputError("a slide does not say its resolution", path=self.path, expected=expected, mend=mend)
        return 1.0 if mpp is None else mpp / self.mpp

    def read(self, x: float, y: float, width: int, height: int, mpp: float | None = None) -> np.ndarray:
        """(height, width, 3) uint8 at `mpp` (None: that of level 0), the corner at (x, y) of the scanned area.

        x and y are in pixels of level 0, width and height in those of the result. It is the mean over each pixel's
        area, from the coarsest level that is at least as fine, or cubic where none is; white beyond the border and
        where nothing was scanned. A pixel is the same (cubic: but for rounding) in every region that holds it.
        """
        return self._sample(x, y, width, height, self.scale(mpp))

    def thumbnail(self, longest: int = 1024) -> np.ndarray:
        """The slide as (h, w, 3) uint8, at most `longest` pixels a side."""
        scale = self.coarseness(longest)
        return self._sample(0, 0, *(max(1, round(n / scale)) for n in self.size), scale)

    def coarseness(self, longest: int = 1024) -> float:
        """How many pixels of level 0 are one of such a thumbnail."""
        return max(1.0, max(self.size) / longest)

    def tissue(self, longest: int = 1024) -> tuple[np.ndarray, float]:
        """Tissue on a thumbnail, (h, w) bool, and its coarseness."""
        return find_tissue(self.thumbnail(longest)), self.coarseness(longest)

    def _sample(self, x: float, y: float, width: int, height: int, scale: float) -> np.ndarray:
        """`read` with `scale` pixels of level 0 to one."""
        level = max(i for i, down in enumerate(self._downsamples) if i == 0 or down <= 1.01 * scale)
        step, at = scale / self._downsamples[level], np.array([x, y]) / self._downsamples[level]
        if width * height * step**2 > _AT_ONCE and max(width, height) > 1:
            return self._halves(x, y, width, height, scale)
        edge = 2 if step < 0.99 else 0  # of the cubic kernel
        left, top = (floor(start) - edge for start in at)
        span = (ceil(n * step) + 2 + 2 * edge for n in (width, height))
        image = self._level(level, left, top, *span)
        u, v = at - [left, top]
        if edge:
            box = (u, v, u + width * step, v + height * step)
            return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box))
        if step == 1 and (u, v) == (0, 0):
            return np.array(image)[:height, :width]
        rows = _means(np.asarray(image, np.float32), v, step, height)
        means = _means(rows.swapaxes(0, 1), u, step, width).swapaxes(0, 1)
        return np.ascontiguousarray(means + 0.5005, np.uint8)  # what rounding leaves of a half is a half

    def _halves(self, x: float, y: float, width: int, height: int, scale: float) -> np.ndarray:
        if width > height:
            half = width // 2
            parts = (x, y, half, height), (x + half * scale, y, width - half, height)
        else:
            half = height // 2
            parts = (x, y, width, half), (x, y + half * scale, width, height - half)
        return np.concatenate([self._sample(*part, scale) for part in parts], axis=int(width > height))

    def _level(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """A region in pixels of its level, on white."""
        canvas = Image.new("RGB", (width, height), "white")
        if self._slide is None:
            canvas.paste(self._plain, (-left, -top))
            return canvas
        down = self._downsamples[level]
        columns, rows = (
            _stretches(start, count, round(side / down), down == round(down))
            for start, count, side in zip((left, top), (width, height), self.size, strict=True)
        )
        for (row, bottom), (column, right) in product(rows, columns):
            corner = self.offset[0] + round(column * down), self.offset[1] + round(row * down)
            try:
                part = self._slide.read_region(corner, level, (right - column, bottom - row))
            except openslide.OpenSlideError as error:
                raise self._broken(error) from error
            canvas.paste(part, (column - left, row - top), part)
        return canvas

    def _broken(self, error: Exception) -> InputError:
        found = error if self.path.is_file() else "a folder" if self.path.is_dir() else "nothing"
        expected, mend = "a slide that OpenSlide reads, or a plain image", "copy or fetch it again"
        return InputError("a slide cannot be read", path=self.path, expected=expected, found=found, mend=mend)


def _stretches(start: int, count: int, length: int, at_once: bool) -> list[tuple[int, int]]:
    """From where to where a side of a level is read to have `count` pixels from `start` on.

    Where a pixel of the level is no whole number of pixels of level 0, OpenSlide interpolates, and differently
    for every corner. So `at_once` is False there, and parts begin at multiples of a fixed number.
    """
    low, stop = max(start, 0), min(start + count, length)
    first, step = (low, max(stop - low, 1)) if at_once else (low - low % _BLOCK, _BLOCK)
    return [(at, min(at + step, stop)) for at in range(first, stop, step)]


def _means(pixels: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """Means along the first axis over `count` stretches of `step` pixels from `start` on, float32."""
    edges = start + step * np.arange(count + 1)
    low, high = edges[:-1, None], edges[1:, None]
    met = np.floor(low) + np.arange(ceil(step) + 1)
    share = np.clip(np.minimum(met + 1, high) - np.maximum(met, low), 0, None) / step
    met = np.minimum(met, len(pixels) - 1).astype(int)  # beyond the last pixel the share is 0
    rows = np.arange(0, met.size + 1, met.shape[1])
    weights = csr_array((share.ravel().astype(np.float32), met.ravel(), rows), (count, len(pixels)))
    return (weights @ pixels.reshape(len(pixels), -1)).reshape(count, *pixels.shape[1:])


def find_tissue(image: np.ndarray) -> np.ndarray:
    """Where a thumbnail (h, w, 3) uint8 shows tissue, (h, w) bool.

    Tissue is coloured: the spread of its channels, each relative to the glass, is above Otsu's threshold, kept
    within 0.04 and 0.08. Black borders, black ink and dust have no colour; other ink has more than a stain: it is
    saturated by more than half and no redder than green, or by more than 0.7 and as blue as it is green. What is
    smaller than 0.01 % of the thumbnail is dropped.
    """
    blurred = ndimage.gaussian_filter(image.astype(np.float32), (*[max(image.shape[:2]) / 600] * 2, 0))
    glass = np.maximum(np.percentile(blurred, 99, axis=(0, 1)), 220)  # there may be none
    red, green, blue = channels = np.moveaxis(np.clip(blurred / glass, 0, 1), -1, 0)
    spread = np.ptp(channels, axis=0)
    saturation = spread / np.maximum(channels.max(0), 0.01)
    cold, warm = (saturation > 0.5) & (red <= green), (saturation > 0.7) & (blue - green < 0.15 * (red - green))
    ink = ndimage.binary_dilation(ndimage.binary_opening(cold | warm), iterations=4)
    found = ndimage.binary_opening((spread > np.clip(threshold_otsu(spread), 0.04, 0.08)) & ~ink)
    parts, count = ndimage.label(found)
    large = np.bincount(parts.ravel(), minlength=count + 1) > found.size * 1e-4
    return found & large[parts]


@dataclass(frozen=True)
class Frame:
    """The part of a slide that is looked at, and how finely."""

    corner: tuple[float, float]  # (x, y) in pixels of level 0, from the corner of the scanned area
    offset: tuple[int, int]  # of the scanned area on level 0
    width: int  # pixels at the resolution of the network
    height: int
    scale: float  # pixels of level 0 to one of these
    mpp: float | None  # um to one of these

    @property
    def cell(self) -> float:
        """Pixels a side of a cell of the burden."""
        return CELL_UM / self.mpp if self.mpp else CELL_PIXELS

    def on_slide(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) x, y in pixels of the frame as x, y of the slide's level 0."""
        return np.asarray(points) * self.scale + self.corner + self.offset

    def tissue_in(self, boxes: tuple[Sequence, Sequence, Sequence, Sequence], tissue: np.ndarray, coarse: float):
        """Share of tissue in boxes (tops, bottoms, lefts, rights), pixels of the frame; (tops, lefts) float.

        `tissue` and `coarse` are those of `Slide.tissue`; its pixels that a box meets count whole.
        """
        ends = []
        for axis, (low, high) in ((1, boxes[:2]), (0, boxes[2:])):
            low, high = ((np.asarray(at) * self.scale + self.corner[axis]) / coarse for at in (low, high))
            most = tissue.shape[1 - axis]
            low = np.clip(np.floor(low + 1e-6), 0, most - 1).astype(int)
            ends += [low, np.maximum(np.clip(np.ceil(high - 1e-6), 1, most).astype(int), low + 1)]
        top, bottom, left, right = ends
        sums = np.pad(tissue.cumsum(0, int).cumsum(1), ((1, 0), (1, 0)))
        held = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
        return held / ((bottom - top)[:, None] * (right - left))

    def share_of(self, tissue: np.ndarray, coarse: float) -> float:
        """Share of the frame that is tissue."""
        return float(self.tissue_in(([0], [self.height], [0], [self.width]), tissue, coarse)[0, 0])
