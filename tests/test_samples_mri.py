"""The look-alike of Brain Tumor MRI: its layout, that a seed fixes every byte, heads and tumours like real ones."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import center_of_mass, distance_transform_edt, gaussian_filter
from skimage.draw import polygon
from tiny import digest, overlap

from csamnet.datasets import DATASETS
from csamnet.readers.mri import KINDS, read_brain_mri, to_display
from csamnet.samples.mri import brain_mri, paint, smooth

MRI = DATASETS["BrainTumorMRI"]
SMALL = {"patients": 3, "slices": 2, "size": 64}


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    brain_mri(folder, 0)
    return folder


@pytest.fixture(scope="module")
def slices(release) -> list[dict]:
    """What h5py sees, turned as MATLAB would have it."""
    found = []
    for number in range(1, 21):
        with h5py.File(release / f"brainTumorDataPublic/{number}.mat") as file:
            data = {key: value[()].T for key, value in file["cjdata"].items()}
        pid = "".join(map(chr, data["PID"].ravel()))
        found.append(data | {"PID": pid, "kind": KINDS[data["label"].item()], "tumorMask": data["tumorMask"] > 0})
    return found


def test_layout(release, slices):
    assert len(list(release.rglob("*.mat"))) == 21
    for path in release.rglob("*.mat"):
        with pytest.raises(NotImplementedError, match=r"v7\.3"):  # so scipy takes it for what it is
            loadmat(path)
    with h5py.File(release / "brainTumorDataPublic/1.mat") as file:
        classes = {key: value.attrs["MATLAB_class"] for key, value in file["cjdata"].items()}
        assert file["cjdata"].attrs["MATLAB_class"] == b"struct"
    expected = {"PID": b"char", "label": b"double", "tumorBorder": b"double", "tumorMask": b"logical"}
    assert classes == expected | {"image": b"int16"}
    for data in slices:
        assert data["PID"].startswith("SAMPLE")
        assert data["image"].shape == data["tumorMask"].shape == (256, 256)
        assert 2000 < data["image"].max() < 4096
        assert data["image"].min() >= 0
    assert len({data["PID"] for data in slices}) == 10
    assert {data["kind"] for data in slices} == {"meningioma", "glioma", "pituitary"}


def test_the_border_is_that_of_the_mask(slices):
    for data in slices:
        x, y = data["tumorBorder"].reshape(-1, 2).T - 1
        filled = np.zeros(data["tumorMask"].shape, bool)
        filled[polygon(y, x, filled.shape)] = True
        assert overlap(filled, data["tumorMask"]) > 0.99


def test_as_the_reader_sees_it(release, slices):
    found = read_brain_mri(MRI, [release])
    assert found.sample
    assert not found.problems
    assert [record.group for record in found.records] == [data["PID"] for data in slices]
    splits = [record.split for record in found.records]
    assert {split: splits.count(split) for split in splits} == {"train": 12, "val": 4, "test": 4}
    for record, data in zip(found.records, slices, strict=True):
        pixels = record.load()
        np.testing.assert_array_equal(pixels.mask, data["tumorMask"])
        np.testing.assert_array_equal(pixels.image[..., 1], to_display(data["image"]))
        assert record.organ == data["kind"]
    kinds = {split: {r.organ for r in found.records if r.split == split} for split in ("train", "val", "test")}
    assert len(kinds["train"]) == 3
    assert len(kinds["val"]) == len(kinds["test"]) == 2


def test_a_seed_fixes_every_byte(tmp_path):
    brain_mri(tmp_path / "a", 1, **SMALL)
    time.sleep(1.1)  # HDF5 can keep times, in whole seconds
    brain_mri(tmp_path / "b", 1, **SMALL)
    brain_mri(tmp_path / "c", 2, **SMALL)
    brain_mri(tmp_path / "d", 1, **SMALL | {"patients": 4})
    one, same, other, more = (digest(tmp_path / name) for name in "abcd")
    assert same == one
    assert len(one) == 7
    assert set(one.values()) & set(other.values()) == {one["cvind.mat"]}
    assert {name for name in one if more[name] != one[name]} == {"cvind.mat"}, "more patients change none"


def test_slices_of_a_patient_are_alike_and_not_the_same(slices):
    alike = {True: [], False: []}
    for a, b in combinations(slices, 2):
        one, two = (gaussian_filter(data["image"].astype(float), 2)[60:200, 60:200].ravel() for data in (a, b))
        alike[a["PID"] == b["PID"]].append(np.corrcoef(one, two)[0, 1])
    assert 0.7 < np.mean(alike[True]) < 0.99
    assert np.mean(alike[False]) < np.mean(alike[True]) - 0.3


def test_tumours_are_where_and_as_they_should_be(slices):
    share = [data["tumorMask"].mean() for data in slices]
    assert 0.004 < min(share) < 0.01
    assert 0.02 < max(share) < 0.07
    for data in slices:
        image, mask = data["image"].astype(float), data["tumorMask"]
        away = distance_transform_edt(mask)
        rim, core = image[mask & (away < 5)].mean(), image[away > 0.6 * away.max()].mean()
        middle = np.subtract(center_of_mass(mask), 127.5)
        if data["kind"] == "glioma":
            assert core < rim - 100, "dead inside a ring"
        else:
            assert core > 1400, "lit as a whole"
        if data["kind"] == "pituitary":
            assert np.hypot(*middle) < 35
        else:
            assert np.hypot(*middle) > 25
        if data["kind"] == "meningioma":
            far = distance_transform_edt(gaussian_filter(image, 1) > 150)  # from the air
            assert far[mask].min() < 26, "at the skull"


def test_masks_lie_where_the_tumours_are(slices):
    """The signal half-way between in and out is met at the border."""
    profiles = []
    for data in slices:
        if data["kind"] == "pituitary":
            mask = data["tumorMask"]
            away = distance_transform_edt(~mask) - distance_transform_edt(mask)  # 1 beside the border, -1 within
            profiles.append([data["image"][np.rint(away) == d].mean() for d in (-4, -2, -1, 1, 2, 4)])
    inner, *border, outer = np.mean(profiles, axis=0)
    assert (np.diff(border) < 0).all()
    middle = np.interp(-(inner + outer) / 2, np.negative(border), (-1.5, -0.5, 0.5, 1.5))
    assert abs(middle) < 0.6


def test_a_threshold_does_not_solve_it(slices):
    best = []
    for data in slices:
        image = gaussian_filter(to_display(data["image"]).astype(float), 1)
        best.append(max(overlap(image > level, data["tumorMask"]) for level in range(60, 250, 10)))
    assert max(best) < 0.5, "the best one for each image"
    assert np.mean(best) < 0.25


def test_greys_are_those_of_real_images(slices, shared):
    images = [data["image"] for data in slices]
    paths = sorted((shared / "data/BrainTumorMRI/img").iterdir())[::4]
    real = [np.asarray(Image.open(path)).astype(np.int16) for path in paths]
    found = ([np.quantile(to_display(image), [0.25, 0.75, 0.95]) for image in of] for of in (real, images))
    theirs, ours = (np.mean(quantiles, axis=0) for quantiles in found)
    assert np.abs(ours - theirs).max() < 40


def test_noise_changes_slowly_with_the_place():
    fields = [smooth(np.random.default_rng(0), 64, place, 16.0) for place in (0, 0.3, np.pi / 2)]
    assert all(field.std() == pytest.approx(1) and abs(field.mean()) < 1e-9 for field in fields)
    alike = [(fields[0] * field).mean() for field in fields]
    assert alike[1] > 0.9
    assert abs(alike[2]) < 0.4
    step = np.diff(smooth(np.random.default_rng(1), 256, 0, 8.0), axis=0).std()
    assert step == pytest.approx(1 / (np.sqrt(2) * 8), rel=0.1)  # slope of noise smoothed by a Gaussian of 8 pixels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 200])
def test_every_kind_at_other_sizes_and_at_the_ends(kind, size):
    for place in (-0.95, 0.95):
        rngs = np.random.default_rng(3), np.random.default_rng(4)
        image, mask = paint(*rngs, kind, place, size)
        assert image.shape == mask.shape == (size, size)
        assert 0.001 < mask.mean() < 0.1
        assert image.dtype == np.int16
