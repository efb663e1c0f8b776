"""What is made of a slide's probability: nuclei, mask and burden, against independent measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
import zarr
from tiny_slides import polygons

from csamnet.instances import instances_from_probability, outlines
from csamnet.slides import STEPS, Frame
from csamnet.wsi import slide_outputs
from csamnet.wsi.slide_outputs import Nuclei


def blobs(seed: int, height: int, width: int, count: int) -> np.ndarray:
    """Overlapping ellipses of steps of probability (h, w) uint16."""
    rng, out, (y, x) = np.random.default_rng(seed), np.zeros((height, width), np.uint16), np.indices((height, width))
    for _ in range(count):
        cy, cx, a, b, turn = rng.uniform((0, 0, 4, 4, 0), (height, width, 13, 13, np.pi))
        near = np.s_[max(int(cy) - 20, 0) : int(cy) + 20, max(int(cx) - 20, 0) : int(cx) + 20]
        u, v = (y[near] - cy) * np.cos(turn) - (x[near] - cx) * np.sin(turn), (y[near] - cy) * np.sin(turn)
        v += (x[near] - cx) * np.cos(turn)
        out[near] = np.maximum(out[near], np.where((u / a) ** 2 + (v / b) ** 2 < 1, rng.integers(5000, 9999), 0))
    return out


def stored(folder: Path, values: np.ndarray) -> Path:
    """A folder with a probability in it."""
    folder.mkdir(exist_ok=True)
    array = zarr.create_array(folder / "probability.zarr", shape=values.shape, chunks=(64, 64), dtype=np.uint16)
    array[:] = values
    return folder


@pytest.mark.parametrize("count", [150, 700])
def test_nuclei_in_blocks_are_those_of_one_piece(tmp_path, monkeypatch, count):
    monkeypatch.setattr(slide_outputs, "BLOCK", 150)
    monkeypatch.setattr(slide_outputs, "MARGIN", 64)
    values = blobs(4, 470, 610, count)
    about = Frame((10, 20), (3, 4), 610, 470, 1.5, 0.5)
    folder = stored(tmp_path / "a", values)
    blocks = [(y, x) for y in range(4) for x in range(5)]
    for block in blocks:
        Nuclei(folder, about, "a", 5000)(block)
    labels = instances_from_probability(values, threshold=5000, min_area=30)
    assert slide_outputs.write_geojson(folder, blocks) == labels.max() > 80
    expected = [shapely.Polygon(points * 1.5 + (13, 24)) for _, points in outlines(labels)]
    expected.sort(key=lambda polygon: polygon.bounds)
    for got, polygon in zip(polygons(folder), expected, strict=True):
        assert got.is_valid
        assert shapely.equals_exact(got, polygon, 1e-3)


def test_a_nucleus_larger_than_the_margin_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_outputs, "BLOCK", 100)
    monkeypatch.setattr(slide_outputs, "MARGIN", 16)
    values = np.zeros((500, 400), np.uint16)
    values[40:420, 150:360] = 9000
    folder = stored(tmp_path / "a", values)
    blocks = [(y, x) for y in range(5) for x in range(4)]
    for block in blocks:
        Nuclei(folder, Frame((0, 0), (0, 0), 400, 500, 1, None), "a", 5000)(block)
    assert slide_outputs.write_geojson(folder, blocks) == 1
    assert polygons(folder)[0].area == pytest.approx(380 * 210, abs=4)


def test_the_mask_is_a_pyramid_for_openslide_and_tifffile(tmp_path):
    values = np.zeros((1500, 2300), np.uint16)
    values[200:900, 100:1700] = 5000
    values[905, 7] = 4999
    folder = stored(tmp_path / "a", values)
    slide_outputs.write_mask(folder, Frame((0, 0), (0, 0), 2300, 1500, 1, 0.25), 5000)
    expected = np.where(values >= 5000, 255, 0)
    coarse = np.round(expected[:1500, :2300].reshape(375, 4, 575, 4).mean((1, 3)) + 1e-6)
    with openslide.OpenSlide(folder / "mask.ome.tiff") as slide:
        assert slide.level_dimensions == ((2300, 1500), (575, 375))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        for level, image in enumerate((expected, coarse)):
            got = slide.read_region((0, 0), level, image.shape[::-1])
            np.testing.assert_array_equal(np.asarray(got)[..., 0], image)
    with tifffile.TiffFile(folder / "mask.ome.tiff") as file:
        assert file.is_ome
        assert [level.shape for level in file.series[0].levels] == [(1500, 2300), (375, 575)]
        np.testing.assert_array_equal(file.series[0].asarray(), expected)
        assert 'PhysicalSizeX="0.25"' in file.ome_metadata
    assert not list(folder.glob(".*"))


def test_burden_is_the_area_fraction_of_each_cell(tmp_path):
    values = (np.random.default_rng(0).random((1030, 770)) * STEPS).astype(np.uint16)
    values[:, 400:] = 0
    tissue = np.ones((103, 77), bool)
    tissue[:, 70:] = False
    about = Frame((0, 0), (0, 0), 770, 1030, 1, 0.5)  # cells of 200 pixels
    got, foreground = slide_outputs.burden(stored(tmp_path / "a", values), about, 7500, tissue, 10)
    assert got.shape == (6, 4)
    assert foreground == (values >= 7500).sum()
    assert got[1, 1] == pytest.approx((values[200:400, 200:400] >= 7500).mean())
    assert got[5, 0] == pytest.approx((values[1000:, :200] >= 7500).mean())
    assert got[0, 2] == 0
    assert not np.isnan(got).any(), "more than a quarter of the last column is tissue"
    tissue[:, 64:] = False
    assert np.isnan(slide_outputs.burden(tmp_path / "a", about, 7500, tissue, 10)[0][:, 3]).all()


def test_burden_inside_and_outside_of_cancer():
    fraction = np.array([[0.8, 0.7, 0.1], [0.75, np.nan, 0.2]], np.float32)
    about = Frame((100, 0), (7, 0), 300, 200, 2.0, 1.0)  # cells of 100 pixels, 200 of level 0
    square = np.array([[107, 0], [507, 0], [507, 200], [307, 200], [307, 400], [107, 400]])
    got = slide_outputs.inside_outside(fraction, about, [square])
    assert got["burden_inside"] == pytest.approx(0.75)
    assert got["burden_outside"] == pytest.approx(0.15)
    assert got["auc"] == 1


def test_a_square_of_which_less_than_half_is_cancer_is_outside():
    fraction, about = np.array([[0.8, 0.2]], np.float32), Frame((0, 0), (0, 0), 200, 100, 1.0, 1.0)
    for width, inside in ((60, 0.8), (40, float("nan"))):
        outline = np.array([[0, 0], [width, 0], [width, 100], [0, 100]])
        got = slide_outputs.inside_outside(fraction, about, [outline])
        assert got["burden_inside"] == pytest.approx(inside, nan_ok=True)


def test_benign_regions_are_no_cancer(tmp_path):
    def region(name: str, x: int) -> str:
        corners = "".join(f'<Vertex X="{x + a}" Y="{b}"/>' for a, b in ((0, 0), (9, 0), (9, 9)))
        return f'<Region Text="{name}"><Vertices>{corners}</Vertices></Region>'

    regions = [region(name, 100 * i) for i, name in enumerate(("Benign", "Carcinoma in situ", "Invasive"))]
    (tmp_path / "a.xml").write_text(f"<Annotations>{''.join(regions)}</Annotations>")
    assert [outline[:, 0].min() for outline in slide_outputs.annotated(tmp_path / "a.svs")] == [100, 200]
    (tmp_path / "b.xml").write_text(f"<Annotations>{region('', 0)}{region('', 100)}</Annotations>")
    assert len(slide_outputs.annotated(tmp_path / "b.svs")) == 2, "where no class is named all are taken"


def test_a_nucleus_is_measured_by_hand(tmp_path):
    """From the threshold on, in pixels that were worked at and in square micrometres."""
    values = np.zeros((200, 200), np.uint16)
    values[50:70, 60:90], values[55:60, 60:90] = 7000, 9000
    values[120:140, 60:90] = 6999
    folder = stored(tmp_path / "a", values)
    Nuclei(folder, Frame((0, 0), (0, 0), 200, 200, 2.0, 0.5), "a", 7000, "Lesion")((0, 0))
    (line,) = (folder / ".nuclei" / "0-0.json").read_text().splitlines()
    properties = json.loads(line)["properties"]
    expected = {"area_px": 600, "area_um2": 150.0, "mean_probability": 0.75}
    assert {key: properties["measurements"][key] for key in expected} == expected
    assert properties["classification"]["name"] == "Lesion"


def test_blocks_are_those_that_any_corner_of_a_tile_meets():
    about = Frame((0, 0), (0, 0), 5000, 3000, 1.0, None)
    assert slide_outputs.blocks_of([(1000, 900)], 256, about) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert slide_outputs.blocks_of([(2900, 0)], 256, about) == [(2, 0)], "none lies beyond the frame"
