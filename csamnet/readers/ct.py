"""Reader of the lung CT of LIDC-IDRI: series of DICOM files, and in XML what up to four radiologists drew."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from defusedxml import ElementTree
from pydicom import dcmread
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from skimage.draw import polygon2mask, polygon_perimeter

from csamnet.datasets import Dataset
from csamnet.files import InputError
from csamnet.images import IMAGE_SUFFIXES, read_image, read_labels
from csamnet.readers.common import Pixels, Record, Release, by_stem, innermost, not_here

LEVEL, WIDTH = -600, 1500  # the lung window, in Hounsfield units
CROP = 128  # pixels
AGREE = 2  # readers who have to draw a pixel for it to be nodule
_HEADER = ["Modality", "PatientID", "SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient", "PixelSpacing"]


class Slice(NamedTuple):
    """One DICOM file, from its header."""

    path: Path
    patient: str
    sop: str  # SOPInstanceUID, by which an outline names its slice
    z: float  # mm
    shape: tuple[int, int]
    spacing: tuple[float, ...]  # mm


class Outline(NamedTuple):
    """What one reader drew on one slice around one nodule or, where not `inside`, around a hole in it."""

    reader: int
    nodule: int  # counted through all readers
    sop: str
    inside: bool
    points: np.ndarray  # (n, 2) int: x and y; a single one marks a nodule under 3 mm


class Reading(NamedTuple):
    """One XML."""

    path: Path
    readers: int
    outlines: list[Outline]


def read_lidc(dataset: Dataset, folders: list[Path], form: str = "crops") -> Release:
    """DICOM series and XML anywhere below the folders, matched by their UIDs; or folders `img` and `readers`.

    A pixel is nodule where two readers or more drew it. `form` is "crops": 128 x 128 pixels around every nodule, one
    record for each of its slices with such a pixel; or "slices": every whole slice with such a pixel.
    """
    if drawn := [drawn for folder in folders if (drawn := innermost(folder) / "readers").is_dir()]:
        if form != "crops":
            raise InputError("crops cannot be read as slices", path=drawn[0].parent, mend="leave the form out")
        return _read_crops(dataset, drawn[0].parent)
    release, passed, numbers = Release(), Counter(), Counter()
    series, readings = find_series(folders, release, passed), find_readings(folders, release, passed)
    if not release.problems and not (series and readings):
        expected = "CT series (*.dcm) and their readers' XML in any folders, or folders img and readers"
        raise not_here(dataset, folders, expected, f"{len(series)} CT series, XML of {len(readings)}")
    if alone := [str(readings[uid].path) for uid in sorted(readings.keys() - series.keys())]:
        what, mend = f"XML without its series: {len(alone)}", "download the series, or take these XML away"
        release.problems.append(InputError(what, found=", ".join(alone), mend=mend))
    for uid, slices in sorted(series.items()):
        patient = slices[0].patient
        numbers[patient] += 1
        name = re.sub(r"[^\w.-]|_", "-", patient) + f"_s{numbers[patient]}" * (numbers[patient] > 1)
        try:
            for ending, files, loader in _targets(ordered(slices), readings.get(uid), form, passed):
                release.records.append(Record(f"{name}_{ending}", None, patient, dataset.organ, files, loader))
        except InputError as error:
            release.problems.append(error)
        release.sample |= patient.startswith("SAMPLE-")
    release.records.sort(key=lambda record: record.name)
    release.notes += [f"passed over: {count} {what}" for what, count in sorted(passed.items()) if count]
    return release


def _read_crops(dataset: Dataset, folder: Path) -> Release:
    """Crops in `img`; under the same names in `readers` masks whose bit r is the outline of a nodule's reader r."""
    release, drawn = Release(), []
    found = {kind: by_stem([folder / name], *IMAGE_SUFFIXES) for kind, name in (("image", "img"), ("mask", "readers"))}
    for name in sorted(set().union(*found.values())):
        release.add(dataset, name, None, found, _load_crop)
    for record in release.records:
        try:
            if _consensus(record.files["mask"]).any():
                drawn.append(record)
        except InputError as error:
            release.problems.append(error)
    if passed := len(release.records) - len(drawn):
        release.notes.append(f"passed over: {passed} crops without a pixel that {AGREE} readers drew")
    release.records = drawn
    return release


def _consensus(path: Path) -> np.ndarray:
    return np.bitwise_count(read_labels(path)) >= AGREE


def _load_crop(image: Path, mask: Path) -> Pixels:
    return Pixels(read_image(image), _consensus(mask))


def _files(folders: list[Path], suffix: str) -> list[Path]:
    return sorted(path for paths in by_stem(folders, suffix).values() for path in paths)


