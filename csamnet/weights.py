"""Weights to ship: in half precision, held against full, each with a card of what they are and where they fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from csamnet.config import RunConfig
from csamnet.data import load_split
from csamnet.datasets import Dataset, get_dataset
from csamnet.evaluate import load_run, validate, validation_scores
from csamnet.files import InputError, atomic
from csamnet.measured import MEASURES, check_comparable, read_evaluation, read_images, read_objects
from csamnet.model import load_strictly, save_weights
from csamnet.paths import WEIGHTS
from csamnet.results import find_runs, read_config, read_run, read_summary
from csamnet.robustness import read_robustness
from csamnet.tables import KINDS, TITLES, duration, markdown, paper_scores, place, recipe, show, show_seeds

SAME = 2e-4
"""By how much half precision may change the validation mIoU: 0.02 points."""
NEAR = 2e-3  # the same of another device or precision than that of the training


def ship(folder: Path | str, root: Path | str, out: Path | str = WEIGHTS, *, device: str = "auto") -> Path:
    """Write a run's weights in half precision to `out`/DATASET.safetensors, and their card to DATASET.md.

    Half precision is measured against full on the validation images. Raises InputError where it changes more than
    SAME, where the run was not measured, and where it has learned from look-alikes.
    """
    model, config = load_run(folder, device)
    summary, path = read_summary(folder), Path(out) / f"{config.dataset}.safetensors"
    kinds = {read_run(folder)["data"]["kind"], summary["data"]["kind"] if summary else "nothing"}
    if kinds != {"real"}:
        found = "no test" if summary is None else KINDS["sample"]
        raise InputError("these weights are not to be shipped", path=folder, expected="a run measured on real images",
                         found=found, mend=f"csamnet evaluate {folder}")  # fmt: skip
    samples = load_split(root, config.dataset, "val")
    state, full, best = halved(model), _score(model, samples, config), read_run(folder)["best_val_miou"]
    if not abs(full - best) < NEAR:
        raise InputError("these are not the weights that were measured, or not the images", path=folder,
                         expected=f"validation mIoU {best:.4f}", found=f"{full:.4f}")  # fmt: skip
    load_strictly(model, state)
    change = abs(_score(model, samples, config) - full)
    if not change <= SAME:
        raise InputError("half precision changes the network", path=folder, expected=f"at most {SAME}", found=change)
    text = card(folder, get_dataset(config.dataset, root), change, sum(value.nbytes for value in state.values()))
    with atomic(path.with_suffix(".md")) as about, atomic(path) as tensors:  # both, or none
        about.write_text(text, encoding="utf-8")
        save_weights(state, tensors, config=json.dumps(config.to_dict()))
    return path


def halved(model: nn.Module) -> dict[str, Tensor]:
    """The weights in half precision; norms, biases and statistics, which may exceed its range, as they are."""
    return {name: value.half() if value.squeeze().ndim > 1 else value for name, value in model.state_dict().items()}


def _score(model: nn.Module, samples: list, config: RunConfig) -> float:
    return validation_scores(*validate(model, samples, config))["val_miou"]


def card(folder: Path | str, entry: Dataset, change: float, size: int) -> str:
    """What a run's weights are, in Markdown; `change` of mIoU by half precision, `size` of the file in bytes."""
    run, summary, config = read_run(folder), read_summary(folder), read_config(folder)
    counts, data = run["data"]["counts"], run["data"]
    seeds = [seed for seed in find_runs(Path(folder).resolve().parents[1], dataset=config.dataset, images=config.images)
             if replace(read_config(seed), seed=config.seed) == config and read_summary(seed)]  # fmt: skip
    measured = [read_evaluation(seed) for seed in seeds]
    check_comparable({config.model: measured})
    pooled = [one.summary["pooled"] for one in measured]
    scores = ", ".join(f"{TITLES[key]} {show_seeds(key, [one[key] for one in pooled])}" for key in MEASURES)
    many = f"mean ± standard deviation of {len(pooled)} seeds" if len(pooled) > 1 else "one seed"
    private = "; not for commercial use" if "NC" in entry.licence else ""
    rows = {
        "finds": f"{entry.target[1]} in {entry.modality}" + f" at {entry.mpp} µm a pixel" * bool(entry.mpp),
        "network": f"{config.model}, {run['parameters']:,} parameters, half precision, {size / 1e6:.1f} MB",
        "data": entry.note,
        "trained on": f"{config.images or counts['train']} images, chosen on {counts['val']}{_part(entry, counts)}",
        "recipe": recipe(config),
        "training": f"{duration(run['wall_s'])} on {place(run['hardware'])}",
        "licence": f"{entry.licence}, that of the data{private}",
        "test": f"{scores}: {summary['n']} images, pooled, {many}; *{KINDS[data['kind']]}*",
        "half precision": f"changes the validation mIoU by {100 * change:.4f} points",
        "run": f"`results/{config.dataset}/{config.name}`, seed {config.seed}",
        "code, data": f"sha256 `{run['code_sha256'][:16]}…`, `{data['manifest_sha256'][:16]}…`",
    }
    table = markdown(["what", "these weights"], [[f"**{what}**", text] for what, text in rows.items()])
    use = "Research: trying `csamnet predict` on such images, and a start for training. No diagnosis."
    failures = "\n".join(f"- {line}" for line in weaknesses(folder, entry))
    head = f"# {config.dataset} weights\n\n{table}\n\n**Intended use.** {use}"
    return f"{head}\n\n**Known failures**, as measured:\n\n{failures}\n"


