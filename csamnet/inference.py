"""Trained weights on any image: a probability, a mask, nuclei, and files that other programs open."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.measure import regionprops_table
from skimage.segmentation import find_boundaries
from torch import nn

from csamnet.config import RunConfig, stored_config
from csamnet.datasets import check_mpp, entry_of, known_mpp
from csamnet.evaluate import build_model, find_run_weights, pick_device, predictor, stored_stain
from csamnet.files import InputError, printable, sha256_array, sha256_json, write_csv, write_text
from csamnet.images import MAX_PIXELS, as_rgb, read_image, write_image
from csamnet.instances import OUTLINE, detection, instances_from_probability, outlines
from csamnet.model import CSAMNet, load_strictly, load_weights, read_about
from csamnet.paths import WEIGHTS

FILES = ("mask.png", "probability.tif", "overlay.png", "nuclei.csv", "nuclei.geojson")
"""What is written for an image, each name after the image's stem and an underscore."""


class Prediction(NamedTuple):
    probability: np.ndarray  # (H, W) float32 of foreground
    mask: np.ndarray  # (H, W) bool, where the probability that the network gave reaches the threshold
    labels: np.ndarray  # (H, W) int32 nuclei, by `instances_from_probability`


def load(name_or_path: Path | str, device: str = "auto") -> nn.Module:
    """A trained network in inference mode: `config` are the settings, `mpp` the um a pixel and `stain` what it learned.

    Takes a .safetensors file of ours or with the released key names, a run folder, or the name of weights in
    `weights/`. Raises InputError where there are none, where they do not fit, and for any other kind of file:
    nothing is ever unpickled.
    """
    place, path = pick_device(device), find_weights(name_or_path)
    state, about = load_weights(path), read_about(path)
    try:
        config = stored_config(json.loads(about.get("config", "{}")))
        mpp = json.loads(about["mpp"]) if "mpp" in about else known_mpp(config.dataset)
        check_mpp(mpp)
        stain = stored_stain(path)
    except (ValueError, TypeError) as error:
        raise InputError("the settings stored with the weights are not ours", path=path, found=error) from None
    if "config" in about:
        model = build_model(config)
        load_strictly(model, state, path)
    else:
        model = CSAMNet.from_released(path)
    model.config, model.mpp, model.stain, model.path = config, mpp, stain, path
    return model.to(place, memory_format=torch.channels_last).eval()


def find_weights(name_or_path: Path | str) -> Path:
    """The file that `load` reads. A bare name is looked up in `weights/` first."""
    path, shipped = Path(name_or_path), {file.stem: file for file in sorted(WEIGHTS.glob("*.safetensors"))}
    if str(path) in shipped:
        return shipped[str(path)]
    if path.is_dir():
        return find_run_weights(path)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    expected = " | ".join(shipped) or f"a path: there are none in {WEIGHTS}"
    mend = "give one of these names, a .safetensors file or a run folder"
    raise InputError("no weights of this name", expected=expected, found=repr(str(path)), mend=mend)


def predict(
    model: nn.Module, image: np.ndarray, *, mpp: float | None = None, min_area: int = 30, **settings
) -> Prediction:
    """Foreground of an image, by sliding window with the settings that the network was trained by.

    `mpp` is the image's micrometres a pixel: where the network has learned another resolution, the image is resized
    to that one, and what is found in it back.

    `image` is (H, W) or (H, W, 1, 3 or 4), integers or floats: see `as_rgb`. `settings` replace the stored
    `threshold`, `tile`, `overlap`, `tta`, `normalise`, `batch` or `precision`, None leaving one as it is; with both
    `tta` and `normalise` four of the eight views are of the normalised image and four of the image as it is.
    InputError where a value is impossible. Nuclei below `min_area` pixels, as the network sees them, are dropped from
    `labels`, not from `mask`.
    """
    changes = {key: value for key, value in settings.items() if value is not None}
    config = replace(getattr(model, "config", RunConfig()), **changes)
    pixels = as_rgb(image)
    probability = predictor(model, config)(at_resolution(pixels, mpp, learned_mpp(model)))
    rule = {"threshold": config.threshold, "min_area": min_area, "touching": touching(config)}
    found = probability, np.int32(probability >= config.threshold), instances_from_probability(probability, **rule)
    probability, mask, labels = (resized(values, pixels.shape[:2]) for values in found)
    return Prediction(probability, mask > 0, labels)


