"""Readers of whole slides: BACH2018 in tiles, and any folder of slides without annotation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import chain, product
from math import ceil
from pathlib import Path

import numpy as np
from defusedxml import ElementTree

from csamnet.datasets import Dataset
from csamnet.files import InputError
from csamnet.images import IMAGE_SUFFIXES
from csamnet.readers.common import Pixels, Record, Release, by_stem, is_drawable, not_here, rasterise, read_outlines
from csamnet.slides import Slide

SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".czi", ".dcm", ".svslide", *IMAGE_SUFFIXES)
CLASSES = {"benign": 1, r"in[\s_-]*situ": 2, "invasive": 3}
"""Pattern of a region's name -> its number. Cancer is from 2 on."""
BACH_MPP = 0.467  # as documented with the data set
TILE, REGION = 256, 1024  # pixels


def read_bach(dataset: Dataset, folders: list[Path]) -> Release:
    """Tiles of 256 x 256 pixels at `dataset.mpp` on a regular grid, where a quarter of a tile or more is tissue.

    Slides (A01.svs) and Aperio XML are paired by stem, in whatever folders. Slides without XML are left out.
    """
    release, slides, outlines = Release(), by_stem(folders, ".svs"), by_stem(folders, ".xml")
    if not (slides and outlines):
        expected = "A01.svs to A10.svs with A01.xml to A10.xml, in any folders"
        raise not_here(dataset, folders, expected)
    if bare := sorted(set(slides) - set(outlines)):
        release.notes.append(f"left out, since without annotation: {', '.join(bare)}")
    for name in sorted(outlines):
        paths = slides.get(name, []) + outlines[name]
        try:
            if len(paths) != 2 or name not in slides:
                what = f"not one slide and one XML called {name}"
                raise InputError(what, path=paths[0], found=", ".join(map(str, paths)))
            release.records += _tiles(dataset, name, *paths, release.notes)
        except InputError as error:
            release.problems.append(error)
    return release


def read_slides(dataset: Dataset, folders: list[Path]) -> Release:
    """Of every slide and plain image the region of at most 1024 x 1024 pixels with most tissue, as test image.

    It is read at `dataset.mpp` or, where the file does not say its resolution, in its own pixels.
    """
    release, slides, seen = Release(), by_stem(folders, *SUFFIXES), {}
    if not slides:
        raise not_here(dataset, folders, "slides that OpenSlide reads, or plain images")
    for name, paths in sorted(slides.items()):
        try:
            if len(paths) > 1:
                what, listed = f"the name {name} is there twice", ", ".join(map(str, paths))
                raise InputError(what, found=listed, mend="keep one, or rename one")
            slide = Slide(paths[0])
            if (first := seen.setdefault(slide.identity, name)) != name:
                release.notes.append(f"{name} left out, since it is the same slide as {first}")
                continue
            mpp = dataset.mpp if slide.mpp else None
            if mpp is None:
                release.notes.append(f"{name} does not say its resolution: read in its own pixels")
            reader = partial(_load_region, region=_densest(slide, mpp), mpp=mpp)
            release.records.append(Record(name, "test", name, dataset.organ_of(name), {"image": paths[0]}, reader))
            release.sample |= name.startswith("SAMPLE")
        except InputError as error:
            release.problems.append(error)
    return release


def read_regions(path: Path) -> list[tuple[int, np.ndarray]]:
    """Class (1 benign, 2 in situ, 3 invasive) and outline (n, 2: x and y at level 0) of a BACH XML's regions.

    The class is named in the region's attributes or, where it is not, in those of its annotation. Raises InputError
    for a region with no class, or with more than one, and for what is no Aperio XML.
    """
    outlines, numbers, outer = read_outlines(path), [], []
    for element in ElementTree.parse(path).getroot().iter():
        if element.tag == "Annotation":
            outer = _named(element)
        elif element.tag == "Region":
            inner = _named(element) or outer
            if len(inner) != 1:
                what, text = f"region {len(numbers) + 1} is of no known class", ElementTree.tostring(element)[:120]
                expected = "one of benign, in situ, invasive"
                raise InputError(what, path=path, expected=expected, found=text.decode())
            numbers += inner
    return list(zip(numbers, outlines, strict=True))


def _named(element) -> list[int]:
    """The classes that the attributes of a region or annotation name."""
    values = chain(element.attrib.values(), *(part.attrib.values() for part in element.findall("Attributes/Attribute")))
    text = "\n".join(values)
    return [number for pattern, number in CLASSES.items() if re.search(pattern, text, re.IGNORECASE)]


