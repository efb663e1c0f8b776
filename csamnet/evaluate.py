"""From weights to numbers: sliding window, smooth stitching, measures per image and pooled."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor, nn

from csamnet import baselines, metrics
from csamnet import results as runs
from csamnet.config import MODELS, RunConfig, make_config
from csamnet.data import Sample, load_split, normalised, pair, stain_wanted, to_input
from csamnet.datasets import DATASETS
from csamnet.files import InputError, atomic, write_csv, write_json
from csamnet.model import CSAMNet, extend, load_strictly, load_weights, read_about
from csamnet.paths import WEIGHTS

SETTINGS = ("tile", "overlap", "tta", "normalise", "offset_x", "offset_y", "threshold", "precision")
"""What of a run's configuration its measures depend on, kept beside them."""


def build_model(config: RunConfig) -> nn.Module:
    """The network of a run, with weights at random."""
    options = MODELS[config.model]
    if config.model == "Otsu":
        raise InputError("Otsu is a threshold and is not trained", mend="notebooks/comparison.ipynb measures it")
    return baselines.build(**options) if "name" in options else CSAMNet(**options)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes a GPU where there is one. Raises InputError where the asked one is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError("unknown device", expected="auto | cpu | cuda", found=repr(name))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device", expected="a GPU that torch can use", found=torch.__version__,
                         mend="use --device cpu, or install a CUDA build of torch")  # fmt: skip
    return torch.device(name)


def pick_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where the device has matrix units for it, fp16 on older GPUs, else fp32.

    A CPU with bf16 instructions but without matrix units (AMX) is slower in bf16 than in float32: `book/log.md`.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return "bf16" if device.type == "cpu" and matrix_units else "fp32"


def autocast(precision: str, device: torch.device):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(pick_precision(precision, device))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


# -------------------------------------------------------------------------------------- sliding window