def at_resolution(pixels: np.ndarray, mpp: float | None, learned: float | None) -> np.ndarray:
    """(H, W, 3) uint8 resized from `mpp` to `learned`; as it is where one is not known or they are a tenth apart.

    Raises InputError for an `mpp` that is not a sixteenth to sixteen times what was learned, and beyond MAX_PIXELS.
    """
    check_mpp(mpp)
    if not mpp or not learned or abs(math.log(mpp / learned)) < 0.1:
        return pixels
    shape = tuple(max(1, round(side * mpp / learned)) for side in pixels.shape[:2])
    if not 1 / 16 <= mpp / learned <= 16 or math.prod(shape) > MAX_PIXELS:
        expected = f"micrometres a pixel, such as {learned}, which the weights have learned; {MAX_PIXELS:,} pixels then"
        found = f"{mpp}, and {shape[0]:,} x {shape[1]:,} pixels at {learned}"
        raise InputError("a resolution that cannot be worked at", expected=expected, found=found)
    return resized(pixels, shape)


def resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W, ...) of bytes (cubic), floats (linear) or labels (nearest) as `shape`."""
    ways = {"u": Image.Resampling.BICUBIC, "f": Image.Resampling.BILINEAR, "i": Image.Resampling.NEAREST}
    if values.shape[:2] == shape:
        return values
    return np.array(Image.fromarray(values).resize(shape[::-1], ways[values.dtype.kind]))


def touching(config: RunConfig) -> bool:
    """Whether what a network finds is split, see `Dataset.touching`; of one's own data, where they are stained."""
    return getattr(entry_of(config.dataset), "touching", config.stain > 0)


def nuclei(prediction: Prediction, mpp: float | None = None) -> pd.DataFrame:
    """One row a nucleus: label, x, y, area_px, area_um2, eccentricity, mean_probability.

    x and y, its centroid, are in pixels from the image's top left corner. `mpp` is the image's micrometres a
    pixel; area_um2 is NaN where it is not known. Eccentricity is 0 for a disc and nears 1 for a line.
    """
    check_mpp(mpp)
    names = {"label": "label", "centroid-1": "x", "centroid-0": "y", "area": "area_px",
             "eccentricity": "eccentricity", "intensity_mean": "mean_probability"}  # fmt: skip
    properties = ("label", "centroid", "area", "eccentricity", "intensity_mean")
    found = regionprops_table(prediction.labels, prediction.probability, properties=properties)
    table = pd.DataFrame({name: found[key] for key, name in names.items()}).astype({"area_px": int})
    table[["x", "y"]] += 0.5
    table.insert(4, "area_um2", table["area_px"] * (np.nan if mpp is None else mpp**2))
    return table


def weights_sha256(model: nn.Module) -> str:
    """Hash of a model's weights."""
    return sha256_json({key: sha256_array(value.cpu().numpy()) for key, value in model.state_dict().items()})


def learned_mpp(model: nn.Module) -> float | None:
    """Micrometres a pixel of what a network has learned from; None where that is not known."""
    return getattr(model, "mpp", known_mpp(getattr(model, "config", RunConfig()).dataset))


def target_of(model: nn.Module) -> tuple[str, str]:
    """What a network finds, one and many: nucleus and nuclei unless its data set says otherwise."""
    entry = entry_of(getattr(model, "config", RunConfig()).dataset)
    return entry.target if entry else ("object", "objects")


