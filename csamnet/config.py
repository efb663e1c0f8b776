"""A run = data set x model x seed x profile, with every choice of the recipe written out."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields

from csamnet.datasets import entry_of
from csamnet.files import InputError

SIZES = {"XXS": 8, "XS": 16, "S": 32, "M": 40, "L": 72}
"""Widths. S is the released network; M and L are our reading of the paper's bubble chart; XS and XXS are for trials."""

VARIANTS: dict[str, dict] = {
    "no-DCF": {"dcf": "none"},
    "DC-only": {"dcf": "dc"},
    "Fusion-only": {"dcf": "fusion"},
    "concatenation": {"csam": "concat"},
    "channel-only": {"csam": "channel"},
    "context-only": {"csam": "context"},
    "no-alignment": {"align": False},
    "no-ASPP": {"aspp": False},
    "no-DropBlock": {"drop_rate": 0.0},
}
"""The ablation: name -> what is changed of the full network."""

RIVALS = ("UNet", "SegNet", "AttUNet", "StarDist", "HoVer-Net", "DoubleU-Net", "CellPose", "DCSAU-Net", "CPP-Net",
          "HoVer-NeXt", "CellViT", "BIDCell", "CellViT-SAM")  # fmt: skip
"""The networks that the paper compares with, in the order of its table."""

MODELS: dict[str, dict] = {
    **{f"CSAMNet-{size}": {"width": width} for size, width in SIZES.items()},
    **{
        f"CSAMNet-{s}-{name}": {"width": SIZES[s]} | changes for s in ("XXS", "S") for name, changes in VARIANTS.items()
    },
    **{name: {"name": name, "size": "full"} for name in RIVALS},
    **{f"{name}-small": {"name": name, "size": "small"} for name in RIVALS},
    "Otsu": {"name": "Otsu", "size": "full"},  # the threshold on colour, which is measured and not trained
}
"""Name of a model -> keyword arguments of `csamnet.model.CSAMNet`, or with a `name` those of `csamnet.baselines.build`.

A variant is an entry, not a subclass. The rivals' small sizes are for look-alike data."""


def experiment(kind: str, profile: str) -> list[str]:
    """The models of a `comparison` or an `ablation`, the one that the others are compared with first.

    On look-alikes it is size XS against the rivals' small sizes, and parts of XXS. Raises InputError for another kind.
    """
    _known("experiment", kind, ("comparison", "ablation"))
    _known("profile", profile, PROFILES)
    sample = profile == "sample"
    if kind == "comparison":
        return ["CSAMNet-XS" if sample else "CSAMNet-S", *(f"{name}-small" if sample else name for name in RIVALS)]
    size, *others = ("XXS", "XS") if sample else ("S", "M", "L")
    return [f"CSAMNet-{end}" for end in (size, *(f"{size}-{name}" for name in VARIANTS), *others)]