def tile_corners(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles start along an axis of `length` >= `tile`: evenly spread, neighbours share at least `overlap`."""
    count = math.ceil((length - tile) / (tile * (1 - overlap))) + 1
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def tile_weight(tile: int, device: torch.device) -> Tensor:
    """`(tile, tile)` weights that fall smoothly from 1 at the centre towards 0 at the border (squared cosine)."""
    line = torch.sin(torch.pi * (torch.arange(tile, device=device) + 0.5) / tile) ** 2
    return (line[:, None] * line).clamp(min=1e-4)


@torch.inference_mode()
def predict_probability(
    model: nn.Module,
    image: np.ndarray,
    *,
    stained: np.ndarray | None = None,
    tile: int = 256,
    overlap: float = 0.5,
    tta: bool = False,
    batch: int = 8,
    precision: str = "fp32",
) -> np.ndarray:
    """Foreground probability `(H, W)` float32 of an `(H, W, 3)` uint8 image.

    The image is cut into tiles of the size that was trained on, because the network's output depends on the size
    of what it is fed; neighbours overlap and are blended by `tile_weight`. A small image is extended by reflection.
    Where there is `stained`, the same image normalised, that is what the network sees; by `tta` it sees both.
    """
    device, (height, width) = next(model.parameters()).device, image.shape[:2]
    model.eval()
    given = [np.ascontiguousarray(one)[None] for one in (image, stained) if one is not None]
    inputs = network_inputs([torch.from_numpy(one).to(device) for one in given], tile, tta)
    weight, shape = tile_weight(tile, device), inputs[0].shape[2:]
    total, norm = torch.zeros(2, *shape, device=device)
    corners = list(itertools.product(*(tile_corners(side, tile, overlap) for side in shape)))
    for start in range(0, len(corners), batch):
        group = corners[start : start + batch]
        tiles = [torch.cat([x[..., a : a + tile, b : b + tile] for a, b in group]) for x in inputs]
        for (a, b), probability in zip(group, tile_probability(model, tiles, precision, tta), strict=True):
            total[a : a + tile, b : b + tile] += weight * probability
            norm[a : a + tile, b : b + tile] += weight
    return (total / norm)[:height, :width].cpu().numpy()


def network_inputs(pixels: Sequence[Tensor], tile: int, tta: bool) -> list[Tensor]:
    """What `tile_probability` takes of `(B, H, W, 3)` bytes, one such or two: as they are, and normalised.

    Each is `(B, 3, h, w)`, its sides extended to a tile at least. Without `tta` nothing is made of what is not last.
    """
    sides = [max(side, tile) for side in pixels[0].shape[1:3]]
    return [extend(to_input(one).permute(0, 3, 1, 2), *sides) for one in (pixels if tta else pixels[-1:])]


def tile_probability(model: nn.Module, tiles: Sequence[Tensor], precision: str, tta: bool = False) -> Tensor:
    """Foreground probability `(B, t, t)` float32 of inputs `(B, 3, t, t)`; by `tta` the mean of eight views.

    `tiles` is one such input or, for `tta`, two: the tiles as they are, and normalised. Then the four mirrored views
    are of the second and the other four of the first, so that the mean is of both stains.
    """
    total = torch.zeros(len(tiles[0]), *tiles[0].shape[2:], device=tiles[0].device)
    views = [(tiles[-flip], turns, flip) for turns in range(4) for flip in (0, 1)] if tta else [(tiles[-1], 0, 0)]
    for x, turns, flip in views:
        view = torch.rot90(x, turns, (2, 3))
        view = view.flip(3) if flip else view
        with autocast(precision, x.device):
            logits = model(view.contiguous(memory_format=torch.channels_last)).float()
        probability = torch.sigmoid(logits[:, 1] - logits[:, 0])
        total += torch.rot90(probability.flip(2) if flip else probability, -turns, (1, 2))
    return total / len(views)


# -------------------------------------------------------------------------------------------- measures


def predictor(model: nn.Module, config: RunConfig, **changes) -> Callable[[np.ndarray], np.ndarray]:
    """`predict_probability` with a run's settings: image in, probability out. InputError as of `stain_wanted`."""
    settings = {key: getattr(config, key) for key in ("tile", "overlap", "tta", "batch", "precision")} | changes
    if (stain := stain_wanted(model, config)) is None:
        return lambda image: predict_probability(model, image, **settings)
    return lambda x: predict_probability(model, x, stained=normalised(x, stain, config.normalise), **settings)


def as_annotated(probability: np.ndarray, config: RunConfig) -> np.ndarray:
    """`(H, W)` probability moved from where things lie to where their annotation lies; linear between pixels."""
    if not (config.offset_x or config.offset_y):
        return probability
    return ndimage.shift(probability, (config.offset_y, config.offset_x), order=1, mode="nearest")


def annotation_of(dataset: str) -> dict[str, float]:
    """Settings that tell how the annotation of a data set lies, which a run on another one does not know."""
    return {key: getattr(make_config(dataset=dataset), key) for key in ("offset_x", "offset_y")}


def stored_stain(path: Path) -> list[list[float]] | None:
    """The stain that a file of weights tells of. Raises InputError where it is none."""
    found = read_about(path).get("stain", "null")
    with suppress(ValueError, TypeError):
        stain = json.loads(found)
        if stain is None or (np.shape(stain) == (2, 3) and np.max(np.abs(stain)) < 100 and np.min(stain[1]) >= 0):
            return stain
    expected = "means and deviations of haematoxylin, eosin and rest"
    raise InputError("the stain stored with the weights is not ours", path=path, expected=expected, found=found)


def validate(model: nn.Module, samples: list[Sample], config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Counts `(4,)` and score histogram `(2, BINS)` over `samples`; additive, so that processes can share the work.

    By one view, whatever `tta` says: of the normalised image, where there is one.
    """
    counts, histogram = np.zeros(4, np.int64), np.zeros((2, metrics.BINS), np.int64)
    predict = predictor(model, config, overlap=config.val_overlap, tta=False)
    for sample in samples:
        image, mask = pair(sample)
        probability = as_annotated(predict(image), config)
        counts += [*metrics.confusion(probability >= config.threshold, mask).values()]
        histogram += metrics.score_histogram(probability, mask)
    return counts, histogram


def validation_scores(counts: np.ndarray, histogram: np.ndarray) -> dict[str, float]:
    pixels = metrics.from_counts(*counts.tolist())
    return {"val_miou": pixels["miou"], "val_dice": pixels["dice"], "val_ap": metrics.average_precision(histogram)}


def load_run(folder: Path | str, device: str = "auto") -> tuple[nn.Module, RunConfig]:
    """The trained network of a run folder, in inference mode, and its configuration.

    Where its weights are not kept, those are taken that were shipped of it, in half precision. Raises InputError
    where the folder is no run, where its training has not ended, and where there are no weights of it.
    """
    config = runs.read_config(folder)
    if runs.read_run(folder)["status"] != "done":
        raise InputError("the training has not ended", path=folder, mend="csamnet train goes on where it stopped")
    model, path = build_model(config), find_run_weights(folder)
    load_strictly(model, load_weights(path), path)
    model.stain, model.path = stored_stain(path), path
    return model.to(pick_device(device), memory_format=torch.channels_last).eval(), config


def find_run_weights(folder: Path | str) -> Path:
    """A run's own weights, or those that `csamnet ship` wrote of it to `weights/`. Raises InputError for neither."""
    path = Path(folder) / "weights.safetensors"
    if path.exists():
        return path
    run = runs.read_run(folder)
    shipped = WEIGHTS / f"{run['config'].get('dataset')}.safetensors"
    if shipped.exists() and read_about(shipped).get("run", "") == run.get("fingerprint"):
        return shipped
    raise InputError("the weights of this run are not kept here", path=path, mend="csamnet train makes them anew")


def evaluate(
    folder: Path | str,
    root: Path | str,
    *,
    split: str = "test",
    dataset: str | None = None,
    force: bool = False,
    normalise: float | None = None,
    tta: bool = False,
    device: str = "auto",
    on_image: Callable[[int, int], None] = lambda done, all_: None,
) -> Path:
    """Measure a run's weights on a split, of its own data set or of another; return the folder of the results.

    Another `normalise` than the run's own, and `tta` where it has none, have a folder of their own beside that.

    Nothing is done where the same weights were measured on the same data by the same code. Raises InputError where
    the run has learned from one of the images, unless forced: then the summary tells how many. `on_image` is called
    with (done, all) after each image.
    """
    model, config = load_run(folder, device)
    config = replace(config, normalise=config.normalise if normalise is None else normalise, tta=config.tta or tta)
    name, out = dataset or config.dataset, runs.measured_in(folder, dataset, split, normalise, tta)
    config = config if name == config.dataset else replace(config, **annotation_of(name))
    card, samples = runs.data_card(root, name), load_split(root, name, split)
    seen = known_images(folder, samples, own=name == config.dataset, split=split, force=force)
    fresh = runs.fingerprint(config, card["manifest_sha256"] + runs.read_run(folder)["fingerprint"], "evaluate")
    if (runs.read_summary(folder, out.name) or {}).get("fingerprint") == fresh:
        return out
    runs.keep_real(out / "summary.json", card)
    place = next(model.parameters()).device
    config = replace(config, precision=pick_precision(config.precision, place))
    about = {"data": card, "seen": len(seen), "hardware": runs.hardware(place), "fingerprint": fresh}
    measured = measure(predictor(model, config), samples, config, get_subsets(name), on_image)
    return write_evaluation(out, measured, config, about | {"weights": find_run_weights(folder).name})


def known_images(folder: Path | str, samples: list[Sample], *, own: bool, split: str, force: bool = False) -> list[str]:
    """Names of the samples that the run was trained or selected on; its own validation images may be measured.

    In its own data set these are also other images of the same groups (patients, slides). Raises InputError where
    there are some, unless forced.
    """
    told, parts = runs.read_seen(folder), ("train",) if own and split == "val" else ("train", "val")
    hashes = {one for part in parts for one in told[part]}
    groups = {one for part in parts for one in told.get("groups", {}).get(part, ()) if own}
    seen = [sample.name for sample in samples if sample.pixels_sha256 in hashes or sample.group in groups]
    if seen and not force:
        found = f"{len(seen)} of {len(samples)}: {', '.join(seen[:4])}{' ...' if len(seen) > 4 else ''}"
        mend = "another data set or split; csamnet evaluate --force measures all the same, and marks the results"
        raise InputError("the run has learned from images that it is to be measured on", path=folder, found=found,
                         expected="images that it was neither trained nor selected on", mend=mend)  # fmt: skip
    return seen


def get_subsets(dataset: str) -> dict[str, tuple[str, ...]]:
    """The parts of a data set that are reported apart: name -> organs."""
    return getattr(DATASETS.get(dataset), "subsets", {})  # of a split by organ they are others


class Measured(NamedTuple):
    """What `measure` finds."""

    rows: list[dict]  # of measures, one for each image
    histograms: dict[str, np.ndarray]  # of scores (2, BINS): under "" of all images, under its name of each subset
    each: np.ndarray  # (images, 2, bins), the coarse histogram of each
    objects: pd.DataFrame  # name of the image, area in pixels and highest IoU of each true object


def measure(
    predict: Callable, samples: list[Sample], config: RunConfig, subsets: dict, on_image: Callable = lambda *_: None
) -> Measured:
    """Every measure of what `predict` makes of the samples."""
    histograms = {name: np.zeros((2, metrics.BINS), np.int64) for name in ("", *subsets)}
    rows, each, objects = [], [], []
    for done, sample in enumerate(samples, 1):
        (image, mask), own, found = pair(sample), np.zeros((2, metrics.BINS), np.int64), []
        rule = {"threshold": config.threshold, "touching": sample.touching}
        probability = as_annotated(predict(image), config)
        row = metrics.image_metrics(probability, mask, sample.labels(), total=own, objects=found, **rule)
        for name, histogram in histograms.items():
            histogram += own * (not name or sample.organ in subsets[name])
        each.append(metrics.coarse(own))
        objects += [(sample.name, *one) for one in found]
        place = {"name": sample.name, "group": sample.group, "organ": sample.organ}
        rows.append(place | {"height": image.shape[0], "width": image.shape[1]} | row)
        on_image(done, len(samples))
    if any(math.isnan(row["n_true"]) for row in rows):
        objects = []  # of the few images that tell theirs apart, which would be taken for all
    return Measured(rows, histograms, np.array(each, np.uint32), pd.DataFrame(objects, columns=["name", "area", "iou"]))


def write_evaluation(out: Path, measured: Measured, config: RunConfig, about: dict) -> Path:
    """Write `per_image.csv`, `objects.csv`, `scores.npz`, `curves.csv` (precision-recall and ROC), `summary.json`."""
    rows, histograms, each, objects = measured
    columns = ["name", "group", "organ", "height", "width", *metrics.COLUMNS]
    write_csv(out / "per_image.csv", pd.DataFrame(rows)[columns])
    write_csv(out / "objects.csv", objects)
    write_csv(out / "curves.csv", metrics.curves(histograms[""]))
    with atomic(out / "scores.npz") as temporary:
        np.savez_compressed(temporary, histograms=each)
    parts = get_subsets(about["data"]["name"]).items()
    subsets = {name: [row for row in rows if row["organ"] in organs] for name, organs in parts}
    scores = {name: _scores(of, histograms[name]) for name, of in subsets.items() if of}
    told = {"subsets": scores, "settings": {key: getattr(config, key) for key in SETTINGS}} | about
    write_json(out / "summary.json", _scores(rows, histograms[""]) | told)
    return out


def _scores(rows: list[dict], histogram: np.ndarray) -> dict:
    """Measures pooled and as means over images, with how many images define each."""
    (means, defined), pooled = metrics.mean(rows), metrics.pool(rows, histogram)
    return {
        "pooled": {key: finite(pooled[key]) for key in metrics.METRICS},
        "mean": {key: finite(means[key]) for key in metrics.METRICS},
        "defined": defined,
        "n": len(rows),
    }


def finite(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None
