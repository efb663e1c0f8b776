"""How fast the default path is, as ratios within one run; nothing here is asserted.

    make bench, or python benchmarks/network.py [--device auto]

"Plain" is the same network in float32, contiguous, eager, which is what one gets without thinking about it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csamnet.config import RunConfig, make_config
from csamnet.data import Atlas
from csamnet.evaluate import autocast, pick_device, pick_precision
from csamnet.losses import segmentation_loss
from csamnet.metrics import instance_counts
from csamnet.model import CSAMNet
from csamnet.results import hardware
from csamnet.train import update_average


class Noise:
    """A random image, in place of a sample from the disk."""

    def image(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)

    def mask(self) -> np.ndarray:
        return self.image()[..., 0] > 200


def main(device: str, rounds: int = 3) -> None:
    """Print medians over `rounds` interleaved rounds, and their ratios."""
    place = pick_device(device)
    config = make_config("paper", batch=16 if place.type == "cuda" else 2)
    with tempfile.TemporaryDirectory() as cache:
        atlas = Atlas([Noise()], place, cache=Path(cache))
    seconds = measure(workloads(config, atlas, place), place, rounds)
    about = hardware(place)
    where = about["device"] if place.type == "cuda" else f"{about['processor']}, {about['threads']} threads"
    print(f"{where}; {pick_precision('auto', place)}, batch {config.batch}, medians of {rounds} rounds")
    for name, value in seconds.items():
        print(f"  {name:40}{value:9.4f} s")
    infer, step = seconds["inference, default"], seconds["training step, default"]
    print(f"inference: {seconds['inference, plain'] / infer:.2f} times as fast as plain")
    print(f"training step: {seconds['training step, plain'] / step:.2f} times as fast as plain")
    print(f"crops: {100 * seconds['crops of one step'] / step:.1f} % of a training step")
    print(f"training loop: {100 * (seconds['training loop, one turn'] / step - 1):.1f} % over the step alone")


def workloads(config: RunConfig, atlas: Atlas, device: torch.device) -> dict[str, Callable[[], object]]:
    """Name -> one round of each thing that is timed."""
    crops = partial(atlas.crops, config, config.batch, torch.Generator(device).manual_seed(0))
    average = partial(update_average, CSAMNet().to(device), CSAMNet().to(device), config.ema)
    images, target = crops()
    plain_inference, plain_step = _path(config, images, target, default=False)
    inference, step = _path(config, images, target, default=True)
    labels = np.kron(np.arange(1, 626).reshape(25, 25), np.ones((40, 40), int))
    return {
        "inference, plain": plain_inference,
        "inference, default": inference,
        "training step, plain": plain_step,
        "training step, default": step,
        "crops of one step": crops,
        "training loop, one turn": lambda: (step(*crops()), average()),
        "AJI and PQ, 1000 x 1000, 625 objects": lambda: instance_counts(labels, np.roll(labels, 3, 0)),
    }


def _path(config: RunConfig, images: Tensor, target: Tensor, *, default: bool) -> tuple[Callable, Callable]:
    """An inference and a training step, on the default or the plain path."""
    layout = torch.channels_last if default else torch.contiguous_format
    network = CSAMNet().to(images.device, memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)

    def forward(images: Tensor, training: bool) -> Tensor:
        with autocast("auto" if default else "fp32", images.device), torch.set_grad_enabled(training):
            return network.train(training)(images.contiguous(memory_format=layout))

    def step(images: Tensor = images, target: Tensor = target) -> None:
        segmentation_loss(forward(images, True), target)[0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

    return partial(forward, images, False), step


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    main(parser.parse_args().device)
