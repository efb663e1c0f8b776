"""The page on how far a network carries: what it trains and measures, or what is found of it in the results."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from csamnet.config import RunConfig
from csamnet.data import load_split
from csamnet.datasets import get_dataset, split_by_organ
from csamnet.evaluate import evaluate
from csamnet.files import InputError
from csamnet.pages.notebooks import checked, notebook_config, notebook_runs, prepared, run_model
from csamnet.pages.tables import KINDS, TITLES, markdown, show
from csamnet.results import MEASURES, find_runs, images_learned, read_config, read_run, read_summary, share_told
from csamnet.robustness import Changed, changes_for, read_robustness, robustness

IMAGES = (1, 2, 4, 8, 16)
"""Numbers of training images in a learning curve, as far as there are so many; and all of them."""


PARAMETERS = ("dataset", "profile", "model", "seed", "others", "epochs", "steps_per_epoch", "device", "measured",
              "root", "results")  # fmt: skip
"""Of the notebook."""


class Study(NamedTuple):
    """What the page tells of; the curve is empty where there is none."""

    config: RunConfig
    root: Path
    results: Path
    run: Path  # of the network whose range is measured
    curve: list[Path]  # measured runs on a part of the training images, and on all


def study(namespace: MutableMapping, say: Callable[[str], None] = print) -> Study:
    """Train and measure what a notebook's parameters ask for, unless it is done.

    With `measured` among them nothing is done: the longest runs on real data in the results folder are taken.
    """
    given = checked(namespace, PARAMETERS)
    others = [get_dataset(name.strip()) for name in str(given.pop("others") or "").split(",") if name.strip()]
    if given.pop("measured"):
        asked = {key: given[key] for key in ("dataset", "results")}
        dataset, results, runs = notebook_runs(asked, [*asked])
        return Study(read_config(runs[0]), Path(), results, runs[0], found_curve(dataset, results))
    config, root, results, device = notebook_config(given, [*given])
    own = get_dataset(config.dataset, root)
    for entry in others:
        if not entry.annotated or entry.target != own.target or entry.name == own.name:
            expected = f"data sets with annotated {own.target[1]}, other than {own.name}"
            raise InputError("others cannot be used", expected=expected, found=entry.name)
        prepared(replace(config, dataset=entry.name), root)
    curve = train_curve(config, root, results, device, say)
    robustness(curve[-1], root, device=device)
    for entry in others:
        evaluate(curve[-1], root, dataset=entry.name, device=device)
    return Study(config, root, results, curve[-1], curve)


def train_curve(config: RunConfig, root: Path, results: Path, device: str, say: Callable) -> list[Path]:
    """Train and measure with few training images and with all, the number of steps being the same; all come last."""
    every = prepared(config, root)["counts"]["train"]
    counts = (*(count for count in IMAGES if count < every), 0)
    return [run_model(replace(config, images=count), root, results, device, say) for count in counts]


def found_curve(dataset: str, results: Path) -> list[Path]:
    """The runs on real data of the network and profile that were trained with most numbers of images; or none."""
    groups: dict[tuple, dict[int, list[Path]]] = {}
    for folder in find_runs(results, dataset=dataset, images=None):
        config, summary = read_config(folder), read_summary(folder)
        if summary and summary["data"]["kind"] == "real":
            groups.setdefault((config.model, config.profile), {}).setdefault(config.images, []).append(folder)
    most = max(groups.values(), key=len, default={})
    return [folder for count in most for folder in most[count]] if len(most) > 2 else []


def curve_table(folders: Sequence[Path]) -> pd.DataFrame:
    """For `figures.learning_curve`: images, seed, mIoU on validation and MEASURES of each run."""
    rows = []
    for folder in folders:
        config, run, pooled = read_config(folder), read_run(folder), read_summary(folder)["pooled"]
        place = {"images": images_learned(run), "seed": config.seed}
        rows.append(place | {"val_miou": run["best_val_miou"]} | {key: pooled[key] for key in MEASURES})
    return pd.DataFrame(rows).astype(dict.fromkeys(MEASURES, float)).sort_values(["images", "seed"], ignore_index=True)


def elsewhere(folder: Path) -> str:
    """What a run reached on its own test images and on those of other data sets, in Markdown; empty without others."""
    own = read_run(folder)["config"]["dataset"]
    found = {own: "test"} | {path.parent.name.removesuffix("-test"): path.parent.name
                             for path in sorted(Path(folder).glob("*-test/summary.json"))}  # fmt: skip
    rows = []
    for name, split in found.items():
        summary = read_summary(folder, split)
        scores = [show(key, summary["pooled"][key]) for key in MEASURES]
        seen = summary.get("seen", 0)
        status = KINDS[summary["data"]["kind"]] + f", learned from {seen} of these" * bool(seen)
        rows.append([name, f"{summary['n']}", *scores, status])
    head = ["data set", "images", *(TITLES[key] for key in MEASURES), "status"]
    return markdown(head, rows, "images") if len(rows) > 1 else ""


def used_otherwise(dataset: str, results: Path) -> str:
    """What runs on a data set, or on some of its organs, reached with real images normalised or in eight views.

    In Markdown. Of each evaluation (`test`, `val`, `PUMA-test`) that there is otherwise too, as `test-normalise1-tta`.
    """
    rows, names = [], ((path.parents[1], path.parent.name) for path in Path(results).glob("*/*/*-*/summary.json"))
    told = {(run, share_told(name)[0]) for run, name in names if share_told(name)[0] != name}
    for run, where in sorted(told):
        config, (whole, organs) = read_config(run), split_by_organ(read_config(run).dataset)
        for summary in (read_summary(run, path.parent.name) for path in run.glob(f"{where}*/summary.json")):
            if summary["data"]["kind"] == "real" and whole == dataset and not summary.get("seen"):
                used = summary.get("settings", {})
                how = [f"{used.get('normalise', 0):g}", "8" if used.get("tta") else "1"]
                scores = [show(key, summary["pooled"][key]) for key in ("miou", "ap", "auc")]
                rows.append([", ".join(organs) or "usual", config.name, where, f"{summary['n']}", *how, *scores])
    head = ["validation organs", "run", "measured on", "images", "normalised", "views", "mIoU", "AP", "AUC"]
    return markdown(head, sorted(rows), ",".join(head[3:])) if rows else ""


def changes_normalised(run: Path) -> dict[str, pd.DataFrame]:
    """What `csamnet robustness --normalise` measured on the test images: share -> table, for `figures.robustness`."""
    parts = sorted(path.stem.removeprefix("robustness-") for path in run.glob("robustness-test-normalise*.json"))
    return {share_told(part)[1]: read_robustness(run, part)[1] for part in parts}


def changed(config: RunConfig, root: Path, modality: str, side: int = 128) -> dict[str, np.ndarray]:
    """The middle of a test image under every change of `robustness`, by the change's name."""
    sample, shown = load_split(root, config.dataset, "test")[0], {}
    for change, factor in changes_for(modality):
        if change != "coarser":  # which is drawn enlarged
            image = Changed(sample, change, factor).image()
            corner = [max(0, (length - side) // 2) for length in image.shape[:2]]
            title = "as it is" if change == "none" else f"{change.removesuffix(', enlarged')} × {factor:g}"
            shown[title] = image[tuple(slice(start, start + side) for start in corner)]
    return shown


def about(page: Study) -> str:
    """Which runs the page tells of, and what was not run, in Markdown."""
    kind = KINDS[read_run(page.run)["data"]["kind"]].capitalize()
    names = ", ".join(f"`{run.name}`" for run in page.curve)
    told = [f"The network is that of `{page.run.parent.name}/{page.run.name}`."]
    told += [f"The learning curve is of {names}."] if page.curve else []
    absent = {
        "changed images (`csamnet robustness`)": read_robustness(page.run),
        "a learning curve (`csamnet train --set images=4`)": page.curve,
        "other data sets (`csamnet evaluate --on PUMA`)": list(page.run.glob("*-test")),
    }
    absent = ", ".join(what for what, found in absent.items() if not found)
    return f"**{kind}.** {' '.join(told)}" + f" *Not run*: {absent}." * bool(absent)
