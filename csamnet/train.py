"""Training: `train` sets up, `train_epochs` goes through the epochs, `train_epoch` is the loop over steps.

Everything random in step `s` on process `r` follows from (seed, s, r) alone, so a run that was killed goes on from
its last checkpoint and ends with the same bits as one that was not (in fp16, where the scale of the loss is not
kept, with nearly the same).
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.optim.swa_utils import update_bn

from csamnet import results as runs
from csamnet.config import RunConfig
from csamnet.data import Atlas, Sample, draw_images, load_split, stain_wanted, typical_stain
from csamnet.datasets import Dataset, get_dataset
from csamnet.evaluate import autocast, build_model, finite, pick_device, pick_precision, validate, validation_scores
from csamnet.files import InputError, write_csv, write_json
from csamnet.losses import segmentation_loss
from csamnet.model import read_about, save_weights
from csamnet.paths import RESULTS

FABRIC_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def train(
    config: RunConfig,
    root: Path | str,
    *,
    results: Path | str = RESULTS,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    on_step: Callable[[int, int], None] = lambda done, all_: None,
    on_epoch: Callable[[dict], None] = lambda row: None,
) -> Path:
    """Train a network on `<root>/<dataset>` and return its run folder.

    A finished run with the same fingerprint is returned as it is; an unfinished one goes on. `on_step(done, all)`
    and `on_epoch(row of history.csv)` report progress. Raises InputError where a loss is not finite.
    """
    card, folder = runs.data_card(root, config.dataset), runs.run_folder(config, results)
    fresh = runs.fingerprint(config, card["manifest_sha256"])
    if runs.is_done(folder, fresh):
        return folder
    runs.keep_run(folder, config, card)
    fabric, samples = launch(config, device, devices, nodes), load_samples(config, root)
    entry = get_dataset(config.dataset, root)
    learner = set_up(fabric, config, samples["train"], entry, folder)
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", fresh, learner)
    history = checkpoint.load()
    if fabric.is_global_zero:
        begin(folder, samples, anew=not history)
        write_run(folder, learner, card, fresh)
    train_epochs(learner, samples["val"], checkpoint, history, on_step, on_epoch)
    if fabric.is_global_zero:
        checkpoint.finish(entry.mpp)
        end_run(folder, fabric, history)
    fabric.barrier()
    return folder


class Learner(NamedTuple):
    """What is trained, and what with."""

    fabric: Fabric
    config: RunConfig
    network: nn.Module
    model: nn.Module  # the network as Fabric wraps it
    ema: nn.Module  # the running average of its weights, which is what is kept
    optimizer: torch.optim.Optimizer
    atlas: Atlas  # of the training images


def load_samples(config: RunConfig, root: Path | str) -> dict[str, list[Sample]]:
    """Images to learn from and to choose on. Raises InputError where no epoch could be chosen on the latter."""
    samples = {split: load_split(root, config.dataset, split) for split in ("train", "val")}
    if config.refit:
        samples = {"train": samples["train"] + samples["val"], "val": []}
    elif not any(sample.mask().any() for sample in samples["val"]):
        raise InputError("the epoch to keep cannot be chosen", path=Path(root) / config.dataset,
                         found="validation images without foreground")  # fmt: skip
    return samples | {"train": draw_images(samples["train"], config.images, config.seed)}


def set_up(fabric: Fabric, config: RunConfig, samples: list[Sample], entry: Dataset, folder: Path) -> Learner:
    """The network with its first weights, which follow from the seed, and all that its training needs."""
    atlas = Atlas(samples, fabric.device, cache=folder)
    torch.manual_seed(config.seed)
    network = convert_conv2d_weight_memory_format(build_model(config), torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(network, config.weight_decay), lr=config.lr)
    model, optimizer = fabric.setup(torch.compile(network) if config.compile else network, optimizer)
    ema = copy.deepcopy(network).requires_grad_(False)
    ema.stain = typical_stain(sample.image() for sample in samples) if entry.stained else None
    stain_wanted(ema, config)  # or an error, where it is asked for and there is none
    return Learner(fabric, config, network, model, ema, optimizer, atlas)


def begin(folder: Path, samples: dict[str, list], *, anew: bool) -> None:
    """Write what is learned from; of a training that is done `anew`, remove weights and what was measured of them."""
    for pattern in ("weights.safetensors", "*/summary.json", "robustness-*.json") if anew else ():
        for old in folder.glob(pattern):
            old.unlink()
    seen = {split: {sample.pixels_sha256: sample.name for sample in of} for split, of in samples.items()}
    seen["groups"] = {split: sorted({sample.group for sample in of}) for split, of in samples.items()}
    write_json(folder / runs.SEEN, seen)


def train_epochs(learner: Learner, samples: list[Sample], checkpoint: Checkpoint, history: list[dict],
                 on_step: Callable, on_epoch: Callable) -> None:  # fmt: skip
    """The epochs that `history` does not have yet; each is scored on the validation `samples`, saved and told of."""
    fabric, config, folder = learner.fabric, learner.config, checkpoint.path.parent
    held_out, crops = samples[fabric.global_rank :: fabric.world_size], typical_crops(learner.atlas, config)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        row = train_epoch(learner, epoch, on_step)
        stop_on_nan(row["loss"], learner.network, epoch, config, folder)
        recalibrate(learner.ema, crops, config)
        row |= score(fabric, learner.ema, held_out, config) | {"seconds": time.perf_counter() - started}
        history.append(row)
        if fabric.is_global_zero:
            checkpoint.save(history)
            write_csv(folder / "history.csv", pd.DataFrame(history))
            on_epoch(row)


def train_epoch(learner: Learner, epoch: int, on_step: Callable[[int, int], None]) -> dict[str, float]:
    """The steps of one epoch; its row of history."""
    fabric, config, network, model, ema, optimizer, atlas = learner
    started, losses = time.perf_counter(), torch.zeros(3, device=fabric.device)
    first = epoch * config.steps_per_epoch
    for step in range(first, first + config.steps_per_epoch):
        generator = seed_step(config.seed, step, fabric)
        images, target = atlas.crops(config, config.batch // fabric.world_size, generator)
        drop_rate = network.advance(step / config.planned)
        lr = set_learning_rate(optimizer, config, step)

        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss, *parts = segmentation_loss(logits, target, config.dice)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=config.clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        update_average(ema, network, min(config.ema, (1 + step) / (10 + step)))

        losses += torch.stack([loss.detach(), *parts])
        if fabric.is_global_zero:
            on_step(step + 1, config.steps)

    losses = fabric.all_reduce(losses / config.steps_per_epoch, reduce_op="mean").tolist()
    images_per_s = config.batch * config.steps_per_epoch / (time.perf_counter() - started)
    row = {"epoch": epoch + 1, "step": step + 1, "lr": lr, "drop_rate": drop_rate, "images_per_s": images_per_s}
    return row | dict(zip(("loss", "loss_ce", "loss_dice"), losses, strict=True))


def launch(config: RunConfig, device: str, devices: int, nodes: int) -> Fabric:
    """Start the processes and return the handle on them; under `fabric run` or torchrun they are there already."""
    kind = pick_device(device)
    precision = pick_precision(config.precision, kind)
    if kind.type == "cpu" and precision == "fp16":
        raise InputError("fp16 cannot be trained on a CPU", expected="auto | bf16 | fp32", mend="--precision auto")
    most = torch.cuda.device_count() if kind.type == "cuda" else os.cpu_count()
    if not 1 <= devices <= most or nodes < 1:
        raise InputError("there are not so many devices", expected=f"1 to {most} on each of 1 node or more",
                         found=f"{devices} on each of {nodes}")  # fmt: skip
    fabric = Fabric(accelerator=kind.type, devices=devices, num_nodes=nodes, precision=FABRIC_PRECISION[precision])
    fabric.launch()
    if config.batch % fabric.world_size or config.batch // fabric.world_size < 2:
        expected = f"at least 2 crops for each of {fabric.world_size} processes"
        raise InputError("the batch cannot be shared", expected=expected, found=f"a batch of {config.batch}")
    return fabric


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Weights decay; biases, norms and the scalars a channel do not."""
    decay = [p for p in network.parameters() if p.squeeze().ndim > 1]
    rest = [p for p in network.parameters() if p.squeeze().ndim <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def seed_step(seed: int, step: int, fabric: Fabric) -> torch.Generator:
    """Seed DropBlock (torch's own generator) for this step and process; return the generator of the crops."""
    own, crops = np.random.SeedSequence([seed, step, fabric.global_rank]).generate_state(2, np.uint32).tolist()
    torch.manual_seed(own)
    return torch.Generator(fabric.device).manual_seed(crops)


def set_learning_rate(optimizer, config: RunConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm = max(1, round(config.warmup * config.planned))
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.planned - warm)))
    lr = config.lr * ((step + 1) / warm if step < warm else cosine)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