def _part(entry: Dataset, counts: dict[str, int]) -> str:
    """How much of the published data was at hand, where it was a part."""
    found, all_ = sum(counts.values()), entry.published.get("images", 0)
    return f"; {found} of the {all_} published images were at hand" if found < all_ else ""


def weaknesses(folder: Path | str, entry: Dataset) -> list[str]:
    """Where a run does badly, in sentences made from its results."""
    config, summary, images = read_config(folder), read_summary(folder), read_images(folder)
    pooled, told = summary["pooled"], []
    paper = paper_scores(config.dataset, config.model).get("miou")
    if paper and pooled["miou"] < paper:
        told.append(f"Below the paper: mIoU {show('miou', pooled['miou'])} for {show('miou', paper)}.")
    there = images["tp"] + images["fn"] > 0
    if empty := int((~there).sum()):
        marked = int((images["fp"][~there] > 0).sum())
        told.append(f"Of {empty} test images without {entry.target[1]}, it marks something in {marked}.")
    if bad := int((images["dice"][there] < 0.5).sum()):
        told.append(f"Dice is below one half on {bad} of {there.sum()} test images with {entry.target[1]}.")
    organs = images[there].groupby("organ")["miou"].agg(["mean", "size"]).sort_values("mean")
    if len(organs) > 1:
        score, count = show("miou", organs["mean"].iloc[0]), int(organs["size"].iloc[0])
        told.append(f"Worst on {organs.index[0]}: mIoU {score}, mean of {count} test image{'s' * (count > 1)}.")
    if (objects := read_objects(folder)) is not None:
        small = objects.nsmallest(max(1, len(objects) // 8), "area")
        area, unit = small["area"].max() * (entry.mpp or 1) ** 2, "µm" if entry.mpp else "px"
        few, all_ = (f"{100 * (part['iou'] > 0.5).mean():.0f} %" for part in (small, objects))
        told.append(f"Of the smallest eighth (up to {area:.0f} {unit}²) {few} are found, of all {all_}.")
    if pooled["pq"] is not None:
        told.append(
            "As objects: " + ", ".join(f"{TITLES[key]} {show(key, pooled[key])}" for key in ("dq", "sq", "pq")) + "."
        )
    if found := read_robustness(folder):
        table = found[1].sort_values("miou").iloc[0]
        told.append(f"Changed images: mIoU falls to {show('miou', table.miou)} with {table.change} × {table.factor:g}.")
    return told or ["None is known."]
