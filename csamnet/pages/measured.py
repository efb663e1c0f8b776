"""Evaluations read back: each file whole and in agreement with the others, or an error that names it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from csamnet.config import RunConfig
from csamnet.files import InputError
from csamnet.metrics import COUNTS, EDGES, from_counts
from csamnet.results import MEASURES, read_config, read_summary

BINS = len(EDGES) + 1  # of an image's scores


class Evaluation(NamedTuple):
    """A run's measures on a split."""

    folder: Path  # of the run
    config: RunConfig
    summary: dict
    images: pd.DataFrame  # a row an image
    scores: np.ndarray | None  # (images, 2, bins), histograms of the scores; None for a run from before they were kept


def read_evaluation(folder: Path | str, split: str = "test") -> Evaluation:
    """What `evaluate` wrote. Raises InputError where it is absent, damaged or contradicts itself."""
    folder, summary = Path(folder), read_summary(folder, split)
    if summary is None:
        raise _broken("a run is not measured", folder, folder / split / "summary.json")
    images, scores = read_images(folder, split), read_scores(folder, split)
    counts = images[[*COUNTS]].to_numpy()
    if summary.get("n") != len(images) or not set(MEASURES) <= summary["pooled"].keys():
        expected = f"{summary.get('n')} images as in summary.json, and there {', '.join(MEASURES)}"
        raise _broken("an evaluation is not whole", folder, folder / split / "per_image.csv", expected, len(images))
    pooled = from_counts(*counts.sum(0).tolist())
    for key in ("miou", "dice"):
        told = nan if summary["pooled"][key] is None else summary["pooled"][key]
        if not np.isclose(told, pooled[key], rtol=0, atol=1e-4, equal_nan=True):
            expected = f"{key} {pooled[key]:.4f}, from the counts in per_image.csv"
            raise _broken("two files contradict each other", folder, folder / split / "summary.json", expected, told)
    if scores is not None and not np.array_equal(scores.sum((1, 2)), counts.sum(1)):
        expected = "as many scores of each image as per_image.csv has pixels"
        raise _broken("two files contradict each other", folder, folder / split / "scores.npz", expected, scores.shape)
    return Evaluation(folder, read_config(folder), summary, images, scores)


def read_images(folder: Path | str, split: str = "test") -> pd.DataFrame:
    """`per_image.csv` of an evaluation; a name may be all digits, and stays text."""

    def sound(table: pd.DataFrame) -> bool:
        counts = table[[*COUNTS, *MEASURES]].astype(float)[[*COUNTS]]
        return len(table) and not table["name"].duplicated().any() and (counts >= 0).all(axis=None)

    return _table(folder, split, "per_image.csv", sound, "a row for each image, with counts of 0 or more")


def read_curves(folder: Path | str, split: str = "test") -> pd.DataFrame:
    """`curves.csv` of an evaluation: threshold, precision, recall, fpr."""

    def sound(table: pd.DataFrame) -> bool:
        numbers = table[["threshold", "precision", "recall", "fpr"]].astype(float)
        return len(table) and not numbers[["recall", "fpr"]].isna().any(axis=None)

    return _table(folder, split, "curves.csv", sound, "numbers of 0 to 1, without gaps")


def read_objects(folder: Path | str, split: str = "test") -> pd.DataFrame | None:
    """`objects.csv` of an evaluation: name of the image, area (pixels), iou. None where none are told apart or kept."""

    def sound(table: pd.DataFrame) -> bool:
        return (table["area"] > 0).all() and table["iou"].between(0, 1).all() and table["name"].notna().all()

    if not (Path(folder) / split / "objects.csv").exists():
        return None
    table = _table(folder, split, "objects.csv", sound, "for each object a name, an area above 0 and an IoU of 0 to 1")
    return table if len(table) else None


def _table(folder: Path | str, split: str, name: str, sound: Callable, expected: str) -> pd.DataFrame:
    path = Path(folder) / split / name
    try:
        texts = dict.fromkeys(("name", "group", "organ"), str)  # an image may be called 007, or NA
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
        right = sound(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken("measures cannot be read", folder, path, expected, error) from None
    if not right:
        raise _broken("measures cannot be used", folder, path, expected)
    return table


def read_scores(folder: Path | str, split: str = "test") -> np.ndarray | None:
    """Score histograms (images, 2, bins) of an evaluation, in the order of `per_image.csv`; None where not kept."""
    path = Path(folder) / split / "scores.npz"
    if not path.exists():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            scores = stored["histograms"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _broken("scores cannot be read", folder, path, found=error) from None
    if scores.ndim != 3 or scores.shape[1:] != (2, BINS):
        raise _broken("scores cannot be used", folder, path, f"histograms (images, 2, {BINS})", scores.shape)
    return scores


def check_comparable(evaluations: Mapping[str, Sequence[Evaluation]]) -> None:
    """Same images, data and budget for all, each seed once. Raises InputError that names two runs where not."""
    every = [one for seeds in evaluations.values() for one in seeds]
    if not every:
        raise InputError("there is nothing to compare", expected="at least one measured run of each model")
    for one in every[1:]:
        for what, told in SAME.items():
            if told(one) != told(every[0]):
                expected, found = f"{_short(told(every[0]))}, as {every[0].folder} has", _short(told(one))
                mend = "train and measure both anew on the same data, or move one away"
                raise InputError(f"two runs differ in {what} and cannot be compared", path=one.folder,
                                 expected=expected, found=found, mend=mend)  # fmt: skip
    for model, seeds in evaluations.items():
        if len({one.config.seed for one in seeds}) < len(seeds):
            folders = ", ".join(str(one.folder) for one in seeds)
            raise InputError(f"two runs of {model} have the same seed", found=folders, mend="move one away")


BUDGET = ("epochs", "steps_per_epoch", "images", "batch", "tile")
SAME = {
    "data": lambda one: tuple(one.summary["data"].get(key) for key in ("name", "kind", "manifest_sha256")),
    "images": lambda one: tuple(one.images["name"]),
    "budget": lambda one: {key: getattr(one.config, key) for key in BUDGET},
}
"""What two runs have to have in common to stand in one table."""


def _short(told) -> str:
    text = str(told) if isinstance(told, dict) else ", ".join(str(part)[:24] for part in told)
    return text if len(text) < 160 else f"{text[:156]} ..."


def _broken(what: str, folder: Path | str, path: Path, expected=None, found=None) -> InputError:
    mend = f"remove {path.parent}, then csamnet evaluate {folder}; or move the whole run away"
    return InputError(what, path=path, expected=expected, found=found, mend=mend)