@dataclass(frozen=True)
class RunConfig:
    """One training run. The paper gives none of these numbers: they are our choices, and `book/log.md` says why.

    An *epoch* is `steps_per_epoch` optimiser steps; after each the EMA weights are scored on validation.
    """

    dataset: str = "MoNuSeg"
    model: str = "CSAMNet-S"
    seed: int = 0
    profile: str = "paper"
    # budget
    epochs: int = 300
    steps_per_epoch: int = 100
    schedule: int = 0  # epochs that learning rate and DropBlock are planned for, where these are more than are run
    images: int = 0  # how many of the training images are used, for a learning curve; 0 is all
    refit: bool = False  # learn from the validation images too; none chooses then, and the last epoch is kept
    batch: int = 8  # crops a step, over all devices
    tile: int = 256  # pixels; also the tile of inference
    # optimiser
    lr: float = 1e-3  # peak, after the warm-up
    weight_decay: float = 0.01
    warmup: float = 0.05  # fraction of all steps
    clip: float = 1.0  # global norm of the gradient
    ema: float = 0.999  # decay of the averaged weights, which are the ones that are kept
    dice: float = 1.0  # weight of the Dice loss beside cross-entropy
    # augmentation
    foreground: float = 0.0  # fraction of crops centred on a foreground pixel
    turns: bool = True  # quarter turns and all mirror images; else only left and right are swapped
    scale: float = 1.25  # zoom drawn log-uniformly from 1/scale to scale
    stain: float = 0.25  # strength of the change of haematoxylin, eosin and residual
    colour: float = 0.15  # strength of brightness, contrast, saturation
    blur: float = 1.0  # largest sigma in pixels, on one crop in three
    # annotation
    offset_x: float = 0.0  # pixels by which it lies to the right of what it outlines
    offset_y: float = 0.0  # and below
    # numerics
    precision: str = "auto"  # auto | bf16 | fp16 | fp32
    compile: bool = False
    # inference
    overlap: float = 0.5  # of neighbouring tiles
    val_overlap: float = 0.25  # the same during training, where only the ranking of epochs matters
    tta: bool = False  # mean over the eight flips and turns; where images are normalised, four are of them as they are
    normalise: float = 0.0  # share of the way from an image's stain to that of the training images
    threshold: float = 0.5  # probability from which a pixel is foreground

    def __post_init__(self):
        for field in fields(self):
            _typed(field.name, getattr(self, field.name), field.type)
        _known("profile", self.profile, PROFILES)
        _known("model", self.model, MODELS)
        _known("precision", self.precision, ("auto", "bf16", "fp16", "fp32"))
        for name in ("epochs", "steps_per_epoch"):
            _within(name, getattr(self, name), 1, 10**9)
        _within("tile", self.tile, 1, 2**14)
        _within("batch", self.batch, 2, 2**16)
        _within("lr", self.lr, 1e-9, 1)
        _within("scale", self.scale, 1, 4)
        for name in ("overlap", "val_overlap"):
            _within(name, getattr(self, name), 0, 0.9)
        for name in ("warmup", "ema", "foreground", "normalise", "threshold"):
            _within(name, getattr(self, name), 0, 1)
        _within("clip", self.clip, 1e-9, 1e9)  # of 0 no gradient would be left
        for name in ("images", "schedule", "weight_decay", "dice", "stain", "colour", "blur"):
            _within(name, getattr(self, name), 0, 1e9)
        for name in ("offset_x", "offset_y"):
            _within(name, getattr(self, name), -8, 8)
        _within("seed", self.seed, 0, 2**63 - 1)
        if self.tile < 128 or self.tile % 16:
            raise InputError("the tile cannot be used", expected="a multiple of 16, at least 128", found=self.tile)

    @property
    def name(self) -> str:
        part = f"-{self.images}images" * bool(self.images)
        return f"{self.model}-{self.profile}{part}-seed{self.seed}"

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def planned(self) -> int:
        """The steps after which the learning rate would be zero."""
        return max(self.epochs, self.schedule) * self.steps_per_epoch

    def to_dict(self) -> dict:
        return asdict(self)


PROFILES: dict[str, dict] = {
    "paper": {},
    "cpu": {"epochs": 6, "steps_per_epoch": 200, "schedule": 20},
    "short": {"epochs": 8, "lr": 2e-3, "ema": 0.99},
    "brief": {"epochs": 3, "tile": 128, "lr": 2e-3, "ema": 0.98, "overlap": 0.25, "val_overlap": 0.0},
    "sample": {"model": "CSAMNet-XS", "epochs": 3, "steps_per_epoch": 40, "batch": 4, "tile": 128, "lr": 6e-3,
               "warmup": 0.15, "clip": 10.0, "ema": 0.9, "precision": "fp32", "overlap": 0.25, "val_overlap": 0.0},
}  # fmt: skip
"""`paper`: the full budget, for a GPU. `cpu`: the first 1,200 of a plan of 4,000, for a patient CPU.
`cpu-refit`: the same from training and validation images, with nothing left to choose. `short`: 800.
`brief`: 300 of smaller crops, for networks of ten times the work. `sample`: a minute, for look-alike data."""
PROFILES["cpu-refit"] = PROFILES["cpu"] | {"refit": True}


def make_config(profile: str = "paper", **changes) -> RunConfig:
    """A profile's configuration, as the data set's recipe and then `changes` alter it.

    Raises InputError for unknown names and impossible values.
    """
    _known("profile", profile, PROFILES)
    entry = entry_of(changes.get("dataset", RunConfig.dataset))
    for key in changes:
        _known("setting", key, [field.name for field in fields(RunConfig)])
    return RunConfig(**{"profile": profile, **PROFILES[profile], **(entry.recipe if entry else {}), **changes})


def stored_config(stored: dict) -> RunConfig:
    """A configuration as a run or its weights keep it. A setting that is newer than they are had no effect then."""
    return make_config(**RunConfig().to_dict() | stored)


def _known(what: str, value, known) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    mend = f"did you mean {near[0]!r}?" if near else None
    raise InputError(f"unknown {what}", expected=" | ".join(known), found=repr(value), mend=mend)


def _typed(name: str, value, kind: str) -> None:
    types = {"int": int, "float": (int, float), "bool": bool, "str": str}[kind]
    if not isinstance(value, types) or (kind != "bool" and isinstance(value, bool)):
        raise InputError(f"{name} cannot be used", expected=kind, found=repr(value))


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} cannot be used", expected=f"a number from {low:g} to {high:g}", found=repr(value))
