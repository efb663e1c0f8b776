"""Figures of a slide: where its tissue is, and how much of each part is foreground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from csamnet.burden import Frame
from csamnet.figures import BLACK, BLUE, NO_AXES, WIDTH, _drawn, _panels, drawn
from csamnet.files import atomic

RED = "#E00000"  # of annotated cancer, as in the paper


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure gives the same bytes."""
    with atomic(path) as temporary:
        temporary.write_bytes(_drawn(figure, "png"))


@drawn
def burden_map(fraction: np.ndarray, frame: Frame, cancer: Sequence[np.ndarray], source: str) -> Figure:
    """Area fraction of foreground in cells of 100 um, with a scale bar, and annotated cancer outlined in red.

    `cancer`: outlines (n, 2: x, y) in pixels of the frame.
    """
    height = np.clip(WIDTH * 0.85 * frame.height / frame.width, 1.5, 9) + 0.5
    figure, ((ax,),) = _panels(_alt(fraction, cancer), height, source, subplot_kw=NO_AXES)
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
    figure, ((left, right),) = _panels(
        f"Slide, and: {_alt(fraction, cancer)}", height, source, 1, 2, subplot_kw=NO_AXES
    )
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


def _alt(fraction: np.ndarray, cancer: Sequence) -> str:
    known = fraction[~np.isnan(fraction)]
    text = f"Area fraction of foreground in {known.size} cells"
    text += f", median {np.median(known):.3f}, highest {known.max():.3f}" if known.size else ""
    return text + f"; {len(cancer)} outlines of cancer." * bool(cancer) + "." * (not cancer)


def _heatmap(figure: Figure, ax, fraction: np.ndarray, frame: Frame, cancer: Sequence[np.ndarray]) -> None:
    extent = (0, fraction.shape[1] * frame.cell, fraction.shape[0] * frame.cell, 0)
    top = np.nanmax(fraction, initial=0) or 1
    shown = ax.imshow(fraction, extent=extent, cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
    ax.add_collection(LineCollection([*map(_closed, cancer)], colors=RED, linewidths=1))
    ax.set(xlim=(0, frame.width), ylim=(frame.height, 0))
    label = "area fraction per " + ("100 µm cell" if frame.mpp else "400 px cell")
    figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
    whole = frame.width * (frame.mpp or 1)
    length = max(n for n in np.outer(10.0 ** np.arange(-1, 6), (1, 2, 5)).ravel() if n <= max(whole / 4, 0.1))
    unit = (f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm") if frame.mpp else f"{length:g} px"
    bar, y = length / (frame.mpp or 1), -0.02 * frame.height
    ax.plot([0, bar], [y, y], color=BLACK, linewidth=2.5, clip_on=False, solid_capstyle="butt")
    ax.annotate(unit, (bar, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5, annotation_clip=False)


def _closed(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, points[:1]])
