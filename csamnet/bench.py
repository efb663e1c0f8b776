"""How fast the default path is, as ratios within one run; nothing here is asserted.

"Plain" is the same network in float32, contiguous, eager, which is what one gets without thinking about it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from csamnet.config import make_config
from csamnet.data import Atlas, Sample
from csamnet.evaluate import autocast, pick_device, pick_precision, predict_probability
from csamnet.instances import instances_from_probability
from csamnet.losses import segmentation_loss
from csamnet.metrics import instance_counts
from csamnet.model import CSAMNet
from csamnet.results import hardware
from csamnet.train import update_average


class Noise(Sample):
    """A random image, in place of one from the disk."""

    def image(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)

    def mask(self) -> np.ndarray:
        return self.image()[..., 0] > 200


def run_bench(device: str, console: Console, rounds: int = 3) -> None:
    """Print medians over `rounds` interleaved rounds, and their ratios."""
    place = pick_device(device)
    config = make_config("paper", batch=16 if place.type == "cuda" else 2)
    with tempfile.TemporaryDirectory() as cache:
        samples = [Noise(f"{i}", "", "", Path(), Path(), None) for i in range(2)]
        atlas = Atlas(samples, place, cache=Path(cache))
    seconds = measure(workloads(config, atlas, place), place, rounds)
    about = hardware(place)
    where = about["device"] if place.type == "cuda" else f"{about['processor']}, {about['threads']} threads"
    title = f"{where}; {pick_precision('auto', place)}, batch {config.batch}, n = {rounds}"
    table = Table(title=title, caption="medians; every ratio is of two rows of this table")
    for heading in ("what", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    for line in ratios(seconds):
        console.print(line)


def workloads(config, atlas: Atlas, device: torch.device) -> dict[str, Callable[[], object]]:
    """Name -> one round of each thing that is timed."""
    generator = torch.Generator(device).manual_seed(0)
    images, target = atlas.crops(config, config.batch, generator)
    plain, ours = stepper(config, device, images, target, False), stepper(config, device, images, target, True)
    model = CSAMNet().to(device, memory_format=torch.channels_last).eval()
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    tiles = torch.rand(9, 3, config.tile, config.tile, device=device).contiguous(memory_format=torch.channels_last)
    labels = np.kron(np.arange(1, 626).reshape(25, 25), np.ones((40, 40), int)).astype(np.int32)

    def loop() -> None:
        ours["step"](*atlas.crops(config, config.batch, generator), average=True)

    return {
        "inference, plain": plain["infer"],
        "inference, default": ours["infer"],
        "training step, plain": plain["step"],
        "training step, default": ours["step"],
        "crops of one step": lambda: atlas.crops(config, config.batch, generator),
        "one turn of the training loop": loop,
        "nine tiles, network alone": lambda: forward(model, tiles, True),
        "nine tiles, sliding window": lambda: predict_probability(model, image, precision="auto", batch=9),
        "AJI and PQ, 1000 x 1000, 625 nuclei": lambda: instance_counts(labels, np.roll(labels, 3, 0)),
        "instances, 1000 x 1000": lambda: instances_from_probability((labels % 2).astype(np.float32)),
    }


@torch.no_grad()
def forward(model: nn.Module, images: Tensor, default: bool) -> None:
    with autocast("auto" if default else "fp32", images.device):
        model(images)


def stepper(config, device: torch.device, images: Tensor, target: Tensor, default: bool) -> dict[str, Callable]:
    """One inference and one training step, on the default or the plain path."""
    layout = torch.channels_last if default else torch.contiguous_format
    network = CSAMNet().to(device, memory_format=layout)
    ema, optimizer = CSAMNet().to(device), torch.optim.AdamW(network.parameters(), lr=config.lr)

    def step(images: Tensor = images, target: Tensor = target, average: bool = False) -> None:
        network.train()
        with autocast("auto" if default else "fp32", device):
            logits = network(images.contiguous(memory_format=layout))
        segmentation_loss(logits, target)[0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        if average:
            update_average(ema, network, config.ema)

    def infer() -> None:
        network.eval()
        forward(network, images.contiguous(memory_format=layout), default)

    return {"step": step, "infer": infer}


def measure(work: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each; one round of all after another, the first not counted."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, one in work.items():
            started = time.perf_counter()
            one()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def ratios(seconds: dict[str, float]) -> list[str]:
    step, loop = seconds["training step, default"], seconds["one turn of the training loop"]
    return [
        f"inference: {seconds['inference, plain'] / seconds['inference, default']:.2f} times as fast as plain",
        f"training step: {seconds['training step, plain'] / step:.2f} times as fast as plain",
        f"crops: {100 * seconds['crops of one step'] / step:.1f} % of a training step",
        f"training loop: {100 * (loop / step - 1):.1f} % over the step alone",
        f"sliding window: {seconds['nine tiles, sliding window'] / seconds['nine tiles, network alone']:.2f} times "
        "the network alone",
    ]