@torch.no_grad()
def update_average(ema: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights a step towards the network's; `recalibrate` sees to the batch norms."""
    torch._foreach_lerp_([*ema.parameters()], [*network.parameters()], 1 - decay)


def typical_crops(atlas: Atlas, config: RunConfig) -> list[Tensor]:
    """Batches of training crops for `recalibrate`, the same ones in every epoch."""
    generator = torch.Generator(atlas.device).manual_seed(config.seed)
    batches = (atlas.crops(config, config.batch, generator)[0] for _ in range(min(12, config.steps_per_epoch)))
    return [x.contiguous(memory_format=torch.channels_last) for x in batches]


def recalibrate(ema: nn.Module, crops: list[Tensor], config: RunConfig) -> None:
    """Measure the batch-norm statistics that belong to the averaged weights, on `typical_crops`.

    They are not averaged along: the released head moves its own by 3e-4 a step, which thousands of steps would
    not bring to their place.
    """
    with autocast(config.precision, crops[0].device):
        update_bn(crops, ema)


def stop_on_nan(loss: float, network: nn.Module, epoch: int, config: RunConfig, folder: Path) -> None:
    if math.isfinite(loss) and all(p.isfinite().all() for p in network.parameters()):
        return
    found = f"loss {loss} in epoch {epoch + 1} (steps {epoch * config.steps_per_epoch + 1} and on)"
    mend = f"a learning rate below {config.lr}, or --precision fp32; the checkpoint is of epoch {epoch}"
    raise InputError("the loss or a weight is no longer a number", path=folder, found=found, mend=mend)


def score(fabric: Fabric, ema: nn.Module, samples: list[Sample], config: RunConfig) -> dict[str, float]:
    """Validation scores of the averaged weights; every process takes its share of the images."""
    parts = (torch.from_numpy(part).to(fabric.device) for part in validate(ema, samples, config))
    return validation_scores(*(fabric.all_reduce(part, reduce_op="sum").cpu().numpy() for part in parts))


# ----------------------------------------------------------------------------------------------- files


class Checkpoint:
    """The state of a run in one safetensors file, replaced as a whole: weights, averages, best so far, optimiser."""

    def __init__(self, path: Path, fingerprint: str, learner: Learner):
        self.path, self.fingerprint, self.learner = path, fingerprint, learner
        self.best: dict[str, Tensor] = {}

    def save(self, history: list[dict]) -> None:
        if len(history) == best_epoch(history):
            self.best = {key: value.clone() for key, value in self.learner.ema.state_dict().items()}
        parts = {part: getattr(self.learner, part).state_dict() for part in ("network", "ema")} | {"best": self.best}
        states = self.learner.optimizer.state_dict()["state"]
        parts |= {f"optimizer.{i}": state for i, state in states.items()}
        tensors = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
        save_weights(tensors, self.path, fingerprint=self.fingerprint, history=json.dumps(history))

    def finish(self, mpp: float | None) -> None:
        """Write the best weights, and remove the checkpoint with what a kill may have left half-written of it."""
        about = {"config": self.learner.config.to_dict(), "mpp": mpp, "stain": self.learner.ema.stain}
        about = {key: json.dumps(value) for key, value in about.items()} | {"run": self.fingerprint}
        save_weights(self.best, self.path.with_name("weights.safetensors"), **about)
        for path in self.path.parent.glob("*checkpoint.*"):
            path.unlink()

    def load(self) -> list[dict]:
        """Take up the saved state and return its history; empty where there is none of this fingerprint."""
        if not self.path.exists():
            return []
        try:
            return self._load()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError("a checkpoint cannot be used", path=self.path, found=shorten(str(error), 200),
                             mend="remove it: the training then starts from the beginning") from None  # fmt: skip

    def _load(self) -> list[dict]:
        about = read_about(self.path)
        if about["fingerprint"] != self.fingerprint:
            return []
        tensors = load_file(self.path)
        self.learner.network.load_state_dict(_part(tensors, "network."))
        self.learner.ema.load_state_dict(_part(tensors, "ema."))
        self.best = _part(tensors, "best.")
        groups = self.learner.optimizer.state_dict()["param_groups"]
        state = {i: _part(tensors, f"optimizer.{i}.") for group in groups for i in group["params"]}
        if not all(state.values()):
            raise ValueError("the optimiser's state is not whole")
        self.learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
        return json.loads(about["history"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def best_epoch(history: list[dict]) -> int:
    """The first epoch, counted from 1, with the highest validation mIoU; where it is undefined in all, the last."""
    scores = np.array([row["val_miou"] for row in history])
    return len(history) if np.isnan(scores).all() else 1 + int(np.nanargmax(scores))


def write_run(folder: Path, learner: Learner, card: dict, fresh: str) -> None:
    """`run.json`, before the first step: everything that says where the run's numbers come from."""
    about = {
        "status": "training",
        "config": learner.config.to_dict(),
        "data": card,
        "fingerprint": fresh,
        "code_sha256": runs.code_sha256("train", learner.config.model),
        "libraries": runs.libraries(),
        "hardware": runs.hardware(learner.fabric.device) | {"processes": learner.fabric.world_size},
        "precision": pick_precision(learner.config.precision, learner.fabric.device),
        "parameters": sum(p.numel() for p in learner.network.parameters()),
    }
    write_json(folder / "run.json", about)


def end_run(folder: Path, fabric: Fabric, history: list[dict]) -> None:
    """Add to `run.json` what is known at the end."""
    best = best_epoch(history)
    about = {
        "status": "done",
        "wall_s": round(sum(row["seconds"] for row in history), 1),
        "images_per_s": round(float(np.median([row["images_per_s"] for row in history])), 2),
        "peak_memory_mb": round(runs.peak_memory_mb(fabric.device), 1),
        "best_epoch": best,
        "best_val_miou": finite(history[best - 1]["val_miou"]),
    }
    write_json(folder / "run.json", runs.read_run(folder) | about)
