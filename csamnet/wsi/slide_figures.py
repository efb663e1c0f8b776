"""Figures of slides: where tissue is, how much of each part is foreground, and what was found seen from near."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import ndimage

from csamnet.instances import instances_from_probability
from csamnet.pages.figures import BLACK, BLUE, NO_AXES, WIDTH, YELLOW, drawn, panels, picture
from csamnet.slides import CELL_PIXELS, CELL_UM, STEPS, Frame, Slide

RED = "#E00000"  # of annotated cancer, as in the paper
HEAT = "viridis"  # of the burden
LONGEST = 900  # pixels of a slide in a figure


class Shown(NamedTuple):
    """A slide with what `csamnet slide` found in it."""

    slide: Slide
    split: str  # that of its tiles
    folder: Path  # of results
    summary: dict  # a row of `slide_jobs.run_slides`
    mpp: float | None  # of results
    threshold: float
    cancer: list[np.ndarray]  # annotated outlines (n, 2) of x, y in level 0; maybe none

    @property
    def title(self) -> str:
        return f"{self.slide.path.stem} ({self.split})"

    @property
    def cell(self) -> float:
        """The side of a cell of the burden, in um; in pixels where the slide does not say its resolution."""
        return CELL_UM if self.slide.mpp else CELL_PIXELS

    def burden(self) -> np.ndarray:
        return np.load(self.folder / "burden.npy")

    def densest(self, side: int) -> tuple[int, int]:
        """The corner (x, y), in pixels of the results, of the square that holds most of the mask."""
        mask = Slide(self.folder / "mask.ome.tiff")
        share, scale = mask.thumbnail()[..., 0] / 255, mask.coarseness()
        size = [min(round(side / scale), n) for n in share.shape]
        held = ndimage.uniform_filter(share, size, mode="constant")
        corner = np.subtract(np.unravel_index(held.argmax(), held.shape), np.floor_divide(size, 2))[::-1] * scale
        return tuple(np.clip(corner, 0, np.maximum(np.subtract(mask.size, side), 0)).astype(int).tolist())

    def close_up(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """The photograph (side, side, 3) and the probability (side, side) at `densest`."""
        (x, y), scale = self.densest(side), self.slide.scale(self.mpp)
        stored = zarr.open_array(self.folder / "probability.zarr", mode="r")[y : y + side, x : x + side]
        return self.slide.read(x * scale, y * scale, *stored.shape[::-1], self.mpp), stored / np.float32(STEPS)


@drawn
def burden_map(fraction: np.ndarray, frame: Frame, cancer: Sequence[np.ndarray], source: str) -> Figure:
    """Area fraction of foreground in squares of 100 um, with a scale bar, and annotated cancer outlined in red.

    `cancer`: outlines (n, 2: x, y) in pixels of the frame.
    """
    height = np.clip(WIDTH * 0.85 * frame.height / frame.width, 1.5, 9) + 0.5
    figure, ((ax,),) = panels(_alt(fraction, cancer), height, source, subplot_kw=NO_AXES)
    _heatmap(figure, ax, fraction, frame, cancer)
    return figure


@drawn
def report(
    thumbnail: np.ndarray,
    coarse: float,
    tissue: np.ndarray,
    frame: Frame,
    fraction: np.ndarray,
    cancer: Sequence[np.ndarray],
    source: str,
) -> Figure:
    """Left: the frame with tissue outlined in blue; right: its burden. Annotated cancer is outlined in red.

    `coarse`: pixels of level 0 to one of the thumbnail, on which the tissue was found unless all is taken for tissue.
    """
    height = np.clip(WIDTH / 2 * 0.95 * frame.height / frame.width, 1.2, 7) + 0.8
    figure, ((left, right),) = panels(f"Slide, and: {_alt(fraction, cancer)}", height, source, 1, 2, subplot_kw=NO_AXES)
    x, y = (-start / frame.scale for start in frame.corner)
    side = coarse / frame.scale
    extent = (x, x + thumbnail.shape[1] * side, y + thumbnail.shape[0] * side, y)
    left.imshow(thumbnail, extent=extent, interpolation="antialiased")
    if tissue.shape == thumbnail.shape[:2] and tissue.any() and not tissue.all():
        across, down = (
            start + (np.arange(n) + 0.5) * side for start, n in zip((x, y), tissue.shape[::-1], strict=True)
        )
        left.contour(across, down, tissue, [0.5], colors=BLUE, linewidths=0.8)
    left.add_collection(LineCollection([*map(_closed, cancer)], colors=RED, linewidths=1))
    left.set(xlim=(0, frame.width), ylim=(frame.height, 0), title="tissue")
    _heatmap(figure, right, fraction, frame, cancer)
    right.set_title("burden")
    return figure


@drawn
def workflow(shown: Shown, source: str, *, tile: int = 256, side: int = 256, target: str = "nuclei") -> Figure:
    """From a slide to what is in it: tissue and tiles, and in a square of `side` pixels probability, mask, outlines."""
    alt = f"Six steps on slide {shown.title}: slide, tissue, tiles, probability, mask, outlines of {target}."
    figure, ((first, second, third), below) = panels(alt, 4.3, source, 2, 3, subplot_kw=NO_AXES)
    photograph, (tissue, coarse) = shown.slide.thumbnail(LONGEST), shown.slide.tissue(LONGEST)
    step, (x, y) = tile * shown.slide.scale(shown.mpp) / coarse, shown.densest(side)
    grid = [(i * step, j * step) for j in range(ceil(len(tissue) / step)) for i in range(ceil(len(tissue[0]) / step))]
    held = [(u, v) for u, v in grid if tissue[int(v) : ceil(v + step), int(u) : ceil(u + step)].any()]
    for ax, title in ((first, "1 slide"), (second, "2 tissue"), (third, f"3 tiles: {len(held):,}, less overlap")):
        picture(ax, photograph, title)
    _scale_bar(first, shown.slide.mpp, coarse, photograph.shape)
    first.add_patch(Rectangle((x * step / tile, y * step / tile), *[side * step / tile] * 2, fill=False, ec=BLACK))
    second.imshow(np.where(tissue[..., None], (0, 0, 0, 0), (1, 1, 1, 0.75)), extent=(0, *photograph.shape[1::-1], 0))
    second.contour(tissue, [0.5], colors=BLACK, linewidths=0.8)
    third.add_collection(PatchCollection([Rectangle(at, step, step) for at in held], fc="none", ec=BLACK, lw=0.5))
    third.set(xlim=first.get_xlim(), ylim=first.get_ylim())
    image, probability = shown.close_up(side)
    labels = instances_from_probability(probability, threshold=shown.threshold)
    picture(below[0], image, "4 probability")
    below[0].imshow(probability, cmap=HEAT, vmin=0, vmax=1, extent=(0, *probability.shape[::-1], 0))
    _scale_bar(below[0], shown.mpp, 1, probability.shape)
    picture(below[1], (probability >= shown.threshold)[..., None] * np.uint8([255] * 3), "5 mask")
    picture(below[2], image, "6 outlines", (labels, YELLOW, 1.0))
    return figure


@drawn
def heatmaps(slides: Sequence[Shown], source: str, target: str = "nuclei") -> Figure:
    """Slides beside the burden of their tissue, on one scale of colours; annotated cancer outlined in red."""
    tall = sum(2.8 * shown.slide.size[1] / shown.slide.size[0] + 0.5 for shown in slides)
    alt = f"Slides, and the share of their tissue that is {target} in colours, cancer outlined in red:"
    alt += f" {', '.join(shown.title for shown in slides)}."
    figure, axes = panels(alt, min(tall + 1, 12), source, len(slides), 2, subplot_kw=NO_AXES)
    burdens = [shown.burden() for shown in slides]
    top = max(np.nanmax(burden, initial=0) for burden in burdens) or 1
    for (left, right), shown, burden in zip(axes, slides, burdens, strict=True):
        photograph, scale = shown.slide.thumbnail(LONGEST), shown.slide.coarseness(LONGEST)
        side = shown.cell / (shown.slide.mpp or 1) / scale
        lines = [(np.vstack([points, points[:1]]) - shown.slide.offset) / scale for points in shown.cancer]
        picture(left, photograph, shown.title)
        _scale_bar(left, shown.slide.mpp, scale, photograph.shape)
        extent = (0, burden.shape[1] * side, burden.shape[0] * side, 0)
        heat = right.imshow(burden, cmap=HEAT, vmin=0, vmax=top, extent=extent)
        right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
        right.set_title("burden", pad=3)
        for ax in (left, right):
            ax.add_collection(LineCollection(lines, colors=RED, linewidths=1.3))
    bar = figure.colorbar(heat, ax=axes, location="bottom", shrink=0.5, aspect=30, format="{x:.0%}", pad=0.01)
    side = f"{slides[0].cell:g} {'µm' if slides[0].slide.mpp else 'px'}"
    bar.set_label(f"{target}, share of the tissue in each square of {side}")
    return figure


@drawn
def close_ups(slides: Sequence[Shown], source: str, *, side: int = 256, target: str = "nuclei") -> Figure:
    """The square of each slide that holds most of its mask: photograph, mask, and outlines on the photograph."""
    names = ", ".join(shown.title for shown in slides)
    alt = f"Details of slides at full resolution, their masks, and {target} outlined in yellow: {names}."
    figure, axes = panels(alt, 0.5 + 2.1 * len(slides), source, len(slides), 3, subplot_kw=NO_AXES)
    for (left, middle, right), shown in zip(axes, slides, strict=True):
        image, probability = shown.close_up(side)
        labels = instances_from_probability(probability, threshold=shown.threshold)
        picture(left, image, shown.title)
        _scale_bar(left, shown.mpp, 1, probability.shape)
        picture(middle, (probability >= shown.threshold)[..., None] * np.uint8([255] * 3), "mask")
        picture(right, image, f"{labels.max()} outlined", (labels, YELLOW, 1.0))
    return figure


def _alt(fraction: np.ndarray, cancer: Sequence) -> str:
    known = fraction[~np.isnan(fraction)]
    text = f"Area fraction of foreground in {known.size} squares"
    text += f", median {np.median(known):.3f}, highest {known.max():.3f}" if known.size else ""
    return text + f"; {len(cancer)} outlines of cancer." * bool(cancer) + "." * (not cancer)


def _heatmap(figure: Figure, ax, fraction: np.ndarray, frame: Frame, cancer: Sequence[np.ndarray]) -> None:
    extent = (0, fraction.shape[1] * frame.cell, fraction.shape[0] * frame.cell, 0)
    top = np.nanmax(fraction, initial=0) or 1
    shown = ax.imshow(fraction, extent=extent, cmap=HEAT, vmin=0, vmax=top, interpolation="nearest")
    ax.add_collection(LineCollection([*map(_closed, cancer)], colors=RED, linewidths=1))
    ax.set(xlim=(0, frame.width), ylim=(frame.height, 0))
    label = f"area fraction per square of {f'{CELL_UM} µm' if frame.mpp else f'{CELL_PIXELS} px'}"
    figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
    _scale_bar(ax, frame.mpp, 1, (frame.height, frame.width))


def _scale_bar(ax, mpp: float | None, scale: float, shape: tuple[int, ...]) -> None:
    """A bar of a round length below a picture of `shape` (h, w, ...), each pixel of which is `scale` times `mpp` um."""
    width = shape[1] * scale * (mpp or 1)
    length = max(n * 10**ten for n in (1, 2, 5) for ten in range(-1, 6) if n * 10**ten <= max(width / 3, 0.1))
    text = f"{length:g} px" if mpp is None else f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    look = {"color": BLACK, "lw": 2.5, "clip_on": False, "transform": ax.transAxes, "solid_capstyle": "butt"}
    ax.plot([0, length / width], [-0.03] * 2, **look)
    ax.text(0, -0.06, text, fontsize=7.5, va="top", transform=ax.transAxes)


def _closed(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, points[:1]])
