"""What the notebooks need: their parameters checked, the runs that they tell of, and images to look at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.color import rgb2hed

from csamnet import results as stored
from csamnet.baselines.otsu import otsu_haematoxylin
from csamnet.config import PROFILES, SIZES, RunConfig, experiment, make_config
from csamnet.data import Sample, load_split
from csamnet.datasets import Dataset, get_dataset
from csamnet.evaluate import as_annotated, evaluate, load_run, measure, pick_device, predictor, write_evaluation
from csamnet.files import InputError, read_json, write_json
from csamnet.inference import load, predict, touching
from csamnet.pages.compare import collect
from csamnet.pages.figures import View, spread, true_objects
from csamnet.pages.measured import read_images
from csamnet.pages.tables import KINDS, markdown, place, show
from csamnet.paths import PREPARED, RESULTS, SAMPLE_TREES
from csamnet.prepare import prepare
from csamnet.results import find_runs, read_config, read_run, read_summary
from csamnet.samples import make_sample


class NotRun(InputError):
    """There are no results for a page to tell of. Where a notebook ends with this, its page says so and no more."""


# ------------------------------------------------------------------------------------------ parameters


def checked(namespace: MutableMapping, allowed: Sequence[str]) -> dict:
    """The parameters in a notebook's namespace, by name. Raises InputError for one not among `allowed`.

    papermill only warns of an unknown parameter; called right after the parameters, this refuses it. Called
    again in the same kernel it does not, since by then the notebook has variables of its own.
    """
    plain = (str, int, float, type(None))
    given = {k: v for k, v in namespace.items() if not k.startswith("_") and isinstance(v, plain)}
    unknown = sorted(given.keys() - set(allowed))
    if unknown and not namespace.get("_checked"):
        raise InputError("unknown parameter of the notebook", expected=", ".join(allowed), found=", ".join(unknown))
    namespace["_checked"] = True
    return {key: namespace[key] for key in allowed}


def notebook_config(namespace: MutableMapping, allowed: Sequence[str]) -> tuple[RunConfig, Path, Path, str]:
    """The run that a notebook's parameters ask for, and root, results, device; None is the usual value.

    Raises InputError for unknown names and impossible values.
    """
    given = {key: value for key, value in checked(namespace, allowed).items() if value is not None}
    there = (PREPARED / str(given["dataset"]) / "dataset.json").exists()
    usual = PREPARED if there or given.get("profile") != "sample" else SAMPLE_TREES
    root, results = (Path(str(given.pop(*name))) for name in (("root", usual), ("results", RESULTS)))
    device = given.pop("device", "auto")
    given.pop("weights", None)
    pick_device(device)
    entry = get_dataset(given["dataset"], root)
    given["dataset"] = entry.name
    return make_config(given.pop("profile"), **given), root, results, device


def notebook_runs(namespace: MutableMapping, allowed: Sequence[str]) -> tuple[str, Path, list[Path]]:
    """The data set and the results folder that a notebook's parameters name, and the runs to tell of.

    These are the finished runs on real data of the recipe with most steps, a folder a seed. Raises NotRun.
    """
    given, groups = checked(namespace, allowed), {}
    dataset, results = get_dataset(given["dataset"]).name, Path(given.get("results") or RESULTS)
    for folder in find_runs(results, dataset=dataset):
        config, summary = read_config(folder), read_summary(folder)
        if summary and summary["data"]["kind"] == "real" and config.model.removeprefix("CSAMNet-") in SIZES:
            groups.setdefault((config.steps * config.batch, config.model, config.profile), []).append(folder)
    if not groups:
        raise NotRun(f"No finished run on {dataset}'s real images is here: `csamnet train` and `evaluate` make one.")
    return dataset, results, groups[max(groups)]


def experiment_runs(
    kind: str, namespace: MutableMapping, allowed: Sequence[str], say: Callable[[str], None] = print
) -> tuple[RunConfig, Path, Path, str, dict[str, list[Path]]]:
    """Train and measure what a `comparison` or an `ablation` still lacks; a model's runs, a folder a seed.

    With `measured` among the parameters nothing is trained: the runs on real data in the results folder are taken, of
    the profile that is named or, for `sample`, of the longest that has two models; NotRun is raised where an ablation
    has no variant, or the first model is not among them. Returns the first model's configuration, root, results,
    device and the runs.
    """
    given = checked(namespace, allowed)
    if (measured := given.pop("measured")) and given["profile"] == "sample":
        given["profile"] = longest_run(kind, get_dataset(given["dataset"]).name, Path(given["results"] or RESULTS))
    names, seeds = chosen_models(kind, given["profile"], given.pop("models")), given.pop("seeds")
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise InputError("seeds cannot be used", expected="how many, 1 or more", found=repr(seeds))
    config, root, results, device = notebook_config(given | {"model": names[0]}, [*given, "model"])
    if measured:
        found = collect(config.dataset, config.profile, results, "real")
        own = {name: found[name] for name in [*names, *["Otsu"] * (kind == "comparison")] if name in found}
        if names[0] not in own or (kind == "ablation" and len(own) < 2):
            how = f"`papermill notebooks/{kind}.ipynb out.ipynb -p profile paper` makes one."
            raise NotRun(f"No {kind} on {config.dataset}'s real images is in the results: {how}")
        return config, root, results, device, own
    runs = run_models(config, names, seeds, root, results, device, say)
    if kind == "comparison" and get_dataset(config.dataset, root).modality.startswith("H&E"):
        runs["Otsu"] = [evaluate_otsu(config, root, results)]
    return config, root, results, device, runs


def chosen_models(kind: str, profile: str, asked: str) -> list[str]:
    """An experiment's models, or its first one and those `asked` for; Otsu, which is not trained, comes by itself."""
    names, parts = experiment(kind, profile), [part.strip() for part in str(asked or "").split(",")]
    chosen = [make_config(model=part).model for part in parts if part] or names
    return names[:1] + [name for name in dict.fromkeys(chosen) if name not in (names[0], "Otsu")]


