"""The card of trained weights: what they are, how good, and where they fail, in words made from their results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from csamnet.datasets import Dataset
from csamnet.metrics import calibration
from csamnet.pages import tables
from csamnet.pages.measured import Evaluation, check_comparable, read_evaluation, read_objects
from csamnet.pages.tables import KINDS, TITLES, markdown, paper_scores, show, show_seeds
from csamnet.results import MEASURES, find_runs, images_learned, read_config, read_run, read_summary
from csamnet.robustness import read_robustness


def weights_card(folder: Path | str, entry: Dataset, change: float, size: int, groups: int) -> str:
    """What a run's weights are, in Markdown.

    `change` of mIoU by half precision, `size` of the file in bytes, `groups` (patients) in the data set as prepared.
    """
    own, run = read_evaluation(folder), read_run(folder)
    summary, config, counts, data = own.summary, own.config, run["data"]["counts"], run["data"]
    seeds = [seed for seed in find_runs(Path(folder).resolve().parents[1], dataset=config.dataset, images=config.images)
             if replace(read_config(seed), seed=config.seed) == config and read_summary(seed)]  # fmt: skip
    measured = [read_evaluation(seed) for seed in seeds]
    check_comparable({config.model: measured})
    pooled = [one.summary["pooled"] for one in measured]
    test = f"{_scores([summary['pooled']])}: {summary['n']} images, pooled, one seed; *{KINDS[data['kind']]}*"
    test += f". Over {len(pooled)} seeds, mean ± standard deviation: {_scores(pooled)}" * (len(pooled) > 1)
    part, best = _part(entry, sum(counts.values()), groups), run["best_epoch"]
    hashes = [run["code_sha256"], *dict.fromkeys(about["data"]["manifest_sha256"] for about in (run, summary))]
    private = "; not for commercial use" if "NC" in entry.licence else ""
    rows = {
        "finds": f"{entry.target[1]} in {entry.modality}" + f" at {entry.mpp} µm a pixel" * bool(entry.mpp),
        "network": f"{config.model}, {run['parameters']:,} parameters, half precision, {size / 1e6:.1f} MB",
        "data": entry.note,
        "trained on": f"{images_learned(run)} images, {'none' if config.refit else counts['val']} to choose on{part}",
        "recipe": tables.recipe(config),
        "training": f"{tables.duration(run['wall_s'])} in {run['precision']} on {tables.place(run['hardware'])}; "
        f"kept: epoch {best} (step {best * config.steps_per_epoch:,}), {tables.chosen_by(run)}",
        "licence": f"{entry.licence}, that of the data{private}",
        "test": test,
        "half precision": f"changes the validation mIoU by {100 * change:.4f} points"
        + ", on images that were learned from" * config.refit,
        "run": f"`results/{config.dataset}/{config.name}`, seed {config.seed}",
        "code, data": f"sha256 {', '.join(f'`{one[:16]}…`' for one in hashes)}"
        + ", the data as prepared for training and for the test" * (len(hashes) > 2),
    }
    table = markdown(["what", "these weights"], [[f"**{what}**", text] for what, text in rows.items()])
    use = "Research: trying `csamnet predict` on such images. No diagnosis."
    failures = "\n".join(f"- {line}" for line in weaknesses(own, entry))
    head = f"# {config.dataset} weights\n\n{table}\n\n**Intended use.** {use}"
    return f"{head}\n\n**Known failures**, as measured:\n\n{failures}\n"


def _scores(pooled: list[dict]) -> str:
    """The headline measures of one seed, or their mean and spread over several."""
    return ", ".join(f"{TITLES[key]} {show_seeds(key, [one[key] for one in pooled])}" for key in MEASURES)


def _part(entry: Dataset, images: int, patients: int) -> str:
    """How much of the published data was at hand, where it was a part."""
    found = {"images": images, "patients": patients}
    parts = [f"{found[key]:,} of the {entry.published.get(key, 0):,} published {key}" for key in found
             if found[key] < entry.published.get(key, 0)]  # fmt: skip
    return f"; {parts[0]} are in the data set as prepared" if parts else ""


def weaknesses(measured: Evaluation, entry: Dataset) -> list[str]:
    """Where a run does badly, in sentences made from its results."""
    objects, changes = read_objects(measured.folder), read_robustness(measured.folder)
    pooled, config = measured.summary["pooled"], measured.config
    paper, told = paper_scores(config.dataset, config.model).get("miou"), _worst_images(measured.images, entry)
    if paper and pooled["miou"] < paper:
        told.insert(0, f"Below the paper: mIoU {show('miou', pooled['miou'])} for {show('miou', paper)}.")
    if objects is not None:
        told.append(_small_objects(objects, entry))
    if pooled["pq"] is not None:
        parts = ", ".join(f"{TITLES[key]} {show(key, pooled[key])}" for key in ("dq", "sq", "pq"))
        told.append(f"As objects: {parts}.")
    if measured.scores is not None:
        told.append(_trust(*calibration(measured.scores), entry))
    if changes:
        told.append(_worst_change(changes[1].set_index(["change", "factor"])["miou"]))
    return told or ["None is known."]


def _worst_images(images: pd.DataFrame, entry: Dataset) -> list[str]:
    """What goes wrong on whole test images, of a table with a row for each."""
    there, told = images["tp"] + images["fn"] > 0, []
    if empty := int((~there).sum()):
        marked = int((images["fp"][~there] > 0).sum())
        told.append(f"Of {empty} test images without {entry.target[1]}, it marks something in {marked}.")
    if bad := int((images["dice"][there] < 0.5).sum()):
        told.append(f"Dice is below one half on {bad} of {there.sum()} test images with {entry.target[1]}.")
    organs = images[there].groupby("organ")["miou"].agg(["mean", "size"]).sort_values("mean")
    if len(organs) > 1:
        score, count = show("miou", organs["mean"].iloc[0]), int(organs["size"].iloc[0])
        told.append(f"Worst on {organs.index[0]}: mIoU {score}, mean of {count} test image{'s' * (count > 1)}.")
    return told


def _small_objects(objects: pd.DataFrame, entry: Dataset) -> str:
    """How many of the smallest eighth are found, for how many of all, in a sentence."""
    small = objects.nsmallest(max(1, len(objects) // 8), "area")
    area, unit = small["area"].max() * (entry.mpp or 1) ** 2, "µm" if entry.mpp else "px"
    few, all_ = (f"{100 * (part['iou'] > 0.5).mean():.0f} %" for part in (small, objects))
    return f"{few} of the smallest eighth (up to {area:.0f} {unit}²) are found, against {all_} of all."


def _trust(error: float, bins: pd.DataFrame, entry: Dataset) -> str:
    """How often a pixel of high probability is foreground, by `metrics.calibration`, in a sentence."""
    high = bins.dropna().query("probability < 0.95").iloc[-1]
    kind = "high" if high["share"] < high["probability"] else "low"
    share = f"of pixels with about {high['probability']:.2f}, {100 * high['share']:.0f} % are {entry.target[0]}"
    return f"Probabilities are too {kind}: {share}; expected calibration error {error:.4f}."


def _worst_change(miou: pd.Series) -> str:
    """The change under which a run's mIoU, by (change, factor), is lowest, in a sentence."""
    change, factor = miou.idxmin()
    coarse, score = change.startswith("coarser"), show("miou", miou.min())
    how = f"{factor:g} × {factor:g} pixels joined" if coarse else f"{factor:g} times the {change}"
    again = f", and {show('miou', miou['coarser, enlarged', factor])} enlarged again" * (change == "coarser")
    return f"Worst of the changed images are those with {how}: mIoU {score}{again}."
