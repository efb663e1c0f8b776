"""From a release to the canonical tree and its manifest: whole, checked, and the same however often."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from csamnet import datasets, images, readers
from csamnet.datasets import Dataset, get_dataset
from csamnet.files import InputError, read_json, sha256_array, sha256_file, write_json, write_text
from csamnet.images import write_image
from csamnet.readers import SPLITS, Pixels, Record, Release, innermost, is_tree, read_release, unpack

COLUMNS = (
    dict.fromkeys(("name", "split", "group", "organ", "image", "mask", "inst"), str)
    | dict.fromkeys(("height", "width", "objects"), int)
    | dict.fromkeys(("image_sha256", "mask_sha256", "pixels_sha256"), str)
)
"""Of manifest.csv, one row an image. Paths are relative to the data set's folder; `inst` is empty where only
a mask is known; `objects` counts instances, or else the mask's connected parts (8 neighbours);
`pixels_sha256` is of the decoded image, and so the same in any format."""

DRAWN = "a fifth of the training groups, drawn by the hashes of their names"
Progress = Callable[[list[Record]], Iterable[Record]]


def prepare(
    name: str, source: Path | str, root: Path | str, *, allow_partial: bool = False, progress: Progress = iter
) -> Path:
    """Write `root`/NAME from the release, zip or tree at `source`, and return that folder.

    The tree is built beside its place and moved there whole. The same files and code again do nothing; an
    older tree is replaced only by a complete one. `source` is only read, unless it is `root`/NAME itself:
    then its images stay and the manifest is added. `progress` wraps the list of records, as tqdm does. Raises
    one InputError with all that is wrong. `allow_partial` leaves out what cannot be used and takes empty
    splits, noting both, but never a name, a group or the same pixels in two splits.
    """
    dataset, source = get_dataset(name), Path(source)
    target = Path(root) / dataset.name
    staging, scratch, old = (target.with_name(f".{dataset.name}.{use}") for use in ("partial", "zip", "old"))
    in_place = _check_place(source, target)
    source = target if in_place else source
    try:
        if old.exists() and not target.exists():  # stopped between the two renames below
            os.replace(old, target)
        _drop(staging, scratch, old)
        release = read_release(dataset, unpack(source, scratch))
        provenance = _provenance(release, allow_partial)
        if not _is_current(target, provenance):
            folder = target if in_place else staging
            table, notes = _build(dataset, release, folder, in_place, allow_partial, progress)
            _describe(dataset, release.sample, folder, table, notes, provenance)
            if not in_place:
                if target.exists():
                    os.replace(target, old)
                os.replace(staging, target)
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else "a file cannot be read or written"
        mend = "mend that and start again; nothing half-written was left"
        raise InputError(what, path=error.filename or target, found=error.strerror, mend=mend) from error
    finally:
        _drop(staging, scratch, old)
    return target


def read_manifest(folder: Path | str) -> pd.DataFrame:
    """manifest.csv of a prepared data set. Raises InputError where it is missing or has other columns."""
    path = Path(folder) / "manifest.csv"
    mend = f"csamnet prepare {path.parent.name} --from PATH --root {path.parent.parent}"
    if not path.is_file():
        raise InputError("a data set is not prepared", path=path, found="no manifest", mend=mend)
    try:
        table = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False)
    except ValueError as error:
        raise InputError("a manifest cannot be read", path=path, found=error, mend=mend) from error
    if list(table) != list(COLUMNS):
        expected, found = ",".join(COLUMNS), ",".join(table)
        raise InputError("not a manifest", path=path, expected=expected, found=found, mend=mend)
    return table


def verify(folder: Path | str) -> pd.DataFrame:
    """The manifest, its files hashed again. Raises InputError naming each that changed or is gone."""
    folder, table = Path(folder), read_manifest(folder)
    listed = {"manifest.csv": read_json(folder / "dataset.json").get("manifest_sha256")}
    for kind in ("image", "mask"):
        listed |= dict(zip(table[kind], table[f"{kind}_sha256"], strict=True))
    gone = [path for path in [*listed, *table["inst"]] if path and not (folder / path).is_file()]
    changed = [path for path in listed if path not in gone and sha256_file(folder / path) != listed[path]]
    if gone or changed:
        found = "; ".join(f"{what}: {', '.join(of)}" for what, of in (("gone", gone), ("changed", changed)) if of)
        mend = f"csamnet prepare {folder.name} --from PATH --root {folder.parent}"
        raise InputError("files are not as they were prepared", path=folder, found=found, mend=mend)
    return table


def hold_out(dataset: Dataset, records: list[Record]) -> tuple[list[Record], str]:
    """Move whole groups from train to val where nothing is in val; the records, and the rule in words.

    They are those that the data set names or, where none of these is there, a fifth of the groups (at least
    one of two) in the order of their names' hashes: at random, but the same everywhere.
    """
    groups = {record.group for record in records if record.split == "train"}
    if any(record.split == "val" for record in records):
        return records, "as laid out"
    if len(groups) < 2:
        return records, "none, with fewer than two groups to cut it from"
    held, rule = groups & set(dataset.validation), dataset.validation_rule
    if not held:
        drawn = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())
        held, rule = set(drawn[: max(1, round(len(groups) / 5))]), DRAWN
    moved = [replace(record, split="val") if record.group in held else record for record in records]
    return [new if old.split == "train" else old for old, new in zip(records, moved, strict=True)], rule


def _check_place(source: Path, target: Path) -> bool:
    """Whether a tree is prepared in place. Raises InputError where something else is in the way."""
    inner, outer = (innermost(source) if source.is_dir() else source).resolve(), target.resolve()
    if inner == outer and is_tree(target):
        return True
    if inner.is_relative_to(outer) or outer.is_relative_to(source.resolve()):
        mend = "choose another --root"
        raise InputError("release and tree would lie in one another", path=target, found=source, mend=mend)
    if target.exists() and any(target.iterdir()) and not (target / "dataset.json").is_file():
        mend = f"move it, or take it: csamnet prepare {target.name} --from {target} --root {target.parent}"
        raise InputError("a folder without dataset.json is in the way", path=target, mend=mend)
    return False


def _build(
    dataset: Dataset, release: Release, folder: Path, in_place: bool, allow_partial: bool, progress: Progress
) -> tuple[pd.DataFrame, list[str]]:
    """Read every record and write its files, unless they stay in place; the manifest and notes."""
    records, rule = hold_out(dataset, release.records)
    faults, notes, rows = list(release.problems), [f"validation: {rule}", *release.notes], []
    for record in progress(records):
        try:
            if record.split is None:
                mend = "put it below a folder with train or test in its name"
                raise InputError("neither train nor test", path=record.files["image"], mend=mend)
            pixels = record.load()
            files = record.files if in_place else _write(folder, record, pixels)
            rows.append(_row(folder, record, pixels, files))
            notes += pixels.notes
        except InputError as error:
            faults.append(error)
    rows.sort(key=lambda row: (row["split"] == "test", row["name"]))  # whatever the release's order
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    faults += [InputError(f"no image in {split}") for split in SPLITS if split not in set(table["split"])]
    leaks = [error for column in ("name", "group", "pixels_sha256") for error in _leaks(table, column)]
    errors = leaks if allow_partial and rows else leaks + faults
    if errors:
        listed = "".join(f"\n- {error}" for error in errors)
        hint = "" if leaks or not rows else "\nTo go on without these: --allow-partial"
        raise InputError(f"{dataset.name} cannot be prepared; problems: {len(errors)}{listed}{hint}")
    return table, notes + [" ".join(str(error).split()) for error in faults]


def _write(folder: Path, record: Record, pixels: Pixels) -> dict[str, Path]:
    """Write one record into the tree; its files."""
    planes = {"img": pixels.image, "mask": pixels.mask}
    if pixels.labels is not None:
        labels = relabel_sequential(pixels.labels)[0]
        if labels.max() > np.iinfo(np.uint16).max:
            mend = "cut the image into tiles"
            raise InputError("more than 65,535 instances", path=record.files["image"], mend=mend)
        planes["inst"] = labels.astype(np.uint16)
    paths = {kind: folder / record.split / kind / f"{record.name}.png" for kind in planes}
    for kind, plane in planes.items():
        write_image(paths[kind], plane)
    return {"image": paths.pop("img"), **paths}


def _row(folder: Path, record: Record, pixels: Pixels, files: dict[str, Path]) -> dict:
    """One row of the manifest."""
    files = {"mask": files.get("inst"), **files}
    paths = {kind: files[kind].relative_to(folder).as_posix() for kind in files if kind != "annotation"}
    if pixels.labels is None:
        objects = ndimage.label(pixels.mask, np.ones((3, 3)))[1]
    else:
        objects = np.count_nonzero(np.unique(pixels.labels))
    return {
        **{column: getattr(record, column) for column in ("name", "split", "group", "organ")},
        "inst": "",
        **paths,
        "height": pixels.image.shape[0],
        "width": pixels.image.shape[1],
        "objects": objects,
        "image_sha256": sha256_file(files["image"]),
        "mask_sha256": sha256_file(files["mask"]),
        "pixels_sha256": sha256_array(pixels.image),
    }


def _leaks(table: pd.DataFrame, column: str) -> Iterable[InputError]:
    """An error for each value of a column (name, group, pixels) that is in more than one split."""
    for value, rows in table.groupby(column):
        if rows["split"].nunique() > 1 and (column != "group" or rows["name"].nunique() > 1):
            what = "the same pixels" if column == "pixels_sha256" else f"the {column} {value}"
            yield InputError(f"{what} in two splits", found=", ".join(rows["split"] + "/" + rows["name"]))


def _describe(
    dataset: Dataset, sample: bool, folder: Path, table: pd.DataFrame, notes: list[str], provenance: dict
) -> None:
    """Write manifest.csv and dataset.json. A look-alike is called one, however often it is copied."""
    write_text(folder / "manifest.csv", table.to_csv(index=False, lineterminator="\n"))
    content = {
        "name": dataset.name,
        "kind": "sample" if sample else "real",
        "source": "csamnet samples" if sample else dataset.source,
        "licence": "MIT" if sample else dataset.licence,
        "mpp": dataset.mpp,
        "counts": {split: int((table["split"] == split).sum()) for split in SPLITS},
        "objects": {split: int(table.loc[table["split"] == split, "objects"].sum()) for split in SPLITS},
        "manifest_sha256": sha256_file(folder / "manifest.csv"),
        "notes": notes,
        "provenance": provenance,
    }
    write_json(folder / "dataset.json", content)


def _provenance(release: Release, allow_partial: bool) -> dict:
    """What the tree depends on: the files read, what was said about them, and the code."""
    read = []
    for record in release.records:
        hashes = [(kind, sha256_file(path)) for kind, path in record.files.items()]
        read.append((record.name, record.split, hashes))
    said = [str(line) for line in (*release.problems, *release.notes)]
    code = [sha256_file(path) for path in (datasets.__file__, images.__file__, readers.__file__, __file__)]
    digests = [hashlib.sha256(repr(part).encode()).hexdigest() for part in ((read, said), code)]
    return {"source_sha256": digests[0], "code_sha256": digests[1], "allow_partial": allow_partial}


def _is_current(target: Path, provenance: dict) -> bool:
    try:
        return read_json(target / "dataset.json").get("provenance") == provenance and len(verify(target)) > 0
    except InputError:
        return False


def _drop(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
