"""Readers of the data sets of stained tissue tiles: MoNuSeg, Kumar, CPM17, PUMA."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import shapely
from scipy.io import loadmat
from scipy.sparse import issparse
from shapely.geometry import shape as as_geometry
from skimage.draw import polygon

from csamnet.datasets import Dataset
from csamnet.files import InputError, read_json
from csamnet.images import read_image
from csamnet.readers.common import Pixels, Release, by_stem, demand, rasterise, read_outlines

TIFF = (".tif", ".tiff")
_SPLIT = re.compile("(?<![A-Za-z])(?i:train|test)|Train|Test")  # not in latest, nor in CONTEST
PUMA_CLASSES = {
    "nuclei_tumor": 1,
    "nuclei_stroma": 2,
    "nuclei_endothelium": 3,
    "nuclei_histiocyte": 4,
    "nuclei_melanophage": 5,
    "nuclei_lymphocyte": 6,
    "nuclei_plasma_cell": 7,
    "nuclei_neutrophil": 8,
    "nuclei_apoptosis": 9,
    "nuclei_epithelium": 10,
}
"""Class of a PUMA nucleus as its file names it -> its number in `Pixels.classes` (the order is ours)."""


def read_monuseg(dataset: Dataset, folders: list[Path]) -> Release:
    """TIFF and Aperio XML paired by stem, in whatever folders.

    A known patient has the challenge's split. Where there are images of TCGA, others are left out: the archive now
    served holds 7 training images beyond the 30. Where there are none, the split is that which a folder's name tells.
    """
    return _read_tcga(dataset, folders, ".xml")


def read_kumar(dataset: Dataset, folders: list[Path]) -> Release:
    """As MoNuSeg; where an image has no XML, its instances are read from a MATLAB file of its name."""
    return _read_tcga(dataset, folders, ".xml", ".mat")


def _read_tcga(dataset: Dataset, folders: list[Path], *suffixes: str) -> Release:
    release, images, annotations = Release(), by_stem(folders, *TIFF), {}
    for suffix in reversed(suffixes):
        annotations |= by_stem(folders, suffix)
    demand(dataset, folders, {"TIFF": images, " or ".join(suffix[1:].upper() for suffix in suffixes): annotations})
    strict = any(stem.startswith("TCGA-") for stem in images)
    for name in sorted(set(images) | set(annotations)):
        split = dataset.splits.get(dataset.group_of(name))
        if strict and split is None:
            release.notes.append(f"left out, since not of {dataset.name}: {name}")
        else:
            split = split or _split_by_folder((images.get(name) or annotations[name])[0], folders)
            release.add(dataset, name, split, {"image": images, "annotation": annotations}, _load_tile)
    if strict:
        release.demand_all(dataset, {dataset.group_of(stem) for stem in images}, folders[0])
    return release


def read_cpm17(dataset: Dataset, folders: list[Path]) -> Release:
    """PNG and MATLAB files below folders with train and test in their names; train/image_00 is called train_00.

    The same stems are in both splits. Patients are not told. Pictures in folders called Overlay are passed over.
    """
    release, splits = Release(), {}
    files = {"PNG": by_stem(folders, ".png"), "MAT": by_stem(folders, ".mat")}
    demand(dataset, folders, files)
    found = {"image": defaultdict(list), "annotation": defaultdict(list)}
    for named, stems in zip(found.values(), files.values(), strict=True):
        for path in chain(*stems.values()):
            split = _split_by_folder(path, folders)
            name = "_".join(filter(None, (split, path.stem.removeprefix("image_"))))
            if "overlay" not in path.parent.name.lower():
                splits[name] = split
                named[name].append(path)
    for name, split in sorted(splits.items()):
        release.add(dataset, name, split, found, _load_tile)
    return release


def read_puma(dataset: Dataset, folders: list[Path]) -> Release:
    """TIFF regions and their `<stem>_nuclei.geojson`, in whatever folders; tissue and context are passed over."""
    outlines = by_stem(folders, ".geojson").items()
    images = {stem: paths for stem, paths in by_stem(folders, *TIFF).items() if not stem.endswith("_context")}
    nuclei = {stem.removesuffix("_nuclei"): paths for stem, paths in outlines if stem.endswith("_nuclei")}
    demand(dataset, folders, {"TIFF": images, "_nuclei.geojson": nuclei})
    release = Release()
    for name in sorted(set(images) | set(nuclei)):
        release.add(dataset, name, None, {"image": images, "annotation": nuclei}, _load_puma)
    return release


def _split_by_folder(path: Path, folders: list[Path]) -> str | None:
    """train or test: what the innermost folder says with a word in its name that begins with one of the two."""
    top = next(folder for folder in folders if path.is_relative_to(folder))
    parts = reversed(path.parent.relative_to(top.parent).parts)
    named = ({word.lower() for word in _SPLIT.findall(part)} for part in parts)
    return next((split for words in named if len(words) == 1 for split in words), None)


def _load_tile(image: Path, annotation: Path) -> Pixels:
    pixels, notes = read_image(image), []
    if annotation.suffix.lower() == ".mat":
        labels = read_inst_map(annotation)
    else:
        labels, notes = rasterise(read_outlines(annotation), pixels.shape[:2])
    return Pixels(pixels, labels > 0, labels, _named(annotation, notes, labels))


def _named(annotation: Path, notes: list[str], labels: np.ndarray) -> list[str]:
    """Notes with their file. Raises InputError where nothing of an annotation could be drawn."""
    if notes and not labels.any():
        mend = "is it that of this image?"
        raise InputError("nothing of an annotation can be drawn", path=annotation, found=notes[0], mend=mend)
    return [f"{annotation.name}: {note}" for note in notes]


def read_inst_map(path: Path) -> np.ndarray:
    """The instances `inst_map` in a MATLAB file of any version: (H, W) int32, 0 background.

    Raises InputError for a file that cannot be read, that lacks the key, or that holds something else there.
    """
    try:
        if h5py.is_hdf5(path):  # version 7.3 stores a matrix by columns
            with h5py.File(path) as file:
                stored = {key: file[key][()].T if key == "inst_map" else None for key in file}
        else:
            stored = loadmat(path)
    except Exception as error:  # both libraries raise whatever a broken file leads them into
        mend = "download it again"
        raise InputError("a MATLAB file cannot be read", path=path, found=error, mend=mend) from error
    if "inst_map" not in stored:
        found = ", ".join(key for key in stored if not key.startswith("__")) or "nothing"
        raise InputError("a MATLAB file without instances", path=path, expected="the key inst_map", found=found)
    labels = stored["inst_map"]
    labels = labels.toarray() if issparse(labels) else labels
    whole = labels.ndim == 2 and labels.size and labels.dtype.kind in "uif"
    if not whole or not (0 <= labels.min() <= labels.max() < 2**31 and (labels == np.rint(labels)).all()):
        expected, found = "H x W whole numbers from 0 up", f"{' x '.join(map(str, labels.shape))} {labels.dtype}"
        raise InputError("inst_map is not a map of instances", path=path, expected=expected, found=found)
    return labels.astype(np.int32)


def _load_puma(image: Path, annotation: Path) -> Pixels:
    pixels, nuclei = read_image(image), read_nuclei(annotation)
    labels, notes = draw([geometry for geometry, _ in nuclei], pixels.shape[:2])
    classes = np.array([0, *(kind for _, kind in nuclei)], np.uint8)[labels]
    return Pixels(pixels, labels > 0, labels, _named(annotation, notes, labels), classes)


def read_nuclei(path: Path) -> list[tuple[dict, int]]:
    """The geometry of each feature of a PUMA GeoJSON, as it is there, and its number in PUMA_CLASSES.

    Raises InputError for what is no FeatureCollection, and for a feature without a known class.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("features"), list):
        raise InputError("an annotation without outlines", path=path, expected="GeoJSON: a FeatureCollection")
    nuclei = []
    for number, feature in enumerate(content["features"], 1):
        try:
            kind = feature["properties"]["classification"]["name"]
            nuclei.append((feature.get("geometry"), PUMA_CLASSES[kind]))
        except (TypeError, KeyError) as error:
            found, expected = f"{error} in feature {number}", ", ".join(PUMA_CLASSES)
            raise InputError("an unknown class", path=path, expected=expected, found=found) from error
    return nuclei


