"""Readers of slides: tiles and masks worked out by hand, names of classes, and what can be wrong with a release."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from csamnet.datasets import DATASETS
from csamnet.files import InputError
from csamnet.readers import read_release, slides
from csamnet.readers.common import rasterise
from csamnet.readers.slides import read_bach, read_regions, read_slides
from csamnet.slides import Slide

BACH = replace(DATASETS["BACH2018"], mpp=2.0)
IN_HOUSE = replace(DATASETS["InHouse"], mpp=0.5)
GLASS, PINK = (244, 241, 243), (205, 120, 170)
SQUARE = [(100, 50), (200, 50), (200, 150), (100, 150)]


def slide(path: Path, tissue: tuple[int, int, int, int], size=(640, 512), mpp: float | None = 2.0) -> Path:
    """Glass with a pink box (left, top, right, bottom), as Aperio writes it; a little noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, GLASS)
    image.paste(PINK, tissue)
    pixels = np.asarray(image) + np.random.default_rng(list(path.stem.encode())).integers(0, 3, (*size[::-1], 3))
    said = "Aperio Image Library v1\r\nmade|AppMag = 20" + (f"|MPP = {mpp}" if mpp else "")
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, pixels.astype(np.uint8), description=said, **options)
    return path


def region(points, text: str = "", values: str = "") -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
    inner = f'<Attributes><Attribute Name="1" Value="{values}"/></Attributes>' if values else ""
    return f'<Region Text="{text}">{inner}<Vertices>{vertices}</Vertices></Region>'


def annotate(path: Path, *regions: str, name: str = "") -> Path:
    inner = f'<Annotation Name="{name}"><Regions>{"".join(regions)}</Regions></Annotation>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<Annotations>{inner}</Annotations>")
    return path


def case(folder: Path, name: str, *regions: str, tissue=(0, 0, 512, 512), **options) -> None:
    slide(folder / f"{name}.svs", tissue, **options)
    annotate(folder / f"{name}.xml", *(regions or [region(SQUARE, "invasive")]))


def test_tiles_on_tissue_in_folders_of_any_name(tmp_path):
    case(tmp_path / "one/WSI", "A01")
    slide(tmp_path / "two/slides/A02.svs", (0, 0, 100, 256))
    annotate(tmp_path / "two/xml/A02.xml", region(SQUARE, "benign"))
    slide(tmp_path / "two/07.svs", (0, 0, 600, 500))
    release = read_bach(BACH, [tmp_path / "one", tmp_path / "two"])
    names = [record.name for record in release.records]
    corners = ("x000000_y000000", "x000000_y000256", "x000256_y000000", "x000256_y000256")
    assert names == [*(f"A01_{corner}" for corner in corners), "A02_x000000_y000000"]
    assert {(record.group, record.split, record.organ) for record in release.records} == {
        ("A01", None, "breast"),
        ("A02", None, "breast"),
    }
    assert release.problems == []
    assert release.notes == [
        "left out, since without annotation: 07",
        "A01: 4 of 6 tiles are tissue by a quarter or more",
        "A02: 1 of 6 tiles are tissue by a quarter or more",
    ]


@pytest.mark.parametrize(("right", "kept"), [(54, False), (74, True)])
def test_a_tile_needs_a_quarter_of_tissue(tmp_path, right, kept):
    case(tmp_path, "A01", tissue=(0, 0, right, 256))
    assert len(read_bach(BACH, [tmp_path]).records) == kept


def test_tiles_beyond_the_border_are_white_there(tmp_path):
    case(tmp_path, "A01", region([(500, 0), (639, 0), (639, 300), (500, 300)], "In situ"), tissue=(0, 0, 640, 256))
    pixels = next(record for record in read_bach(BACH, [tmp_path]).records if record.name[5:11] == "000512").load()
    assert pixels.image.shape == (256, 256, 3)
    assert (pixels.image[:, 128:] == 255).all()
    assert (pixels.image[:, :128] < 255).all()
    assert pixels.mask[:, :128].all()
    assert not pixels.mask[:, 128:].any()


def test_masks_at_the_slides_own_resolution_are_those_of_rasterise(tmp_path):
    rng = np.random.default_rng(0)
    star = 256 + rng.uniform(60, 200, (30, 1)) * [[np.cos(a), np.sin(a)] for a in np.linspace(0, 6, 30)]
    case(tmp_path, "A01", region(star, "invasive"))
    whole = rasterise([star], (512, 640))[0] > 0
    for record in read_bach(BACH, [tmp_path]).records:
        x, y = (int(part[1:]) for part in record.name.split("_")[1:])
        pixels = record.load()
        np.testing.assert_array_equal(pixels.mask, whole[y : y + 256, x : x + 256])
        np.testing.assert_array_equal(pixels.image, Slide(tmp_path / "A01.svs").read(x, y, 256, 256))


