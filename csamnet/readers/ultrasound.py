"""Reader of breast ultrasound: Dataset B, and BUSI as released or as one folder of images and one of masks."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from csamnet.datasets import Dataset
from csamnet.files import InputError
from csamnet.images import IMAGE_SUFFIXES, read_image, read_mask
from csamnet.readers.common import Pixels, Release, by_stem, demand

MASK_FOLDERS = ("gt", "mask", "masks", "groundtruth")
_MASK, _KIND = re.compile(r"(.+)_mask(_\d+)?"), re.compile("(benign|malignant|normal)", re.IGNORECASE)


def read_dataset_b(dataset: Dataset, folders: list[Path]) -> Release:
    """Images and masks paired by name, in whatever folders.

    A mask lies in a folder GT or mask, or its name ends in _mask, _mask_1, ... as in BUSI, where the several masks
    of an image become its labels. The kind (benign, malignant, normal) is what the name begins with or else what
    DatasetB.xlsx says, "lesion" where neither does. Patients are not told: the group is the image.
    """
    release, found = Release(), defaultdict(lambda: defaultdict(list))
    for stem, paths in by_stem(folders, *IMAGE_SUFFIXES).items():
        for path in paths:
            name, kind = _role(stem, path.parent.name)
            found[kind][name].append(path)
    images, masks = found["image"], found["mask"]
    demand(dataset, folders, {"images": images, "masks": masks})
    dataset = replace(dataset, organ="lesion", organ_code="(.+)", organs=_kinds(folders, images, release.notes))
    for name in sorted(set().union(*found.values())):
        kinds = sorted((kind for kind in found if kind != "image" and name in found[kind]), key=lambda k: (len(k), k))
        wanted = ["mask", *(f"mask_{number}" for number in range(1, len(kinds)))]
        if kinds and kinds != wanted:
            path, expected, listed = found[kinds[-1]][name][0], ", ".join(wanted), ", ".join(kinds)
            release.problems.append(InputError("a mask is missing", path=path, expected=expected, found=listed))
        else:
            release.add(dataset, name, None, {kind: found[kind] for kind in ("image", *wanted)}, _load)
    return release


def _role(stem: str, folder: str) -> tuple[str, str]:
    """The image's name, safe as that of a file, and what a file is: image, mask, mask_1, ..."""
    named = _MASK.fullmatch(stem)
    kind = "mask" if named or folder.lower() in MASK_FOLDERS else "image"
    name, number = named.groups("") if named else (stem, "")
    return re.sub(r"\W+", "_", name).strip("_") or name, kind + number


def _kinds(folders: list[Path], names: dict, notes: list[str]) -> dict[str, str]:
    """Name -> benign, malignant or normal, with a note where it cannot be known."""
    known = {name: found[0].lower() for name in names if (found := _KIND.match(name))}
    listed = {} if known else _read_table(by_stem(folders, ".xlsx").get("DatasetB", []), notes)
    known |= {name: listed[name] for name in names if name in listed}
    if unknown := sorted(set(names) - set(known)):
        notes.append(f"neither benign nor malignant, for all that is said: {len(unknown)} images, as {unknown[0]}")
    return known


def _read_table(paths: list[Path], notes: list[str]) -> dict[str, str]:
    """Name (six digits) -> Type as DatasetB.xlsx lists it; nothing, with a note, where it cannot be read."""
    if not paths:
        return {}
    try:
        table = pd.read_excel(paths[0], dtype=str, keep_default_na=False).rename(columns=lambda name: str(name).lower())
        listed = zip(table["image"], table["type"].str.lower(), strict=True)
        return {Path(name).stem.zfill(6): kind for name, kind in listed if _KIND.fullmatch(kind)}
    except Exception as error:  # no openpyxl, other columns, and whatever a broken file leads it into
        notes.append(f"not used: {paths[0].name}, whose columns Image and Type tell the kinds: {error!r}")
        return {}


def _load(image: Path, **masks: Path) -> Pixels:
    pixels, notes = read_image(image), []
    labels = np.zeros(pixels.shape[:2], np.int32)
    for number, path in enumerate(masks.values(), 1):
        mask = read_mask(path)
        if mask.shape != labels.shape:
            what, found = "image and mask differ in size", "{} x {}".format(*mask.shape)
            expected = "{} x {} as in {}".format(*labels.shape, image)
            raise InputError(what, path=path, expected=expected, found=found)
        if not mask.any() and not image.stem.lower().startswith("normal"):
            notes.append(f"{path.name}: no lesion in it")
        elif labels[mask].any():
            notes.append(f"{path.name}: overlaps with an earlier mask, whose pixels it takes")
        labels[mask] = number
    return Pixels(pixels, labels > 0, labels if len(masks) > 1 else None, notes)
