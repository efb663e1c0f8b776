"""From a release to the canonical tree and its manifest: whole, checked, and the same however often."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from csamnet import images, slides
from csamnet.datasets import Dataset, get_dataset, own_dataset, split_by_organ
from csamnet.files import InputError, read_json, sha256_array, sha256_file, write_json, write_text
from csamnet.images import write_image
from csamnet.manifest import COLUMNS, KINDS, verify
from csamnet.readers import READERS, common, read_release
from csamnet.readers.common import SPLITS, Pixels, Record, Release, innermost, is_tree, unpack

_ROWS = ".rows"  # what is done of a tree that is being built
Progress = Callable[[int, int], None]  # of records: done, all


def prepare(
    name: str,
    source: Path | str,
    root: Path | str,
    *,
    own: dict | None = None,
    form: str | None = None,
    allow_partial: bool = False,
    on_record: Progress = lambda done, all_: None,
) -> Path:
    """Write `root`/NAME from the release, zip or tree at `source`, and return that folder.

    The tree is built beside its place and moved there whole; where that was stopped, the same call goes on. The
    same files and code again do nothing; an older tree is replaced only by a complete one. `source` is only
    read, unless it is `root`/NAME itself: then its images stay and the manifest is added. Raises one InputError with
    all that is wrong. `allow_partial` leaves out what cannot be used and takes empty splits, noting both, but never a
    name, a group or the same pixels in two splits. `own` makes NAME a data set of one's own: the arguments of
    `own_dataset` besides the name. `form` is one of the table's `forms`, None the first.
    """
    dataset, source = own_dataset(name, **own) if own else get_dataset(name, root), Path(source)
    target = Path(root) / dataset.name
    uses = ("partial", "zip", "old", "lock")
    staging, scratch, old, lock = (target.with_name(f".{dataset.name}.{use}") for use in uses)
    in_place = _check_place(source, target)
    source = target if in_place else source
    try:
        with _alone(lock, staging, scratch, old):
            if old.exists() and not target.exists():  # stopped between the two renames below
                os.replace(old, target)
            _drop(scratch, old)
            form = check_form(dataset, form)
            folders = unpack(source, scratch)
            if not own:
                _check_name(dataset, folders)
            release = read_release(dataset, folders, form)
            provenance = _provenance(dataset, release, allow_partial)
            if not _is_current(target, provenance):
                folder = target if in_place else _stage(staging, provenance)
                table, notes = _build(dataset, release, folder, in_place, allow_partial, on_record)
                _describe(dataset, release.sample, folder, table, notes, provenance)
                if not in_place:
                    _drop(staging / _ROWS)
                    if target.exists():
                        os.replace(target, old)
                    os.replace(staging, target)
            _drop(staging)
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else "a file cannot be read or written"
        mend = "mend that and start again; nothing half-written was left"
        raise InputError(what, path=error.filename or target, found=error.strerror, mend=mend) from error
    return target


def _check_name(dataset: Dataset, folders: list[Path]) -> None:
    """Raises InputError for a prepared tree of another data set, or of another split, than the one that is wanted."""
    for card in (innermost(folder) / "dataset.json" for folder in folders):
        found = read_json(card).get("name") if card.is_file() else dataset.name
        if found not in (dataset.name, split_by_organ(dataset.name)[0]):
            mend = "give the release, or another name"
            raise InputError("prepared as another data set", path=card, expected=dataset.name, found=found, mend=mend)


@contextmanager
def _alone(lock: Path, staging: Path, *others: Path) -> Iterator[None]:
    """Hold `lock` (until the process ends, however it does) and clear up after: `staging` only after an error.

    Raises InputError where another process holds it.
    """
    root, new = lock.parent, not lock.parent.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            except (InputError, OSError):
                _drop(staging)
                raise
            finally:
                _drop(*others)
                lock.unlink(missing_ok=True)
                if new and not any(root.iterdir()):
                    root.rmdir()
    except Timeout:
        mend = "wait until that has ended"
        raise InputError("the data set is being prepared by another process", path=lock, mend=mend) from None


def check_form(dataset: Dataset, form: str | None) -> str | None:
    """The form in which a release is read. Raises InputError for one that the data set does not have."""
    if form is not None and form not in dataset.forms:
        raise InputError(f"{dataset.name} has no form {form!r}", expected=" | ".join(dataset.forms) or "no form")
    return form or next(iter(dataset.forms), None)


def assign_splits(dataset: Dataset, records: list[Record]) -> tuple[list[Record], str]:
    """Records with a split each, whole groups together, and the rule in words.

    What the release says stands, unless organs are held out: then all their training images are val, and the others
    train. Where it says nothing, and the table gives shares of val and test, they are drawn by group. Where only val
    is missing, it is cut from train: the groups that the table names or, where none of these is there, a fifth (at
    least one of two). A draw is by the hash of the group's name: at random, but the same wherever the same groups are.
    """
    if dataset.held_out:
        known = [record for record in records if record.split in ("train", "val")]
        if absent := {*dataset.held_out} - (organs := {record.organ for record in known}):
            what, expected = "no training image of an organ to hold out", " or ".join(sorted(organs))
            raise InputError(f"{what}: {', '.join(sorted(absent))}", expected=expected, mend="hold out others")
        to = {record.group: "val" if record.organ in dataset.held_out else "train" for record in known}
        return _moved(records, to, None), dataset.validation_rule
    given = {record.split for record in records}
    if given == {None} and dataset.drawn:
        val, test = dataset.drawn
        of = _draw(records, test, "test")
        of |= _draw([record for record in records if record.group not in of], val / (1 - test), "val")
        return _moved(records, of, "train"), f"drawn by group: {val:.0%} for validation, {test:.0%} for test"
    groups = {record.group for record in records if record.split == "train"}
    if "val" in given or not dataset.annotated:
        return records, "as laid out"
    if len(groups) < 2:
        return records, "none, with fewer than two groups to cut it from"
    held, rule = groups & set(dataset.validation), dataset.validation_rule
    if not held:
        drawn = sorted(groups, key=_hash)
        held, rule = set(drawn[: max(1, round(len(groups) / 5))]), Dataset.validation_rule
    return _moved(records, dict.fromkeys(held, "val"), None), rule


def _draw(records: list[Record], share: float, name: str) -> dict[str, str]:
    """Every so many-th group as `name`, in order of organ (or kind of case), so that each gives its share."""
    organs = {record.group: record.organ for record in records}
    ranked = sorted(organs, key=lambda group: (organs[group], _hash(group)))
    picked = [group for i, group in enumerate(ranked) if int((i + 1) * share + 0.5) > int(i * share + 0.5)]
    return dict.fromkeys(picked or ranked[:1], name)


def _moved(records: list[Record], to: dict[str, str], rest: str | None) -> list[Record]:
    """Records of the groups in `to` moved there; the others into `rest`, or left; a test record stays one."""
    return [
        record if record.split == "test" else replace(record, split=to.get(record.group, rest or record.split))
        for record in records
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
    dataset: Dataset, release: Release, folder: Path, in_place: bool, allow_partial: bool, on_record: Progress
) -> tuple[pd.DataFrame, list[str]]:
    """Read every record and write its files, unless they stay in place; the manifest and notes."""
    records, rule = assign_splits(dataset, release.records)
    faults, notes, rows = list(release.problems), [f"split: {rule}", *release.notes], []
    for done, record in enumerate(records, 1):
        try:
            row, said = _take(record, folder, in_place, dataset.longest)
            rows.append(row)
            notes += said
        except InputError as error:
            faults.append(error)
        on_record(done, len(records))
    rows.sort(key=lambda row: (row["split"] == "test", row["name"]))  # whatever the release's order
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    needed = SPLITS if dataset.annotated else ()
    faults += [InputError(f"no image in {name}") for name in needed if name not in set(table["split"])]
    _check_table(dataset, table, faults, allow_partial)
    return table, notes + list(dict.fromkeys(" ".join(str(error).split()) for error in faults))


def _take(record: Record, folder: Path, in_place: bool, longest: int | None) -> tuple[dict, list[str]]:
    """Write a record's files, unless they stay in place or were written before a stop; its row and notes."""
    if record.split is None:
        mend = "put it below a folder with train or test in its name"
        raise InputError("neither train nor test", path=record.files["image"], mend=mend)
    if not record.name.isprintable():
        raise InputError("a name that not every system can write", found=ascii(record.name), mend="rename it")
    kept = folder / _ROWS / f"{record.split}-{record.name}.json"
    if not in_place and kept.exists():
        return tuple(read_json(kept).values())
    pixels = record.load() if in_place else reduce(record.load(), longest)
    row = _row(folder, record, pixels, record.files if in_place else _write(folder, record, pixels))
    if not in_place:
        write_json(kept, {"row": row, "notes": list(pixels.notes)})
    return row, list(pixels.notes)