def run_models(
    config: RunConfig, names: Sequence[str], seeds: int, root: Path, results: Path, device: str, say: Callable
) -> dict[str, list[Path]]:
    """Train and measure each of `names` with each seed, unless that is done; a model's runs, a folder a seed."""
    prepared(config, root)
    runs: dict[str, list[Path]] = {}
    for name, seed in product(names, range(seeds)):
        folder = run_model(replace(config, model=name, seed=seed), root, results, device, say)
        runs.setdefault(name, []).append(folder)
    return runs


def run_model(config: RunConfig, root: Path, results: Path, device: str, say: Callable) -> Path:
    """Train and measure one network, unless that is done; its run folder."""
    from csamnet.train import train  # slow to import

    folder = train(config, root, results=results, device=device)
    evaluate(folder, root, device=device)
    say(f"{folder.name}: test mIoU {show('miou', read_summary(folder)['pooled']['miou'])}")
    return folder


def evaluate_otsu(config: RunConfig, root: Path | str, results: Path | str = RESULTS) -> Path:
    """The threshold on colour in the place of a run's network, measured like it; return its run folder."""
    config = replace(config, model="Otsu", seed=0)
    card, folder = stored.data_card(root, config.dataset), stored.run_folder(config, results)
    fresh, device = stored.fingerprint(config, card["manifest_sha256"], "evaluate"), torch.device("cpu")
    if (read_summary(folder) or {}).get("fingerprint") == fresh:
        return folder
    stored.keep_real(folder / "run.json", card)
    about = {"data": card, "hardware": stored.hardware(device), "fingerprint": fresh}
    write_json(folder / "run.json", about | {"status": "done", "config": config.to_dict(), "parameters": 0})
    samples, parts = load_split(root, config.dataset, "test"), get_dataset(config.dataset, root).subsets
    measured = measure(otsu_haematoxylin, samples, config, parts)
    write_evaluation(folder / "test", measured, config, about | {"seen": 0})
    return folder


def longest_run(kind: str, dataset: str, results: Path) -> str:
    """The longest profile by which an experiment's first model and another were run on real data; or the first alone.

    The threshold on colour does not count. Of profiles as long, the one with more models.
    """
    first, *others = experiment(kind, "paper")
    has = {profile: collect(dataset, profile, results, "real").keys() for profile in PROFILES}
    return max(has, key=lambda p: (first in has[p], not has[p].isdisjoint(others), make_config(p).steps, len(has[p])))


def about_runs(runs: Mapping[str, Sequence[Path]], config: RunConfig) -> str:
    """What an experiment's page tells of: data, budget, seeds, hardware. In Markdown."""
    found = [read_run(folder) for folders in runs.values() for folder in folders]
    kind, counts = found[0]["data"]["kind"], found[0]["data"]["counts"]
    places = "; ".join(dict.fromkeys(place(run["hardware"]) for run in found if run["parameters"]))
    both = " (learned from too)" * config.refit
    images = f"{counts['train']} training, {counts['val']} validation{both} and {counts['test']} test images"
    seeds = sorted({len(folders) for name, folders in runs.items() if name != "Otsu"})
    many = " to ".join(map(str, seeds)) + " seed" + "s" * (seeds[-1] > 1)
    small = any(name.endswith("-small") for name in runs)
    more = " The rivals are of their small sizes, which have the same code." * small
    few = " After so few steps a method may have learned next to nothing: the numbers show that the path works."
    more += few * (kind == "sample")
    methods = f"{len(runs)} method" + "s" * (len(runs) > 1)
    budget = f"{config.epochs} epochs of {config.steps_per_epoch} steps of {config.batch} crops of {config.tile} pixels"
    return (
        f"**{KINDS[kind].capitalize()}**, {config.dataset}: {images}; {methods}, {many} each; "
        f"profile *{config.profile}*: {budget}; trained on {places}.{more} "
        f"The runs are `{config.dataset}/<network>-{config.profile}-seed<n>` in the results."
    )


