"""The reader of breast ultrasound: Dataset B and BUSI as released, their masks, their kinds, and what can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csamnet.datasets import DATASETS
from csamnet.files import InputError
from csamnet.images import write_image
from csamnet.readers.ultrasound import read_dataset_b
from csamnet.samples.ultrasound import _write_table

DATASET_B, BUSI = DATASETS["DatasetB"], DATASETS["BUSI"]
MASK = np.zeros((6, 9), bool)
MASK[1:3, 2:7] = True


def put(path: Path, array: np.ndarray) -> None:
    """Write a PNG: bool as 1 bit, uint8 as 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).integers(0, 255, MASK.shape, dtype=np.uint8)


def release_b(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        put(folder / "original" / f"{name}.png", picture(name))
        put(folder / "GT" / f"{name}.png", MASK if i % 2 else MASK * np.uint8(255))


def release_busi(folder: Path) -> None:
    """Two masks of one benign image, one of a malignant one, none of a normal one."""
    second = np.zeros_like(MASK)
    second[4:6, 0:3] = True
    for stem, masks in {
        "benign (4)": (MASK, second),
        "malignant (12)": (second,),
        "normal (1)": (MASK & False,),
    }.items():
        top = folder / "Dataset_BUSI_with_GT" / stem.split()[0]
        put(top / f"{stem}.png", np.stack([picture(stem)] * 3, -1))
        for i, mask in enumerate(masks):
            put(top / f"{stem}_mask{f'_{i}' * (i > 0)}.png", mask)


def messages(release) -> str:
    return "\n".join(map(str, release.problems))


@pytest.mark.parametrize("top", ["BUS", "Dataset_B", "a/b"])
def test_dataset_b_with_masks_of_1_and_8_bits(tmp_path, top):
    release_b(tmp_path / top, "000001", "000002", "000007")
    release = read_dataset_b(DATASET_B, [tmp_path])
    assert [(r.name, r.split, r.group) for r in release.records] == [
        (n, None, n) for n in ("000001", "000002", "000007")
    ]
    assert not release.problems
    for record in release.records:
        pixels = record.load()
        np.testing.assert_array_equal(pixels.image, np.stack([picture(record.name)] * 3, -1))
        np.testing.assert_array_equal(pixels.mask, MASK)
        assert pixels.labels is None
        assert not pixels.notes


def test_kinds_from_the_table(tmp_path):
    pytest.importorskip("openpyxl")
    release_b(tmp_path, "000001", "000002", "000007")
    rows = {"Image ": [1, 2, 7, 9], "TYPE": ["Benign", "Malignant", "", "Benign"], "Diagnosis": ["FA", "IDC", "?", "?"]}
    pd.DataFrame(rows).rename(columns=str.strip).to_excel(tmp_path / "DatasetB.xlsx", index=False)
    release = read_dataset_b(DATASET_B, [tmp_path])
    assert [record.organ for record in release.records] == ["benign", "malignant", "lesion"]
    (note,) = release.notes
    assert "1 images, as 000007" in note


def test_kinds_without_the_table_or_what_reads_it(tmp_path, monkeypatch):
    release_b(tmp_path, "000001")
    release = read_dataset_b(DATASET_B, [tmp_path])
    assert [record.organ for record in release.records] == ["lesion"]
    assert len(release.notes) == 1
    _write_table(tmp_path / "DatasetB.xlsx", [("Image", "Type"), ("1", "Malignant")])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    release = read_dataset_b(DATASET_B, [tmp_path])
    assert [record.organ for record in release.records] == ["lesion"]
    assert "not used: DatasetB.xlsx" in release.notes[0]
    assert "openpyxl" in release.notes[0]


def test_a_table_that_is_wrong_is_noted(tmp_path):
    pytest.importorskip("openpyxl")
    release_b(tmp_path, "000001")
    _write_table(tmp_path / "DatasetB.xlsx", [("Picture", "Type"), ("1", "Benign")])
    assert "KeyError('image')" in read_dataset_b(DATASET_B, [tmp_path]).notes[0]
    (tmp_path / "DatasetB.xlsx").write_bytes(b"PK\x03\x04 and no more")
    release = read_dataset_b(DATASET_B, [tmp_path])
    assert "not used: DatasetB.xlsx" in release.notes[0]
    assert len(release.records) == 1


def test_busi_with_its_several_masks(tmp_path):
    release_busi(tmp_path)
    release = read_dataset_b(BUSI, [tmp_path])
    assert not release.problems
    assert not release.notes
    found = {record.name: record for record in release.records}
    kinds = {"benign_4": "benign", "malignant_12": "malignant", "normal_1": "normal"}
    assert {name: record.organ for name, record in found.items()} == kinds
    assert all(record.group == name and record.split is None for name, record in found.items())
    pixels = found["benign_4"].load()
    expected = np.zeros(MASK.shape, int)
    expected[1:3, 2:7], expected[4:6, 0:3] = 1, 2
    np.testing.assert_array_equal(pixels.labels, expected)
    np.testing.assert_array_equal(pixels.mask, expected > 0)
    assert len(found["benign_4"].files) == 3
    assert found["malignant_12"].load().mask.sum() == 6
    normal = found["normal_1"].load()
    assert not normal.mask.any()
    assert not normal.notes


def test_ten_masks_in_the_order_of_their_numbers(tmp_path):
    put(tmp_path / "benign (1).png", np.zeros((3, 12), np.uint8))
    for i in range(12):
        put(tmp_path / f"benign (1)_mask{f'_{i}' * (i > 0)}.png", np.eye(1, 12, i, dtype=bool).repeat(3, 0))
    (record,) = read_dataset_b(BUSI, [tmp_path]).records
    np.testing.assert_array_equal(record.load().labels[0], np.arange(1, 13))


def test_images_and_masks_in_a_folder_each(tmp_path):
    write_image(tmp_path / "img/benign_1.tif", picture("a"))
    write_image(tmp_path / "mask/benign_1.png", MASK)
    release = read_dataset_b(BUSI, [tmp_path])
    assert [(record.name, record.organ) for record in release.records] == [("benign_1", "benign")]
    np.testing.assert_array_equal(release.records[0].load().mask, MASK)


def test_masks_that_overlap_or_are_empty_are_noted(tmp_path):
    for stem, mask in (("_mask", MASK), ("_mask_1", MASK), ("_mask_2", MASK & False)):
        put(tmp_path / f"benign (1){stem}.png", mask)
    put(tmp_path / "benign (1).png", picture("a"))
    pixels = read_dataset_b(BUSI, [tmp_path]).records[0].load()
    assert [note.split(":")[0] for note in pixels.notes] == ["benign (1)_mask_1.png", "benign (1)_mask_2.png"]
    assert "overlaps" in pixels.notes[0]
    assert "no lesion" in pixels.notes[1]
    np.testing.assert_array_equal(pixels.labels, MASK * 2)


def test_partners_that_are_missing_and_names_that_are_there_twice(tmp_path):
    release_b(tmp_path, "000001", "000002", "000003", "000004")
    (tmp_path / "original/000002.png").unlink()
    (tmp_path / "GT/000003.png").unlink()
    put(tmp_path / "copy/000004.png", picture("b"))
    release = read_dataset_b(DATASET_B, [tmp_path])
    assert [record.name for record in release.records] == ["000001"]
    assert len(release.problems) == 3
    text = messages(release)
    assert "GT/000002.png\n  expected: image 000002.*" in text
    assert "original/000003.png\n  expected: mask 000003.*" in text
    assert "the name 000004 is there twice" in text


@pytest.mark.parametrize("gone", ["_mask", "_mask_1"])
def test_a_mask_among_several_that_is_missing(tmp_path, gone):
    put(tmp_path / "benign (1).png", picture("a"))
    for stem in {"_mask", "_mask_1", "_mask_2"} - {gone}:
        put(tmp_path / f"benign (1){stem}.png", MASK)
    put(tmp_path / "benign (2).png", picture("b"))
    put(tmp_path / "benign (2)_mask.png", MASK)
    release = read_dataset_b(BUSI, [tmp_path])
    assert [record.name for record in release.records] == ["benign_2"]
    (problem,) = release.problems
    assert "a mask is missing" in str(problem)
    assert "benign (1)_mask_2.png" in str(problem)


def test_nothing_that_could_be_read(tmp_path):
    put(tmp_path / "original/000001.png", picture("a"))
    with pytest.raises(InputError, match="DatasetB is not here") as caught:
        read_dataset_b(DATASET_B, [tmp_path])
    assert "1 images, 0 masks among original" in str(caught.value)
    assert "ask its authors" in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.T, "image and mask differ in size"),
        (np.arange(54, dtype=np.uint8).reshape(6, 9) * 4 + 43, "not a mask"),
        (None, "cannot be read"),
    ],
)
def test_masks_that_are_wrong(tmp_path, mask, message):
    release_b(tmp_path, "000001")
    path = tmp_path / "GT/000001.png"
    if mask is None:
        path.write_bytes(path.read_bytes()[:45])
    else:
        put(path, mask)
    (record,) = read_dataset_b(DATASET_B, [tmp_path]).records
    with pytest.raises(InputError, match=message) as caught:
        record.load()
    assert str(path) in str(caught.value)


def test_real_images(shared):
    folder = shared / "data/BUSI"
    release = read_dataset_b(BUSI, [folder])
    assert not release.problems
    kinds = [record.organ for record in release.records]
    assert {kind: kinds.count(kind) for kind in kinds} == {"benign": 146, "malignant": 70, "normal": 13}
    for record in release.records[::12]:
        pixels, mask = record.load(), np.asarray(Image.open(folder / "mask" / f"{record.name}.png"))
        np.testing.assert_array_equal(pixels.mask, mask)
        np.testing.assert_array_equal(pixels.image, np.asarray(Image.open(record.files["image"]).convert("RGB")))
        assert pixels.mask.any() == (record.organ != "normal")
        assert not pixels.notes


def test_a_name_without_a_letter(tmp_path):
    release_b(tmp_path, "%%", "000001")
    assert [record.name for record in read_dataset_b(DATASET_B, [tmp_path]).records] == ["%%", "000001"]