def _check_table(dataset: Dataset, table: pd.DataFrame, faults: list[InputError], allow_partial: bool) -> None:
    """Raises one InputError with all that is wrong; with `allow_partial`, where there is an image, only of leaks."""
    leaks = [error for column in ("name", "group", "pixels_sha256") for error in _leaks(table, column)]
    errors = leaks if allow_partial and len(table) else leaks + faults
    errors = dict.fromkeys(map(str, errors))  # many records may share a file
    if errors:
        listed = "".join(f"\n- {error}" for error in errors)
        hint = "" if leaks or table.empty else "\nTo go on without these: --allow-partial"
        raise InputError(f"{dataset.name} cannot be prepared; problems: {len(errors)}{listed}{hint}")


def reduce(pixels: Pixels, longest: int | None) -> Pixels:
    """Pixels whose longer side is at most `longest`: the image by area means, planes by majority or nearest."""
    height, width = pixels.image.shape[:2]
    if not longest or max(height, width) <= longest:
        return pixels
    size = tuple(max(1, round(n * longest / max(height, width))) for n in (width, height))

    def shrink(plane: np.ndarray | None, how: Image.Resampling) -> np.ndarray | None:
        return None if plane is None else np.array(Image.fromarray(plane).resize(size, how))

    mask = None if pixels.mask is None else shrink(pixels.mask * np.uint8(255), Image.Resampling.BOX) > 127
    labels, classes = (shrink(plane, Image.Resampling.NEAREST) for plane in (pixels.labels, pixels.classes))
    return Pixels(shrink(pixels.image, Image.Resampling.BOX), mask, labels, pixels.notes, classes)


