"""What a slide's probability says, in memory that does not grow with the slide: nuclei, mask, tumour burden."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import shapely
import tifffile
import zarr
from scipy import ndimage

from csamnet.files import InputError, atomic, printable, write_text
from csamnet.instances import detection, instances_from_probability, outlines
from csamnet.metrics import roc_auc, score_histogram
from csamnet.readers.common import is_drawable, read_outlines
from csamnet.readers.slides import read_regions
from csamnet.slides import CHUNK, STEPS, Frame

BLOCK, MARGIN = 1024, 128  # pixels: nuclei are looked for in blocks, with a margin around each
FARTHEST = 512  # pixels: the margin where nuclei of the block hang together with what lies beyond the first margin


# -------------------------------------------------------------------------------------------- nuclei


@dataclass(frozen=True)
class Nuclei:
    """Finds the nuclei of a stored probability, block by block; can be sent to other processes."""

    folder: Path  # with probability.zarr; found nuclei are kept in .nuclei/ until all are
    frame: Frame
    name: str  # of the slide
    cut: int  # the stored value from which a pixel is foreground
    kind: str = "Nucleus"  # the class of the detections

    def __call__(self, block: tuple[int, int]) -> None:
        """Keep the nuclei of a block (row, column) as a file with a GeoJSON feature a line, unless it is there."""
        path = self.folder / ".nuclei" / f"{block[0]}-{block[1]}.json"
        if not path.exists():
            write_text(path, "".join(f"{feature}\n" for feature in self.features(block)))

    def features(self, block: tuple[int, int]) -> Iterator[str]:
        """A nucleus is of the block that holds the first of its pixels, row by row."""
        labels, values, corner = self.labelled(block)
        size, total = np.bincount(labels.ravel()), np.bincount(labels.ravel(), values.ravel())
        first = _first_pixels(labels)
        for label, polygon in outlines(labels):
            y, x = divmod(int(first[label]), labels.shape[1])
            measured = {"area_px": int(size[label])}
            measured |= {"area_um2": round(size[label] * self.frame.mpp**2, 4)} if self.frame.mpp else {}
            place = self.frame.on_slide([[x + corner[0], y + corner[1]]])[0]
            measured["mean_probability"] = round(total[label] / size[label] / STEPS, 4)
            outline = self.frame.on_slide(polygon + corner).round(3)
            feature = detection(f"{self.name}/{place[0]:.2f},{place[1]:.2f}", outline, measured, self.kind)
            yield json.dumps(feature, separators=(",", ":"), allow_nan=False)

    def labelled(self, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels and stored values of a window around a block, and its corner (x, y); other blocks' nuclei are 0."""
        array, core = zarr.open_array(self.folder / "probability.zarr", mode="r"), np.array([block, block]) * BLOCK
        core[1] += BLOCK
        for margin in (MARGIN, FARTHEST):
            low, high = np.maximum(core[0] - margin, 0), np.minimum(core[1] + margin, array.shape)
            values = array[low[0] : high[0], low[1] : high[1]]
            labels = instances_from_probability(values, threshold=self.cut)
            first = _first_pixels(labels)
            place = np.stack(np.divmod(first, labels.shape[1]), 1) + low
            own = ((place >= core[0]) & (place < core[1])).all(1)
            own[0] = False
            parts, count = ndimage.label(labels)  # what hangs together is split as one
            cut_off = np.zeros(count + 1, bool)
            sides, within = (parts[0], parts[:, 0], parts[-1], parts[:, -1]), (*(low > 0), *(high < array.shape))
            for side, inner in zip(sides, within, strict=True):
                cut_off[side] |= inner
            if not cut_off[parts.ravel()[first[own]]].any():
                break
        return labels * own[labels], values, low[::-1]


def _first_pixels(labels: np.ndarray) -> np.ndarray:
    """Where in the flat array each label 0..n is first."""
    flat = labels.ravel()[::-1]
    first = np.zeros(int(labels.max()) + 1, int)
    first[flat] = np.arange(flat.size - 1, -1, -1)
    return first


