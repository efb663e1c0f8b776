"""The look-alike of Dataset B: its layout, that a seed fixes every byte, speckle, lesions like real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from skimage.filters import threshold_otsu
from tiny import digest, overlap

from csamnet.datasets import DATASETS
from csamnet.readers.ultrasound import read_dataset_b
from csamnet.samples.ultrasound import dataset_b, speckle

DATASET_B = DATASETS["DatasetB"]


def around(mask: np.ndarray) -> np.ndarray:
    """A ring around a mask, a 25th of the image wide."""
    return binary_dilation(mask, iterations=mask.shape[1] // 25) & ~mask


def extent(mask: np.ndarray) -> tuple[float, float]:
    """Height and width of a mask, in pixels."""
    return tuple(np.ptp(axis) + 1 for axis in np.nonzero(mask))


def quantiles(image: np.ndarray) -> np.ndarray:
    return np.quantile(image, [0.05, 0.25, 0.5, 0.75, 0.95])


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    dataset_b(folder, 0)
    return folder


@pytest.fixture(scope="module")
def pictures(release) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Image, mask and whether it is malignant: every third is."""
    paths = sorted((release / "BUS/original").iterdir())
    opened = [[np.asarray(Image.open(release / "BUS" / kind / p.name)) for kind in ("original", "GT")] for p in paths]
    return [(image.astype(float), mask > 0, i % 3 == 2) for i, (image, mask) in enumerate(opened)]


def test_layout(release):
    images, masks = (sorted((release / "BUS" / kind).iterdir()) for kind in ("original", "GT"))
    assert [path.name for path in images] == [path.name for path in masks]
    numbers = [int(path.stem) for path in images]
    assert len(numbers) == 14
    assert numbers[-1] > 14, "numbers are missing"
    assert all(len(path.name) == 10 and path.suffix == ".png" for path in images)
    forms = {"original": set(), "GT": set()}
    sizes = {"original": [], "GT": []}
    for path in (*images, *masks):
        with Image.open(path) as image:
            forms[path.parent.name].add((image.mode, *image.getextrema()))
            sizes[path.parent.name].append(image.size)
    assert {mode for mode, *_ in forms["original"]} == {"L"}
    assert forms["GT"] == {("1", 0, 255), ("L", 0, 255)}
    assert sizes["original"] == sizes["GT"]
    assert len(set(sizes["GT"])) > 10
    assert all(260 < width < 340 and 200 < height < 280 for width, height in sizes["GT"])


def test_as_the_reader_sees_it(release, pictures):
    pytest.importorskip("openpyxl")
    found = read_dataset_b(DATASET_B, [release])
    assert not found.problems
    assert not found.notes
    assert [record.organ == "malignant" for record in found.records] == [malignant for *_, malignant in pictures]
    assert {record.organ for record in found.records} == {"benign", "malignant"}
    for record, (_, mask, _) in zip(found.records, pictures, strict=True):
        np.testing.assert_array_equal(record.load().mask, mask)


def test_a_seed_fixes_every_byte(tmp_path):
    for name, seed, images in (("a", 3, 4), ("b", 3, 4), ("c", 4, 4), ("d", 3, 5)):
        dataset_b(tmp_path / name, seed, images=images, size=96)
    one, same, other, more = (digest(tmp_path / name) for name in "abcd")
    assert same == one
    assert len(one) == 9
    assert set(one.values()) & set(other.values()) == {one["BUS/DatasetB.xlsx"]}
    assert {name for name in one if more[name] != one[name]} == {"BUS/DatasetB.xlsx"}, "more images change none"


def test_speckle_is_that_of_a_scanner():
    envelope = speckle(np.random.default_rng(0), np.zeros((400, 400)))
    assert (envelope**2).mean() == pytest.approx(1, rel=0.03)
    assert envelope.mean() / envelope.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03), "Rayleigh"
    assert (20 * np.log10(envelope)).std() == pytest.approx(5.57, rel=0.04), "dB, whatever the tissue"
    intensity = envelope**2 - (envelope**2).mean()

    def alike(down: int, across: int) -> float:
        shifted = intensity[down:, across:] * intensity[: 400 - down, : 400 - across]
        return shifted.mean() / intensity.var()

    assert alike(2, 0) == pytest.approx(np.exp(-(2**2) / (2 * 0.8**2)), abs=0.04)  # |correlation of amplitude|²
    assert alike(0, 2) == pytest.approx(np.exp(-(2**2) / (2 * 1.8**2)), abs=0.04)
    louder = speckle(np.random.default_rng(0), np.full((400, 400), 6.0))
    np.testing.assert_allclose(louder / envelope, 10 ** (6 / 20))


