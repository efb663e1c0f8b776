"""Weights to ship: in half precision, compared with full, each with a card."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from csamnet.config import RunConfig
from csamnet.data import load_split
from csamnet.datasets import get_dataset
from csamnet.evaluate import find_run_weights, load_run, validate, validation_scores
from csamnet.files import InputError, atomic
from csamnet.manifest import read_manifest
from csamnet.model import load_strictly, read_about, save_weights
from csamnet.pages.tables import KINDS, show
from csamnet.pages.weight_card import weights_card
from csamnet.paths import WEIGHTS
from csamnet.results import read_run, read_summary

SAME = 2e-4
"""By how much half precision may change the validation mIoU: 0.02 points."""
NEAR = 2e-3  # the same of another device or precision than that of the training


def ship(folder: Path | str, root: Path | str, out: Path | str = WEIGHTS, *, device: str = "auto") -> Path:
    """Write a run's weights in half precision to `out`/DATASET.safetensors, and their card to DATASET.md.

    Half precision is measured against full on the validation images. Raises InputError where it changes more than
    SAME, where the run was not measured, and where it has learned from look-alikes.
    """
    model, config = load_run(folder, device)
    run, summary, path = read_run(folder), read_summary(folder), Path(out) / f"{config.dataset}.safetensors"
    kinds = {run["data"]["kind"], summary["data"]["kind"] if summary else "nothing"}
    if kinds != {"real"} or summary.get("seen"):
        seen = "a test on images that it has learned from"
        found = "no test" if summary is None else seen if summary.get("seen") else KINDS["sample"]
        raise InputError("these weights are not to be shipped", path=folder, expected="a run measured on real images",
                         found=found, mend=f"csamnet evaluate {folder}")  # fmt: skip
    if find_run_weights(folder).parent != Path(folder):
        raise InputError("there are only the shipped weights of this run", path=folder, expected="weights.safetensors")
    samples = load_split(root, config.dataset, "val")
    state, full, best = halved(model), _score(model, samples, config), run["best_val_miou"]
    same = read_about(model.path).get("run") == run["fingerprint"] if best is None else abs(full - best) < NEAR
    if not same:
        raise InputError("these are not the weights that were measured, or not the images", path=folder,
                         expected=f"validation mIoU {show('miou', best)}", found=show("miou", full))  # fmt: skip
    load_strictly(model, state)
    change = abs(_score(model, samples, config) - full)
    if not change <= SAME:
        raise InputError("half precision changes the network", path=folder, expected=f"at most {SAME}", found=change)
    entry, groups = get_dataset(config.dataset, root), read_manifest(Path(root) / config.dataset)["group"].nunique()
    text = weights_card(folder, entry, change, sum(value.nbytes for value in state.values()), groups)
    with atomic(path.with_suffix(".md")) as about, atomic(path) as tensors:  # both, or none
        about.write_text(text, encoding="utf-8")
        settings = config.to_dict() | {"precision": "auto"}  # that of the training's device is not everybody's
        save_weights(state, tensors, config=json.dumps(settings), mpp=json.dumps(entry.mpp), run=run["fingerprint"],
                     stain=json.dumps(model.stain))  # fmt: skip
    return path


def halved(model: nn.Module) -> dict[str, Tensor]:
    """The weights in half precision; norms, biases and statistics, which may exceed its range, as they are."""
    return {name: value.half() if value.squeeze().ndim > 1 else value for name, value in model.state_dict().items()}


def _score(model: nn.Module, samples: list, config: RunConfig) -> float:
    return validation_scores(*validate(model, samples, config))["val_miou"]
