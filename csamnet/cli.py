"""The command line: `csamnet --help`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import DownloadColumn
from rich.table import Table

from csamnet.config import RIVALS, SIZES, make_config
from csamnet.files import InputError, read_json
from csamnet.paths import DOWNLOADS, FIGURES, PREPARED, RESULTS, SAMPLES, WEIGHTS
from csamnet.terminal import app, bar, command, console
from csamnet.wsi.cli_slide import Device, Normalise, Threshold, Tta, Weights, progress, slide

__all__ = ["app"]

Root = Annotated[Path, typer.Option(help="Folder of the prepared data sets.", show_default="data/prepared")]
STEPS = "Budget: paper (30,000 steps, for a GPU), cpu and cpu-refit (1,200), short (800), brief (300), sample (120)."


@command
def samples(
    name: Annotated[str, typer.Argument(help="Data set to make a look-alike of.")] = "MoNuSeg",
    out: Annotated[Path, typer.Option(help="Folder of the look-alikes.", show_default="data/samples")] = SAMPLES,
    seed: Annotated[int, typer.Option(help="Another seed paints other images.")] = 0,
):
    """Paint a look-alike release: seeded, in the layout of the real one, never to be taken for it."""
    from csamnet.datasets import get_dataset
    from csamnet.samples import make_sample

    name = get_dataset(name).name
    with console.status(f"Painting a look-alike of {name}"):
        folder = make_sample(name, out, seed=seed)
    console.print(folder, soft_wrap=True)


@command
def data(
    root: Root = PREPARED,
    cards: Annotated[bool, typer.Option("--cards", help="Write the data cards in data/ anew.")] = False,
):
    """List the data sets: what they are, and what is here of each."""
    from csamnet.pages.cards import inventory, write_cards

    caption = "absent: csamnet download NAME fetches it, or says how to get it"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption)
    for heading in ("data set", "modality", "state", "train/val/test", "objects", "licence"):
        side = "right" if heading in ("train/val/test", "objects") else "left"
        table.add_column(heading, no_wrap=heading not in ("modality", "licence"), justify=side)
    for row in inventory(root, root / "samples").to_dict("records"):
        images = f"{row['train']}/{row['val']}/{row['test']}"
        here = ["", ""] if row["state"] == "absent" else [images, f"{row['objects']:,}"]
        table.add_row(row["name"], row["modality"], row["state"], *here, row["licence"])
    console.print(table)
    for path in write_cards() if cards else []:
        console.print(path, soft_wrap=True)


@command
def download(
    name: Annotated[str, typer.Argument(help="Data set, such as PUMA.")],
    out: Annotated[Path, typer.Option(help="Folder of the releases.", show_default="data/downloads")] = DOWNLOADS,
):
    """Fetch a release where its host serves plain files; otherwise say what a person has to do."""
    from csamnet.datasets import get_dataset
    from csamnet.download import download, steps

    if not get_dataset(name).download:
        console.print(steps(name), soft_wrap=True)
        return
    folder = download(name, out, progress=functools.partial(bar, count=DownloadColumn))
    console.print(f"{folder}\nnext: csamnet prepare {folder.name} --from {folder}", soft_wrap=True)


@command
def prepare(
    name: Annotated[str, typer.Argument(help="Data set, such as MoNuSeg.")],
    source: Annotated[Path, typer.Option("--from", help="The release as downloaded (folder or zip), or a tree.")],
    root: Root = PREPARED,
    own: Annotated[str | None, typer.Option(help="NAME is yours: H&E tiles | ultrasound | MRI | CT.")] = None,
    mpp: Annotated[float | None, typer.Option(help="With --own: micrometres a pixel.")] = None,
    form: Annotated[str | None, typer.Option(help="LIDC-IDRI: crops (around nodules) | slices (whole).")] = None,
    allow_partial: Annotated[bool, typer.Option(help="Leave out what cannot be used, and note it.")] = False,
):
    """Turn a release into the canonical tree, with a manifest of every file. The source is only read."""
    from csamnet.manifest import read_manifest
    from csamnet.prepare import prepare

    if mpp and not own:
        raise InputError("--mpp is for a data set of your own", mend='add --own MODALITY, such as --own "H&E tiles"')
    mine = {"modality": own, "mpp": mpp} if own else None
    with bar(f"Preparing {name}") as tick:
        folder = prepare(name, source, root, own=mine, form=form, allow_partial=allow_partial, on_record=tick)
    table = read_manifest(folder)
    counts = ", ".join(f"{split} {count}" for split, count in table["split"].value_counts().items())
    console.print(f"{folder}: {counts}; {table['objects'].sum()} objects", soft_wrap=True)
    if notes := read_json(folder / "dataset.json")["notes"]:
        console.print(f"{len(notes)} note{'s' * (len(notes) > 1)} in {folder / 'dataset.json'}", soft_wrap=True)


@command
def offset(
    name: Annotated[str, typer.Argument(help="Data set, such as MoNuSeg.")],
    root: Root = PREPARED,
    split: Annotated[str, typer.Option(help="train | val | test")] = "train",
):
    """Measure how far an annotation lies beside what it outlines: the settings offset_x and offset_y."""
    from csamnet.alignment import typical_offset
    from csamnet.data import load_split
    from csamnet.datasets import get_dataset

    name = get_dataset(name, root).name
    (right, down, images), used = typical_offset(load_split(root, name, split)), make_config(dataset=name)
    lies = f"the annotation lies {right:+.2f} pixels to the right, {down:+.2f} down (median of {images} images)"
    change = f"csamnet train {name} --set offset_x=... --set offset_y=... takes others"
    use = f"in use: offset_x {used.offset_x:g}, offset_y {used.offset_y:g}; {change}"
    console.print(f"{name}, {split}: {lies}\n{use}", soft_wrap=True)


@command
def train(
    name: Annotated[str, typer.Argument(help="Data set, such as MoNuSeg.")],
    root: Root = PREPARED,
    profile: Annotated[str, typer.Option(help=STEPS)] = "paper",
    seed: Annotated[int, typer.Option(help="Of the initial weights, crops and augmentation.")] = 0,
    model: Annotated[str | None, typer.Option(help=f"CSAMNet-{'|'.join(SIZES)}, {', '.join(RIVALS)}")] = None,
    precision: Annotated[str | None, typer.Option(help="auto | bf16 | fp16 | fp32")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network (worth it on a GPU).")] = False,
    settings: Annotated[list[str], typer.Option("--set", help="Any other setting, KEY=VALUE; repeatable.")] = [],  # noqa: B006
    results: Annotated[Path, typer.Option(help="Folder of the run folders.", show_default="results")] = RESULTS,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="Processes: GPUs, or CPU processes.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines, under `fabric run` or torchrun.")] = 1,
):
    """Train a network. A run that was stopped goes on where it was; a finished one is not done again."""
    from csamnet.datasets import get_dataset
    from csamnet.train import train

    given = {"profile": profile, "seed": seed, "model": model, "precision": precision, "compile": compile or None}
    given = {key: value for key, value in given.items() if value is not None} | dict(map(_setting, settings))
    config = make_config(**given | {"dataset": get_dataset(name, root).name})
    with bar(f"Training {config.name}") as tick:
        folder = train(config, root, results=results, device=device, devices=devices, nodes=nodes,
                       on_step=tick, on_epoch=lambda row: console.print(epoch_line(row)))  # fmt: skip
    where = "" if root == PREPARED else f" --root {root}"
    console.print(f"{folder}\nnext: csamnet evaluate {folder}{where}", soft_wrap=True)


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError("a setting cannot be read", expected="KEY=VALUE", found=text)
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def epoch_line(row: dict) -> str:
    """One line for an epoch: `epoch  3  loss 0.512  val mIoU 71.20 %  AP 0.8123  45 images/s`."""
    scores = f"val mIoU {100 * row['val_miou']:5.2f} %  AP {row['val_ap']:.4f}  " * (row["val_miou"] == row["val_miou"])
    return f"epoch {row['epoch']:3d}  loss {row['loss']:.3f}  {scores}{row['images_per_s']:.0f} images/s"


@command
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, as `csamnet train` prints it.")],
    root: Root = PREPARED,
    split: Annotated[str, typer.Option(help="train | val | test")] = "test",
    on: Annotated[str | None, typer.Option(help="Another data set than the run's own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure images that it learned from, and mark it.")] = False,
    normalise: Normalise = None,
    tta: Tta = False,
    device: Device = "auto",
):
    """Measure a trained network; write per_image.csv, curves.csv and summary.json beside its weights."""
    from csamnet.datasets import get_dataset
    from csamnet.evaluate import evaluate
    from csamnet.pages.tables import KINDS
    from csamnet.results import read_summary

    other = get_dataset(on, root).name if on else None
    with bar(f"Evaluating {run.name} on {' '.join(filter(None, (other, split)))}") as tick:
        folder = evaluate(run, root, split=split, dataset=other, force=force, normalise=normalise, tta=tta,
                          device=device, on_image=tick)  # fmt: skip
    summary = read_summary(run, folder.name)
    kind = KINDS[summary["data"]["kind"]]
    kind += f"; it has learned from {summary['seen']} of these images" * bool(summary["seen"])
    table = Table(title=f"{summary['data']['name']}, {split}, {summary['n']} images, {kind}")
    for heading in ("measure", "pooled", "mean over images"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for measure, value in summary["pooled"].items():
        table.add_row(measure, *("undefined" if v is None else f"{v:.4f}" for v in (value, summary["mean"][measure])))
    console.print(table)
    console.print(folder, soft_wrap=True)


@command
def robustness(
    run: Annotated[Path, typer.Argument(help="Run folder, as `csamnet train` prints it.")],
    root: Root = PREPARED,
    split: Annotated[str, typer.Option(help="val | test")] = "test",
    normalise: Normalise = None,
    device: Device = "auto",
):
    """Measure a trained network on the same images stained otherwise and at other resolutions."""
    from csamnet.pages.tables import show
    from csamnet.robustness import read_robustness, robustness

    with bar(f"Changing images for {run.name}") as tick:
        path = robustness(run, root, split=split, normalise=normalise, device=device, on_change=tick)
    for row in read_robustness(run, path.stem.removeprefix("robustness-"))[1].to_dict("records"):
        told = "images as they are" if row["change"] == "none" else f"{row['change']} x {row['factor']:g}"
        console.print(f"{told:24}mIoU {show('miou', row['miou'])}  AP {show('ap', row['ap'])}")
    console.print(path, soft_wrap=True)


@command
def predict(
    images: Annotated[list[Path], typer.Argument(help="Any images: PNG, TIFF, JPEG, BMP, WebP.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    weights: Weights = "MoNuSeg",
    threshold: Threshold = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres a pixel of the images: see below.")] = None,
    tta: Tta = False,
    normalise: Normalise = None,
    device: Device = "auto",
):
    """Segment images: mask PNG, probability TIFF, overlay PNG, nuclei as CSV and as GeoJSON for QuPath.

    With --mpp, images are resized to the resolution that the weights have learned (0.25 for MoNuSeg, 40x) and
    results back, and areas are given in um2. Without it they are taken as they are.
    """
    from csamnet.inference import load, predict_files, target_of

    model = load(weights, device)
    with bar("Predicting") as tick:
        settings = {"threshold": threshold, "tta": tta or None, "normalise": normalise}
        table = predict_files(model, images, out, mpp=mpp, on_image=tick, **settings)
    for row in table.to_dict("records"):
        found = f"{row['nuclei']} {target_of(model)[1]}, {100 * row['coverage']:.1f} % of the image"
        console.print(f"{row['image']}: {found}", soft_wrap=True)
    console.print(out, soft_wrap=True)


@command
def ship(
    run: Annotated[Path, typer.Argument(help="Run folder that was measured on real images.")],
    root: Root = PREPARED,
    out: Annotated[Path, typer.Option(help="Folder of the weights.", show_default="weights")] = WEIGHTS,
    device: Device = "auto",
):
    """Write a run's weights in half precision, checked against full, with a card."""
    from csamnet.weights import ship

    with console.status(f"Comparing half precision of {run.name} with full"):
        path = ship(run, root, out, device=device)
    console.print(path, soft_wrap=True)


