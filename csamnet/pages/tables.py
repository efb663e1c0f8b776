"""Numbers as a reader sees them: one way to print a measure, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

import pandas as pd

from csamnet.config import RunConfig
from csamnet.datasets import get_dataset
from csamnet.paths import PUBLISHED, RESULTS
from csamnet.results import MEASURES, find_runs, images_learned, read_config, read_run, read_summary

KINDS = {"real": "measured on real data", "sample": "sample data"}
"""What is said of a number, by the kind of its data."""

TITLES = {
    "miou": "mIoU",
    "iou": "IoU of foreground",
    "iou_background": "IoU of background",
    "dice": "Dice",
    **{key: key for key in ("precision", "recall", "accuracy")},
    **{key: key.upper() for key in ("ap", "auc", "hd95", "aji", "dq", "sq", "pq")},
}
TARGET = ("nucleus", "nuclei")
"""What is segmented: one, many."""

LEVEL = 0.05  # of a test, after correction
PERCENT = ("miou", "iou", "iou_background", "accuracy")  # the paper prints mIoU so; other scores are fractions


def show(key: str, value: float | None, sign: str = "") -> str:
    """A measure as the project prints it: `80.31 %`, `0.9111`, `4.2 px`; None and NaN are `undefined`."""
    if value is None or value != value:
        return "undefined"
    if key in PERCENT:
        text = f"{100 * value:{sign}.2f} %"
    else:
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
    return show(key, ours - paper, "+").replace(" %", " points")


def published(dataset: str, folder: Path = PUBLISHED) -> pd.DataFrame:
    """What the paper prints on a data set: model, ap, auc, miou (as a fraction), origin; empty if nothing.

    Models are called as ours: what the paper calls CSAMNet is size S.
    """
    path = Path(folder) / f"{dataset.lower()}.csv"
    if not path.exists():
        return pd.DataFrame(columns=["model", "ap", "auc", "miou", "origin"])
    table = pd.read_csv(path).replace({"model": {"CSAMNet": "CSAMNet-S"}})
    return table.assign(miou=table["miou_percent"] / 100)[["model", "ap", "auc", "miou", "origin"]]


def paper_scores(dataset: str, model: str) -> dict[str, float]:
    """The paper's measures of one of our models, those that it gives."""
    rows = published(dataset).set_index("model")[["miou", "ap", "auc"]]
    return rows.loc[model].dropna().to_dict() if model in rows.index else {}


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], right: str = "") -> str:
    """A Markdown table; columns named in `right` (separated by commas) are set to the right."""
    head = list(head)
    rule = ["--:" if name and name in right.split(",") else "---" for name in head]
    lines = [head, rule, *([cell or " " for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measures(summary: dict, model: str) -> str:
    """Every measure of an evaluation, pooled (subsets too) and as mean over images; for real data the paper's."""
    data, parts = summary["data"], summary.get("subsets", {})
    paper = paper_scores(data["name"], model) if data["kind"] == "real" else {}
    right, rows = ["pooled", "mean over images", *(f"{name} ({part['n']})" for name, part in parts.items())], []
    for key, title in TITLES.items():
        pooled, apart = summary["pooled"][key], [show(key, part["pooled"][key]) for part in parts.values()]
        rows.append([title, show(key, pooled), show(key, summary["mean"][key]), *apart])
        if paper:
            rows[-1] += [show(key, paper[key]) if key in paper else "", difference(key, pooled, paper.get(key))]
    right += ["paper", "difference"] * bool(paper)
    return markdown(["measure", *right], rows, ",".join(right))


def place(hardware: dict) -> str:
    """The device in a few words."""
    threads = f"{hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    return f"{hardware['processor']}, {threads}" if hardware["device"] == "cpu" else hardware["device"]


def against_paper(dataset: str, split: str = "test", results: Path | str | None = None, models: str = "CSAMNet") -> str:
    """The paper's scores beside ours on real data, pooled: mean and sd over seeds; or that it was not run.

    Of the networks whose name begins with `models` ("" is all), each by the profile with which it saw most pixels.
    """
    origins = published(dataset).set_index("model")["origin"].to_dict()
    runs: dict[str, dict[tuple, list[dict]]] = {name: {} for name in origins if name.startswith(models)}
    for folder in find_runs(results or RESULTS, dataset=dataset):
        config, summary = read_config(folder), read_summary(folder, split)
        if summary and summary["data"]["kind"] == "real" and config.model.startswith(models):
            budget = config.steps * config.batch * config.tile**2, config.profile
            runs.setdefault(config.model, {}).setdefault(budget, []).append(summary | {"run": read_run(folder)})
    rows = []
    for model, budgets in runs.items():
        paper, origin = paper_scores(dataset, model), origins.get(model, "")
        if budgets:
            most = max(budgets)
            rows += _rows(f"{model}, {most[1]}", budgets[most], paper, origin)
        else:
            told = [[TITLES[key], show(key, value), read_from(origin, key)] for key, value in paper.items()]
            rows += [[model, *cells, "", "", "", "*not run*", ""] for cells in told]
    head = ["network, profile", "measure", "paper", "read from", "ours", "difference", "seeds", "status", "trained on"]
    kept = [i for i, name in enumerate(head) if origins or name not in ("paper", "read from", "difference")]
    head, *rows = ([row[i] for i in kept] for row in (head, *rows))
    return markdown(head, rows, "paper,ours,difference,seeds")


def read_from(origin: str, key: str) -> str:
    """Whether the paper prints a number or it was read off its chart, by the words of the table in book/published."""
    printed = origin.split("printed")[0].lower() if "printed" in origin else ""
    return "print" if TITLES.get(key, key).lower() in printed else "chart"


def costs_against_paper(dataset: str = "MoNuSeg") -> str:
    """Parameters and multiply-adds that the paper prints or draws beside what we count, in Markdown.

    The paper's M fits our counts where it is 2**20; its G fits some as 2**30 and others as 1e9.
    """
    from csamnet.pages.complexity import complexity_table

    table, origins = complexity_table(), published(dataset).set_index("model")["origin"]
    rows = []
    for name, row in table.iterrows():
        model = "CSAMNet-S" if name == "CSAMNet" else name
        costs = ("parameters", row.parameters, row.printed_m, "M"), ("GMACs", row.multiply_adds, row.printed_g, "G")
        for key, counted, printed, letter in costs:
            plain, binary = counted / {"M": 1e6, "G": 1e9}[letter], counted / {"M": 2**20, "G": 2**30}[letter]
            title, ours = key.replace("GMACs", "multiply-adds"), [f"{plain:.2f} {letter}", f"{binary:.2f}"]
            if pd.isna(printed):
                rows.append([model, title, "", "", *ours, ""])
            else:
                gap = f"{100 * (binary / printed - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")
                rows.append([model, title, f"{printed:g} {letter}", read_from(origins[model], key), *ours, gap])
    head = ["network", "cost", "paper", "read from", "counted", "in 2²⁰ or 2³⁰", "difference"]
    return markdown(head, rows, "paper,counted,in 2²⁰ or 2³⁰,difference")


def costs_measured(folder: Path | str | None = None) -> str:
    """The tables that `csamnet complexity` wrote, one for each device, in Markdown; or that there are none."""
    from csamnet.pages.complexity import read_costs

    parts = []
    for path in sorted(Path(folder or RESULTS, "complexity").glob("*.json")):
        about, rows = read_costs(path), []
        for row in about["rows"]:
            giga = [f"{row[key] / 1e9:.1f} G" for key in ("multiply_adds", "flops")]
            counted, timed = [f"{row['parameters'] / 1e6:.2f} M", *giga], []
            for size in (256, 1024):
                memory = row[f"peak_memory_mb_{size}"]
                timed += [f"{1e3 * row[f'seconds_{size}']:,.0f} ms", "" if memory is None else f"{memory:,.0f} MiB"]
            rows.append([row["model"], *counted, *timed, f"{row['images_per_s']:.1f} (batch {row['batch']})"])
        head = ["network", "parameters", "multiply-adds", "FLOPs"]
        head += ["256 × 256", "memory", "1024 × 1024", "memory ", "images/s"]
        libraries = ", ".join(f"{name} {about['libraries'][name]}" for name in ("python", "torch"))
        parts.append(f"**Measured** on {place(about['hardware'])}, {about['precision']}, {libraries}.")
        parts.append(markdown(head, rows, ",".join(head[1:])))
    return "\n\n".join(parts) or "*not run*: `csamnet complexity` measures it."


def datasets_against_paper(results: Path | str | None = None, folder: Path = PUBLISHED) -> str:
    """What the paper says of its data sets beside what the table and runs on real images found, in Markdown."""
    rows = []
    for row in pd.read_csv(Path(folder) / "datasets.csv", dtype=str).fillna("").to_dict("records"):
        entry = get_dataset(row["dataset"].removesuffix(" WSIs"))
        counts, only = _images_at_hand(entry.name, results or RESULTS)
        unit = entry.forms[0] if entry.forms else "tiles" if entry.modality == "H&E slides" else "images"
        found = f"{counts:,} {unit if counts > 1 else unit.removesuffix('s')}{only}" if counts else ""
        status = KINDS["real"] if counts else "*not run*"
        rows.append([row["dataset"], row["images"], row["objects"], found, status, row["note"]])
    return markdown(["data set", "images, paper", "objects, paper", "images, ours", "status", "what to know"], rows)


def _images_at_hand(dataset: str, results: Path | str) -> tuple[int, str]:
    """How many real images of a data set runs have used, and whether they were measured only, by runs on others."""
    for run in find_runs(results, dataset=dataset):
        if (card := read_run(run)["data"])["kind"] == "real":
            return sum(card["counts"].values()), ""
    for run in find_runs(results, dataset=None):
        if (summary := read_summary(run, f"{dataset}-test")) and summary["data"]["kind"] == "real":
            return sum(summary["data"]["counts"].values()), ", not trained on"
    return 0, ""


def runs_measured(results: Path | str | None = None) -> str:
    """Every training on real images in the results, with what it took, in Markdown."""
    rows = []
    for folder in find_runs(results or RESULTS, images=None):
        run, config = read_run(folder), read_config(folder)
        if run["data"]["kind"] == "real" and "wall_s" in run:
            names = [config.dataset, config.model, config.profile, str(config.seed)]
            budget = [f"{images_learned(run):,}", f"{config.steps:,}", f"{config.offset_x:g}, {config.offset_y:g}"]
            rows.append([*names, *budget, duration(run["wall_s"]), place(run["hardware"])])
    head = ["data set", "network", "profile", "seed", "training images", "steps", "offset", "time", "trained on"]
    return markdown(head, rows, "seed,training images,steps,offset,time")


def _rows(name: str, found: list[dict], paper: dict, origin: str) -> list[list[str]]:
    """A row a headline measure of the runs `found`, one a seed."""
    trained = [summary["run"]["hardware"] for summary in found if summary["run"].get("parameters", 1)]
    where, rows = "; ".join(dict.fromkeys(map(place, trained))), []
    for key in MEASURES:
        values = [summary["pooled"][key] for summary in found]
        gap = "" if None in values else difference(key, mean(values), paper.get(key))
        printed = show(key, paper[key]) if key in paper else ""
        printed = [printed, read_from(origin, key) if key in paper else ""]
        ours = [show_seeds(key, values), gap, str(len(found)), KINDS["real"], where]
        rows.append([name, TITLES[key], *printed, *ours])
    return rows


# -------------------------------------------------------------------------------------- side by side


def comparison(table: pd.DataFrame, reference: str) -> str:
    """`compare.compare` as Markdown, best mIoU first; a best value is bold where the test tells it from all others."""
    head = ["network", "seeds", "mIoU", "95 % interval", "p", "Dice", "AP", "AUC", "parameters", "multiply-adds"]
    rows = []
    for row in table.sort_values("miou", ascending=False).to_dict("records"):
        values = {key: _with_spread(key, row) for key in MEASURES}
        ends = " to ".join(show("miou", row[f"miou_{end}"]).removesuffix(" %") for end in ("low", "high"))
        p = "reference" if row["model"] == reference else show_p(row["miou_p"])
        costs = [f"{row['parameters'] / 1e6:.2f} M", f"{row['multiply_adds'] / 1e9:.2f} G"]
        costs = costs if row["parameters"] else ["", ""]
        scores = [values["miou"], ends, p, *(values[key] for key in MEASURES[1:])]
        rows.append([row["model"], str(row["seeds"]), *scores, *costs])
    return markdown(head, rows, ",".join(head[1:]))


def _with_spread(key: str, row: dict) -> str:
    """`74.21 ± 0.35 %`, bold where it may be called best."""
    text = show(key, row[key])
    if row[f"{key}_sd"] == row[f"{key}_sd"]:
        text = f"{text.removesuffix(' %')} ± {show(key, row[f'{key}_sd'])}"
    return f"**{text}**" if row[f"{key}_best"] else text


def show_p(p: float) -> str:
    """A corrected p; below what `compare.paired` can tell, so said."""
    if p != p:
        return "undefined"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(table: pd.DataFrame, reference: str, level: float = LEVEL) -> str:
    """What the tests of mIoU say, in a sentence or two, in Markdown."""
    rows = table.set_index("model")
    own, others = rows["miou_mean"][reference], rows.drop(reference)
    if others.empty:
        return f"Only {reference} was run: there is nothing to compare it with yet."
    told = others[others["miou_p"] < level]
    better, worse = (sorted(told.index[told["miou_mean"] > own]), sorted(told.index[told["miou_mean"] < own]))
    images, count, open_ = rows["images"][reference], len(others), len(others) - len(told)
    said = [f"better than {reference}: {', '.join(better)}" * bool(better), f"worse: {', '.join(worse)}" * bool(worse)]
    said += [f"of {open_} it cannot be told whether they differ from {reference}" * bool(open_)]
    text = f"By the mIoU of {images} images, after correction for {count} comparison{'s' * (count > 1)}: "
    text += "; ".join(part for part in said if part) + "."
    if (least := count * 2.0 ** (1 - images)) >= level:
        text += f" With so few images it never can be: the smallest possible p is {min(least, 1):.2g}."
    silent = ", ".join(rows.index[rows["dice"] == 0])
    return text + f" {silent}: nothing was called foreground, in any image." * bool(silent)


# ------------------------------------------------------------------------------------- in the notebooks


def source(card: dict, what: str = "") -> str:
    """The line below a figure: `MoNuSeg · test, 14 images · measured on real data`."""
    return " · ".join(part for part in (card["name"], what, KINDS[card["kind"]]) if part)


def about(card: dict, target: tuple[str, str] = TARGET) -> str:
    """What a page's data are, from dataset.json, in Markdown."""
    counts, objects = card["counts"], sum(card["objects"].values())
    images = f"{counts['train']} training, {counts['val']} validation and {counts['test']} test images"
    found = f"{images} with {objects:,} {target[1]}" if objects else f"{sum(counts.values())} images without annotation"
    if card["kind"] == "sample":
        return (
            f"**Sample data.** {found}, painted by this project in the layout of {card['name']}, so that everything "
            "here can run anywhere. No patient is behind them: the numbers show that the path works, and say nothing "
            "of the paper."
        )
    notes = "; ".join(card["notes"])
    notes = notes[:1].upper() + notes[1:]
    return f"**Measured on real data.** {found}; source: {card['source']}, licence {card['licence']}. {notes}."


def about_measured(runs: list[Path]) -> str:
    """Which runs a page without images tells of, in Markdown."""
    names = ", ".join(f"`{run.parent.name}/{run.name}`" for run in runs)
    return f"**Measured on real data.** Runs: {names}. Pictures of a single run are of the first."


def comparable(summary: dict, model: str) -> str:
    """Whether the measures of a page can be put beside the paper's, in Markdown."""
    if summary["data"]["kind"] == "sample":
        return "**Nothing here can be compared with the paper**: look-alikes are painted, and few."
    if not paper_scores(summary["data"]["name"], model):
        return f"The paper gives no measures of {model} on this data set."
    return "What is public of the paper does not say how it averages; the difference is that of the pooled measures."


def recipe(config: RunConfig) -> str:
    """How a network is trained, in Markdown."""
    return (
        f"**{config.model}**, profile *{config.profile}*, seed {config.seed}: {config.epochs} epochs of "
        f"{config.steps_per_epoch} steps, each on {config.batch} crops of {config.tile} × {config.tile} "
        f"pixels; AdamW with a learning rate of up to {config.lr:g}"
        + f", planned for {config.planned:,} steps" * (config.planned > config.steps)
        + f"; masks {config.offset_x:g} pixels to the right of what they outline and {config.offset_y:g} below"
        * bool(config.offset_x or config.offset_y)
        + "."
    )


def takeaways(summary: dict, table: pd.DataFrame, target: tuple[str, str] = TARGET) -> str:
    """What an evaluation says, as a Markdown list; `table` is its per_image.csv."""
    (one, many), pooled = target, summary["pooled"]
    scores = ", ".join(f"{TITLES[key]} {show(key, pooled[key])}" for key in ("miou", "dice", "ap"))
    lines = [f"Pooled over {summary['n']} test images: {scores}."]
    ranked = table.dropna(subset="dice").sort_values("dice")
    if len(ranked):
        worst, best = ranked.iloc[0], ranked.iloc[-1]
        lines.append(
            f"The images differ: Dice is {show('dice', worst['dice'])} on the worst ({worst['organ']}) and "
            f"{show('dice', best['dice'])} on the best ({best['organ']})."
        )
    if pooled["precision"] is None or pooled["recall"] is None:
        lines.append(f"There is no pixel that is called {one}, or none that is one.")
    else:
        missed, false = 1 - pooled["recall"], 1 - pooled["precision"]
        more = "misses more than it makes up" if missed > false else "makes up more than it misses"
        more = "misses about as much as it makes up" if abs(missed - false) < 0.01 else more
        lines.append(
            f"The network {more}: {100 * missed:.1f} % of the {one} pixels are missed, and {100 * false:.1f} % of "
            f"what it calls {one} is none."
        )
    if pooled["dq"] is not None and pooled["sq"] is not None:
        finding = f"finding each {one} and keeping neighbours apart"
        weak = finding if pooled["dq"] < pooled["sq"] else "drawing the outlines"
        quality = f"DQ is {show('dq', pooled['dq'])} and SQ {show('sq', pooled['sq'])}"
        lines.append(f"On whole {many}, {quality}: the weaker part is {weak}.")
    if summary["data"]["kind"] == "sample":
        lines.append("All of this is on sample data: it shows what a page tells, not how good the network is.")
    return "\n".join(f"- {line}" for line in lines)


def provenance(run: dict, summary: dict) -> str:
    """Where a page's numbers come from: data, code, hardware, time and versions, as a Markdown table."""
    hashes = [f"`{about['data']['manifest_sha256'][:16]}…`" for about in (run, summary)]
    speed, words = f"{run['images_per_s']:g} crops a second", {"True": "yes", "False": "no"}
    rows = {
        "data": f"{run['data']['name']}, {KINDS[run['data']['kind']]}",
        "manifest, sha256": hashes[0] + f"; where it was measured, {hashes[1]}" * (hashes[0] != hashes[1]),
        "code, sha256": f"`{run['code_sha256'][:16]}…`",
        "seed": str(run["config"]["seed"]),
        "trained on": place(run["hardware"]),
        "training": f"{duration(run['wall_s'])}, {speed}, precision {run['precision']}",
        "memory at most": f"{run['peak_memory_mb']:,.0f} MiB",
        "parameters": f"{run['parameters']:,}",
        "epoch kept": f"{run['best_epoch']} of {run['config']['epochs']}, {chosen_by(run)}",
        "evaluated on": place(summary["hardware"]),
        "evaluation": ", ".join(f"{key} {words.get(str(value), value)}" for key, value in summary["settings"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in run["libraries"].items()),
    }
    return markdown(["what", "this run"], [[f"**{key}**", value] for key, value in rows.items()])


def chosen_by(run: dict) -> str:
    """How the epoch whose weights are kept was chosen."""
    return "the last, as planned" if run["config"].get("refit") else "by validation mIoU"


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `5.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
