"""A data set that a small network learns in seconds: dark discs on light ground."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from csamnet.config import RunConfig, make_config
from csamnet.images import write_image
from csamnet.prepare import prepare

SPLITS = {"train": 4, "val": 2, "test": 2}
ALIGNED = {"offset_x": 0.0, "offset_y": 0.0}
"""Discs are annotated where they are."""


def discs(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and labels (H, W) uint16."""
    rng, (y, x) = np.random.default_rng(seed), np.indices((height, width))
    labels = np.zeros((height, width), np.uint16)
    for number in range(1, 13):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        labels[(y - row) ** 2 + (x - column) ** 2 < rng.uniform(6, 14) ** 2] = number
    colours = np.where(labels[..., None] > 0, (90, 50, 130), (225, 190, 215))
    return np.clip(colours + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8), labels


def lay(folder: Path, splits: dict[str, int] = SPLITS) -> Path:
    """A release as a tree of images and instances."""
    for split, count in splits.items():
        for number in range(count):
            image, labels = discs(10 * list(SPLITS).index(split) + number, 150 + number, 170)
            write_image(folder / split / "img" / f"{split}{number}.png", image)
            write_image(folder / split / "inst" / f"{split}{number}.png", labels)
    return folder


def make_tree(folder: Path, splits: dict[str, int] = SPLITS, **options) -> Path:
    """The root of a prepared tree with MoNuSeg in it."""
    prepare("MoNuSeg", lay(folder / "release", splits), folder / "prepared", **options)
    return folder / "prepared"


def settings(**changes) -> RunConfig:
    """A training of two epochs of two steps of two crops, by the smallest network."""
    short = {"epochs": 2, "steps_per_epoch": 2, "batch": 2} | ALIGNED
    return make_config("sample", **short | changes)


def digest(folder: Path) -> dict[str, str]:
    """Path below a folder -> hash of the file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return (a & b).sum() / (a | b).sum()
