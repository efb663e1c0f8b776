"""Readers: outlines to pixels by hand, layouts of the release, and each way that a release can be wrong."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from csamnet.datasets import DATASETS, get_dataset
from csamnet.files import InputError, write_json
from csamnet.images import read_labels, write_image
from csamnet.readers import read_release
from csamnet.readers.common import Record, rasterise, read_outlines, unpack
from csamnet.samples import make_sample

MONUSEG = DATASETS["MoNuSeg"]
SQUARE = [(2, 2), (2, 6), (6, 6), (6, 2)]


def aperio(path: Path, *regions) -> Path:
    """Write an Aperio XML with the given outlines, each a list of (x, y)."""
    vertices = ["".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in region) for region in regions]
    listed = "".join(f"<Region><Vertices>{points}</Vertices></Region>" for points in vertices)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<Annotations><Annotation><Regions>{listed}</Regions></Annotation></Annotations>")
    return path


def pair(folder: Path, name: str, *, annotations: Path | None = None, regions=(SQUARE,)) -> None:
    """A TIFF of 12 x 10 pixels and its XML."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb")
    aperio((annotations or folder) / f"{name}.xml", *regions)


def names(release) -> dict[str, str | None]:
    return {record.name: record.split for record in release.records}


def test_a_polygon_by_hand():
    labels, notes = rasterise([np.array([(1, 1), (4.5, 1), (1, 4.5)])], (6, 6))
    expected = [  # x + y < 5.5 inside, from 1 on
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32
    assert notes == []


def test_vertices_are_x_and_y_and_pixel_centres_are_whole_numbers():
    labels, _ = rasterise([np.array([(0.6, 2.6), (5.4, 2.6), (5.4, 3.4), (0.6, 3.4)])], (6, 8))
    assert np.argwhere(labels).tolist() == [[3, 1], [3, 2], [3, 3], [3, 4], [3, 5]]


def test_later_outlines_win_and_what_sticks_out_is_cut_off():
    big, small = (
        np.array([(-3, -3), (3.5, -3), (3.5, 9), (-3, 9)]),
        np.array([(2, 2), (5, 2), (5, 4), (2, 4)]),
    )
    one, _ = rasterise([big, small], (5, 6))
    two, _ = rasterise([small, big], (5, 6))
    assert (one[3, 3], two[3, 3]) == (2, 2)
    assert (one == 1).sum() == 5 * 4 - 3 * 2
    assert (two == 1).sum() == 3 * 2  # rows 2 to 4, columns 4 and 5: what lies on an outline belongs to it


def test_outlines_without_a_pixel_are_noted():
    outlines = [
        [(1, 1), (5, 5)],
        [(50, 50), (60, 50), (60, 60)],
        [(1, 1), (4, 1), (4, 4)],
        [(np.nan, 1)] * 3,
        [],
    ]
    labels, notes = rasterise([np.array(outline) for outline in outlines], (8, 8))
    assert set(np.unique(labels)) == {0, 3}
    assert [note.split(" left out")[0] for note in notes] == ["region 1", "region 2", "region 4", "region 5"]
    assert "2 points" in notes[0]
    assert "no pixel" in notes[1]


@pytest.mark.parametrize("far", [1e18, -1e18, 1e300, np.inf, np.nan])
def test_a_vertex_that_is_no_place_leaves_its_outline_out(far):
    labels, notes = rasterise([np.array([(1, 1), (far, far), (1, 5)]), np.array(SQUARE)], (10, 10))
    assert set(np.unique(labels)) == {0, 2}
    assert notes == ["region 1 left out: 3 points, finite ones needed, 3 at least"]


def test_a_self_crossing_outline_is_filled_between_its_arms():
    labels, notes = rasterise([np.array([(0.5, 0.5), (8.5, 8.5), (8.5, 0.5), (0.5, 8.5)])], (10, 10))
    assert notes == ["1 of 1 regions cross or touch themselves"]
    assert labels[4, 1] == labels[5, 8] == 0 or labels[1, 4] == 0
    assert 20 < labels.sum() < 44  # half of the square of 8 x 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<Annotations><Region>", "cannot be read"),
        ("", "cannot be read"),
        ("\x00\x01", "cannot be read"),
        ('<?xml version="1.0" encoding="klingon"?><Annotations/>', "unknown encoding: klingon"),
        ('<Annotations><Region><Vertex X="one" Y="2"/></Region></Annotations>', "cannot be read"),
        ('<Annotations><Region><Vertex X="1"/></Region></Annotations>', "cannot be read"),
        ("<Annotations/>", "without outlines"),
        ("<svg><Region/></svg>", "without outlines"),
        (
            '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><Annotations>&y;</Annotations>',
            "EntitiesForbidden",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><Annotations>&x;</Annotations>',
            "Forbidden",
        ),
    ],
)
def test_xml_that_is_wrong(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_outlines(tmp_path / "a.xml")
    assert str(tmp_path / "a.xml") in str(caught.value)
    assert "Aperio XML" in str(caught.value)


def test_release_in_folders_of_any_name(tmp_path):
    train = tmp_path / "MoNuSeg 2018 Training Data"
    for name in ("S-AA-0001-x", "S-AA-0002-x"):
        pair(train / "Tissue Images", name, annotations=train / "Annotations")
    pair(tmp_path / "MoNuSegTestData", "S-AA-0003-x")
    for junk in ("__MACOSX/S-AA-0001-x.xml", ".hidden/S-AA-0002-x.xml", "MoNuSegTestData/._S-AA-0003-x.tif"):
        aperio(tmp_path / junk)
    release = read_release(MONUSEG, [tmp_path])
    assert names(release) == {"S-AA-0001-x": "train", "S-AA-0002-x": "train", "S-AA-0003-x": "test"}
    assert release.problems == release.notes == []
    assert not release.sample
    assert [record.group for record in release.records] == ["S-AA-0001", "S-AA-0002", "S-AA-0003"]
    pixels = release.records[0].load()
    assert pixels.image.shape == (12, 10, 3)
    assert np.argwhere(pixels.mask).min() == 2
    assert pixels.labels.max() == 1


def test_known_patients_have_their_split_and_the_seven_others_are_left_out(tmp_path):
    for name in ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1", "TCGA-XX-0000-01Z-00-DX1"):
        pair(tmp_path / "Tissue Images", name, annotations=tmp_path / "Annotations")
    release = read_release(MONUSEG, [tmp_path])
    assert names(release) == {"TCGA-A7-A13E-01Z-00-DX1": "train", "TCGA-2Z-A9J9-01A-01-TS1": "test"}
    assert [record.organ for record in release.records] == ["kidney", "breast"]
    assert len(release.notes) == 1
    assert "TCGA-XX-0000" in release.notes[0]
    (problem,) = release.problems
    assert "42 of the release's 44 images are missing" in str(problem)
    assert "TCGA-RD-A8N9" in str(problem)


def test_missing_partners_and_names_that_are_there_twice(tmp_path):
    pair(tmp_path / "train", "good")
    pair(tmp_path / "train", "image")
    (tmp_path / "train" / "image.xml").unlink()
    aperio(tmp_path / "train" / "xml.xml", SQUARE)
    pair(tmp_path / "train", "twice")
    pair(tmp_path / "train" / "again", "twice")
    release = read_release(MONUSEG, [tmp_path])
    assert names(release) == {"good": "train"}
    text = "\n".join(map(str, release.problems))
    assert "image.tif\n  expected: annotation image.*" in text
    assert "xml.xml\n  expected: image xml.*" in text
    assert "the name twice is there twice" in text
    assert len(release.problems) == 3


def test_outlines_left_out_are_noted_by_file(tmp_path):
    pair(tmp_path / "train", "a", regions=(SQUARE, [(1, 1), (2, 2)], [(90, 90), (99, 90), (99, 99)]))
    (record,) = read_release(MONUSEG, [tmp_path]).records
    assert [note.split(" left")[0] for note in record.load().notes] == ["a.xml: region 2", "a.xml: region 3"]


def test_nothing_that_could_be_read(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="MoNuSeg is not here") as caught:
        read_release(MONUSEG, [tmp_path])
    for said in ("0 TIFF, 0 XML among notes.txt", "{train,val,test}/{img,mask}", "download the training"):
        assert said in str(caught.value)


def test_tree_with_masks_or_instances_in_any_format(tmp_path):
    image, labels = np.full((5, 6, 3), 200, np.uint8), np.zeros((5, 6), np.uint16)
    labels[1, 1:3], labels[3, 3:5] = 1, 2
    write_image(tmp_path / "train/img/a.png", image)
    write_image(tmp_path / "train/inst/a.tif", labels)
    write_image(tmp_path / "val/img/b.tif", image)
    write_image(tmp_path / "val/mask/b.png", labels > 0)
    release = read_release(MONUSEG, [tmp_path])
    assert names(release) == {"a": "train", "b": "val"}
    with_labels, with_mask = (record.load() for record in release.records)
    np.testing.assert_array_equal(with_labels.labels, labels)
    np.testing.assert_array_equal(with_labels.mask, with_mask.mask)
    assert with_mask.labels is None


def test_tree_with_partners_missing_twice_or_of_another_size(tmp_path):
    for path in ("img/a.png", "img/b.png", "mask/b.png", "img/b.bmp", "mask/c.png", "img/d.png"):
        write_image((tmp_path / "train" / path).with_suffix(".png"), np.zeros((5, 6), np.uint8))
    Image.new("L", (6, 5)).save(tmp_path / "train/img/b.bmp")
    write_image(tmp_path / "train/mask/d.png", np.zeros((6, 5), np.uint8))
    release = read_release(MONUSEG, [tmp_path])
    text = "\n".join(map(str, release.problems))
    assert "img/a.png\n  expected: mask or inst a.*" in text
    assert "the name b is there twice" in text
    assert "mask/c.png\n  expected: image or inst c.*" in text
    with pytest.raises(InputError, match="image and mask differ in size") as caught:
        release.records[0].load()
    assert "5 x 6 as in" in str(caught.value)
    assert "found: 6 x 5" in str(caught.value)


def test_zips_beside_each_other_and_a_zip_of_a_tree(tmp_path):
    pair(tmp_path / "a/Training Data", "one")
    pair(tmp_path / "a/flat", "two")
    (tmp_path / "downloads").mkdir()
    with zipfile.ZipFile(tmp_path / "downloads/first.zip", "w") as first:
        for path in (tmp_path / "a/Training Data").iterdir():
            first.write(path, f"Training Data/{path.name}")
    with zipfile.ZipFile(tmp_path / "downloads/TestData.zip", "w") as second:
        for path in (tmp_path / "a/flat").iterdir():
            second.write(path, path.name)
    folders = unpack(tmp_path / "downloads", tmp_path / "scratch")
    assert names(read_release(MONUSEG, folders)) == {"one": "train", "two": "test"}
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == ["TestData.zip", "first.zip"]

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for path in (tmp_path / "downloads").iterdir():
            packed.write(path, path.name)
        packed.writestr("._first.zip", "junk")
    folders = unpack(tmp_path / "all.zip", tmp_path / "scratch1")
    assert names(read_release(MONUSEG, folders)) == {"one": "train", "two": "test"}, "as hosts pack it"

    write_image(tmp_path / "tree/train/img/a.png", np.zeros((2, 2), np.uint8))
    write_image(tmp_path / "tree/train/mask/a.png", np.zeros((2, 2), np.uint8))
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as packed:
        packed.writestr("__MACOSX/deep/._a.png", "junk")
        for kind in ("img", "mask"):
            packed.write(tmp_path / f"tree/train/{kind}/a.png", f"deep/MoNuSeg/train/{kind}/a.png")
    folders = unpack(tmp_path / "tree.zip", tmp_path / "scratch2")
    assert names(read_release(MONUSEG, folders)) == {"a": "train"}


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_zip_that_would_write_outside(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("fine.txt", "fine")
        packed.writestr(name, "evil")
    with pytest.raises(InputError, match="outside its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "scratch" / "deep")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.zip"]


def test_a_zip_of_nothing_and_one_in_capitals(tmp_path):
    pair(tmp_path / "flat", "one")
    (tmp_path / "in").mkdir()
    zipfile.ZipFile(tmp_path / "in/empty.zip", "w").close()
    with zipfile.ZipFile(tmp_path / "in/TRAIN.ZIP", "w") as packed:
        for path in (tmp_path / "flat").iterdir():
            packed.write(path, path.name)
    (tmp_path / "in/._TRAIN.zip").write_bytes(b"what macOS leaves")
    assert names(read_release(MONUSEG, unpack(tmp_path / "in", tmp_path / "scratch"))) == {"one": "train"}


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    pair(tmp_path / "train", "a")
    pair(tmp_path / "test", "b")
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("test"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="test"):
        read_release(MONUSEG, [tmp_path])


def test_whatever_a_parser_raises_is_reported_by_file(tmp_path):
    def parse(image, annotation):
        raise RecursionError("too deep")

    files = {"image": tmp_path / "a.tif", "annotation": tmp_path / "a.xml"}
    with pytest.raises(InputError, match="RecursionError: too deep") as caught:
        Record("a", "train", "a", "", files, parse).load()
    assert f"file: {tmp_path / 'a.tif'}, {tmp_path / 'a.xml'}" in str(caught.value)


def test_broken_zip_and_source_that_is_not_there(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "scratch")
    for name in ("missing", "missing.zip"):
        with pytest.raises(InputError, match="no release there"):
            unpack(tmp_path / name, tmp_path / "scratch")


def test_a_look_alike_is_known_by_its_card_its_names_and_its_place(tmp_path):
    pair(tmp_path / "R/train", "a")
    assert not read_release(MONUSEG, [tmp_path / "R"]).sample
    write_json(tmp_path / "R/SAMPLE.json", {"kind": "sample"})
    for folder in ("R", "R/train"):
        assert read_release(MONUSEG, [tmp_path / folder]).sample
    pair(tmp_path / "Q/train", "SAMPLE-BN-0001-01Z")
    release = read_release(MONUSEG, [tmp_path / "Q"])
    assert release.sample
    assert (release.records[0].group, release.records[0].organ) == ("SAMPLE-BN-0001", "brain")


def test_images_of_ones_own_may_be_called_samples(tmp_path):
    for kind in ("img", "mask"):
        write_image(tmp_path / "train" / kind / "SAMPLE_1.png", np.zeros((64, 64, 3)[: 3 - (kind == "mask")], np.uint8))
    release = read_release(replace(MONUSEG, reader="tree"), [tmp_path])
    assert [record.name for record in release.records] == ["SAMPLE_1"]
    assert not release.sample


def test_sample_release(tmp_path):
    release = read_release(MONUSEG, [make_sample("MoNuSeg", tmp_path, train=3, test=1, size=96)])
    assert release.sample
    assert not release.problems
    assert sorted(names(release).values()) == ["test", "train", "train", "train"]
    assert "unknown" not in {record.organ for record in release.records}
    for record in release.records:
        pixels = record.load()
        assert pixels.labels.max() > 1
        assert pixels.image.shape == (96, 96, 3)


def test_data_set_names():
    for name in ("MoNuSeg", "monuseg", "mo-nu seg"):
        assert get_dataset(name) is MONUSEG
    assert get_dataset("brain tumor mri") is DATASETS["BrainTumorMRI"]
    assert get_dataset("Dataset B") is DATASETS["DatasetB"]
    with pytest.raises(InputError, match="did you mean MoNuSeg"):
        get_dataset("MoNuSac")
    with pytest.raises(InputError, match="unknown data set 'zzz'"):
        get_dataset("zzz")
    assert len(DATASETS) == 10, "the nine of the paper, and BUSI"


def test_the_table_of_monuseg():
    train, test = MONUSEG.release["train"], MONUSEG.release["test"]
    assert (len(set(train)), len(set(test)), len(set(train) & set(test))) == (30, 14, 0)
    assert set(MONUSEG.validation) <= set(train)
    organs = [MONUSEG.organ_of(f"{patient}-01Z") for patient in train]
    counts = {organ: organs.count(organ) for organ in organs}
    six = dict.fromkeys(("breast", "kidney", "liver", "prostate"), 6)
    assert counts == six | dict.fromkeys(("bladder", "colon", "stomach"), 2)  # Kumar et al. 2017, table I
    assert MONUSEG.organ_of("b1") == "unknown"
    assert MONUSEG.group_of("b1") == "b1"


@pytest.mark.parametrize("name", ["train/TCGA-21-5784-01Z-00-DX1", "test/TCGA-2Z-A9J9-01A-01-TS1"])
def test_real_outlines_give_the_published_instances(shared, name):
    split, stem = name.split("/")
    release = read_release(MONUSEG, [shared / "data/native/MoNuSeg"])
    record = next(record for record in release.records if record.name == stem)
    assert record.split == split
    pixels, expected = record.load(), read_labels(shared / f"data/MoNuSeg/{split}/inst/{stem}.png")
    np.testing.assert_array_equal(pixels.labels, expected)
    (note,) = pixels.notes
    assert note.startswith(f"{stem}.xml: ")
    assert note.endswith(" regions cross or touch themselves")
    drawn = Image.new("1", pixels.mask.shape[::-1])  # an independent rasteriser, which also draws the border
    for outline in read_outlines(record.files["annotation"]):
        ImageDraw.Draw(drawn).polygon([tuple(point) for point in outline.tolist()], fill=1)
    other = np.asarray(drawn)
    assert (pixels.mask & other).sum() / (pixels.mask | other).sum() > 0.9


def test_a_look_alike_is_known_however_deep_its_folder(tmp_path):
    pair(tmp_path / "R/a/b/train", "a")
    assert not read_release(MONUSEG, [tmp_path / "R/a/b"]).sample
    write_json(tmp_path / "R/SAMPLE.json", {"kind": "sample"})
    assert read_release(MONUSEG, [tmp_path / "R/a/b"]).sample
    (tmp_path / "R/SAMPLE.json").rename(tmp_path / "R/a/b/train/SAMPLE.json")
    assert read_release(MONUSEG, [tmp_path / "R"]).sample