def geojson(prediction: Prediction, table: pd.DataFrame, name: str, kind: str = "Nucleus") -> dict:
    """Outlines as a GeoJSON FeatureCollection of QuPath detections, in the image's pixels.

    `table` is that of `nuclei`, for the measurements; `name`, the image's, keeps the ids of images apart; `kind` is
    the class of the detections.
    """
    measured = table.dropna(axis=1).set_index("label").round(4).to_dict("index")
    shapes = outlines(prediction.labels)
    features = [detection(f"{name}/{label}", polygon, measured[label], kind) for label, polygon in shapes]
    return {"type": "FeatureCollection", "features": features}


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The picture as (H, W, 3) uint8 with the edge pixels of each nucleus coloured."""
    return np.where(find_boundaries(labels, mode="inner")[..., None], np.uint8(OUTLINE), as_rgb(image))


def write_prediction(
    prediction: Prediction,
    image: np.ndarray,
    stem: str,
    out: Path | str,
    *,
    mpp: float | None = None,
    kind: str = "Nucleus",
) -> pd.DataFrame:
    """Write `out/<stem>_*` (see FILES), each whole or not at all; returns the table of nuclei."""
    mask, probability, drawn, rows, shapes = (Path(out) / f"{stem}_{end}" for end in FILES)
    table = nuclei(prediction, mpp)
    write_image(mask, prediction.mask)
    write_image(probability, prediction.probability)
    write_image(drawn, overlay(image, prediction.labels))
    write_csv(rows, table)
    collection = geojson(prediction, table, stem, kind)
    write_text(shapes, json.dumps(collection, separators=(",", ":"), allow_nan=False) + "\n")
    return table


def stems(paths: Sequence[Path | str]) -> list[str]:
    """A name for each path: its stem, with -2, -3, ... where a name (in whatever case) is taken."""
    names: dict[str, str] = {}
    for stem in map(printable, (Path(path).stem if Path(path).stem.strip(".") else Path(path).name for path in paths)):
        numbered = (stem if n == 1 else f"{stem}-{n}" for n in itertools.count(1))
        name = next(name for name in numbered if name.casefold() not in names)
        names[name.casefold()] = name
    return list(names.values())


def _counted(prediction: Prediction, table: pd.DataFrame, mpp: float | None) -> dict:
    """What counts.csv says of an image."""
    area = np.nan if mpp is None else table["area_um2"].sum()
    counts = {"nuclei": len(table), "area_px": table["area_px"].sum(), "area_um2": area}
    return counts | {"coverage": prediction.mask.mean()}


def predict_files(
    model: nn.Module,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    mpp: float | None = None,
    on_image: Callable[[int, int], None] = lambda done, all_: None,
    **settings,
) -> pd.DataFrame:
    """Predict image files and write `out/<stem>_*` for each, and `out/counts.csv`, which is returned.

    counts.csv has a row an image: image, name, nuclei, area_px and area_um2 of all nuclei, coverage (the part
    of the image that is mask). Raises InputError where an image would be written over, and at the end, when the
    others are done, where one cannot be read.
    """
    inputs, names, rows, broken = {Path(path).resolve() for path in paths}, stems(paths), [], []
    for target in (Path(out) / f"{name}_{end}" for name in names for end in FILES):
        if target.resolve() in inputs:
            raise InputError("an image would be written over", path=target, mend="choose another --out")
    for done, (path, name) in enumerate(zip(paths, names, strict=True), 1):
        try:
            image = read_image(path)
        except (InputError, OSError) as error:
            broken.append(error)
        else:
            prediction = predict(model, image, mpp=mpp, **settings)
            table = write_prediction(prediction, image, name, out, mpp=mpp, kind=target_of(model)[0].capitalize())
            rows.append({"image": printable(str(path)), "name": name} | _counted(prediction, table, mpp))
        on_image(done, len(names))
    counts = pd.DataFrame(rows)
    if rows:
        write_csv(Path(out) / "counts.csv", counts)
    if broken:
        what = f"{len(broken)} of {len(paths)} images cannot be used" + f"; the others are in {out}" * bool(rows)
        raise InputError(what, found="\n".join(map(str, broken)))
    return counts