def test_lesions_are_as_large_and_as_dark_as_real_ones(pictures):
    share = [mask.mean() for _, mask, _ in pictures]
    assert 0.008 < min(share) < 0.03
    assert 0.08 < max(share) < 0.25
    for image, mask, _ in pictures:
        assert not np.concatenate([mask[0], mask[:, 0], mask[:, -1]]).any(), "it is whole"
        assert image[mask].mean() < image[around(mask)].mean() - 20
    flat = {kind: [extent(m)[1] / extent(m)[0] for _, m, kind_of in pictures if kind_of == kind] for kind in (0, 1)}
    assert np.median(flat[0]) > 1.3, "benign ones are wider than tall"
    assert np.median(flat[1]) < 1.15
    rough = {kind: [] for kind in (0, 1)}
    for _, mask, malignant in pictures:
        smooth = gaussian_filter(mask.astype(float), np.sqrt(mask.sum()) / 8) > 0.5
        rough[malignant].append(1 - overlap(mask, smooth))
    assert min(rough[1]) > max(rough[0]), "malignant ones are irregular"


def test_shadow_and_enhancement_below_a_lesion(pictures):
    below = {0: [], 1: []}
    for image, mask, malignant in pictures:
        (_, last), (left, right) = ((axis.min(), axis.max()) for axis in np.nonzero(mask))
        band, middle = image[last + 4 : last + 30], slice((3 * left + right) // 4, (left + 3 * right) // 4)
        beside = np.delete(band, np.arange(left, right), axis=1)
        below[malignant].append(band[:, middle].mean() - beside.mean())
    assert np.mean(below[1]) < -25
    assert np.mean(below[0]) > 5


def test_masks_lie_where_the_lesions_are(pictures):
    """The grey half-way between in and out is met at the border, within a pixel."""
    profiles = []
    for image, mask, malignant in pictures:
        if not malignant:
            away = distance_transform_edt(~mask) - distance_transform_edt(mask)  # 1 beside the border, -1 within
            profiles.append([image[np.rint(away) == d].mean() for d in (-5, -3, -2, -1, 1, 2, 3)])
    inner, *border, outer = np.mean(profiles, axis=0)
    assert (np.diff(border) > 0).all()
    middle = np.interp((inner + outer) / 2, border, (-2.5, -1.5, -0.5, 0.5, 1.5))
    assert abs(middle) < 1


def test_a_threshold_does_not_solve_it(pictures):
    scores, best = [], []
    for image, mask, _ in pictures:
        scores.append(overlap(image < threshold_otsu(image), mask))
        soft = gaussian_filter(image, 2)
        best.append(max(overlap(soft < level, mask) for level in range(20, 120, 10)))
    assert max(scores) < 0.3
    assert np.mean(best) < 0.3, "not even the best one for each image"


def test_greys_are_those_of_real_images(pictures, shared):
    real = []
    for path in sorted((shared / "data/BUSI/img").iterdir())[::6]:
        image, mask = (np.asarray(Image.open(p)) for p in (path, shared / f"data/BUSI/mask/{path.stem}.png"))
        if mask.any():
            real.append((image[..., 0].astype(float), mask, False))
    ours, theirs = ([quantiles(image) for image, *_ in of] for of in (pictures, real))
    assert np.abs(np.mean(ours, 0) - np.mean(theirs, 0)).max() < 25
    for part in (lambda mask: mask, around):
        greys = [np.mean([image[part(mask)].mean() for image, mask, _ in of]) for of in (pictures, real)]
        assert abs(greys[0] - greys[1]) < 15


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_size(tmp_path, seed):
    dataset_b(tmp_path, seed, images=3, size=64)
    for record in read_dataset_b(DATASET_B, [tmp_path]).records:
        assert 5 < record.load().mask.sum() < 1500
