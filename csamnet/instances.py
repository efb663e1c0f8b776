"""From a probability map to objects: a stated splitting rule, and the outline of each object."""

from __future__ import annotations

import uuid

import numpy as np
import pandas as pd
import shapely
from scipy import ndimage
from scipy.cluster.hierarchy import DisjointSet
from skimage.measure import find_contours
from skimage.segmentation import watershed

OUTLINE = (255, 221, 0)
"""Colour of outlines: yellow, which neither haematoxylin nor eosin comes near."""

SMOOTH, NECK, PROMINENCE = 1.0, 0.95, 0.75  # pixels, a share, pixels


def instances_from_probability(
    probability: np.ndarray,
    *,
    threshold: float = 0.5,
    min_area: int = 30,
    touching: bool = True,
) -> np.ndarray:
    """Objects of a (H, W) foreground probability as (H, W) int32 labels 1..n, 0 background.

    The rule: threshold (`>=`); fill holes and drop objects below `min_area` pixels; take each pixel's
    distance to the background, smoothed by a Gaussian of SMOOTH pixels; flood it from its maxima
    (watershed); join two neighbouring basins, widest neck first, where the neck's half-width is more than
    NECK times that of the narrower of the two, or less than PROMINENCE pixels below it, or where one is
    smaller than `min_area`. No foreground pixel is lost in splitting. A boolean mask is a valid
    probability. Where objects are not `touching`, nothing is split: they are the 4-connected parts.

    The values were chosen on the 30 training and validation masks of MoNuSeg: the true mask, split by the rule, has
    a pooled PQ of 0.93 and AJI of 0.90 against the true nuclei (its connected parts unsplit: 0.81 and 0.56).
    """
    mask = ~_drop_small(np.asarray(probability) < threshold, min_area)
    mask = _drop_small(mask, min_area)
    if not (mask.any() and touching):
        return ndimage.label(mask)[0]
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask).astype(np.float32), SMOOTH) * mask
    basins = watershed(-depth, mask=mask)
    return _join(basins, depth, min_area)


def _drop_small(mask: np.ndarray, min_area: int) -> np.ndarray:
    """`mask` without its 4-connected parts of fewer than `min_area` pixels."""
    parts, _ = ndimage.label(mask)
    keep = np.bincount(parts.ravel()) >= min_area
    keep[0] = False
    return keep[parts]


def _join(basins: np.ndarray, depth: np.ndarray, min_area: int) -> np.ndarray:
    """Join basins across necks, widest first; returns consecutive labels."""
    area = np.bincount(basins.ravel())
    peak = np.zeros(len(area), np.float32)
    np.maximum.at(peak, basins[basins > 0], depth[basins > 0])
    area, peak, joined = area.tolist(), peak.tolist(), DisjointSet(range(len(area)))
    for first, second, width in _necks(basins, depth):
        low, high = sorted((joined[first], joined[second]), key=peak.__getitem__)
        shallow = width > min(NECK * peak[low], peak[low] - PROMINENCE)
        if low != high and (shallow or min(area[low], area[high]) < min_area):
            joined.merge(low, high)
            area[joined[low]], peak[joined[low]] = area[low] + area[high], peak[high]
    roots = [joined[label] for label in joined]
    return np.unique(roots, return_inverse=True)[1].astype(np.int32)[basins]


def _necks(basins: np.ndarray, depth: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of touching basins with the greatest depth on their common border, deepest first."""
    borders = []
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        touch = (basins[here] != basins[there]) & (basins[here] > 0) & (basins[there] > 0)
        pair = np.sort([basins[here][touch], basins[there][touch]], axis=0)
        width = np.minimum(depth[here][touch], depth[there][touch])
        borders.append(pd.DataFrame({"first": pair[0], "second": pair[1], "width": width}))
    deepest = pd.concat(borders).sort_values("width", ascending=False, kind="stable")
    return list(deepest.drop_duplicates(["first", "second"]).itertuples(index=False, name=None))


def outlines(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The outer outline of each object in a (H, W) label image: (label, (N, 2) closed polygon of x, y).

    Coordinates are in pixels: (0, 0) is the image's top left corner, (0.5, 0.5) its first pixel's centre.
    The outline runs half-way between the centres of inner and outer pixels, cutting corners: a valid
    polygon for every object, around the centres of just that object's pixels. Holes are not drawn; of an
    object in several 4-connected parts, the largest is.
    """
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            inside = np.pad(labels[box] == label, 1).astype(np.float32)
            rings = [shapely.Polygon(ring[:, ::-1]) for ring in find_contours(inside, 0.5)]
            ring = max(rings, key=lambda ring: ring.area).normalize().simplify(0)  # without needless vertices
            corner = np.array([box[1].start, box[0].start]) - 0.5
            found.append((label, shapely.get_coordinates(ring) + corner))
    return found


def detection(name: str, polygon: np.ndarray, measurements: dict, kind: str = "Nucleus") -> dict:
    """An outline (N, 2) as a GeoJSON feature that QuPath takes for a detection of class `kind`.

    `name` tells it from all others, and gives it its id.
    """
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"csamnet/{name}")),
        "geometry": {"type": "Polygon", "coordinates": [polygon.tolist()]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": kind, "color": list(OUTLINE)},
            "measurements": measurements,
        },
    }