def _stage(staging: Path, provenance: dict) -> Path:
    """The folder in which the tree is built; what lies there is kept where it is of the same files and code."""
    path = staging / _ROWS / "provenance.json"
    if not path.exists() or read_json(path) != provenance:
        _drop(staging)
        write_json(path, provenance)
    return staging


def _write(folder: Path, record: Record, pixels: Pixels) -> dict[str, Path]:
    """Write one record into the tree; its files."""
    planes = {"image": pixels.image, "mask": pixels.mask, "inst": None, "classes": pixels.classes}
    if pixels.labels is not None:
        labels = relabel_sequential(pixels.labels)[0]
        if labels.max() > np.iinfo(np.uint16).max:
            mend = "cut the image into tiles"
            raise InputError("more than 65,535 instances", path=record.files["image"], mend=mend)
        planes["inst"] = labels.astype(np.uint16)
    planes = {kind: plane for kind, plane in planes.items() if plane is not None}
    folders = {"image": "img"}
    paths = {kind: folder / record.split / folders.get(kind, kind) / f"{record.name}.png" for kind in planes}
    for kind, plane in planes.items():
        write_image(paths[kind], plane)
    return paths


def _row(folder: Path, record: Record, pixels: Pixels, files: dict[str, Path]) -> dict:
    """One row of the manifest."""
    paths = {kind: path for kind, path in files.items() if kind in COLUMNS}
    if pixels.labels is not None:
        objects = np.count_nonzero(np.unique(pixels.labels))
        paths.setdefault("mask", paths.get("inst"))
    else:
        objects = 0 if pixels.mask is None else ndimage.label(pixels.mask, np.ones((3, 3)))[1]
    return {
        **{column: getattr(record, column) for column in ("name", "split", "group", "organ")},
        **{kind: paths[kind].relative_to(folder).as_posix() if kind in paths else "" for kind in KINDS},
        "height": pixels.image.shape[0],
        "width": pixels.image.shape[1],
        "objects": int(objects),
        **{f"{kind}_sha256": sha256_file(paths[kind]) if kind in paths else "" for kind in KINDS},
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
        "licence": "CC0 1.0: painted, not real" if sample else dataset.licence,
        "mpp": dataset.mpp,
        "counts": {split: int((table["split"] == split).sum()) for split in SPLITS},
        "objects": {split: int(table.loc[table["split"] == split, "objects"].sum()) for split in SPLITS},
        "manifest_sha256": sha256_file(folder / "manifest.csv"),
        "notes": notes,
        "provenance": provenance,
    }
    if dataset.reader == "tree":
        content["own"] = {"modality": dataset.modality, "mpp": dataset.mpp}
    write_json(folder / "dataset.json", content)


def _provenance(dataset: Dataset, release: Release, allow_partial: bool) -> dict:
    """What the tree depends on: the files read, what was said about them, the table's entry and the code."""
    paths = {path for record in release.records for path in record.files.values()}
    digest = {path: sha256_file(path) for path in paths}
    read = [
        (r.name, r.split, r.group, r.organ, [(kind, digest[path]) for kind, path in r.files.items()])
        for r in release.records
    ]
    said = [str(line) for line in (*release.problems, *release.notes)]
    files = {inspect.getfile(part) for part in (images, slides, common, READERS[dataset.reader])} | {__file__}
    code = [repr(dataset), *(sha256_file(path) for path in sorted(files) if Path(path).is_file())]
    hashes = {"source_sha256": (read, said), "code_sha256": code}
    return {key: _hash(repr(part)) for key, part in hashes.items()} | {"allow_partial": allow_partial}


def _is_current(target: Path, provenance: dict) -> bool:
    try:
        return read_json(target / "dataset.json").get("provenance") == provenance and len(verify(target)) > 0
    except InputError:
        return False


def _drop(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
