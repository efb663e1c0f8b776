"""What all readers share: records of a release, zips, pairs of files by stem, outlines."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
import shapely
from defusedxml import ElementTree
from skimage.draw import polygon

from csamnet.datasets import Dataset
from csamnet.files import InputError
from csamnet.images import IMAGE_SUFFIXES, read_image, read_labels, read_mask
from csamnet.samples.tissue import ORGANS as SAMPLE_ORGANS

SPLITS = ("train", "val", "test")
_HIDDEN = (".", "__MACOSX")


class Pixels(NamedTuple):
    """What a record holds once it is read."""

    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray | None  # (H, W) bool; None where the data set has no annotation
    labels: np.ndarray | None = None  # (H, W) int32, 0 background; None where only the mask is known
    notes: Sequence[str] = ()  # what was passed over
    classes: np.ndarray | None = None  # (H, W) uint8, 0 background, where objects are of several known classes


@dataclass(frozen=True)
class Record:
    """One image of a data set. Its pixels are read by `load`, each time anew."""

    name: str
    split: str | None  # None: the release does not say
    group: str  # what must not be in two splits: the patient, the slide
    organ: str
    files: dict[str, Path]  # image, and mask, inst or annotation; several records may share a file
    reader: Callable[..., Pixels]  # called with `files`; a functools.partial where there is more to know

    def load(self) -> Pixels:
        """Raises InputError for files that cannot be read and planes that differ in size."""
        try:
            pixels = self.reader(**self.files)
        except (InputError, OSError):
            raise
        except Exception as error:  # parsers raise whatever a broken file leads them into
            listed, found = ", ".join(map(str, self.files.values())), f"{type(error).__name__}: {error}"
            raise InputError("an image or its annotation cannot be read", path=listed, found=found) from error
        for kind, plane in (("inst", pixels.labels), ("mask", pixels.mask), ("classes", pixels.classes)):
            if plane is not None and plane.shape != pixels.image.shape[:2]:
                what, found = f"image and {kind} differ in size", "{} x {}".format(*plane.shape)
                expected = "{} x {} as in {}".format(*pixels.image.shape[:2], self.files["image"])
                path = self.files.get(kind) or [*self.files.values()][-1]
                raise InputError(what, path=path, expected=expected, found=found)
        return pixels


@dataclass
class Release:
    """The records of a release in order of name, with what is wrong and what is worth a note."""

    records: list[Record] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sample: bool = False  # a look-alike, as its files or the tree made from them say

    def add(self, dataset: Dataset, name: str, split: str | None, found: dict, reader: Callable) -> None:
        """A record of the files called `name` in `found` (kind -> stem -> paths): an image with any other."""
        files = {kind: paths[name] for kind, paths in found.items() if paths.get(name)}
        if any(len(paths) > 1 for paths in files.values()):
            listed = ", ".join(str(path) for paths in files.values() for path in paths)
            self.problems.append(InputError(f"the name {name} is there twice", found=listed, mend="keep one"))
        elif "image" not in files or len(files) == 1:
            partner = " or ".join(kind for kind in found if kind not in files)
            path, what = next(iter(files.values()))[0], "a file without its partner"
            self.problems.append(InputError(what, path=path, expected=f"{partner} {name}.*", found="nothing"))
        else:
            files = {kind: paths[0] for kind, paths in files.items()}
            painted = dataset.reader != "tree" and name.startswith("SAMPLE")  # one's own may be called so too
            organ = SAMPLE_ORGANS.get(name.split("-")[1]) if painted and "-" in name else dataset.organ_of(name)
            self.sample |= painted
            self.records.append(Record(name, split, dataset.group_of(name), organ or "unknown", files, reader))

    def demand_all(self, dataset: Dataset, groups: set[str], path: Path) -> None:
        """A problem where `groups` lacks some that the data set's release names."""
        if absent := sorted(set(dataset.splits) - groups):
            what = f"{len(absent)} of the release's {len(dataset.splits)} images are missing"
            self.problems.append(InputError(what, path=path, found=f"no {', '.join(absent)}"))


def is_tree(folder: Path) -> bool:
    return any((folder / split / "img").is_dir() for split in SPLITS)


def innermost(folder: Path) -> Path:
    """Down through folders that hold one folder only, as zips often do, but not into a tree."""
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(_HIDDEN)]
    return folder if is_tree(folder) or len(inner) != 1 else innermost(inner[0])


def unpack(source: Path, scratch: Path) -> list[Path]:
    """The folders behind `source`, a folder or a zip: zips in it, and in those, are unpacked below `scratch`.

    A zip is passed over where a folder of its name lies beside it. Raises InputError for a broken zip and for
    one with entries that would land outside its folder.
    """
    if source.is_dir():
        archives = _zips(source)
    elif source.is_file() and source.suffix.lower() == ".zip":
        archives = [source]
    else:
        raise InputError("no release there", path=source, expected="a folder or a zip")
    for archive in archives:
        _unzip(archive, scratch / archive.stem)
        for inner in _zips(scratch / archive.stem):  # as hosts pack what is downloaded as a whole
            _unzip(inner, inner.with_suffix(""))
            inner.unlink()
    return [source] * source.is_dir() + [scratch / archive.stem for archive in archives]