def blocks_of(tiles: Sequence[tuple[int, int]], tile: int, frame: Frame) -> list[tuple[int, int]]:
    """The blocks (row, column) that tiles at corners (y, x) meet, in order."""
    ends = (0, tile - 1)
    met = {((y + a) // BLOCK, (x + b) // BLOCK) for y, x in tiles for a in ends for b in ends}
    return sorted((y, x) for y, x in met if y * BLOCK < frame.height and x * BLOCK < frame.width)


def write_geojson(folder: Path, blocks: Sequence[tuple[int, int]]) -> int:
    """Join the nuclei of all blocks to nuclei.geojson, a FeatureCollection, line by line; returns how many."""
    count = 0
    with atomic(folder / "nuclei.geojson") as temporary, open(temporary, "w", encoding="utf-8") as out:
        out.write('{"type":"FeatureCollection","features":[')
        for y, x in blocks:
            with open(folder / ".nuclei" / f"{y}-{x}.json", encoding="utf-8") as lines:
                for line in lines:
                    out.write(",\n" * (count > 0) + line.rstrip("\n"))
                    count += 1
        out.write("]}\n")
    return count


# ---------------------------------------------------------------------------------------------- mask


def write_mask(folder: Path, frame: Frame, cut: int) -> None:
    """mask.ome.tiff: 0 and 255 in tiles, and levels 4, 16, ... times as coarse, where a pixel is the mean of 16.

    The levels are SubIFDs, as OME-TIFF has them, and chained as pages besides, since OpenSlide looks there.
    """
    array = zarr.open_array(folder / "probability.zarr", mode="r")
    levels: list = [array]
    with TemporaryDirectory(prefix=".mask.ome.", dir=folder) as scratch:
        while max(levels[-1].shape) > 2 * CHUNK:
            levels.append(_reduced(levels[-1], cut if len(levels) == 1 else None, Path(scratch, str(len(levels)))))
        _write_levels(folder, levels, frame, cut)


def _write_levels(folder: Path, levels: Sequence, frame: Frame, cut: int) -> None:
    options = {"dtype": np.uint8, "tile": (CHUNK, CHUNK), "compression": "zlib", "photometric": "minisblack"}
    about, first = {"axes": "YX", "Name": printable(folder.name)}, {"subifds": len(levels) - 1}
    name = f"csamnet/{printable(folder.name)}/{frame}/{cut}"
    about["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))  # else the hour is in it
    if frame.mpp:
        about |= {"PhysicalSizeX": frame.mpp, "PhysicalSizeXUnit": "µm"}
        about |= {"PhysicalSizeY": frame.mpp, "PhysicalSizeYUnit": "µm"}
        first |= {"resolution": (1e4 / frame.mpp, 1e4 / frame.mpp), "resolutionunit": "CENTIMETER"}
    forms = [first | {"metadata": about}] + [{"metadata": None, "subfiletype": 1}] * (len(levels) - 1)
    with atomic(folder / "mask.ome.tiff") as temporary:
        with tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as file:
            for level, form in zip(levels, forms, strict=True):
                file.write(_tiles(level, cut if level is levels[0] else None), shape=level.shape, **options, **form)
        _chain(temporary)


def _strips(level, cut: int | None) -> Iterator[np.ndarray]:
    """Uint8 strips (CHUNK, width) of a level; `cut` makes a mask of a probability."""
    for y in range(0, level.shape[0], CHUNK):
        strip = level[y : y + CHUNK]
        yield strip if cut is None else (strip >= cut).view(np.uint8) * np.uint8(255)


def _tiles(level, cut: int | None) -> Iterator[np.ndarray]:
    for strip in _strips(level, cut):
        for x in range(0, strip.shape[1], CHUNK):
            part = strip[:, x : x + CHUNK]
            yield np.pad(part, [(0, CHUNK - n) for n in part.shape])


def _reduced(level, cut: int | None, path: Path) -> zarr.Array:
    """A level four times as coarse, on the disk."""
    shape = tuple(-(-n // 4) for n in level.shape)
    chunks = (CHUNK // 4, 4 * CHUNK)
    out = zarr.create_array(path, shape=shape, chunks=chunks, dtype=np.uint8, fill_value=0)
    for i, strip in enumerate(_strips(level, cut)):
        if strip.any():
            full = np.pad(strip, [(0, -n % 4) for n in strip.shape], mode="edge")
            sums = sum(full[a::4, b::4].astype(np.uint16) for a in range(4) for b in range(4))
            out[i * CHUNK // 4 : i * CHUNK // 4 + len(sums)] = ((sums + 8) // 16).astype(np.uint8)
    return out


def _chain(path: Path) -> None:
    """Link a BigTIFF's first page and its SubIFDs as pages one after another."""
    with tifffile.TiffFile(path) as file:
        levels = [file.pages[0], *(file.pages[0].pages or ())]
        places = [page.offset for page in levels]
    with open(path, "r+b") as stream:
        for here, following in pairwise(places):
            stream.seek(here)
            (tags,) = struct.unpack("<Q", stream.read(8))
            stream.seek(here + 8 + 20 * tags)
            stream.write(struct.pack("<Q", following))


# -------------------------------------------------------------------------------------------- burden


def burden(folder: Path, frame: Frame, cut: int, tissue: np.ndarray, coarse: float) -> tuple[np.ndarray, int]:
    """Area fraction of foreground in each cell (rows, columns) float32, and the foreground's pixels in all.

    It is that of the tissue in a cell, which is 100 um a side (the last of a row or column may be smaller), and NaN
    where less than a quarter is tissue.
    """
    array = zarr.open_array(folder / "probability.zarr", mode="r")
    rows, columns = ((np.arange(n) / frame.cell).astype(int) for n in array.shape)
    starts = [np.searchsorted(cells, np.arange(cells[-1] + 1)) for cells in (rows, columns)]
    count = np.zeros([len(start) for start in starts], np.int64)
    for i, strip in enumerate(_strips(array, cut)):
        if strip.any():
            sums = np.add.reduceat(strip > 0, starts[1], axis=1, dtype=np.uint16)  # a copy in int64 would be large
            np.add.at(count, rows[i * CHUNK : i * CHUNK + len(strip)], sums)
    ends = [np.append(start[1:], n) for start, n in zip(starts, array.shape, strict=True)]
    area = np.diff(starts[0], append=array.shape[0])[:, None] * np.diff(starts[1], append=array.shape[1])
    held = frame.tissue_in((starts[0], ends[0], starts[1], ends[1]), tissue, coarse)
    fraction = np.minimum(count / (area * np.maximum(held, 0.25)), 1)
    return np.where(held >= 0.25, fraction, np.nan).astype(np.float32), int(count.sum())


def annotation(slide: Path) -> Path | None:
    """The XML beside a slide, if there is one."""
    path = slide.with_suffix(".xml")
    return path if path.exists() else None


def annotated(slide: Path) -> list[np.ndarray]:
    """Outlines (n, 2: x, y at level 0) of cancer in a slide's Aperio XML: all regions, unless it names their classes.

    Without those that cannot be drawn; none where there is no XML, or one of another program. Raises InputError
    for what is no XML.
    """
    if not (path := annotation(slide)):
        return []
    outlines = read_outlines(path, needed=False)
    with suppress(InputError):  # of annotations without classes
        outlines = [outline for number, outline in read_regions(path) if number > 1]
    return [outline for outline in outlines if is_drawable(outline)]


def inside_outside(fraction: np.ndarray, frame: Frame, cancer: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean burden of the cells that are cancer by half or more, and of the rest, and the AUC of telling them apart.

    `cancer`: outlines at level 0 of the slide. NaN where there are no cells of a kind.
    """
    tops, lefts = (np.arange(n) * frame.cell for n in fraction.shape)
    x0, y0 = frame.on_slide(np.stack(np.broadcast_arrays(lefts, tops[:, None]), -1).reshape(-1, 2)).T
    ends = np.add([x0, y0], frame.cell * frame.scale)
    x1, y1 = np.minimum(ends, frame.on_slide([[frame.width, frame.height]]).T)
    region = shapely.union_all([shapely.make_valid(shapely.Polygon(points)) for points in cancer])
    share = shapely.area(shapely.intersection(shapely.box(x0, y0, x1, y1), region)) / ((x1 - x0) * (y1 - y0))
    known = ~np.isnan(fraction)
    value, inside = fraction[known], share.reshape(fraction.shape)[known] >= 0.5
    means = [float(part.mean()) if part.size else float("nan") for part in (value[inside], value[~inside])]
    return {"burden_inside": means[0], "burden_outside": means[1], "auc": roc_auc(score_histogram(value, inside))}
