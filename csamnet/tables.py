"""Numbers as a reader sees them: one way to print a measure, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

import pandas as pd

from csamnet.paths import PUBLISHED, RESULTS
from csamnet.results import find_runs, read_config, read_summary

KINDS = {"real": "measured on real data", "sample": "sample data"}
"""What is said of a number, by the kind of its data."""

TITLES = {
    "miou": "mIoU",
    "iou": "IoU of nuclei",
    "iou_background": "IoU of background",
    "dice": "Dice",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "ap": "AP",
    "auc": "AUC",
    "hd95": "HD95",
    "aji": "AJI",
    "dq": "DQ",
    "sq": "SQ",
    "pq": "PQ",
}
HEADLINE = ("miou", "dice", "ap", "auc")
PERCENT = ("miou", "iou", "iou_background", "accuracy")  # the paper prints mIoU so; other scores are fractions


def show(key: str, value: float | None, sign: str = "") -> str:
    """A measure as the project prints it: `80.31 %`, `0.9111`, `4.2 px`; None and NaN are `undefined`."""
    if value is None or value != value:
        return "undefined"
    if key in PERCENT:
        return f"{100 * value:{sign}.2f} %"
    text = f"{value:{sign}.1f} px" if key == "hd95" else f"{value:{sign}.4f}"
    return text.replace("-", "\N{MINUS SIGN}")


def show_seeds(key: str, values: list[float | None]) -> str:
    """The mean over runs and, from two up, the sample standard deviation."""
    if None in values or len(values) == 1:
        return show(key, None if None in values else values[0])
    return f"{show(key, mean(values)).removesuffix(' %')} ± {show(key, stdev(values))}"


def difference(key: str, ours: float | None, paper: float | None) -> str:
    """Ours less the paper's, with its sign; empty where either is missing."""
    if ours is None or paper is None:
        return ""
    return show(key, ours - paper, "+").replace(" %", " points").replace("-", "\N{MINUS SIGN}")


def published(dataset: str, folder: Path = PUBLISHED) -> pd.DataFrame:
    """What the paper prints on a data set: model, ap, auc, miou (a fraction here), origin; empty if nothing."""
    path = Path(folder) / f"{dataset.lower()}.csv"
    if not path.exists():
        return pd.DataFrame(columns=["model", "ap", "auc", "miou", "origin"])
    table = pd.read_csv(path)
    return table.assign(miou=table["miou_percent"] / 100)[["model", "ap", "auc", "miou", "origin"]]


def paper_scores(dataset: str, model: str) -> dict[str, float]:
    """The paper's measures of one of our models, those that it gives; size S is what it calls CSAMNet."""
    name = "CSAMNet" if model == "CSAMNet-S" else model
    rows = published(dataset).query("model == @name")
    return {} if rows.empty else rows.iloc[0][["miou", "ap", "auc"]].dropna().to_dict()


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], right: str = "") -> str:
    """A Markdown table; columns named in `right` (separated by commas) are set to the right."""
    head = list(head)
    rule = ["--:" if name in right.split(",") else "---" for name in head]
    lines = [head, rule, *([cell or " " for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measures(summary: dict, model: str) -> str:
    """Every measure of an evaluation, pooled and as mean over images; the paper's beside them for real data."""
    data = summary["data"]
    paper = paper_scores(data["name"], model) if data["kind"] == "real" else {}
    head = ["measure", "pooled", "mean over images", *(["paper", "difference"] if paper else [])]
    rows = []
    for key, title in TITLES.items():
        pooled, row = summary["pooled"][key], [title, show(key, summary["pooled"][key])]
        row.append(show(key, summary["mean"][key]))
        if paper:
            known = paper.get(key)
            row += ["" if known is None else show(key, known), difference(key, pooled, known)]
        rows.append(row)
    return markdown(head, rows, "pooled,mean over images,paper,difference")


def measured(dataset: str, split: str = "test", results: Path | str = RESULTS) -> dict[tuple, list[dict]]:
    """Summaries of the finished runs on a data set, one a seed, by (model, profile, kind of data)."""
    groups: dict[tuple, list[dict]] = {}
    for folder in find_runs(results, dataset=dataset):
        config, summary = read_config(folder), read_summary(folder, split)
        if summary:
            groups.setdefault((config.model, config.profile, summary["data"]["kind"]), []).append(summary)
    return groups


def place(hardware: dict) -> str:
    """The device in a few words."""
    on_cpu = hardware["device"] == "cpu"
    return f"{hardware['processor']}, {hardware['threads']} threads" if on_cpu else hardware["device"]


def against_paper(dataset: str, split: str = "test", results: Path | str = RESULTS) -> str:
    """The paper's scores beside ours on real data, pooled: mean and sd over seeds; a model not run says so."""
    runs = {key: found for key, found in measured(dataset, split, results).items() if key[2] == "real"}
    models = {name: None for name in published(dataset)["model"] if name.startswith("CSAMNet")}
    names = dict.fromkeys(["CSAMNet-S" if name == "CSAMNet" else name for name in models])
    rows = []
    for model in names | {key[0]: None for key in runs}:
        paper = paper_scores(dataset, model)
        ours = {key[1]: found for key, found in runs.items() if key[0] == model}
        rows += [row for profile, found in ours.items() for row in _rows(model, profile, found, paper)]
        if not ours:
            rows += [[model, TITLES[k], show(k, v), "", "", "", "*not run*", ""] for k, v in paper.items()]
    head = ["network, profile", "measure", "paper", "ours", "difference", "seeds", "status", "hardware"]
    return markdown(head, rows, "paper,ours,difference,seeds")


def _rows(model: str, profile: str, found: list[dict], paper: dict) -> list[list[str]]:
    where = "; ".join(dict.fromkeys(place(summary["hardware"]) for summary in found))
    rows = []
    for key in HEADLINE:
        values = [summary["pooled"][key] for summary in found]
        gap = "" if None in values or key not in paper else difference(key, mean(values), paper[key])
        printed = show(key, paper[key]) if key in paper else ""
        row = [f"{model}, {profile}", TITLES[key], printed, show_seeds(key, values), gap]
        rows.append([*row, str(len(found)), KINDS["real"], where])
    return rows