def views_by_method(runs: Mapping[str, Sequence[Path]], root: Path, device: str = "auto") -> dict[str, View]:
    """One test image as every method sees it, by its first seed: the image of median Dice of the first method."""
    table = read_images(next(iter(runs.values()))[0]).dropna(subset="dice").sort_values("dice")
    name, views = table["name"].iloc[len(table) // 2], {}
    config = read_config(next(iter(runs.values()))[0])
    samples = {sample.name: sample for sample in load_split(root, config.dataset, "test")}
    if name not in samples:
        mend = "name the data that the runs were measured on: root"
        raise InputError("a test image is not there", path=Path(root) / config.dataset, expected=name, mend=mend)
    for model, folders in runs.items():
        predict = otsu_haematoxylin if model == "Otsu" else predictor(*load_run(folders[0], device))
        dice = read_images(folders[0]).set_index("name")["dice"][name]
        views[model] = _view(samples[name], predict, read_config(folders[0]), dice)
    return views


# ------------------------------------------------------------------------------------------------ data


def prepared(config: RunConfig, root: Path) -> dict:
    """dataset.json of a run's data set. For the profile `sample`, a look-alike is made where there is none.

    Raises InputError, for any other profile, where the data set is not prepared.
    """
    name, folder = config.dataset, Path(root) / config.dataset
    if not (folder / "dataset.json").exists():
        if config.profile != "sample":
            found = f"nothing; how to get the data: {get_dataset(name).how_to_get}"
            mend = f"csamnet prepare {name} --from RELEASE --root {root}"
            raise InputError(f"{name} is not prepared", path=folder, found=found, mend=mend)
        with tempfile.TemporaryDirectory() as scratch:
            prepare(name, make_sample(name, Path(scratch)), root)
    return read_json(folder / "dataset.json")


def describe(samples: Mapping[str, Sequence[Sample]], entry: Dataset) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """For `figures.object_statistics`: objects (split, area), images (split, inside, outside), and their quantity.

    Area is in square micrometres where the table gives micrometres a pixel, else in pixels. Inside and outside are
    means over a sixteenth of the pixels: of the amount of haematoxylin, by the deconvolution of Ruifrok and Johnston
    (2001), or where nothing is stained of the grey value.
    """
    stained = entry.modality.startswith("H&E")
    objects, images = [], []
    for split, sample in ((split, sample) for split, items in samples.items() for sample in items):
        mask = sample.mask()
        area = np.bincount(true_objects(sample).ravel())[1:] * (entry.mpp or 1) ** 2
        objects.append(pd.DataFrame({"split": split, "area": area[area > 0]}))
        pixels, inside = sample.image()[::4, ::4], mask[::4, ::4]
        amount = rgb2hed(pixels)[..., 0] if stained else pixels.mean(-1)
        means = [amount[where].mean() if where.any() else np.nan for where in (inside, ~inside)]
        images.append({"split": split, "inside": means[0], "outside": means[1]})
    return pd.concat(objects, ignore_index=True), pd.DataFrame(images), "haematoxylin" if stained else "grey value"


def ranked_views(folder: Path, root: Path, device: str = "auto", most: int = 16) -> list[View]:
    """Test images with a run's predictions, worst Dice first: all, or `most` evenly spread over the ranks."""
    model, config = load_run(folder, device)
    predict, samples = predictor(model, config), {s.name: s for s in load_split(root, config.dataset, "test")}
    ranked = read_images(folder).sort_values("dice")
    rows = ranked.iloc[spread(len(ranked), most)].itertuples()
    return [_view(samples[row.name], predict, config, row.dice) for row in rows]


def _view(sample: Sample, predict: Callable, config: RunConfig, dice: float) -> View:
    """A test image with what is compared with its annotation."""
    return View.of(sample, as_annotated(predict(sample.image()), config), config.threshold, dice)


def unannotated_views(samples: Sequence[Sample], weights: str, device: str = "auto") -> list[View]:
    """Images without annotation with what a trained network finds in them; its own objects stand for the true ones."""
    model, views = load(weights, device), []
    for sample in samples:
        image = sample.image()
        found = predict(model, image)
        shown = found.mask, found.labels, found.probability, model.config.threshold
        views.append(View(sample.name, sample.organ, image, *shown, 1.0, touching(model.config)))
    return views


def counts(views: Sequence[View], entry: Dataset) -> str:
    """What was found in images without annotation, as a Markdown table."""
    head, rows = ["image", entry.target[1], "share of the image", "mean area"], []
    for view in views:
        found = int(view.labels.max())
        area = np.count_nonzero(view.labels) / max(found, 1) * (entry.mpp or 1) ** 2
        unit = "µm²" if entry.mpp else "px"
        rows.append([view.name, f"{found:,}", f"{100 * view.truth.mean():.1f} %", f"{area:.0f} {unit}"])
    return markdown(head, rows, ",".join(head[1:]))