@command
def notebook(
    template: Annotated[Path, typer.Argument(help="Notebook with a `parameters` cell.")],
    out: Annotated[Path, typer.Argument(help="Where the executed copy goes.")],
    parameter: Annotated[list[str], typer.Option("-p", "--parameter", help="NAME=VALUE; repeatable.")] = [],  # noqa: B006
):
    """Run a notebook by papermill; unknown parameters are refused before anything runs."""
    from csamnet.pages.execution import run_notebook

    console.print(f"Running {out}", soft_wrap=True)
    run_notebook(template, out, dict(map(_setting, parameter)))


@command
def figures(
    out: Annotated[Path, typer.Option(help="Folder of the figures.", show_default="book/_generated/figures")] = FIGURES,
    results: Annotated[Path, typer.Option(help="Folder of the run folders.", show_default="results")] = RESULTS,
    root: Annotated[Path | None, typer.Option(help="Prepared data sets, for the figures that show images.")] = None,
):
    """Draw every figure of the comparison again, from results to SVG, PNG and PDF."""
    from csamnet.pages.gallery import make_figures

    for path in make_figures(results, out, root):
        console.print(path, soft_wrap=True)


@command
def complexity(
    models: Annotated[list[str] | None, typer.Argument(help="Networks; all at full size where none is named.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.", show_default="results/complexity")] = RESULTS
    / "complexity",
    device: Device = "auto",
):
    """Count and time the networks of the comparison: parameters, multiply-adds, latency, memory, images per second."""
    from csamnet.pages.complexity import measure_costs

    names = models or ["CSAMNet-S", "CSAMNet-M", "CSAMNet-L", *RIVALS]
    console.print(measure_costs(names, out, device, say=console.print), soft_wrap=True)


command(slide)
command(progress)
