"""How far a trained network carries: the same test images, stained otherwise or at another resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from csamnet.config import RunConfig
from csamnet.data import Sample, load_split, restained
from csamnet.datasets import get_dataset
from csamnet.evaluate import finite, known_images, load_run, measure, predictor
from csamnet.files import InputError, read_json, write_json
from csamnet.metrics import pool
from csamnet.results import MEASURES, data_card, fingerprint, hardware, keep_real, measured_in, read_run

STAINS, RESOLUTIONS = (0.5, 0.7, 1.4, 2.0), (2, 4)
CHANGES = {"haematoxylin": STAINS, "eosin": STAINS, "coarser": RESOLUTIONS, "coarser, enlarged": RESOLUTIONS}
"""What is changed -> by which factors: amounts of stain; pixels of an image for one, as they are or enlarged again."""


@dataclass(frozen=True)
class Changed:
    """A `data.Sample` whose image is changed, and its truth where pixels are joined."""

    sample: Sample
    change: str  # a key of CHANGES, or "none"
    factor: float

    def __getattr__(self, name: str):
        return getattr(self.sample, name)

    def image(self) -> np.ndarray:
        """`(H, W, 3)` uint8, or `(H / factor, W / factor, 3)`, what does not fill a pixel being cut off."""
        pixels = self.sample.image()
        if self.change in ("haematoxylin", "eosin"):
            return stained(pixels, **{self.change: self.factor})
        if self.change == "none":
            return pixels
        small = Image.fromarray(_whole(pixels, self.factor)).reduce(self.factor)
        large = small.resize([self.factor * side for side in small.size], Image.Resampling.BICUBIC)
        return np.array(large if self.change == "coarser, enlarged" else small)

    def mask(self) -> np.ndarray:
        return self._truth(self.sample.mask())

    def labels(self) -> np.ndarray | None:
        labels = self.sample.labels()
        return None if labels is None else self._truth(labels)

    def _truth(self, values: np.ndarray) -> np.ndarray:
        if not self.change.startswith("coarser"):
            return values
        values, middle = _whole(values, self.factor), self.factor // 2
        return values if self.change == "coarser, enlarged" else values[middle :: self.factor, middle :: self.factor]


def stained(pixels: np.ndarray, haematoxylin: float = 1.0, eosin: float = 1.0) -> np.ndarray:
    """`(H, W, 3)` uint8 with so many times the amount of each stain, by the deconvolution of `data.restain`."""
    factors, shifts = torch.tensor([haematoxylin, eosin, 1.0]), torch.zeros(3)
    return restained(torch.from_numpy(pixels)[None], factors, shifts)[0].numpy()


def _whole(values: np.ndarray, factor: int) -> np.ndarray:
    height, width = (side // factor * factor for side in values.shape[:2])
    return values[:height, :width]


def robustness(
    folder: Path | str,
    root: Path | str,
    *,
    split: str = "test",
    normalise: float | None = None,
    device: str = "auto",
    on_change: Callable[[int, int], None] = lambda done, every: None,
) -> Path:
    """Measure a run on its data set's `split` as it is and under every change; return the file of the results.

    Another `normalise` than the run's own, by which changed images are brought to the stain that was learned, has a
    file of its own. A measurement that was stopped goes on; one of the same weights, data and code is not done again.
    Raises InputError where the run has learned from the images. `on_change` is called with (done, all) after each.
    """
    model, config = load_run(folder, device)
    config = config if normalise is None else replace(config, normalise=normalise)
    card, samples = data_card(root, config.dataset), load_split(root, config.dataset, split)
    known_images(folder, samples, own=True, split=split)  # or an error
    for sample in samples:
        if min(shape := sample.image().shape[:2]) < max(RESOLUTIONS):
            raise InputError("an image is too small to be made coarser", path=sample.image_path, found=shape)
    part = measured_in(folder, None, split, normalise).name
    out, run = Path(folder) / f"robustness-{part}.json", read_run(folder)["fingerprint"]
    keep_real(out, card)
    fresh = fingerprint(config, card["manifest_sha256"] + run, "robustness")
    wanted, predict = changes_for(get_dataset(config.dataset, root).modality), predictor(model, config)
    rows = _done(out, fresh, wanted)
    about = {"data": card, "hardware": hardware(next(model.parameters()).device), "run": run, "fingerprint": fresh}
    for change, factor in wanted[len(rows) :]:
        changed = [Changed(sample, change, factor) for sample in samples]
        found = measure(predict, changed, _joined(config, change, factor), {})
        pooled = pool(found.rows, found.histograms[""])
        rows.append({"change": change, "factor": factor} | {key: finite(pooled[key]) for key in MEASURES})
        write_json(out, about | {"rows": rows, "n": len(samples)})
        on_change(len(rows), len(wanted))
    return out


def _joined(config: RunConfig, change: str, factor: float) -> RunConfig:
    """The configuration for images of `factor` pixels joined, whose truth is that of the one right after the middle."""
    if change != "coarser":
        return config
    return replace(config, offset_x=(config.offset_x - 0.5) / factor, offset_y=(config.offset_y - 0.5) / factor)


def _done(path: Path, fresh: str, wanted: list[tuple[str, float]]) -> list[dict]:
    """The rows of an earlier measurement that still hold; none where the file is not what it should be."""
    try:
        found = read_json(path)
        rows = found["rows"] if found["fingerprint"] == fresh else []
        same = [(row["change"], row["factor"]) for row in rows] == wanted[: len(rows)]
        return rows if same and all(row[key] is None or row[key] >= 0 for row in rows for key in MEASURES) else []
    except (InputError, KeyError, TypeError):
        return []


def changes_for(modality: str) -> list[tuple[str, float]]:
    """(change, factor) in the order in which they are measured, the unchanged image first."""
    stains = modality.startswith("H&E")
    kinds = {name: factors for name, factors in CHANGES.items() if stains or name.startswith("coarser")}
    return [("none", 1), *((name, factor) for name, factors in kinds.items() for factor in factors)]


def read_robustness(folder: Path | str, split: str = "test") -> tuple[dict, pd.DataFrame] | None:
    """What `robustness` wrote, and its rows as a table: change, factor and MEASURES. None where it was not run.

    `split` may be that of normalised images, `test-normalise1`. Raises InputError where the file is damaged or was
    not finished.
    """
    path = Path(folder) / f"robustness-{split}.json"
    if not path.exists():
        return None
    about, run, mend = read_json(path), read_run(folder), f"remove it, then csamnet robustness {folder}"
    try:
        table = pd.DataFrame(about["rows"])[["change", "factor", *MEASURES]].astype(dict.fromkeys(MEASURES, float))
        found = [*zip(table["change"], table["factor"], strict=True)]
        sound = about["data"]["kind"] in ("real", "sample") and found in (changes_for("H&E"), changes_for(""))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError("not whole, or not what csamnet robustness writes", path=path, mend=mend)
    if about.get("run") != run.get("fingerprint"):
        raise InputError("measured of another training than the one that is here", path=path, mend=mend)
    return about, table