def test_masks_at_a_quarter_of_the_resolution(tmp_path):
    rng = np.random.default_rng(1)
    star = (1100, 700) + rng.uniform(100, 640, (40, 1)) * [[np.cos(a), np.sin(a)] for a in np.linspace(0, 6, 40)]
    case(tmp_path, "A01", region(star, "invasive"), size=(2048, 1100), tissue=(0, 0, 2048, 1100), mpp=0.5)
    records = read_bach(BACH, [tmp_path]).records
    assert [record.name[4:] for record in records] == ["x000000_y000000", "x001024_y000000"]
    outline, centres = shapely.Polygon(star).buffer(0), (np.arange(256) + 0.5) * 4 - 0.5
    for record, left in zip(records, (0, 1024), strict=True):
        x, y = np.meshgrid(centres + left, centres)
        np.testing.assert_array_equal(record.load().mask, shapely.contains_xy(outline, x, y))


def test_far_vertices_change_nothing():
    rng = np.random.default_rng(2)
    fewer = 0
    for _ in range(12):
        points = rng.uniform(-600, 900, (rng.integers(3, 40), 2)).round(3)
        points = np.concatenate([points, points[-1] + rng.normal(0, 30, (30, 2)).cumsum(0)])
        near = slides._without_far(points)
        fewer += len(near) < len(points)
        for one, other in zip(*(rasterise([p], (256, 256))[0] for p in (points, near)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert fewer > 4


def test_cancer_is_in_situ_and_invasive_and_nothing_hides_it(tmp_path):
    boxes = {"invasive": (10, 60), "Carcinoma IN SITU": (50, 120), "Benign": (20, 200)}
    regions = [region([(a, 10), (b, 10), (b, 20), (a, 20)], text) for text, (a, b) in boxes.items()]
    case(tmp_path, "A01", *regions)
    pixels = read_bach(BACH, [tmp_path]).records[0].load()
    row = pixels.classes[15]
    assert row[[9, 10, 55, 60, 61, 120, 121, 200, 201]].tolist() == [0, 3, 3, 3, 2, 2, 1, 1, 0]
    np.testing.assert_array_equal(pixels.mask, pixels.classes >= 2)
    assert (pixels.labels, pixels.classes.dtype) == (None, np.uint8)


@pytest.mark.parametrize(
    ("text", "values", "name", "expected"),
    [
        ("Benign", "", "", 1),
        ("", "carcinoma in situ", "", 2),
        ("", "In-Situ", "", 2),
        ("insitu", "", "", 2),
        ("", "", "Invasive carcinoma", 3),
        ("INVASIVE", "", "benign", 3),
        ("", "", "", None),
        ("normal", "", "", None),
        ("benign, or in situ", "", "", None),
    ],
)
def test_names_of_classes(tmp_path, text, values, name, expected):
    path = annotate(tmp_path / "A01.xml", region(SQUARE, text, values), name=name)
    if expected:
        ((number, outline),) = read_regions(path)
        assert number == expected
        assert outline.tolist() == [list(map(float, point)) for point in SQUARE]
    else:
        with pytest.raises(InputError, match="region 1 is of no known class") as caught:
            read_regions(path)
        assert str(path) in str(caught.value)
        assert "benign, in situ, invasive" in str(caught.value)


def test_regions_that_cannot_be_drawn_are_noted(tmp_path):
    far = [(900, 10), (990, 10), (990, 90)]
    nan, huge = [("nan", 1), (5, 1), (5, 5)], [(1e300, 1), (5, 1), (5, 5)]
    case(tmp_path, "A01", *(region(points, "invasive") for points in (SQUARE, SQUARE[:2], far, [], nan, huge)))
    release = read_bach(BACH, [tmp_path])
    assert release.problems == []
    assert [note.split(":")[1:] for note in release.notes[:-1]] == [
        [" region 2 left out", " 2 points, finite ones needed, 3 at least"],
        [" region 3 left out", " it is outside of the slide"],
        [" region 4 left out", " 0 points, finite ones needed, 3 at least"],
        [" region 5 left out", " 3 points, finite ones needed, 3 at least"],
        [" region 6 left out", " 3 points, finite ones needed, 3 at least"],
    ]
    assert release.records[0].load().mask.sum() == 101 * 101
    case(tmp_path, "A02", *(region(points, "invasive") for points in (far, huge)))
    release = read_bach(BACH, [tmp_path])
    assert {record.group for record in release.records} == {"A01"}
    assert "nothing of an annotation can be drawn" in str(release.problems)


def test_files_that_are_wrong_are_named_and_the_rest_is_read(tmp_path):
    case(tmp_path, "A01")
    annotate(tmp_path / "A02.xml", region(SQUARE, "invasive"))
    case(tmp_path, "A03", region(SQUARE, "normal"))
    case(tmp_path, "A04")
    (tmp_path / "A04.svs").write_bytes(b"II*\0 and no more")
    case(tmp_path, "A05")
    (tmp_path / "A05.xml").write_text("<Annotations><Region>")
    case(tmp_path / "a", "A06")
    case(tmp_path / "b", "A06")
    release = read_bach(BACH, [tmp_path])
    assert {record.group for record in release.records} == {"A01"}
    said = [str(error) for error in release.problems]
    assert len(said) == 5
    for error, what, name in zip(
        said,
        ("not one slide", "no known class", "cannot be read", "cannot be read", "not one slide"),
        ("A02.xml", "A03.xml", "A04.svs", "A05.xml", "b/A06.xml"),
        strict=True,
    ):
        assert what in error
        assert str(tmp_path / name) in error


def test_no_resolution_is_taken_as_documented(tmp_path):
    case(tmp_path, "A01", size=(1096, 1096), tissue=(0, 0, 1096, 1096), mpp=None)
    release = read_bach(replace(BACH, mpp=4 * 0.467), [tmp_path])
    assert release.notes[0] == "A01.svs does not say its resolution: taken as 0.467 um per pixel, as documented"
    pixels = release.records[0].load()
    assert pixels.mask.sum() == 625  # centres of pixels at 101.5, 105.5 ... 197.5
    expected = np.asarray(Image.fromarray(Slide(tmp_path / "A01.svs").read(0, 0, 1024, 1024)).reduce(4), float)
    np.testing.assert_allclose(pixels.image, expected, atol=1)


def test_releases_that_are_not_there(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for reader, dataset, expected in ((read_bach, BACH, "A01.svs"), (read_slides, IN_HOUSE, "OpenSlide")):
        with pytest.raises(InputError, match="is not here") as caught:
            reader(dataset, [tmp_path])
        assert expected in str(caught.value)
        assert "notes.txt" in str(caught.value)
        assert dataset.how_to_get in str(caught.value)


def test_slides_are_counted_and_not_their_tiles(tmp_path):
    few = replace(BACH, counts={"all": 2})
    case(tmp_path, "A01")
    case(tmp_path, "A02")
    release = read_release(few, [tmp_path])
    assert len(release.records) > 2
    assert release.problems == []
    (tmp_path / "A02.xml").unlink()
    (problem,) = read_release(few, [tmp_path]).problems
    assert "1 images fewer than the release has" in str(problem)
    (tmp_path / "A01.xml").unlink()
    with pytest.raises(InputError, match="BACH2018 is not here"):
        read_release(few, [tmp_path])


def test_any_slides_as_the_region_with_most_tissue(tmp_path):
    slide(tmp_path / "a/wide.svs", (1100, 500, 1900, 1100), size=(2000, 1200), mpp=0.5)
    slide(tmp_path / "b/fine.svs", (600, 300, 640, 340), mpp=0.25)
    slide(tmp_path / "b/SAMPLE-bare.svs", (0, 0, 300, 500), mpp=None)
    Image.new("RGB", (40, 30), PINK).save(tmp_path / "b/plain.png")
    release = read_slides(IN_HOUSE, [tmp_path / "a", tmp_path / "b"])
    assert release.problems == []
    assert {(record.split, record.group == record.name) for record in release.records} == {("test", True)}
    assert release.notes == [
        "SAMPLE-bare does not say its resolution: read in its own pixels",
        "plain does not say its resolution: read in its own pixels",
    ]
    assert release.sample
    images = {record.name: record.load().image for record in release.records}
    assert {name: image.shape[:2] for name, image in images.items()} == {
        "SAMPLE-bare": (512, 640),
        "fine": (256, 320),
        "plain": (30, 40),
        "wide": (1024, 1024),
    }
    assert {record.load().mask is None for record in release.records} == {True}
    tissue = (images["wide"][..., 1] < 180).sum()
    assert tissue == pytest.approx(800 * 600, rel=0.01), "all of it is in the region"


def test_slides_that_are_wrong_or_twice_there(tmp_path):
    slide(tmp_path / "one.svs", (0, 0, 300, 500))
    shutil.copy(tmp_path / "one.svs", tmp_path / "two.svs")
    slide(tmp_path / "a/three.svs", (0, 0, 300, 500))
    slide(tmp_path / "b/three.svs", (0, 0, 300, 400))
    (tmp_path / "broken.ndpi").write_bytes(b"II*\0")
    release = read_slides(IN_HOUSE, [tmp_path])
    assert [record.name for record in release.records] == ["one"]
    assert release.notes == ["two left out, since it is the same slide as one"]
    broken, twice = map(str, release.problems)
    assert "broken.ndpi" in broken
    assert "three is there twice" in twice
    assert str(tmp_path / "a/three.svs") in twice


def test_real_slides(shared):
    release = read_slides(IN_HOUSE, [shared / "data/WSI"])
    assert [record.name for record in release.records] == ["CMU-1-Small-Region", "TCGA-CR-7395-01A-01-TS1"]
    assert len(release.notes) == 1
    for record in release.records:
        image = record.load().image
        assert image.shape == (1024, 1024, 3)
        assert (image.min(-1) < 200).mean() > 0.6
