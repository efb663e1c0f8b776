"""The numbers that the book prints: the paper's, ours, and what is counted in the code."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import torch
from torch.utils.flop_counter import FlopCounterMode

from csamnet.config import MODELS
from csamnet.model import CSAMNet
from csamnet.results import find_runs, read_config, read_summary

METRICS = {"miou": "mIoU", "dice": "Dice", "ap": "AP", "auc": "AUC"}
PERCENT = {
    "miou",
    "iou",
    "iou_background",
    "accuracy",
}  # the paper prints mIoU so; other scores are fractions
RELEASED = "CSAMNet-S"  # the size that the paper calls CSAMNet


def show(key: str, value: float | None, sign: str = "") -> str:
    """A value of `summary.json` as the book prints it."""
    if value is None:
        return "undefined"
    if key in PERCENT:
        return f"{100 * value:{sign}.2f} %"
    if key == "hd95":
        return f"{value:{sign}.1f} px"
    return f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign}.4f}"


def show_seeds(key: str, values: list[float | None]) -> str:
    """The mean and, from two runs up, the sample standard deviation."""
    if None in values or len(values) == 1:
        return show(key, None if None in values else values[0])
    return f"{show(key, mean(values)).removesuffix(' %')} ± {show(key, stdev(values))}"


def published(root: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table in book/published, as printed."""
    with open(root / "book" / "published" / name, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def of_paper(root: Path, dataset: str) -> dict[str, dict[str, str]]:
    """The paper's rows on a data set, by our names of the models."""
    rows = published(root, f"{dataset.lower()}.csv")
    return {RELEASED if row["model"] == "CSAMNet" else row["model"]: row for row in rows}


def printed(row: dict[str, str], metric: str) -> tuple[str, float | None]:
    """A metric in a row of the paper: as printed, and in our unit."""
    if metric == "miou" and row.get("miou_percent"):
        return row["miou_percent"] + " %", float(row["miou_percent"]) / 100
    return (row[metric], float(row[metric])) if row.get(metric) else ("", None)


def summaries(root: Path, run: str, split: str) -> list[dict]:
    """What was measured in one run, or in every seed of it where the name ends before `-seed`."""
    folder = root / "results" / run
    folders = [folder] if folder.is_dir() else sorted(folder.parent.glob(f"{folder.name}-seed*"))
    return [summary for folder in folders if (summary := read_summary(folder, split))]


def measured(root: Path, dataset: str, split: str) -> dict[tuple[str, str, str], list[dict]]:
    """What was measured in the finished runs on a data set, by (model, profile, kind of data)."""
    groups = defaultdict(list)
    for folder in find_runs(root / "results", dataset=dataset):
        config, summary = read_config(folder), read_summary(folder, split)
        if summary:
            groups[config.model, config.profile, summary["data"]["kind"]].append(summary)
    return groups


def hardware(summary: dict) -> str:
    where = summary["hardware"]
    return f"{where['processor']}, {where['cores']} cores" if where["device"] == "cpu" else where["device"]


@cache
def count(model: str) -> tuple[int, float]:
    """Parameters, and G multiply-adds for an image of 256 x 256, of a model of `csamnet.config.MODELS`."""
    network = CSAMNet(**MODELS[model]).eval().to("meta")  # shapes without values
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(torch.empty(1, 3, 256, 256, device="meta"))
    return sum(p.numel() for p in network.parameters()), flops.get_total_flops() / 2e9