def _tiles(dataset: Dataset, name: str, image: Path, annotation: Path, notes: list[str]) -> list[Record]:
    """Records of one slide's tiles; what is worth a note is added to `notes`."""
    slide, records = Slide(image), []
    if slide.mpp is None:
        slide.mpp = BACH_MPP
        notes.append(f"{image.name} does not say its resolution: taken as {BACH_MPP} um per pixel, as documented")
    regions = read_regions(annotation)
    left = [f"{annotation.name}: {note}" for note in _left_out(regions, slide.size)]
    if len(left) == len(regions):
        mend = "is it that of this slide?"
        raise InputError("nothing of an annotation can be drawn", path=annotation, found=left[0], mend=mend)
    notes += left
    (mask, coarse), side = slide.tissue(), TILE * slide.scale(dataset.mpp)
    grid = [[round(i * side) for i in range(ceil(n / side))] for n in slide.size]
    for x, y in product(*grid):
        (left, top), (right, bottom) = (int(x / coarse), int(y / coarse)), (ceil((n + side) / coarse) for n in (x, y))
        if mask[top:bottom, left:right].sum() >= 0.25 * (side / coarse) ** 2:
            files = {"image": image, "annotation": annotation}
            reader = partial(_load_tile, corner=(x, y), mpp=dataset.mpp)
            records.append(Record(f"{name}_x{x:06}_y{y:06}", None, name, dataset.organ_of(name), files, reader))
    notes.append(f"{name}: {len(records)} of {len(grid[0]) * len(grid[1])} tiles are tissue by a quarter or more")
    return records


def _left_out(regions: list[tuple[int, np.ndarray]], size: tuple[int, int]) -> Iterable[str]:
    """Notes on regions that cannot be drawn on a slide of this size (width, height)."""
    for i, (_, points) in enumerate(regions, 1):
        if not is_drawable(points):
            yield f"region {i} left out: {len(points)} points, finite ones needed, 3 at least"
        elif (points.max(0) < 0).any() or (points.min(0) > np.subtract(size, 1)).any():
            yield f"region {i} left out: it is outside of the slide"


def _load_tile(image: Path, annotation: Path, corner: tuple[int, int], mpp: float) -> Pixels:
    """A tile with its classes; where regions overlap the higher class counts, so that nothing hides cancer."""
    slide, classes = _open(image, image.stat().st_mtime_ns), np.zeros((TILE, TILE), np.uint8)
    for number, outline in _regions(annotation, annotation.stat().st_mtime_ns):
        points = (outline + 0.5 - corner) / slide.scale(mpp) - 0.5
        inside = rasterise([_without_far(points)], classes.shape)[0] > 0
        classes[inside] = np.maximum(classes[inside], number)
    return Pixels(slide.read(*corner, TILE, TILE, mpp), classes > 1, classes=classes)


def _without_far(points: np.ndarray) -> np.ndarray:
    """An outline (n, 2) without those of its stretches beyond one side of a tile: inside, nothing changes."""
    (x, y), far = points.T, TILE + 1
    side = np.select([x < -2, x > far, y < -2, y > far], [1, 2, 3, 4])
    return points[(side == 0) | (side != np.roll(side, 1)) | (side != np.roll(side, -1))]


def _load_region(image: Path, region: tuple[int, int, int, int], mpp: float | None) -> Pixels:
    return Pixels(Slide(image).read(*region, mpp), None)


def _densest(slide: Slide, mpp: float | None) -> tuple[int, int, int, int]:
    """The region with most tissue: x, y (level 0), width, height (pixels at `mpp`)."""
    (mask, coarse), scale = slide.tissue(), slide.scale(mpp)
    shape = [max(1, min(REGION, int(n / scale))) for n in slide.size[::-1]]
    rows, columns = (min(n, max(1, round(m * scale / coarse))) for n, m in zip(mask.shape, shape, strict=True))
    sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    corner = np.unravel_index(inside.argmax(), inside.shape)
    most = slide.size[::-1] - np.multiply(shape, scale)
    y, x = np.clip(np.multiply(corner, coarse), 0, np.maximum(most, 0)).astype(int).tolist()
    return x, y, *shape[::-1]


@lru_cache(maxsize=2)  # `changed`: a file that was written anew is read anew
def _open(path: Path, changed: int) -> Slide:
    return Slide(path, BACH_MPP)


@lru_cache(maxsize=2)
def _regions(path: Path, changed: int) -> list[tuple[int, np.ndarray]]:
    return [(number, points) for number, points in read_regions(path) if is_drawable(points)]
