"""What a slide costs: time per mm2, who was busy for how long, peak memory, and how near it is to the network alone.

    python benchmarks/slide.py [--size 20000] [--tissue 0.33] [--at 0.25] [--weights MoNuSeg] [--device auto]

The slide is made: a band of tissue across its whole width, so that every buffer is used, and glass. `--weights none`
takes a single convolution for the network, which shows the cost of all the rest.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image
from torch import nn

from csamnet.config import RunConfig
from csamnet.evaluate import pick_device
from csamnet.inference import learned_mpp, load
from csamnet.results import hardware
from csamnet.samples.slides import CASES, paint_slide
from csamnet.samples.tissue import STAINS
from csamnet.slides import Frame, Slide
from csamnet.wsi.slide_run import Options, frame_of, run_slide
from csamnet.wsi.stream import Clock, Grid, Network, reader

MPP, TILE, BLOCK = 0.25, 512, 2048  # um, pixels of a stored tile, pixels of the picture that is repeated
GLASS = (245, 241, 244)


def make_slide(path: Path, size: int, share: float) -> Path:
    """A pyramid (1, 4, 16) of `size` x `size` pixels at 0.25 um. Each tile is encoded once."""
    picture = paint_slide(np.random.default_rng(0), CASES[0], STAINS["pink"], (BLOCK, BLOCK), MPP)[0]
    picture[(picture > 225).all(-1)] = (225, 190, 215)  # no glass within
    blocks = ceil(size / BLOCK)
    held = round(share * blocks) or 1
    rows = range((blocks - held) // 2, (blocks - held) // 2 + held)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for factor in (1, 4, 16):
            side = ceil(size / factor)
            file.write(
                _tiles(Image.fromarray(picture).reduce(factor), rows, ceil(side / TILE)), shape=(side, side, 3),
                dtype=np.uint8, tile=(TILE, TILE), photometric="ycbcr", compression="jpeg", subfiletype=int(factor > 1),
                resolution=(1e4 / MPP / factor, 1e4 / MPP / factor), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def _tiles(block: Image.Image, rows: range, count: int) -> Iterator[bytes]:
    """JPEG tiles, row by row, of blocks of tissue in `rows` and of glass elsewhere."""
    side, kept = block.width, {}
    column = np.array(block)
    for y in range(count):
        parts = []
        for at in range(y * TILE, (y + 1) * TILE, min(side, TILE)):
            part = (
                column[at % side : at % side + TILE]
                if at // side in rows
                else np.full((min(side, TILE), side, 3), GLASS)
            )
            parts.append(np.tile(part, (1, max(TILE // side, 1), 1)))
        row = np.concatenate(parts).astype(np.uint8)
        for x in range(count):
            left = x * TILE % row.shape[1]
            pixels = np.ascontiguousarray(row[:, left : left + TILE])
            key = pixels.tobytes()
            if key not in kept:
                kept = {} if len(kept) > 64 else kept
                kept[key] = imagecodecs.jpeg_encode(pixels, level=85, subsampling="420")
            yield kept[key]


class StandIn(nn.Module):
    """A single convolution."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Conv2d(3, 2, 3, padding=1)
        self.config = RunConfig(precision="fp32")

    def forward(self, x):
        return self.mean(x)


def alone(model: nn.Module, slide: Slide, frame: Frame, batch: int, most: int = 40) -> float:
    """Seconds a tile of the network alone, on tiles in memory."""
    config = model.config
    grid = Grid(frame, config.tile, config.overlap)
    tiles, read = grid.tiles(*slide.tissue()), reader(slide, grid)
    groups = [tiles[i : i + batch] for i in range(0, min(len(tiles), most * batch), batch)]
    loaded, network = (
        [np.stack([read(at) for at in group]) for group in groups],
        Network(model, config),
    )
    network(loaded[0])
    started = time.perf_counter()
    for pixels in loaded:
        network(pixels)
    return (time.perf_counter() - started) / sum(map(len, groups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--tissue", type=float, default=0.33)
    parser.add_argument("--at", type=float, default=MPP)
    parser.add_argument("--weights", default="MoNuSeg")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = StandIn().to(pick_device(given.device)) if given.weights == "none" else load(given.weights, given.device)
    options, clock = Options(at=given.at, batch=given.batch, workers=given.workers), Clock()
    with tempfile.TemporaryDirectory() as scratch:
        path = make_slide(Path(scratch, "slide.tiff"), given.size, given.tissue)
        size = path.stat().st_size
        found = run_slide(model, path, Path(scratch, "out"), options, clock=clock)
        peak = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        )
        batch = json.loads(Path(scratch, "out", "progress.json").read_text())["batch"]
        slide = Slide(path)
        frame = frame_of(slide, learned_mpp(model), options)
        single = alone(model, slide, frame, batch)
        tiles = len(Grid(frame, model.config.tile, model.config.overlap).tiles(*slide.tissue()))
    report(
        given,
        size,
        found,
        clock.totals(),
        peak,
        single * tiles,
        tiles,
        batch,
        hardware(next(model.parameters()).device),
    )


def report(given, size: int, found: dict, busy: dict, peak: tuple, network: float, tiles: int, batch: int, about: dict):
    """Print the figures of one run."""
    whole, inference, area = found["seconds"], busy["inference"], found["tissue_mm2"]
    print(about)
    print(
        f"{given.size:,} x {given.size:,} pixels at {MPP} um ({size / 1e6:.0f} MB), {area:.2f} mm2 of tissue, worked at"
    )
    print(f"{given.at} um; weights {given.weights}, {tiles:,} tiles, batch {batch}, {found['nuclei']:,} nuclei")
    print(f"seconds per mm2: {inference / area:.2f} of inference, {whole / area:.2f} in all ({whole:.1f} s)")
    print("busy, as a share of all (they overlap):")
    for part, seconds in busy.items():
        print(f"  {part:16}{seconds:10.1f} s{100 * seconds / whole:8.1f} %")
    print(f"the network alone on the same tiles in memory: {network:.1f} s; ratio {network / inference:.2f}")
    print(f"post-processing: {busy['post-processing'] / inference:.2f} of inference")
    print(f"peak memory: {peak[0] / 1e6:.2f} GB; of a worker {peak[1] / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
