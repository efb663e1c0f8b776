"""Splitting and outlines on shapes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy.ndimage import gaussian_filter
from skimage.draw import polygon2mask

from csamnet.images import read_labels
from csamnet.instances import _join, instances_from_probability, outlines
from csamnet.metrics import from_instances, instance_counts


def ellipse(shape, centre, radii) -> np.ndarray:
    y, x = np.indices(shape)
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1


def raster(polygon: np.ndarray, shape) -> np.ndarray:
    """Pixels whose centre lies in a polygon of x, y pixel-corner coordinates."""
    return polygon2mask(shape, polygon[:, ::-1] - 0.5)


@pytest.mark.parametrize("angle", [0, 30, 90])
@pytest.mark.parametrize("radius", [8, 12, 20])
def test_two_touching_discs_are_two(radius, angle):
    centre, reach = np.array([60.0, 60.0]), 0.8 * radius
    shift = reach * np.array([np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    one, other = (ellipse((120, 120), centre + sign * shift, (radius, radius)) for sign in (-1, 1))
    labels = instances_from_probability((one | other).astype(np.float32))
    assert labels.dtype == np.int32
    assert labels.max() == 2
    assert ((labels > 0) == (one | other)).all()
    for part in (one & ~other, other & ~one):
        assert np.bincount(labels[part]).max() > 0.97 * part.sum()


@pytest.mark.parametrize("radii", [(8, 8), (8, 16), (10, 30), (3, 20)])
def test_one_ellipse_is_one(radii):
    mask = ellipse((80, 80), (40, 40), radii)
    assert instances_from_probability(mask).max() == 1


def test_a_ragged_edge_splits_nothing():
    mask = ellipse((80, 80), (40, 40), (14, 18))
    noise = gaussian_filter(np.random.default_rng(0).normal(size=mask.shape), 1)
    ragged = gaussian_filter(mask.astype(float), 1) + 0.5 * noise > 0.5
    assert instances_from_probability(ragged).max() == 1


def test_a_chain_of_three_and_a_disc_cut_by_the_border():
    mask = sum(ellipse((60, 140), (30, x), (12, 12)) for x in (30, 50, 70)) > 0
    mask |= ellipse((60, 140), (0, 120), (12, 12))
    assert instances_from_probability(mask).max() == 4


def test_what_does_not_touch_is_not_split():
    """Two lobes of one lesion stay one; the threshold, holes and specks are as for nuclei."""
    mask = ellipse((60, 140), (30, 40), (14, 14)) | ellipse((60, 140), (30, 62), (14, 14))
    mask |= ellipse((60, 140), (30, 110), (12, 12))
    assert instances_from_probability(mask).max() == 3
    probability = np.where(mask, 0.6, 0.1)
    probability[30, 40] = 0.1
    probability[2, 2:5] = 0.9
    labels = instances_from_probability(probability, touching=False)
    assert labels.max() == 2
    assert labels.dtype == np.int32
    assert ((labels > 0) == mask).all()


def test_holes_are_filled_and_specks_dropped():
    mask = ellipse((60, 60), (30, 30), (12, 12))
    spoilt = mask.copy()
    spoilt[30:33, 30:33] = False
    spoilt[2:5, 2:5] = True
    labels = instances_from_probability(spoilt)
    assert ((labels > 0) == mask).all()
    assert labels.max() == 1
    assert (instances_from_probability(spoilt, min_area=1) > 0)[3, 3]


def test_a_sliver_beside_a_large_nucleus_is_kept():
    mask = ellipse((60, 60), (30, 30), (15, 15))
    mask[20:40, 47] = True
    assert instances_from_probability(mask, min_area=10).max() == 2


def test_threshold_is_inclusive_and_nothing_gives_nothing():
    grey = np.full((20, 20), 0.5, np.float32)
    assert instances_from_probability(grey).max() == 1
    assert not instances_from_probability(grey, threshold=0.51).any()
    assert instances_from_probability(np.zeros((1, 1))).tolist() == [[0]]


def many() -> np.ndarray:
    """1000 x 1000 with 625 touching discs."""
    y, x = np.indices((1000, 1000))
    return ((y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 <= 20.5**2).astype(np.float32)


def test_every_disc_of_a_large_image_is_one_instance():
    assert instances_from_probability(many()).max() == 625


def test_outline_of_one_pixel_and_of_a_square():
    labels = np.zeros((6, 8), int)
    labels[1, 2], labels[3:5, 4:8] = 5, 9
    (one, diamond), (two, square) = outlines(labels)
    assert (one, two) == (5, 9)
    assert (diamond[0] == diamond[-1]).all()
    assert (square[0] == square[-1]).all()
    assert shapely.Polygon(diamond).equals(shapely.Polygon([(2.5, 1), (3, 1.5), (2.5, 2), (2, 1.5)]))
    assert shapely.bounds(shapely.Polygon(square)).tolist() == [4, 3, 8, 5]
    assert len(square) == 9  # a rectangle with its corners cut


def test_outlines_are_valid_and_give_the_objects_back():
    rng = np.random.default_rng(1)
    probability = gaussian_filter(rng.normal(size=(300, 300)), 4) > 0.02
    labels = instances_from_probability(probability) * 3
    found = outlines(labels)
    assert [label for label, _ in found] == np.unique(labels)[1:].tolist()
    for label, polygon in found:
        again, true = raster(polygon, labels.shape), labels == label
        assert shapely.Polygon(polygon).is_valid
        assert (again & true).sum() / (again | true).sum() > 0.95


def test_outlines_of_awkward_objects():
    pinched = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    ((_, polygon),) = outlines(pinched)
    assert shapely.Polygon(polygon).is_valid
    assert raster(polygon, pinched.shape).sum() == 7  # the largest 4-connected part
    assert outlines(np.zeros((5, 5), int)) == []


def test_true_nuclei_from_their_mask(shared):
    path = sorted((shared / "data/MoNuSeg/train/inst").iterdir())[0]
    true = read_labels(path)[:500, :500]
    found = from_instances(**instance_counts(instances_from_probability(true > 0), true))
    assert found["pq"] > 0.9
    assert found["aji"] > 0.8
    assert all(shapely.Polygon(polygon).is_valid for _, polygon in outlines(true))


def joined(area: int, low: float, neck: float, min_area: int = 0) -> bool:
    """Whether two basins are joined, the smaller of which is `low` deep; `neck` is the depth between them."""
    basins = np.int32([[1] * area + [2] * 50])
    depth = np.full(basins.shape, neck, np.float32)
    depth[0, 0], depth[0, -1] = low, 30
    return _join(basins, depth, min_area).max() == 1


def test_necks_by_hand():
    """Of a basin 4 deep the neck is wide from 4 - 0.75, of one 20 deep from 0.95 * 20."""
    assert [joined(9, 4, neck) for neck in (3.2, 3.3)] == [False, True]
    assert [joined(9, 20, neck) for neck in (18.9, 19.1)] == [False, True]
    assert [joined(area, 20, 1, min_area=30) for area in (29, 30)] == [True, False], "a speck, whatever its neck"


def test_joined_parts_are_as_large_as_both():
    basins = np.int32([[1, 1, 2, 2, 3, 3, 3, 3]])
    depth = np.float32([[9, 8, 8, 1, 1, 1, 9, 9]])
    assert _join(basins, depth, 3).max() == 2, "each of the first two is too small alone, together they are not"


def test_of_a_label_in_two_pieces_the_larger_is_outlined():
    ((_, polygon),) = outlines(np.array([[1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]))
    assert shapely.Polygon(polygon).area > 4