def find_series(folders: list[Path], release: Release, passed: Counter) -> dict[str, list[Slice]]:
    """SeriesInstanceUID -> its slices, in order of file."""
    series = defaultdict(list)
    for path in _files(folders, ".dcm"):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=[*_HEADER, "Rows", "Columns"])
            if header.Modality != "CT":
                passed["DICOM files that are not CT"] += 1
                continue
            shape, z = (int(header.Rows), int(header.Columns)), float(header.ImagePositionPatient[2])
            spacing = tuple(float(value) for value in header.PixelSpacing)
            found = Slice(path, str(header.PatientID), str(header.SOPInstanceUID), z, shape, spacing)
            series[str(header.SeriesInstanceUID)].append(found)
        except Exception as error:  # pydicom raises whatever a broken file leads it into
            release.problems.append(_broken(path, error))
    return series


def _broken(path: Path, error: Exception) -> InputError:
    expected, mend = "a CT image with its UIDs, position and spacing", "download it again"
    return InputError("a DICOM file cannot be read", path=path, expected=expected, found=error, mend=mend)


def ordered(slices: list[Slice]) -> list[Slice]:
    """The slices of one series from the feet up. Raises InputError for slices that differ, lack or are there twice."""
    slices, folder = sorted(slices, key=lambda slice: (slice.z, slice.path)), slices[0].path.parent
    kinds = Counter(f"{s.shape[0]} x {s.shape[1]} pixels of {s.spacing[0]} x {s.spacing[1]} mm" for s in slices)
    if len(kinds) > 1:
        found = "; ".join(f"{kind}: {count} slices" for kind, count in kinds.items())
        raise InputError("a series of mixed size or spacing", path=folder, expected="one of each", found=found)
    steps = np.diff([slice.z for slice in slices])
    usual = np.median(steps) if len(steps) else 0.0
    odd = np.flatnonzero((np.abs(steps - usual) > usual / 2) | (steps <= 0))
    if len(odd):
        found = "; ".join(f"{steps[i]:g} mm above {slices[i].path.name} (z {slices[i].z:g})" for i in odd)
        what, mend = "slices of a series are missing or there twice", "download the series again"
        raise InputError(what, path=folder, expected=f"steps of {usual:g} mm", found=found, mend=mend)
    return slices


def find_readings(folders: list[Path], release: Release, passed: Counter) -> dict[str, Reading]:
    """SeriesInstanceUID -> what its readers drew. The same XML may be there more than once."""
    readings = {}
    for path in _files(folders, ".xml"):
        try:
            uid, reading = _parse(path)
            other = readings.setdefault(uid, reading) if reading else None
            if reading is None:
                passed["XML of chest X-rays"] += 1
            elif other.path.read_bytes() != path.read_bytes():
                raise InputError("two XML of one series differ", path=path, found=other.path, mend="keep one")
        except InputError as error:
            release.problems.append(error)
    return readings


def _parse(path: Path) -> tuple[str, Reading | None]:
    """The series of an XML and its outlines; None for those on a chest X-ray (IdriReadMessage).

    Raises InputError for malformed XML, entities (they may grow without bound) and elements that lack.
    """
    expected = "LidcReadMessage / readingSession / unblindedReadNodule / roi / edgeMap, and SeriesInstanceUid"
    try:
        root = ElementTree.parse(path).getroot()
        kind = root.tag.rpartition("}")[2]
        if kind == "IdriReadMessage":
            return "", None
        if kind != "LidcReadMessage":
            raise ValueError(f"<{kind}>")
        sessions = root.findall("{*}readingSession")
        nodules = [
            (reader, nodule) for reader, of in enumerate(sessions) for nodule in of.iterfind("{*}unblindedReadNodule")
        ]
        outlines = [
            _outline(reader, number, roi)
            for number, (reader, nodule) in enumerate(nodules)
            for roi in nodule.iterfind("{*}roi")
        ]
        return root.findtext("{*}ResponseHeader/{*}SeriesInstanceUid").strip(), Reading(path, len(sessions), outlines)
    except Exception as error:  # of the parser, of what is missing, of what is no number
        raise InputError("a reader file cannot be read", path=path, expected=expected, found=error) from error


def _outline(reader: int, nodule: int, roi: Element) -> Outline:
    edges = [[edge.findtext("{*}xCoord"), edge.findtext("{*}yCoord")] for edge in roi.iterfind("{*}edgeMap")]
    inside = {"TRUE": True, "FALSE": False}[roi.findtext("{*}inclusion").strip().upper()]
    return Outline(
        reader, nodule, roi.findtext("{*}imageSOP_UID").strip(), inside, np.array(edges).astype(int).reshape(-1, 2)
    )


Target = tuple[str, dict[str, Path], partial]


