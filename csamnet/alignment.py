"""Where an annotation lies beside what it outlines.

An outline is drawn on a screen and turned into pixels by somebody's rule for where a pixel has its centre. Half a
pixel lost there is not seen by eye, but a network that learns from turned and mirrored crops cannot learn it either:
it outlines what it sees, and loses at every border when it is compared with the annotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

from csamnet.data import Sample, pair
from csamnet.files import InputError

REACH = 3
"""How many pixels an annotation is looked for to each side (our choice)."""


def annotation_offset(image: np.ndarray, mask: np.ndarray) -> tuple[float, float] | None:
    """How many pixels `(H, W)` `mask` lies to the right of, and below, what it outlines in `(H, W, 3)` uint8 `image`.

    The mask is moved to and fro over the optical density of red, slightly smoothed, and the place of the highest
    correlation (in size, for things may be darker or lighter than what surrounds them) is read off the parabola
    through it and its neighbours. None where there is no such place within REACH pixels.
    """
    density = ndimage.gaussian_filter(-np.log((np.float32(image[..., 0]) + 1) / 256), 1)
    found = [_peak([_agreement(density, mask, by, axis) for by in range(-REACH, REACH + 1)]) for axis in (1, 0)]
    return None if None in found else tuple(found)


def _agreement(density: np.ndarray, mask: np.ndarray, by: int, axis: int) -> float:
    """Size of the correlation with the mask moved back `by` pixels along an axis; 0 where a side is constant."""
    inner = (slice(REACH, -REACH),) * 2
    moved, density = np.roll(mask, -by, axis)[inner], density[inner]
    if moved.all() or not moved.any() or (spread := density.std()) == 0:
        return 0.0
    return abs(density[moved].mean() - density[~moved].mean()) * moved.std() / spread


def _peak(heights: Sequence[float]) -> float | None:
    """Where the parabola through the highest of `heights` at -REACH, ..., REACH and its neighbours has its peak."""
    top = int(np.argmax(heights))
    if not 0 < top < len(heights) - 1:
        return None
    before, at, after = heights[top - 1 : top + 2]
    bend = before - 2 * at + after
    return None if bend == 0 else float(top - REACH + 0.5 * (before - after) / bend)


def typical_offset(samples: Iterable[Sample]) -> tuple[float, float, int]:
    """The median of `annotation_offset` over samples, right and down, and of how many. InputError where it has none."""
    found = [offset for sample in samples if (offset := annotation_offset(*pair(sample))) is not None]
    if not found:
        expected = f"things darker or lighter than what surrounds them, outlined within {REACH} pixels"
        raise InputError("where the annotation lies cannot be told", expected=expected, found="no such image")
    return *np.median(found, 0).tolist(), len(found)