def _zips(folder: Path) -> list[Path]:
    """Zips in a folder, but for hidden ones and those beside which a folder of their name lies."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".zip" and path.is_file()]
    return [path for path in found if not path.with_suffix("").is_dir() and not path.name.startswith(_HIDDEN)]


def _unzip(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if "\\" in name or not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise InputError("a zip would write outside its folder", path=archive, found=name)
            folder.mkdir(parents=True)
            packed.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        mend = "download it again, or unpack it yourself"
        raise InputError("a zip cannot be unpacked", path=archive, found=error, mend=mend) from error


def by_stem(folders: list[Path], *suffixes: str) -> dict[str, list[Path]]:
    """Files with one of the suffixes anywhere below the folders, by stem; hidden ones are passed over.

    Raises OSError for a folder that may not be read.
    """
    found = defaultdict(list)
    for folder in filter(Path.is_dir, folders):
        below = (Path(top, name) for top, _, names in os.walk(folder, onerror=_refuse) for name in names)
        for path in sorted(path for path in below if path.suffix.lower() in suffixes and path.is_file()):
            if not any(part.startswith(_HIDDEN) for part in path.relative_to(folder).parts):
                found[path.stem].append(path)
    return found


def _refuse(error: OSError) -> None:
    raise error


def demand(dataset: Dataset, folders: list[Path], found: dict[str, dict]) -> None:
    """Raises InputError where there are no files of a kind."""
    if not all(found.values()):
        expected = f"{' and '.join(found)} of the same names, or {{train,val,test}}/{{img,mask}}/*.png"
        raise not_here(dataset, folders, expected, ", ".join(f"{len(paths)} {kind}" for kind, paths in found.items()))


def not_here(dataset: Dataset, folders: list[Path], expected: str, found: str = "") -> InputError:
    """The error where a release is looked for in vain; `found`: what there is of it."""
    inside = ", ".join(sorted(path.name for path in folders[0].iterdir())[:6]) or "nothing"
    what, listed = f"{dataset.name} is not here", f"{found} among {inside}" if found else inside
    return InputError(what, path=folders[0], expected=expected, found=listed, mend=dataset.how_to_get)


def read_tree(dataset: Dataset, folder: Path) -> Release:
    """{train,val,test}/{img,mask,inst}, paired by stem, any image suffix; mask or inst may be absent."""
    release = Release()
    for split in SPLITS:
        kinds = {"image": "img", "mask": "mask", "inst": "inst"}
        found = {kind: by_stem([folder / split / kinds[kind]], *IMAGE_SUFFIXES) for kind in kinds}
        for name in sorted(set().union(*found.values())):
            release.add(dataset, name, split, found, _load_tree)
    return release


def _load_tree(image: Path, mask: Path | None = None, inst: Path | None = None) -> Pixels:
    labels = read_labels(inst) if inst else None
    return Pixels(read_image(image), read_mask(mask) if mask else labels > 0, labels, [])


def read_outlines(path: Path, needed: bool = True) -> list[np.ndarray]:
    """The regions of an Aperio XML in order of the file, each (n, 2): x and y in pixels of level 0.

    Raises InputError for malformed XML, entities (they may grow without bound), vertices without numbers, and where
    regions are `needed` and there are none.
    """
    expected = "Aperio XML: Annotations / Annotation / Regions / Region / Vertices / Vertex with X and Y"
    try:
        root = ElementTree.parse(path).getroot()
        regions = [
            np.array([(float(vertex.get("X")), float(vertex.get("Y"))) for vertex in region.iter("Vertex")])
            for region in root.iter("Region")
        ]
    except (ParseError, ValueError, TypeError, LookupError) as error:  # the last for an unknown encoding
        raise InputError("an annotation cannot be read", path=path, expected=expected, found=error) from error
    if needed and (root.tag != "Annotations" or not regions):
        found = f"<{root.tag}> with {len(regions)} regions"
        raise InputError("an annotation without outlines", path=path, expected=expected, found=found)
    return regions


def is_drawable(points: np.ndarray) -> bool:
    """Whether an outline (n, 2) has three points or more, and none that is no place."""
    return len(points) >= 3 and bool((np.abs(points) < 2**31).all())


def rasterise(outlines: list[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Outlines (x, y) as labels 1, 2, ... of the given shape (int32), with notes on those left out or crossed.

    A pixel belongs to an outline if its centre, at whole coordinates, is inside or on it: where an outline crosses
    itself, enclosed an odd number of times. Later outlines win.
    """
    labels, notes, crossed = np.zeros(shape, np.int32), [], 0
    for number, points in enumerate(outlines, 1):
        if not is_drawable(points):
            notes.append(f"region {number} left out: {len(points)} points, finite ones needed, 3 at least")
            continue
        crossed += not shapely.Polygon(points).is_valid
        rows, columns = polygon(points[:, 1], points[:, 0], shape)
        labels[rows, columns] = number
        if not len(rows):
            notes.append(f"region {number} left out: no pixel of the image lies inside")
    return labels, notes + [f"{crossed} of {len(outlines)} regions cross or touch themselves"] * (crossed > 0)
