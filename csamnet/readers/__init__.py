"""From the files of a release, or of a tree laid out by hand, to records: image, mask, instances, group.

One module a modality. A reader takes its data set's entry in the table and the folders of the release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from csamnet.datasets import Dataset
from csamnet.files import InputError, read_json
from csamnet.readers import ct, histology, mri, slides, ultrasound
from csamnet.readers.common import Release, innermost, is_tree, read_tree


def read_own(dataset: Dataset, folders: list[Path]) -> Release:
    """A data set of one's own has no release but a tree, which `read_release` has looked for."""
    raise InputError(
        f"there is no tree of {dataset.name}",
        path=folders[0],
        expected="{train,val,test}/img with images, and mask or inst beside img with files of the same names",
    )


READERS: dict[str, Callable[[Dataset, list[Path]], Release]] = {
    "bach": slides.read_bach,
    "brain_mri": mri.read_brain_mri,
    "cpm17": histology.read_cpm17,
    "dataset_b": ultrasound.read_dataset_b,
    "kumar": histology.read_kumar,
    "lidc": ct.read_lidc,
    "monuseg": histology.read_monuseg,
    "puma": histology.read_puma,
    "slides": slides.read_slides,
    "tree": read_own,
}
"""Data set's `reader` -> function of its entry in the table and the folders of its release."""


def read_release(dataset: Dataset, folders: list[Path], form: str | None = None) -> Release:
    """The records of a tree {train,val,test}/{img,mask,inst}, or else of the data set's own release."""
    tree = next((inner for folder in folders if is_tree(inner := innermost(folder))), None)
    options = {"form": form} if form else {}
    release = read_tree(dataset, tree) if tree else READERS[dataset.reader](dataset, folders, **options)
    release.notes += [f"form: {form}"] if form and not tree else []
    release.sample |= is_sample(folders)
    if tree and dataset.release and not release.sample:
        hold_to_table(dataset, tree, release)
    if not (tree or release.sample or dataset.release):  # those are checked by patient
        release.problems += miscounts(dataset, folders[0], release)
    return release


def hold_to_table(dataset: Dataset, tree: Path, release: Release) -> None:
    """Split a tree of known patients as the table does, leave others out, and report those that are missing.

    Kumar's images are laid out as MoNuSeg's, for one. The tree's own validation images stay; a tree without any
    known patient is taken as it is.
    """
    splits = dataset.splits
    known = [record for record in release.records if record.group in splits]
    if not known:
        return
    if others := len(release.records) - len(known):
        release.notes.append(f"left out, since not of {dataset.name}: {others} images")
    moved = {"train": {"test": "train"}, "test": {"train": "test", "val": "test"}}
    release.records = [replace(r, split=moved[splits[r.group]].get(r.split, r.split)) for r in known]
    release.demand_all(dataset, {record.group for record in known}, tree)


def is_sample(folders: list[Path]) -> bool:
    """Whether a look-alike's mark lies in or above the folders, or the card of a tree made from one."""
    above = [place / "SAMPLE.json" for folder in folders for place in folder.resolve().parents]
    cards = [place / "dataset.json" for folder in folders for place in (folder.parent, folder, innermost(folder))]
    return (
        any(mark.is_file() for mark in above)
        or any(mark for folder in folders for mark in folder.rglob("SAMPLE.json"))
        or any(read_json(card).get("kind") == "sample" for card in cards if card.is_file())
    )


def miscounts(dataset: Dataset, folder: Path, release: Release) -> Iterator[InputError]:
    """An error for each split that has fewer or more images (slides, of which there may be many tiles)."""
    for split, count in dataset.counts.items():
        found = len({record.files["image"] for record in release.records if split in ("all", record.split)})
        if found != count:
            what = f"{abs(found - count)} images {'fewer' if found < count else 'more'} than the release has"
            expected = f"{count} pairs of image and annotation" + f" in {split}" * (split != "all")
            yield InputError(what, path=folder, expected=expected, found=found)
