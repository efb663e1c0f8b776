"""Readers of Kumar, CPM17 and PUMA: instances and polygons by hand, layouts, and all that can be wrong."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array

from csamnet.datasets import DATASETS
from csamnet.files import InputError, read_json, write_json
from csamnet.images import read_image, read_labels, write_image
from csamnet.readers import read_release
from csamnet.readers.histology import PUMA_CLASSES, draw, read_cpm17, read_inst_map, read_kumar, read_monuseg, read_puma

KUMAR, CPM17, PUMA = DATASETS["Kumar"], DATASETS["CPM17"], DATASETS["PUMA"]
FEW_CPM17, FEW_PUMA = replace(CPM17, counts={}), replace(PUMA, counts={})
INST = np.array([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 2, 2], [0, 0, 0, 0, 2, 2]])
SQUARE = [[2, 2], [2, 6], [6, 6], [6, 2], [2, 2]]


def picture(path: Path, shape: tuple[int, ...] = (3, 6, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(str(path).encode())).integers(0, 255, shape, dtype=np.uint8)
    if path.suffix == ".png":
        write_image(path, pixels)
    else:
        extra = ["unassalpha"] if shape[2:] == (4,) else []
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=extra)
    return path


def mat(path: Path, inst=INST, key: str = "inst_map") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {key: inst, "type_map": inst})
    return path


def aperio(path: Path) -> Path:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in [(1, 0), (3, 0), (3, 1), (1, 1)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<Annotations><Region><Vertices>{vertices}</Vertices></Region></Annotations>")
    return path


def polygon(*rings) -> dict:
    return {"type": "Polygon", "coordinates": rings}


def collection(geometry: dict) -> dict:
    return {"type": "GeometryCollection", "geometries": [geometry]}


def geojson(path: Path, *nuclei) -> Path:
    """Write nuclei, each a geometry and what its class is called."""
    features = [
        {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}
        for geometry, name in nuclei
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def names(release) -> dict[str, str | None]:
    return {record.name: record.split for record in release.records}


def said(release) -> str:
    return "\n".join(map(str, release.problems))


# instances in MATLAB files


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.float64])
@pytest.mark.parametrize("version", ["4", "5", "7.3", "HDF5"])
def test_instances_of_any_version_of_matlab(tmp_path, version, kind):
    path, inst = tmp_path / "a.mat", INST.astype(kind)
    if version in ("4", "5"):
        savemat(path, {"inst_map": inst}, format=version)
    else:
        with h5py.File(path, "w", userblock_size=512 if version == "7.3" else 0) as file:
            file["inst_map"] = inst.T  # by columns
            file.create_group("#refs#")
        if version == "7.3":
            with open(path, "r+b") as stream:
                stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    labels = read_inst_map(path)
    np.testing.assert_array_equal(labels, INST)
    assert labels.dtype == np.int32


def test_a_matlab_file_that_cannot_be_read(tmp_path):
    whole = mat(tmp_path / "whole.mat").read_bytes()
    for content in (b"", b"no MATLAB at all" * 20, whole[:200], whole[:-20], b"\x89HDF\r\n\x1a\n broken"):
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(InputError, match="a MATLAB file cannot be read") as caught:
            read_inst_map(tmp_path / "a.mat")
        assert str(tmp_path / "a.mat") in str(caught.value)


def test_sparse_instances(tmp_path):
    savemat(tmp_path / "a.mat", {"inst_map": csc_array(INST.astype(float))})
    np.testing.assert_array_equal(read_inst_map(tmp_path / "a.mat"), INST)


def test_a_matlab_file_with_another_key(tmp_path):
    with pytest.raises(InputError, match="without instances") as caught:
        read_inst_map(mat(tmp_path / "a.mat", key="instances"))
    assert "expected: the key inst_map\n  found: instances, type_map" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [INST - 1, INST / 2, INST * np.nan, INST + np.inf, INST * 2.0**40, np.stack([INST] * 2), np.zeros((0, 4)), "text"],
)
def test_a_matlab_file_with_something_else_under_the_key(tmp_path, values):
    with pytest.raises(InputError, match="not a map of instances") as caught:
        read_inst_map(mat(tmp_path / "a.mat", values))
    assert str(tmp_path / "a.mat") in str(caught.value)


# Kumar


def test_the_table_has_the_split_of_kumar(shared):
    split = read_json(shared / "data/MoNuSeg/kumar_split.json")
    patients = {part: {KUMAR.group_of(name) for name in listed} for part, listed in split.items()}
    assert set(KUMAR.release["train"]) == patients["train"] | patients["val"]
    assert set(KUMAR.validation) == patients["val"]
    assert set(KUMAR.release["test"]) == patients["test"]
    for subset, part in (("same organs", "test_same_organ"), ("different organs", "test_different_organ")):
        ours = {name for name in split["test"] if KUMAR.organ_of(name) in KUMAR.subsets[subset]}
        assert ours == set(split[part])
    assert set(KUMAR.release["train"] + KUMAR.release["test"]) == set(DATASETS["MoNuSeg"].release["train"])


@pytest.mark.parametrize("suffix", [".xml", ".mat"])
def test_kumar_out_of_a_copy_of_monuseg(tmp_path, suffix):
    release = DATASETS["MoNuSeg"].release
    patients = [*release["train"], *release["test"], "TCGA-XX-0000"]
    for patient in patients:
        picture(tmp_path / "Tissue images" / f"{patient}-01Z-00-DX1.tif")
        make = aperio if suffix == ".xml" else mat
        make(tmp_path / "Annotations" / f"{patient}-01Z-00-DX1{suffix}")
    kumar = read_kumar(KUMAR, [tmp_path])
    assert kumar.problems == []
    assert Counter(record.split for record in kumar.records) == {"train": 16, "test": 14}
    assert {KUMAR.group_of(note.split(": ")[1]) for note in kumar.notes} == {*release["test"], "TCGA-XX-0000"}
    test = Counter(record.organ for record in kumar.records if record.split == "test")
    same, different = KUMAR.subsets.values()
    assert (sum(test[organ] for organ in same), sum(test[organ] for organ in different)) == (8, 6)
    assert kumar.records[0].load().labels.tolist()[0] == [0, 1, 1, (suffix == ".xml") * 1, 0, 0]


def test_kumar_in_xml_and_mat_with_images_missing(tmp_path):
    for name in ("TCGA-A7-A13E-01Z", "TCGA-DK-A2I6-01A", "TCGA-HE-7128-01Z"):
        picture(tmp_path / f"{name}.tif")
        mat(tmp_path / f"{name}.mat")
    aperio(tmp_path / "TCGA-A7-A13E-01Z.xml")
    (tmp_path / "TCGA-HE-7128-01Z.mat").unlink()
    release = read_kumar(KUMAR, [tmp_path])
    assert {record.name: record.files["annotation"].suffix for record in release.records} == {
        "TCGA-A7-A13E-01Z": ".xml",
        "TCGA-DK-A2I6-01A": ".mat",
    }
    partner, missing = map(str, release.problems)
    assert "TCGA-HE-7128-01Z.tif\n  expected: annotation" in partner
    assert "27 of the release's 30 images are missing" in missing
    assert "TCGA-RD-A8N9" in missing
    assert "TCGA-HE-7128" not in missing


def test_kumar_where_every_image_is_of_another_set(tmp_path):
    picture(tmp_path / "test/TCGA-2Z-A9J9-01A.tif")
    aperio(tmp_path / "test/TCGA-2Z-A9J9-01A.xml")
    release = read_kumar(KUMAR, [tmp_path])
    assert release.records == []
    assert len(release.notes) == 1
    assert "30 of the release's 30 images are missing" in said(release)


def test_painted_images_have_the_split_of_their_folder(tmp_path):
    for split, organ in (("train", "BR"), ("test", "ST")):
        picture(tmp_path / f"Kumar {split}/Tissue images/SAMPLE-{organ}-0001-01Z.tif")
        aperio(tmp_path / f"Kumar {split}/Annotations/SAMPLE-{organ}-0001-01Z.xml")
    release = read_kumar(KUMAR, [tmp_path])
    assert names(release) == {"SAMPLE-BR-0001-01Z": "train", "SAMPLE-ST-0001-01Z": "test"}
    assert release.problems == []
    assert release.sample
    assert {record.organ for record in release.records} == {"breast", "stomach"}


def test_a_real_release_of_kumar(shared, tmp_path):
    stems = {"TCGA-A7-A13E-01Z-00-DX1": "train", "TCGA-DK-A2I6-01A-01-TS1": "test", "TCGA-21-5784-01Z-00-DX1": "test"}
    known = {stem: read_labels(shared / f"data/MoNuSeg/train/inst/{stem}.png") for stem in stems}
    for stem in list(stems)[:2]:
        image = read_image(shared / f"data/MoNuSeg/train/img/{stem}.webp")
        write_image(tmp_path / f"{stem}.tif", image)
        mat(tmp_path / f"{stem}.mat", known[stem].astype(float))
    release = read_kumar(KUMAR, [tmp_path, shared / "data/native/MoNuSeg"])
    assert names(release) == stems
    assert {record.name: record.organ for record in release.records} == dict(
        zip(stems, ("breast", "bladder", "liver"), strict=True)
    )
    assert release.notes == ["left out, since not of Kumar: TCGA-2Z-A9J9-01A-01-TS1"]
    assert "27 of the release's 30 images are missing" in said(release)
    for record in release.records:
        pixels = record.load()
        np.testing.assert_array_equal(pixels.labels, known[record.name])
        np.testing.assert_array_equal(pixels.image, read_image(shared / f"data/MoNuSeg/train/img/{record.name}.webp"))


# CPM17


def cpm17(folder: Path, split: str, number: int) -> None:
    picture(folder / split / f"Images/image_{number:02d}.png")
    mat(folder / split / f"Labels/image_{number:02d}.mat")


def test_cpm17_with_the_same_names_in_both_splits(tmp_path):
    for split in ("train", "test"):
        cpm17(tmp_path / "cpm17", split, 0)
        picture(tmp_path / f"cpm17/{split}/Overlay/image_00.png")
    cpm17(tmp_path / "cpm17", "train", 31)
    release = read_cpm17(FEW_CPM17, [tmp_path])
    assert release.problems == release.notes == []
    assert names(release) == {"train_00": "train", "train_31": "train", "test_00": "test"}
    assert [record.group for record in release.records] == [record.name for record in release.records]
    for record in release.records:
        folders = {path.parent.parent.name for path in record.files.values()}
        assert folders == {record.split}
        np.testing.assert_array_equal(record.load().labels, INST)
        np.testing.assert_array_equal(record.load().mask, INST > 0)


def test_cpm17_with_files_that_are_missing_wrong_or_in_no_split(tmp_path):
    top = tmp_path / "download"  # the name of this test has a split in it
    for number in range(4):
        cpm17(top, "train", number)
    (top / "train/Images/image_00.png").unlink()
    (top / "train/Labels/image_01.mat").unlink()
    mat(top / "train/Labels/image_02.mat", INST[:, :5])
    cpm17(top, "else", 0)
    release = read_cpm17(FEW_CPM17, [top])
    assert names(release) == {"train_02": "train", "train_03": "train", "00": None}
    assert len(release.problems) == 2
    assert "image_00.mat\n  expected: image train_00" in said(release)
    assert "image_01.png\n  expected: annotation train_01" in said(release)
    with pytest.raises(InputError, match="differ in size") as caught:
        next(record for record in release.records if record.name == "train_02").load()
    assert "image_02.mat" in str(caught.value)
    assert "expected: 3 x 6 as in" in str(caught.value)
    assert "found: 3 x 5" in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *[(name, None) for name in ("latest", "contest", "CONTEST", "restrained", "train_and_test")],
        *[(name, "test") for name in ("MoNuSegTestData", "cpm17_test")],
        *[(name, "train") for name in ("My TRAINING data", "Train/latest")],
    ],
)
def test_a_split_is_a_word_in_the_name_of_a_folder(tmp_path, folder, split):
    top = tmp_path / "download"
    cpm17(top, folder, 0)
    (record,) = read_cpm17(FEW_CPM17, [top]).records
    assert record.split == split


def test_counts_of_cpm17(tmp_path):
    for split in ("train", "test"):
        for number in range(32):
            cpm17(tmp_path, split, number)
    assert read_release(CPM17, [tmp_path]).problems == []
    cpm17(tmp_path, "train", 32)
    cpm17(tmp_path, "train", 33)
    (tmp_path / "test/Images/image_07.png").unlink()
    (tmp_path / "test/Labels/image_07.mat").unlink()
    many, few = map(str, read_release(CPM17, [tmp_path]).problems)
    assert "2 images more than the release has" in many
    assert "expected: 32 pairs of image and annotation in train\n  found: 34" in many
    assert "1 images fewer than the release has" in few
    assert "expected: 32 pairs of image and annotation in test\n  found: 31" in few
    write_json(tmp_path / "SAMPLE.json", {"kind": "sample"})
    assert read_release(CPM17, [tmp_path]).problems == []
    assert read_release(CPM17, [tmp_path / "train"]).problems == [], "its card lies beside the folder"


@pytest.mark.parametrize(
    ("read", "dataset", "found"),
    [
        (read_monuseg, DATASETS["MoNuSeg"], "0 TIFF, 0 XML"),
        (read_kumar, KUMAR, "0 TIFF, 0 XML or MAT"),
        (read_cpm17, CPM17, "1 PNG, 0 MAT"),
        (read_puma, PUMA, "0 TIFF, 0 _nuclei.geojson"),
    ],
)
def test_a_folder_of_something_else(tmp_path, read, dataset, found):
    picture(tmp_path / "holiday.png")
    with pytest.raises(InputError, match=f"{dataset.name} is not here") as caught:
        read(dataset, [tmp_path])
    assert f"found: {found} among holiday.png" in str(caught.value)
    assert dataset.how_to_get in str(caught.value)


# PUMA: polygons


def test_a_polygon_with_a_hole_by_hand():
    hole = [[3, 3], [3, 4], [4.5, 4], [4.5, 3], [3, 3]]
    labels, notes = draw([polygon(SQUARE, hole)], (8, 9))
    expected = np.zeros((8, 9), int)
    expected[2:7, 2:7] = 1
    expected[3:5, 3:5] = 0  # columns 3 and 4: the hole ends before 5
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32
    assert notes == []


def test_what_lies_below_shows_through_a_hole_and_later_polygons_win():
    below, above = polygon([[3, 0], [5, 0], [5, 8], [3, 8], [3, 0]]), polygon(SQUARE, [[3, 3], [5, 3], [5, 5], [3, 5]])
    labels, _ = draw([below, above], (9, 9))
    assert labels[4].tolist() == [0, 0, 2, 1, 1, 1, 2, 0, 0]
    assert labels[2].tolist() == [0, 0, 2, 2, 2, 2, 2, 0, 0]
    assert labels[8].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    labels, _ = draw([above, below], (9, 9))
    assert labels[2].tolist() == [0, 0, 1, 2, 2, 2, 1, 0, 0]


def test_a_multipolygon_is_one_instance_also_with_an_island_in_a_hole():
    ring = [[[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]], [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]]
    island = [[[4, 4], [5, 4], [5, 5], [4, 5], [4, 4]]]
    apart = [[[10, 0], [11, 0], [11, 1], [10, 1], [10, 0]]]
    rows = []
    for parts in ([ring, island, apart], [island, apart, ring]):
        labels, notes = draw([{"type": "MultiPolygon", "coordinates": parts}], (9, 12))
        assert notes == []
        assert (labels == 1).sum() == 9 * 9 - 5 * 5 + 4 + 4
        rows.append(labels[4].tolist())
    assert rows[0] == rows[1] == [1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0]


def test_random_polygons_as_shapely_has_them():
    rng, shapes = np.random.default_rng(0), []
    for _ in range(30):
        turn, spread = np.sort(rng.uniform(0, 2 * np.pi, 24)), rng.uniform(4, 12, (24, 1))
        star = np.stack([np.cos(turn), np.sin(turn)], 1) * spread
        ring = shapely.Polygon(star * 0.4)
        holed = shapely.Polygon(star + rng.uniform(-5, 45, 2) * [[1, 1]])
        shift = np.array(holed.centroid.coords[0])
        cut = holed.difference(shapely.affinity.translate(ring, *shift))
        shapes.append(cut)
    labels, notes = draw([json.loads(shapely.to_geojson(shape)) for shape in shapes], (40, 44))
    rows, columns = np.indices((40, 44))
    expected = np.zeros((40, 44), int)
    for number, shape in enumerate(shapes, 1):
        expected[shapely.contains_xy(shape, columns, rows)] = number
    np.testing.assert_array_equal(labels, expected)
    drawn = set(np.unique(labels))
    assert len(drawn) > 15
    for note in notes:
        assert int(note.split()[1]) not in drawn


def test_a_polygon_that_crosses_itself_is_mended():
    labels, notes = draw([polygon([[0, 0], [6, 6], [6, 0], [0, 6], [0, 0]])], (7, 7))
    assert labels.tolist() == [
        [1, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1, 1],
        [1, 1, 1, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 1, 1, 1],
        [1, 1, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 0, 1],
    ]
    assert notes == ["feature 1 mended: Self-intersection[3 3]"]


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        (polygon([[1, 1], [5, 5]]), "not a polygon of three points"),
        (polygon([[1, 1], [3, 3], [5, 5], [1, 1]]), "not a polygon of three points"),
        (polygon(), "not a polygon of three points"),
        (polygon([[1, 1], [float("nan"), 3], [5, 1], [1, 1]]), "not a polygon of three points"),
        (polygon([[1, 1], [float("inf"), 3], [5, 1], [1, 1]]), "not a polygon of three points"),
        (polygon([[1, 1], [1e300, 3], [5, 1], [1, 1]]), "not a polygon of three points"),
        (polygon([["a", "b"], [1, 3], [5, 1]]), "not a polygon of three points"),
        ({"type": "Point", "coordinates": [3, 3]}, r"POINT \(3 3\)"),
        ({"type": "LineString", "coordinates": SQUARE}, "LINESTRING"),
        ({"type": "Circle"}, "Unknown geometry type"),
        (collection(collection(collection(polygon(SQUARE)))), "GEOMETRYCOLLECTION"),
        ({"type": "Polygon"}, "coordinates"),
        (None, "not a polygon of three points"),
        (polygon([[50, 50], [60, 50], [60, 60], [50, 50]]), "no pixel of the image"),
        (polygon([[-9, -9], [-5, -9], [-5, -1], [-9, -9]]), "no pixel of the image"),
        (polygon([[1.2, 1.2], [1.8, 1.2], [1.8, 1.8], [1.2, 1.2]]), "no pixel of the image"),
    ],
)
def test_what_is_no_polygon_in_the_image_is_left_out_with_a_note(geometry, why):
    labels, notes = draw([geometry, polygon(SQUARE)], (8, 9))
    assert set(np.unique(labels)) == {0, 2}
    (note,) = notes
    assert note.startswith("feature 1 left out: ")
    assert why.replace("\\", "") in note


def test_what_sticks_out_is_cut_off():
    labels, notes = draw([polygon([[-5, -5], [3, -5], [3, 20], [-5, 20]])], (8, 9))
    assert notes == []
    np.testing.assert_array_equal(np.argwhere(labels.any(0)).ravel(), [0, 1, 2, 3])
    assert labels[:, :4].all()


# PUMA: files


def test_puma_with_its_classes(tmp_path):
    images, nuclei = tmp_path / "01_training_dataset_tif_ROIs", tmp_path / "01_training_dataset_geojson_nuclei"
    for kind, shape in (("primary", (8, 9, 4)), ("metastatic", (8, 9, 3))):
        stem = f"training_set_{kind}_roi_001"
        picture(images / f"{stem}.tif", shape)
        far = polygon([[90, 90], [99, 90], [99, 99], [90, 90]])
        small = polygon([[3, 3], [4, 3], [4, 4], [3, 4]])
        listed = ((far, "nuclei_tumor"), (polygon(SQUARE), "nuclei_stroma"), (small, "nuclei_epithelium"))
        geojson(nuclei / f"{stem}_nuclei.geojson", *listed)
        geojson(tmp_path / f"geojson_tissue/{stem}_tissue.geojson", (polygon(SQUARE), "tissue_tumor"))
        picture(tmp_path / f"context/{stem}_context.tif")
    release = read_puma(FEW_PUMA, [tmp_path])
    assert release.problems == release.notes == []
    assert names(release) == dict.fromkeys(("training_set_metastatic_roi_001", "training_set_primary_roi_001"))
    assert [record.organ for record in release.records] == ["metastatic", "primary"]
    assert [record.group for record in release.records] == [record.name for record in release.records]
    for record in release.records:
        pixels = record.load()
        assert pixels.image.shape == (8, 9, 3)
        np.testing.assert_array_equal(pixels.image, tifffile.imread(record.files["image"])[..., :3])
        assert pixels.labels[2:7, 2:7].tolist() == [[2] * 5, [2, 3, 3, 2, 2], [2, 3, 3, 2, 2], [2] * 5, [2] * 5]
        classes = np.array([0, 1, 2, 10])[pixels.labels]
        np.testing.assert_array_equal(pixels.classes, classes)
        np.testing.assert_array_equal(pixels.mask, classes > 0)
        assert pixels.classes.dtype == np.uint8
        assert list(pixels.notes) == [
            f"{record.name}_nuclei.geojson: feature 1 left out: no pixel of the image lies inside"
        ]


def test_ten_classes_in_a_fixed_order():
    assert sorted(PUMA_CLASSES.values()) == list(range(1, 11))
    assert (PUMA_CLASSES["nuclei_tumor"], PUMA_CLASSES["nuclei_lymphocyte"], PUMA_CLASSES["nuclei_epithelium"]) == (
        1,
        6,
        10,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"type": "FeatureCollection"}', "without outlines"),
        ('{"features": [{"properties": {"classification": {"name": "nuclei_alien"}}}]}', "'nuclei_alien' in feature 1"),
        ('{"features": [{"properties": {"classification": {"name": ["a"]}}}]}', "unknown class"),
        ('{"features": [{"properties": {}}]}', "unknown class"),
        ('{"features": [{"properties": null}]}', "unknown class"),
        ('{"features": ["nucleus"]}', "unknown class"),
    ],
)
def test_geojson_that_is_wrong(tmp_path, text, message):
    picture(tmp_path / "primary_1.tif")
    (tmp_path / "primary_1_nuclei.geojson").write_text(text, errors="surrogateescape")
    (record,) = read_puma(FEW_PUMA, [tmp_path]).records
    with pytest.raises(InputError, match=message) as caught:
        record.load()
    assert "primary_1_nuclei.geojson" in str(caught.value)


def test_puma_with_files_missing_and_its_counts(tmp_path):
    for number in range(1, 4):
        picture(tmp_path / f"roi_primary_{number}.tif")
        geojson(tmp_path / f"roi_primary_{number}_nuclei.geojson", (polygon(SQUARE), "nuclei_tumor"))
    (tmp_path / "roi_primary_1.tif").unlink()
    (tmp_path / "roi_primary_2_nuclei.geojson").unlink()
    release = read_release(PUMA, [tmp_path])
    assert list(names(release)) == ["roi_primary_3"]
    image, nuclei, count = map(str, release.problems)
    assert "roi_primary_1_nuclei.geojson\n  expected: image roi_primary_1.*" in image
    assert "roi_primary_2.tif\n  expected: annotation roi_primary_2.*" in nuclei
    assert "205 images fewer than the release has" in count
    assert "expected: 206 pairs of image and annotation\n  found: 1" in count
    assert read_release(replace(PUMA, counts={"all": 1}), [tmp_path]).problems[2:] == []
    write_json(tmp_path / "SAMPLE.json", {"kind": "sample"})
    assert len(read_release(PUMA, [tmp_path]).problems) == 2


def test_a_real_region_of_puma(shared):
    release = read_puma(FEW_PUMA, [shared / "data/native/PUMA"])
    assert release.problems == []
    (record,) = release.records
    assert (record.name, record.organ, record.split) == ("training_set_metastatic_roi_094", "metastatic", None)
    pixels = record.load()
    assert pixels.image.shape == (1024, 1024, 3)
    assert list(pixels.notes) == []
    features = read_json(record.files["annotation"])["features"]
    assert len(np.unique(pixels.labels)) - 1 == len(features) == 671
    expected = np.zeros((1024, 1024), int)
    for number, feature in enumerate(features, 1):
        shape = shapely.geometry.shape(feature["geometry"])
        left, top, right, bottom = (int(edge) for edge in shape.bounds)
        rows, columns = np.mgrid[top : min(bottom, 1023) + 1, left : min(right, 1023) + 1]
        shapely.prepare(shape)
        expected[rows, columns] = np.where(shapely.intersects_xy(shape, columns, rows), number, expected[rows, columns])
    np.testing.assert_array_equal(pixels.labels, expected)
    classes = {number: kind for kind, number in PUMA_CLASSES.items()}
    first = [pixels.classes[pixels.labels == number][0] for number in range(1, 672)]
    assert Counter(classes[number] for number in first) == {  # counted in the file
        "nuclei_lymphocyte": 475,
        "nuclei_tumor": 180,
        "nuclei_histiocyte": 10,
        "nuclei_apoptosis": 3,
        "nuclei_plasma_cell": 2,
        "nuclei_endothelium": 1,
    }
    grey = np.asarray(Image.fromarray(pixels.image).convert("L"))
    assert grey[pixels.mask].mean() < grey[~pixels.mask].mean() - 30, "outlines lie on what is dark"


def test_an_annotation_of_which_nothing_can_be_drawn(tmp_path):
    picture(tmp_path / "primary_1.tif")
    geojson(tmp_path / "primary_1_nuclei.geojson", (polygon([[50, 50], [60, 50], [60, 60], [50, 50]]), "nuclei_tumor"))
    with pytest.raises(InputError, match="nothing of an annotation can be drawn") as caught:
        read_puma(FEW_PUMA, [tmp_path]).records[0].load()
    assert f"file: {tmp_path / 'primary_1_nuclei.geojson'}" in str(caught.value)
    geojson(tmp_path / "primary_1_nuclei.geojson")  # nobody saw a nucleus: that is no fault
    assert not read_puma(FEW_PUMA, [tmp_path]).records[0].load().mask.any()
