"""The reader of Brain Tumor MRI: MATLAB 7.3 the right way round, patients and folds, and what can be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from csamnet.datasets import DATASETS
from csamnet.files import InputError
from csamnet.readers.mri import read_brain_mri, to_display

MRI = replace(DATASETS["BrainTumorMRI"], counts={"all": 3})
IMAGE = np.arange(5 * 7, dtype=np.int16).reshape(5, 7) * 100  # brighter to the right, and still more downwards
MASK = np.zeros((5, 7), np.uint8)
MASK[1, 2:6] = 1  # a row in MATLAB


def put(path: Path, **changes) -> None:
    """A slice as MATLAB 7.3 stores it, column by column; a change of None leaves a key out."""
    values = {"PID": np.array([[ord(letter)] for letter in "MR017"], np.uint16), "label": np.array([[2.0]])}
    values |= {"image": IMAGE.T, "tumorMask": MASK.T, "tumorBorder": np.zeros((8, 1))} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            if value is not None:
                file[f"cjdata/{name}"] = value
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file")


def put_folds(path: Path, *folds: float) -> None:
    with h5py.File(path, "w") as file:
        file["cvind"] = np.array([folds]).T


def pid(text: str) -> np.ndarray:
    return np.array([[ord(letter)] for letter in text], np.uint16)


def test_slices_in_any_folders_and_the_right_way_round(tmp_path):
    put(tmp_path / "brainTumorDataPublic_1-766/1.mat")
    put(tmp_path / "b/c/2.mat", label=np.array([[1.0]]), PID=pid("100360"))
    put(tmp_path / "b/3.mat", label=np.array([[3.0]]), PID=pid("MR9\0"))
    release = read_brain_mri(MRI, [tmp_path / "brainTumorDataPublic_1-766", tmp_path / "b"])
    assert not release.problems
    assert not release.sample
    assert [(r.name, r.split, r.group, r.organ) for r in release.records] == [
        ("1", None, "MR017", "glioma"),
        ("2", None, "100360", "meningioma"),
        ("3", None, "MR9", "pituitary"),
    ]
    pixels = release.records[0].load()
    assert pixels.image.shape == (5, 7, 3)
    assert pixels.image.dtype == np.uint8
    assert (np.diff(pixels.image[..., 0].astype(int), axis=1)[1:-1] > 0).all(), "to the right"
    np.testing.assert_array_equal(pixels.mask, MASK > 0)
    assert pixels.labels is None
    assert not pixels.notes


@pytest.mark.parametrize("key", ["image", "tumorMask"])
def test_planes_of_which_one_is_turned(tmp_path, key):
    put(tmp_path / "1.mat", **{key: {"image": IMAGE, "tumorMask": MASK}[key]})
    with pytest.raises(InputError, match="image and mask differ in size") as caught:
        read_brain_mri(MRI, [tmp_path]).records[0].load()
    assert "1.mat" in str(caught.value)


def test_display_range_by_hand():
    values = np.arange(1001, dtype=np.int16).reshape(7, 143)  # the percentiles are 5 and 995
    shown = to_display(values).ravel()
    assert shown[:6].tolist() == [0] * 6
    assert shown[995:].tolist() == [255] * 6
    assert shown[500] == 128  # 495 / 990 of 255, and half of it to even
    assert shown[203] == 51  # 198 / 990
    assert to_display(np.full((3, 4), 77, np.int16)).tolist() == [[0] * 4] * 3
    low = to_display(values - np.int16(700))  # below zero too
    np.testing.assert_array_equal(low.ravel(), shown)


def test_folds_give_the_split(tmp_path):
    for number in range(1, 13):
        put(tmp_path / f"{number}.mat", PID=pid(f"P{number % 5}"))
    put_folds(tmp_path / "cvind.mat", *(1 + number % 5 for number in range(1, 13)))
    release = read_brain_mri(MRI, [tmp_path])
    assert not release.problems
    assert [record.name for record in release.records] == [str(number) for number in range(1, 13)]
    splits = {record.group: record.split for record in release.records}
    assert splits == {"P0": "train", "P1": "train", "P2": "train", "P3": "val", "P4": "test"}


def test_a_patient_in_two_folds(tmp_path):
    for number, patient in enumerate(("AA", "BB", "AA"), 1):
        put(tmp_path / f"{number}.mat", PID=pid(patient))
    put_folds(tmp_path / "cvind.mat", 1, 2, 3)  # both for training
    (problem,) = read_brain_mri(MRI, [tmp_path]).problems
    assert "the patient AA is in several folds" in str(problem)
    assert "folds 1, 3 of cvind.mat" in str(problem)


@pytest.mark.parametrize("folds", [(1, 2, 6), (0, 1, 2), (1, 2, 2.5), (1, 2, np.nan)])
def test_folds_that_are_none(tmp_path, folds):
    put(tmp_path / "1.mat")
    put_folds(tmp_path / "cvind.mat", *folds)
    with pytest.raises(InputError, match="folds that are none") as caught:
        read_brain_mri(MRI, [tmp_path])
    assert "cvind.mat" in str(caught.value)


def test_folds_there_twice_or_of_another_version(tmp_path):
    put(tmp_path / "1.mat")
    savemat(tmp_path / "cvind.mat", {"cvind": [1, 2]})
    with pytest.raises(InputError, match=r"'MATLAB 5.0 MAT-file'") as caught:
        read_brain_mri(MRI, [tmp_path])
    assert "cvind.mat" in str(caught.value)
    (tmp_path / "a").mkdir()
    put_folds(tmp_path / "a/cvind.mat", 1)
    with pytest.raises(InputError, match=r"cvind.mat is there twice"):
        read_brain_mri(MRI, [tmp_path])


def test_numbers_that_are_missing_too_many_or_there_twice(tmp_path):
    for path in ("1.mat", "a/3.mat", "b/3.mat", "4.mat", "1 (1).mat"):
        put(tmp_path / path)
    release = read_brain_mri(MRI, [tmp_path])
    assert [record.name for record in release.records] == ["1"]
    text = "\n".join(map(str, release.problems))
    assert len(release.problems) == 4
    assert "the slice 3 is there twice\n" in text
    assert f"not a slice of the release\n  file: {tmp_path}/4.mat\n  expected: 1.mat to 3.mat" in text
    assert f"not a slice of the release\n  file: {tmp_path}/1 (1).mat" in text
    assert "1 of the release's 3 slices are missing" in text
    assert "found: no 2\n" in text
    put_folds(tmp_path / "cvind.mat", 1, 2, 3, 4, 4)
    text = "\n".join(map(str, read_brain_mri(MRI, [tmp_path]).problems))
    assert "2 of the release's 5 slices are missing" in text
    assert "found: no 2, 5\n" in text


def test_many_missing_slices_are_not_all_listed(tmp_path):
    put(tmp_path / "7.mat")
    (problem,) = read_brain_mri(DATASETS["BrainTumorMRI"], [tmp_path]).problems
    assert "3063 of the release's 3064 slices" in str(problem)
    assert "no 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, ...\n" in str(problem)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "label"),
        ({"PID": None}, "PID"),
        ({"label": np.array([[4.0]])}, "label 4.0, PID 'MR017'"),
        ({"PID": pid("\0 ")}, "unknown kind or patient"),
        ({"PID": pid("\ud800")}, "unknown kind or patient"),
        ({"PID": "MR017"}, "cjdata/PID:  |S5, not H x W numbers"),
        ({"label": np.zeros((0, 0))}, "cjdata/label: 0 x 0 float64"),
        ({"label": np.array([[2j]])}, "cjdata/label: 1 x 1 complex128"),
    ],
)
def test_slices_that_cannot_be_listed(tmp_path, changes, message):
    for number in (1, 2, 3):
        put(tmp_path / f"{number}.mat", **(changes if number == 2 else {}))
    release = read_brain_mri(MRI, [tmp_path])
    assert [record.name for record in release.records] == ["1", "3"]
    (problem,) = release.problems
    assert message in str(problem)
    assert "2.mat" in str(problem)


def test_other_versions_and_damage(tmp_path):
    put(tmp_path / "1.mat")
    savemat(tmp_path / "2.mat", {"cjdata": {"label": 1, "PID": "a", "image": IMAGE, "tumorMask": MASK}})
    (tmp_path / "3.mat").write_bytes((tmp_path / "1.mat").read_bytes()[:-900])
    release = read_brain_mri(MRI, [tmp_path])
    assert [record.name for record in release.records] == ["1"]
    other, damaged = release.problems
    assert "expected: MATLAB 7.3 (HDF5)" in str(other)
    assert "found: 'MATLAB 5.0 MAT-file' at its start" in str(other)
    assert "2.mat" in str(other)
    assert "3.mat" in str(damaged)
    assert "truncated" in str(damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "cjdata/image"),
        ({"tumorMask": None}, "cjdata/tumorMask"),
        ({"image": np.zeros((7, 5, 2), np.int16)}, "not H x W numbers"),
        ({"image": np.full((7, 5), np.nan)}, "not a slice"),
        ({"image": np.zeros((0, 0))}, "not H x W numbers"),
        ({"tumorMask": np.uint8(1)}, "not H x W numbers"),
        ({"tumorMask": MASK.T * np.nan}, "not a mask"),
        ({"tumorMask": MASK.T * -1.0}, "not a mask"),
        ({"tumorMask": np.arange(35.0).reshape(7, 5)}, "35 values from 0.0 to 34.0"),
    ],
)
def test_slices_that_cannot_be_loaded(tmp_path, changes, message):
    put(tmp_path / "1.mat", **changes)
    (record,) = read_brain_mri(MRI, [tmp_path]).records
    with pytest.raises(InputError, match=message) as caught:
        record.load()
    assert "1.mat" in str(caught.value)


def test_a_key_that_is_a_group(tmp_path):
    put(tmp_path / "1.mat", image=None)
    with h5py.File(tmp_path / "1.mat", "a") as file:
        file["cjdata/image/inner"] = IMAGE
    with pytest.raises(InputError, match="not as released"):
        read_brain_mri(MRI, [tmp_path]).records[0].load()


def test_a_mask_without_tumour_is_noted(tmp_path):
    put(tmp_path / "1.mat", tumorMask=MASK.T * 0)
    pixels = read_brain_mri(MRI, [tmp_path]).records[0].load()
    assert not pixels.mask.any()
    assert pixels.notes == ["1.mat: no tumour in its mask"]


def test_nothing_that_could_be_read(tmp_path):
    put_folds(tmp_path / "cvind.mat", 1)
    with pytest.raises(InputError, match="BrainTumorMRI is not here") as caught:
        read_brain_mri(MRI, [tmp_path])
    assert "0 slices" in str(caught.value)
    assert "figshare" in str(caught.value)
