"""All figures of the comparison at once, from results to files: `csamnet figures`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from csamnet.config import experiment
from csamnet.files import InputError
from csamnet.pages import figures
from csamnet.pages.compare import collect, compare, label_variants
from csamnet.pages.measured import read_curves
from csamnet.pages.notebooks import views_by_method
from csamnet.pages.tables import published, source
from csamnet.paths import FIGURES, PUBLISHED, RESULTS
from csamnet.results import find_runs, read_config, read_summary


def make_figures(
    results: Path | str = RESULTS, out: Path | str = FIGURES, root: Path | str | None = None
) -> list[Path]:
    """Write every figure that the runs in `results` allow, each as SVG, PNG and PDF; return the files.

    The names end with the data set and the profile. `visual` shows photographs: it is drawn only where `root`, the
    folder of the prepared data sets, is given.
    """
    made = {"architecture": figures.architecture(), "cost-paper": paper_cost()}
    if not Path(results).is_dir():
        raise InputError("there are no results", path=results, expected="the folder of the run folders")
    configs = [read_config(folder) for folder in find_runs(results)]
    for dataset, profile in sorted({(config.dataset, config.profile) for config in configs}):
        for name, figure in of_experiments(dataset, profile, results, root).items():
            made[f"{name}-{dataset}-{profile}"] = figure
    return [file for name, figure in made.items() for file in figures.save(figure, Path(out) / name)]


def of_experiments(
    dataset: str, profile: str, results: Path | str = RESULTS, root: Path | str | None = None
) -> dict[str, Figure]:
    """The figures of a comparison and an ablation, as far as they were run; none without the network itself.

    Of runs on real images where there are some, else of those on look-alikes: never of both.
    """
    found, made = collect(dataset, profile, results, "real") or collect(dataset, profile, results, "sample"), {}
    rivals, variants = ({name: found[name] for name in names if name in found} for names in _names(profile))
    ours, whole = (experiment(kind, profile)[0] for kind in ("comparison", "ablation"))
    if ours not in rivals:
        return {}
    summary = read_summary(rivals[ours][0])
    below = source(summary["data"], f"test, {summary['n']} images")
    paper = published(dataset) if summary["data"]["kind"] == "real" else published("")
    if len(rivals) > 1 or len(paper):
        table = compare(rivals, ours)
        made["comparison"] = figures.comparison(table, below, paper, ours=ours)
    if len(rivals) > 1:
        curves = {name: [read_curves(run) for run in runs] for name, runs in rivals.items()}
        scores = table.set_index("model")[["ap", "auc"]].to_dict("index")
        made["pr_roc_models"] = figures.pr_roc_models(curves, scores, below, ours=ours)
        made["cost"] = figures.cost(table, below)
        made |= {"visual": figures.visual(views_by_method(rivals, Path(root)), below)} if root else {}
    if len(variants) > 1 and whole in variants:
        made["ablation"] = figures.ablation(label_variants(compare(variants, whole), whole), below, ours=whole)
    return made


def _names(profile: str) -> tuple[list[str], list[str]]:
    return [*experiment("comparison", profile), figures.BASELINE], experiment("ablation", profile)


def paper_cost() -> Figure:
    """The paper's own chart of accuracy against cost; its M is 2**20, its G is taken as it stands (`complexity`)."""
    costs = pd.read_csv(PUBLISHED / "monuseg.csv")[["params_million", "gmacs_256"]]
    table = published("MoNuSeg").assign(parameters=costs.params_million * 2**20, multiply_adds=costs.gmacs_256 * 1e9)
    return figures.cost(table, "MoNuSeg · the paper, printed or read off its chart, whose axis says FLOPs")