def draw(geometries: Sequence[dict], shape: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """GeoJSON (Multi)Polygons as labels 1, 2, ... of the given shape (int32), with a note for each left out or mended.

    A MultiPolygon is one instance. Pixels as in `rasterise`; inside or on the outline of a hole they do not belong.
    """
    labels, notes = np.zeros(shape, np.int32), []
    for number, geometry in enumerate(geometries, 1):
        parts, fault = _polygons(geometry)
        if not parts:
            notes.append(f"feature {number} left out: not a polygon of three points or more ({fault})")
        elif not sum(_draw_part(labels, part, number) for part in parts):
            notes.append(f"feature {number} left out: no pixel of the image lies inside")
        elif fault:
            notes.append(f"feature {number} mended: {fault}")
    return labels, notes


def _polygons(geometry: dict) -> tuple[list[shapely.Polygon], str]:
    """The valid polygons that make up a GeoJSON geometry, and what was wrong with it or else nothing."""
    try:
        with np.errstate(invalid="ignore"):
            whole = as_geometry(geometry)
        if not (np.abs(shapely.get_coordinates(whole)) < 2**31).all():
            raise ValueError("coordinates without bound")
        fault = "" if whole.is_valid else shapely.is_valid_reason(whole)
        whole = shapely.make_valid(whole) if fault else whole
    except (shapely.errors.ShapelyError, ValueError, TypeError, LookupError, AttributeError) as error:
        return [], str(error)
    parts = [part for part in shapely.get_parts(shapely.get_parts(whole)) if part.area and part.geom_type == "Polygon"]
    return parts, fault or ("" if parts else whole.wkt[:40])


def _draw_part(labels: np.ndarray, part: shapely.Polygon, number: int) -> int:
    """Draw one polygon; how many pixels of the image its outline holds. What shows through a hole stays."""
    outer, *holes = (polygon(*ring.coords.xy[::-1], labels.shape) for ring in (part.exterior, *part.interiors))
    before = [labels[hole] for hole in holes]
    labels[outer] = number
    for hole, values in zip(holes, before, strict=True):
        labels[hole] = values
    return len(outer[0])
