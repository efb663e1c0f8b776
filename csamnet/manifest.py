"""The manifest of a prepared data set: one row an image, with the hash of every file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from csamnet.files import InputError, read_json, sha256_file

KINDS = ("image", "mask", "inst", "classes")  # of files that an image may have
COLUMNS = (
    dict.fromkeys(("name", "split", "group", "organ", *KINDS), str)
    | dict.fromkeys(("height", "width", "objects"), int)
    | dict.fromkeys((*(f"{kind}_sha256" for kind in KINDS), "pixels_sha256"), str)
)
"""Of manifest.csv, one row an image. `organ` is also the kind of case (benign, malignant) where all are of one
organ. Paths are relative to the data set's folder; `inst` is empty where only a mask is known, `mask` where
nothing is annotated; `objects` counts instances, or else the mask's connected parts (8 neighbours);
`pixels_sha256` is of the decoded image, and so the same in any format."""


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
    for kind in KINDS:
        listed |= dict(zip(table[kind], table[f"{kind}_sha256"], strict=True))
    listed.pop("", None)
    gone = [path for path in listed if not (folder / path).is_file()]
    changed = [path for path in listed if path not in gone and sha256_file(folder / path) != listed[path]]
    if gone or changed:
        found = "; ".join(f"{what}: {', '.join(of)}" for what, of in (("gone", gone), ("changed", changed)) if of)
        mend = f"csamnet prepare {folder.name} --from PATH --root {folder.parent}"
        raise InputError("files are not as they were prepared", path=folder, found=found, mend=mend)
    return table
