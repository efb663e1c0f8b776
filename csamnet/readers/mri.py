"""Reader of Brain Tumor MRI: slices in MATLAB 7.3 files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np

from csamnet.datasets import Dataset
from csamnet.files import InputError
from csamnet.readers.common import Pixels, Record, Release, by_stem, demand

KINDS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
SPLITS = {1: "train", 2: "train", 3: "train", 4: "val", 5: "test"}
"""Fold of cvind.mat -> split (our choice)."""


def read_brain_mri(dataset: Dataset, folders: list[Path]) -> Release:
    """Slices 1.mat, 2.mat, ... and the folds in cvind.mat, in whatever folders; without cvind.mat no split.

    The group is the patient (PID), the organ the kind of tumour. While listing, only label and PID are read.
    """
    found, release, in_fold = by_stem(folders, ".mat"), Release(), defaultdict(set)
    folds = _read_folds(found.pop("cvind", []))
    demand(dataset, folders, {"slices (1.mat, 2.mat, ...)": found})
    numbers = folds or dict.fromkeys(str(number + 1) for number in range(dataset.counts["all"]))
    for stem, paths in sorted(found.items(), key=lambda item: (len(item[0]), item[0])):
        try:
            record = _record(stem, paths, numbers)
            release.records.append(record)
            in_fold[record.group].add(numbers[stem])
        except InputError as error:
            release.problems.append(error)
    release.sample = any(record.group.startswith("SAMPLE") for record in release.records)
    missing = [number for number in numbers if number not in found]
    if missing and (folds or not release.sample):
        what = f"{len(missing)} of the release's {len(numbers)} slices are missing"
        listed = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        release.problems.append(InputError(what, path=folders[0], found=f"no {listed}", mend=dataset.how_to_get))
    for patient, torn in in_fold.items():
        if len(torn) > 1:
            listed = f"folds {', '.join(map(str, sorted(torn)))} of cvind.mat"
            release.problems.append(InputError(f"the patient {patient} is in several folds", found=listed))
    return release


def read_matlab(path: Path, *keys: str) -> list[np.ndarray]:
    """Matrices of a MATLAB 7.3 file as they are in MATLAB: HDF5 shows them transposed.

    Raises InputError for another version, a damaged file, a missing key, and what is no matrix of numbers.
    """
    expected, mend = f"MATLAB 7.3 (HDF5) with {', '.join(keys)}", "download it again, or save it with -v7.3"
    try:
        with h5py.File(path) as file:
            values = [np.asarray(file[key][()]).T for key in keys]
        for key, matrix in zip(keys, values, strict=True):
            if matrix.ndim != 2 or not matrix.size or matrix.dtype.kind not in "buif":
                raise ValueError(f"{key}: {' x '.join(map(str, matrix.shape))} {matrix.dtype}, not H x W numbers")
        return values
    except Exception as error:  # h5py raises whatever a broken file leads it into
        with path.open("rb") as stream:
            found = f"{stream.read(19).decode('ascii', 'replace')!r} at its start; {error}"
        raise InputError(
            "a MATLAB file is not as released", path=path, expected=expected, found=found, mend=mend
        ) from error


def to_display(values: np.ndarray) -> np.ndarray:
    """Values (H, W) as uint8, slice by slice: the 0.5th percentile becomes 0, the 99.5th 255, the rest is clipped."""
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values - low) / ((high - low) or 1), 0, 1) * 255).astype(np.uint8)


def _read_folds(paths: list[Path]) -> dict[str, int]:
    """Number of a slice -> its fold; nothing without cvind.mat."""
    if len(paths) > 1:
        raise InputError("cvind.mat is there twice", found=", ".join(map(str, paths)), mend="keep one")
    folds = read_matlab(paths[0], "cvind")[0].ravel().tolist() if paths else []
    if not set(folds) <= set(SPLITS):
        found = ", ".join(map(str, sorted(set(folds) - set(SPLITS))[:5]))
        raise InputError("folds that are none", path=paths[0], expected="whole numbers from 1 to 5", found=found)
    return {str(number): int(fold) for number, fold in enumerate(folds, 1)}


def _record(stem: str, paths: list[Path], numbers: dict[str, int | None]) -> Record:
    """The record of one slice, of which label and PID are read."""
    if len(paths) > 1:
        raise InputError(f"the slice {stem} is there twice", found=", ".join(map(str, paths)), mend="keep one")
    if stem not in numbers:
        raise InputError("not a slice of the release", path=paths[0], expected=f"1.mat to {len(numbers)}.mat")
    label, pid = read_matlab(paths[0], "cjdata/label", "cjdata/PID")
    kind, patient = KINDS.get(label.max()), "".join(chr(code) for code in pid.astype(np.uint16).ravel() if code)
    if not kind or not patient.strip() or not patient.isprintable():
        expected, found = "label 1, 2 or 3 and the characters of a PID", f"label {label.max()}, PID {patient!r}"
        raise InputError("an unknown kind or patient", path=paths[0], expected=expected, found=found)
    return Record(stem, SPLITS.get(numbers[stem]), patient, kind, {"image": paths[0]}, _load)


def _load(image: Path) -> Pixels:
    values, mask = read_matlab(image, "cjdata/image", "cjdata/tumorMask")
    if not np.isfinite(values).all():
        raise InputError("not a slice", path=image, expected="finite numbers", found="NaN or infinity")
    if not mask.min() >= 0 or len(np.unique(mask)) > 2:
        found = f"{len(np.unique(mask))} values from {mask.min()} to {mask.max()}"
        raise InputError("not a mask", path=image, expected="0 and one other number in tumorMask", found=found)
    notes = [] if mask.any() else [f"{image.name}: no tumour in its mask"]
    return Pixels(np.stack([to_display(values)] * 3, axis=-1), mask > 0, None, notes)