def _targets(slices: list[Slice], reading: Reading | None, form: str, passed: Counter) -> Iterator[Target]:
    """For each crop or slice of a series the ending of its name, its files and what loads them."""
    if reading is None:
        mend = "add the XML (LIDC-XML-only.zip), or take the series away"
        raise InputError("a series without the XML of its readers", path=slices[0].path.parent, mend=mend)
    if reading.readers < AGREE:
        passed[f"series read by fewer than {AGREE} readers ({reading.path})"] += 1
        return
    drawn = draw(slices, reading)
    agreed = consensus(drawn)
    passed["marks of nodules under 3 mm"] += sum(len(outline.points) == 1 for outline in reading.outlines)
    passed["outlines of two points"] += sum(len(outline.points) == 2 for outline in reading.outlines)
    passed[f"series without a pixel that {AGREE} readers drew"] += agreed.empty
    parts = [("", agreed, np.s_[:, :])]
    if form == "crops":
        groups = enumerate((of for _, of in drawn.groupby("nodule")), 1)
        parts = [(f"_n{n}", consensus(of), _around(of, slices[0].shape)) for n, of in groups]
    for ending, part, box in parts:
        for z in part["z"].unique():
            files = {"image": slices[z].path, "annotation": reading.path}
            pixels = agreed.loc[agreed["z"] == z, ["y", "x"]].to_numpy()
            yield f"z{z + 1:04d}{ending}", files, partial(_load, nodule=pixels, box=box)


def draw(slices: list[Slice], reading: Reading) -> pd.DataFrame:
    """The pixels that readers drew, a row each: reader, nodule, z (number of the slice), y, x.

    Nodules that share a pixel become one. Raises InputError for an outline that is not on the series.
    """
    numbers, rows = {slice.sop: z for z, slice in enumerate(slices)}, [np.zeros((0, 5), int)]
    for (reader, nodule, sop), group in groupby(sorted(reading.outlines, key=_place), _place):
        z = numbers.get(sop)
        if z is None:
            mend = "download the series again"
            raise InputError("an outline on a slice that the series lacks", path=reading.path, found=sop, mend=mend)
        pixels = np.argwhere(_fill(list(group), slices[z].shape, reading.path))
        rows.append(np.column_stack([np.broadcast_to([reader, nodule, z], (len(pixels), 3)), pixels]))
    drawn = pd.DataFrame(np.concatenate(rows), columns=["reader", "nodule", "z", "y", "x"])
    nodule, pixel = (drawn.groupby(by).ngroup() for by in ("nodule", ["z", "y", "x"]))
    covers = csr_array((np.ones(len(drawn)), (nodule, pixel)), shape=(len(drawn), len(drawn)))
    drawn["nodule"] = connected_components(covers @ covers.T)[1][nodule]
    return drawn


def _place(outline: Outline) -> tuple[int, int, str]:
    return outline.reader, outline.nodule, outline.sop


def _fill(outlines: list[Outline], shape: tuple[int, int], path: Path) -> np.ndarray:
    """One nodule on one slice as (H, W) bool. The outline is drawn around it and so not part of it, and that of a
    hole is part of the hole: with that the published masks of the readers agree, pixel by pixel.
    """
    nodule, holes = np.zeros((2, *shape), bool)
    for outline in outlines:
        points = outline.points[:, ::-1]
        if (points < 0).any() or (points >= shape).any():
            found = f"x {points[:, 1].min()} to {points[:, 1].max()}, y {points[:, 0].min()} to {points[:, 0].max()}"
            expected = f"within {shape[1]} x {shape[0]} pixels"
            raise InputError("an outline outside its image", path=path, expected=expected, found=found)
        if len(points) > 2:  # two enclose nothing
            filled = polygon2mask(shape, points)
            filled[polygon_perimeter(*points.T)] = not outline.inside
            (nodule if outline.inside else holes)[filled] = True
    return nodule & ~holes


def consensus(drawn: pd.DataFrame) -> pd.DataFrame:
    """The pixels (z, y, x) that enough readers drew, in order."""
    votes = drawn.drop_duplicates(["reader", "z", "y", "x"]).groupby(["z", "y", "x"]).size()
    return votes.index[votes >= AGREE].to_frame(index=False)


def _around(nodule: pd.DataFrame, shape: tuple[int, int]) -> tuple[slice, slice]:
    """A square whose middle is that of all that readers drew of a nodule, moved so that it lies inside the image."""
    box = []
    for axis, size in zip(("y", "x"), shape, strict=True):
        middle = (nodule[axis].min() + nodule[axis].max() + 1) // 2
        start = max(0, min(middle - CROP // 2, size - CROP))
        box.append(slice(start, start + CROP))
    return tuple(box)


def _load(image: Path, annotation: Path, *, nodule: np.ndarray, box: tuple[slice, slice]) -> Pixels:
    """A slice in the lung window, and its nodule pixels (n, 2: row, column), cut to a box."""
    try:
        file = dcmread(image)
        slope, start = float(file.RescaleSlope), float(file.RescaleIntercept)
        if not (slope and np.isfinite([slope, start]).all()):
            raise ValueError(f"a rescale slope of {slope} and intercept of {start}")
        units = file.pixel_array * slope + start
        grey = np.clip((units[box] - LEVEL) / WIDTH + 0.5, 0, 1) * 255
    except Exception as error:
        raise _broken(image, error) from error
    mask = np.zeros(units.shape, bool)
    mask[tuple(nodule.T)] = True
    return Pixels(np.stack([np.rint(grey).astype(np.uint8)] * 3, axis=-1), mask[box])
