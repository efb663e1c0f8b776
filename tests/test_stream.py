"""Slides as streams: equal to one pass in memory, whatever the size; stopped and gone on with; files others open."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import filelock
import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
import tifffile
import torch
import zarr
from test_slides import pyramid
from tiny import discs
from torch import nn

from csamnet import slide_jobs, slide_outputs, slide_run, stream
from csamnet.config import RunConfig
from csamnet.data import change_to, restained, stain_of
from csamnet.evaluate import predict_probability
from csamnet.files import InputError, sha256_file
from csamnet.inference import load
from csamnet.instances import instances_from_probability, outlines
from csamnet.model import CSAMNet, save_weights
from csamnet.slide_jobs import overview, run_slides, share_slides, write_overview
from csamnet.slide_outputs import Nuclei
from csamnet.slide_run import Options, run_slide
from csamnet.slides import STEPS, Frame, Slide
from csamnet.stream import Clock, Grid, Network, infer, normalising, stitch

WHOLE = Options(at=0.5, whole=True, batch=3)
ALL = np.ones((1, 1), bool), 1e9  # tissue everywhere


PLAIN = RunConfig(tile=128, precision="fp32")


class Dark(nn.Module):
    """Dark is foreground; what lies beyond a tile's border counts as grey, so that seams show."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Conv2d(3, 1, 5, padding=2)
        nn.init.constant_(self.mean.weight, 1 / 75)
        nn.init.constant_(self.mean.bias, -0.4)
        self.config = PLAIN

    def forward(self, x):
        logit = -4 * self.mean(x)
        return torch.cat([-logit, logit], 1)


@pytest.fixture
def model() -> Dark:
    return Dark().eval()


def whole(slide: Slide, model: Dark, **changes) -> np.ndarray:
    return predict_probability(model, slide.read(0, 0, *slide.size), tile=128, **changes)


def frame(slide: Slide) -> Frame:
    return slide_run.frame_of(slide, 0.25, WHOLE)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (129, 500), (700, 131), (640, 1100), (90, 300), (60, 70)])
def test_the_stream_is_one_pass_over_the_whole(tmp_path, model, height, width):
    slide = Slide(pyramid(tmp_path / "a.svs", [discs(height, height, width)[0]]))
    grid, stored = Grid(frame(slide), 128, 0.5), np.zeros((height, width), np.uint16)
    expected, tiles = whole(slide, model), grid.tiles(*ALL)
    read, network = stream.reader(slide, grid), Network(model, PLAIN)
    done = ((corner, network(read(corner)[None])[0]) for corner in tiles)
    np.testing.assert_allclose(np.concatenate(list(stitch(grid, done))), expected, atol=1e-6)
    infer(slide, network, grid, tiles, stored, batch=7, clock=Clock())
    np.testing.assert_allclose(stored / STEPS, expected, atol=5.1e-5)
    assert (stored > STEPS / 2).any()
    assert (stored < STEPS / 2).any()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_any_overlap(tmp_path, model, overlap):
    slide, stored = Slide(pyramid(tmp_path / "a.svs", [discs(1, 400, 333)[0]])), np.zeros((400, 333), np.uint16)
    grid = Grid(frame(slide), 128, overlap)
    infer(slide, Network(model, PLAIN), grid, grid.tiles(*ALL), stored, batch=4, clock=Clock())
    np.testing.assert_allclose(stored / STEPS, whole(slide, model, overlap=overlap), atol=5.1e-5)


def test_glass_is_skipped_and_tissue_is_not_changed_by_it(tmp_path, model):
    image = np.full((1200, 900, 3), 245, np.uint8)
    image[300:700, 200:600] = discs(2, 400, 400)[0]
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    tissue, coarse = slide.tissue(300)
    grid, stored = Grid(frame(slide), 128, 0.5), np.zeros(image.shape[:2], np.uint16)
    tiles = grid.tiles(tissue, coarse)
    assert len(tiles) < 0.5 * len(grid.tiles(*ALL))
    infer(slide, Network(model, PLAIN), grid, tiles, stored, batch=4, clock=Clock())
    fine = np.kron(tissue, np.ones((4, 4), bool))[:1200, :900]
    np.testing.assert_allclose(stored[fine] / STEPS, whole(slide, model)[fine], atol=5.1e-5)
    assert not stored[:150].any()
    assert not stored[900:].any()


def test_a_slide_is_brought_to_the_stain_that_was_learned(tmp_path, model):
    """As an image of the same pixels is; without glass, of which a slide's stain is not measured."""
    image, model.stain = discs(4, 500, 700)[0], [[0.1, 0.3, 0.4], [0.2, 0.1, 0.1]]
    slide, config = Slide(pyramid(tmp_path / "a.svs", [image])), replace(PLAIN, normalise=0.5)
    grid, pixels = Grid(frame(slide), 128, 0.5), slide.read(0, 0, *slide.size)
    tiles = grid.tiles(*ALL)
    change = normalising(slide, model, config, grid, tiles)
    factors, shifts = change_to(stain_of(pixels), model.stain, 0.5)
    torch.testing.assert_close(change[0], factors, atol=0.05, rtol=0)  # tiles overlap and count the middle twice
    torch.testing.assert_close(change[1], shifts, atol=0.05, rtol=0)
    network, changed = Network(model, config, change=change), restained(torch.from_numpy(pixels)[None], *change)
    stored = np.zeros(pixels.shape[:2], np.uint16)
    infer(slide, network, grid, tiles, stored, batch=4, clock=Clock())
    np.testing.assert_allclose(stored / STEPS, predict_probability(model, changed[0].numpy(), tile=128), atol=5.1e-5)
    assert np.abs(stored / STEPS - whole(slide, model)).max() > 0.01, "it matters"
    assert normalising(slide, model, PLAIN, grid, tiles) == normalising(slide, model, config, grid, []) == ()


def test_the_stain_of_a_slide_is_drawn_from_all_over_it(tmp_path, model):
    """Of 32 columns of tiles and as many rows, every 16th tile would be of two columns only: there is glass."""
    image, model.stain = np.tile(discs(4, 528, 528)[0], (4, 4, 1)), [[0.1, 0.3, 0.4], [0.2, 0.1, 0.1]]
    image[:, :200] = image[:, 1000:1200] = 245
    slide, config = Slide(pyramid(tmp_path / "a.svs", [image])), replace(PLAIN, normalise=1.0)
    grid = Grid(frame(slide), 128, 0.5)
    tiles = [(y, x) for y in range(0, 2048, 64) for x in range(0, 2048, 64)]
    change = normalising(slide, model, config, grid, tiles)
    factors, shifts = change_to(stain_of(slide.read(0, 0, *slide.size)), model.stain)
    torch.testing.assert_close(change[0], factors, atol=0.1, rtol=0)
    torch.testing.assert_close(change[1], shifts, atol=0.1, rtol=0)


def test_another_share_of_normalisation_is_another_slide(tmp_path, model):
    model.stain = [[0.1, 0.3, 0.4], [0.2, 0.1, 0.1]]
    path, out = pyramid(tmp_path / "a.svs", [discs(4, 300, 300)[0]]), tmp_path / "out"
    plain = run_slide(model, path, out, WHOLE)
    changed = run_slide(model, path, out, WHOLE._replace(normalise=1.0))
    assert (plain["status"], changed["status"]) == ("done", "done")
    assert plain["area_fraction"] != changed["area_fraction"]
    assert run_slide(model, path, out, WHOLE._replace(normalise=1.0))["status"] == "already done"
    model.stain = [[0.2, 0.3, 0.4], [0.2, 0.1, 0.1]]
    assert run_slide(model, path, out, WHOLE._replace(normalise=1.0))["status"] == "done"


def test_a_slide_cannot_be_brought_to_a_stain_that_is_not_known(tmp_path, model):
    path = pyramid(tmp_path / "a.svs", [discs(4, 300, 300)[0]])
    with pytest.raises(InputError, match="the stain that images could be normalised to"):
        run_slide(model, path, tmp_path / "out", WHOLE._replace(normalise=1.0))
    for settings, said in (
        ({"normalise": 1.0}, "the stain"),
        ({"normalise": 2.0}, "normalise cannot"),
        ({"threshold": 2}, "threshold cannot"),
    ):
        with pytest.raises(InputError, match=said):
            run_slides(model, [path], tmp_path / "out", WHOLE._replace(**settings))
    assert not (tmp_path / "out").exists(), "no slide is to blame"


def test_memory_that_runs_out_halves_the_batch(model):
    class Small(Dark):
        def forward(self, x):
            sizes.append(len(x))
            if len(x) > 3:
                raise torch.OutOfMemoryError("no room")
            return super().forward(x)

    sizes, pixels = [], discs(3, 128, 128 * 9)[0].reshape(128, 9, 128, 3).swapaxes(0, 1).copy()
    small = Network(Small(), PLAIN)
    np.testing.assert_allclose(small(pixels), Network(model, PLAIN)(pixels), atol=1e-6)
    assert sizes == [9, 4, 2, 2, 2, 2, 1], "the size that fitted is kept"
    small(pixels[:2])
    assert sizes[-1] == 2


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


def polygons(folder: Path) -> list[shapely.Polygon]:
    features = json.loads((folder / "nuclei.geojson").read_text())["features"]
    assert len({feature["id"] for feature in features}) == len(features)
    return sorted((shapely.geometry.shape(feature["geometry"]) for feature in features), key=lambda p: p.bounds)


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


# ----------------------------------------------------------------------------------------- whole slides


@pytest.fixture
def path(tmp_path) -> Path:
    image = np.full((900, 1300, 3), 245, np.uint8)
    image[100:800, 150:1100] = discs(5, 700, 950)[0]
    return pyramid(tmp_path / "slide.svs", [image, image[::4, ::4]])


def everything(folder: Path) -> dict[str, str]:
    """Hashes of what must not depend on when a slide was stopped."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in (".lock", "progress.json")]
    return {str(file.relative_to(folder)): sha256_file(file) for file in files if file.name != "summary.csv"}


def test_what_a_slide_leaves(tmp_path, model, path):
    path.with_suffix(".xml").write_text(
        "<Annotations><Annotation><Regions><Region><Vertices>"
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((100, 100), (700, 100), (700, 800), (100, 800)))
        + "</Vertices></Region></Regions></Annotation></Annotations>"
    )
    ticks, folder = [], tmp_path / "out"
    got = run_slide(model, path, folder, Options(at=0.5, batch=3), on_tile=lambda *tick: ticks.append(tick))
    left = {"burden.csv", "burden.npy", "burden.png", "mask.ome.tiff", "nuclei.geojson", "probability.zarr"}
    left |= {".lock", "progress.json", "report.png", "summary.csv"}
    assert {file.name for file in folder.iterdir()} == left
    array, slide = zarr.open_array(folder / "probability.zarr", mode="r"), Slide(path)
    assert array.attrs["scale_factor"] == 1 / STEPS
    assert array.metadata.dimension_names == ("y", "x")
    inner = np.s_[150:750, 200:1050]
    np.testing.assert_allclose(array[:][inner] / STEPS, whole(slide, model)[inner], atol=5.1e-5)
    labels = instances_from_probability(array[:], threshold=5000)
    assert got["nuclei"] == len(polygons(folder)) == labels.max() > 5
    assert got["tissue_mm2"] == pytest.approx(700 * 950 * 0.25e-6, rel=0.05)
    assert got["nuclei_per_mm2"] == pytest.approx(got["nuclei"] / got["tissue_mm2"])
    assert got["area_fraction"] == pytest.approx((array[:] >= 5000).sum() * 0.25e-6 / got["tissue_mm2"])
    assert 0 <= got["auc"] <= 1
    with openslide.OpenSlide(folder / "mask.ome.tiff") as mask:
        region = np.asarray(mask.read_region((200, 150), 0, (850, 600)))[..., 0]
    np.testing.assert_array_equal(region > 0, array[:][inner] >= 5000)
    assert ticks[-1][0] == ticks[-1][1]
    kept, when = everything(folder), (folder / "mask.ome.tiff").stat().st_mtime_ns
    again = run_slide(model, path, folder, Options(at=0.5, batch=5))
    assert again["status"] == "already done"
    assert again["nuclei"] == got["nuclei"]
    assert (folder / "mask.ome.tiff").stat().st_mtime_ns == when
    assert run_slide(model, path, folder, Options(at=0.5, batch=3, threshold=0.7))["status"] == "done"
    changed = everything(folder)
    assert changed["mask.ome.tiff"] != kept["mask.ome.tiff"]
    stored = [name for name in kept if name.startswith("probability.zarr/c")]
    assert stored
    assert all(changed[name] == kept[name] for name in stored)


def test_another_threshold_leaves_the_probability(tmp_path, model, path, monkeypatch):
    first = run_slide(model, path, tmp_path / "a" / "slide", WHOLE)
    new = run_slide(model, path, tmp_path / "b" / "slide", WHOLE._replace(threshold=0.7))
    monkeypatch.setattr(slide_run, "infer", lambda *_, **__: pytest.fail("what does not depend on it was done again"))
    again = run_slide(model, path, tmp_path / "a" / "slide", WHOLE._replace(threshold=0.7))
    assert again["nuclei"] == new["nuclei"]
    assert again["area_fraction"] < first["area_fraction"]
    assert everything(tmp_path / "a" / "slide") == everything(tmp_path / "b" / "slide")
    with pytest.raises(pytest.fail.Exception):
        run_slide(model, path, tmp_path / "a" / "slide", WHOLE._replace(tta=True))


def test_a_removal_that_was_stopped_is_not_taken_for_results(tmp_path, model, path, monkeypatch):
    """A wrong setting, stopped while the old results go, and the right setting again."""
    run_slide(model, path, tmp_path / "out", WHOLE)
    kept = everything(tmp_path / "out")

    def stopped(file: Path) -> None:
        next(file.glob("c/*/*")).unlink() if file.is_dir() else file.unlink(missing_ok=True)
        if file.name == "probability.zarr":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(slide_run, "_remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_slide(model, path, tmp_path / "out", WHOLE._replace(tta=True))
    run_slide(model, path, tmp_path / "out", WHOLE)
    assert everything(tmp_path / "out") == kept


def test_a_smaller_batch_is_taken_when_it_goes_on(tmp_path, model, path, monkeypatch):
    sizes = []
    run_slide(model, path, tmp_path / "out", WHOLE._replace(batch=8))
    job = json.loads((tmp_path / "out" / "progress.json").read_text())
    (tmp_path / "out" / "progress.json").write_text(json.dumps(job | {"status": "begun", "rows": 0}))
    monkeypatch.setattr(Network, "_run", lambda self, x: sizes.append(len(x)) or np.zeros((len(x), 128, 128), "f4"))
    run_slide(model, path, tmp_path / "out", WHOLE._replace(batch=2))
    assert max(sizes) == 2


def test_an_xml_of_another_program_is_no_annotation(tmp_path, model, path):
    for text in ("<Annotations/>", "<ASAP_Annotations><Annotations/></ASAP_Annotations>"):
        path.with_suffix(".xml").write_text(text)
        assert "burden_inside" not in run_slide(model, path, tmp_path / "out", WHOLE)


def test_what_fails_for_one_slide_leaves_a_word_and_the_others(tmp_path, model, path, monkeypatch):
    def work(job):
        if job.slide.path == path:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"nuclei": 1}

    other, told = pyramid(tmp_path / "other.svs", [discs(8, 200, 200)[0]]), []
    with monkeypatch.context() as patched:
        patched.setattr(slide_run.Job, "run", work)
        rows = run_slides(model, [path, other], tmp_path / "out", WHOLE, on_row=told.append)
    assert told == rows
    assert [row["status"] for row in rows] == ["broken", "done"]
    assert "--batch 1" in rows[0]["error"]
    table = overview(tmp_path / "out").set_index("folder")
    assert table["status"].to_dict() == {"slide": "broken", "other": "stopped"}
    assert table["error"]["slide"] == "CUDA out of memory"
    write_overview(tmp_path / "out")
    (row,) = run_slides(model, [path], tmp_path / "out", WHOLE)
    assert row["status"] == "done"
    assert overview(tmp_path / "out").set_index("folder")["status"]["slide"] == "done"
    (row,) = run_slides(model, [tmp_path / "nowhere" / "slide.svs"], tmp_path / "out", WHOLE)
    assert row["status"] == "broken"
    table = overview(tmp_path / "out").set_index("folder").loc["slide"]
    assert table["status"] == "done", "what was finished stays"
    assert table["nuclei"] > 5
    assert "cannot be read" in table["error"]


def test_files_of_one_dicom_slide_are_done_once(tmp_path, monkeypatch):
    class Series:
        def __init__(self, path):
            self.identity = path.parent.name

    monkeypatch.setattr(slide_jobs, "Slide", Series)
    files = [tmp_path / place / name for place in "ab" for name in ("1.dcm", "2.dcm")]
    assert list(slide_jobs._folders(files, tmp_path)) == [files[0], files[2]]


def test_weights_that_do_not_say_their_resolution(tmp_path, model, path):
    model.mpp = None
    with pytest.raises(InputError, match=r"do not say what they have learned(?s:.*)--at 0\.5 works"):
        run_slide(model, path, tmp_path / "out", Options(whole=True))
    model.mpp = 0.5
    assert run_slide(model, path, tmp_path / "out", Options(whole=True))["mpp"] == 0.5


def test_a_region_is_the_slide_s_and_lies_where_it_was(tmp_path, model, path):
    run_slide(model, path, tmp_path / "out", Options(at=1.0, region=(160, 120, 600, 500), batch=2, whole=True))
    image = Slide(path).read(160, 120, 300, 250, 1.0)
    expected = predict_probability(model, image, tile=128)
    array = zarr.open_array(tmp_path / "out" / "probability.zarr", mode="r")
    np.testing.assert_allclose(array[:] / STEPS, expected, atol=5.1e-5)
    labels = instances_from_probability(array[:], threshold=5000)
    wanted = shapely.union_all([shapely.Polygon(points * 2 + (160, 120)) for _, points in outlines(labels)])
    assert shapely.symmetric_difference(shapely.union_all(polygons(tmp_path / "out")), wanted).area < 1
    with pytest.raises(InputError, match="not on the slide"):
        run_slide(model, path, tmp_path / "b", Options(at=1.0, region=(900, 0, 600, 500)))


def test_resolution_that_is_not_known(tmp_path, model):
    image = discs(6, 200, 260)[0]
    bare = pyramid(tmp_path / "bare.svs", [image], mpp=None)
    with pytest.raises(InputError, match="--mpp"):
        run_slide(model, bare, tmp_path / "a", Options(whole=True))
    got = run_slide(model, bare, tmp_path / "a", Options(mpp=0.25, whole=True))
    assert got["mpp"] == 0.25
    tifffile.imwrite(tmp_path / "plain.tif", image, photometric="rgb")
    got = run_slide(model, tmp_path / "plain.tif", tmp_path / "b", Options(whole=True))
    assert got["mpp"] is None
    assert np.isnan(got["tissue_mm2"])
    array = zarr.open_array(tmp_path / "b" / "probability.zarr", mode="r")
    np.testing.assert_allclose(array[:] / STEPS, predict_probability(model, image, tile=128), atol=5.1e-5)
    with openslide.OpenSlide(tmp_path / "b" / "mask.ome.tiff") as mask:
        assert "openslide.mpp-x" not in mask.properties


def test_a_slide_given_twice_is_done_once(tmp_path, model, path):
    rows = run_slides(model, [path, str(path), path.parent / "." / path.name], tmp_path / "out", WHOLE)
    assert [row["status"] for row in rows] == ["done"]
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == [path.stem]


def test_broken_slides_and_those_of_others_do_not_stop_the_rest(tmp_path, model, path):
    for folder in ("b", "c", "out/x"):
        (tmp_path / folder).mkdir(parents=True)
    broken, other = tmp_path / "broken.svs", pyramid(tmp_path / "b" / "x.svs", [discs(7, 200, 200)[0]])
    broken.write_bytes(b"II*\0 and no more")
    with filelock.FileLock(tmp_path / "out" / "x" / ".lock"):
        rows = run_slides(model, [broken, other, path], tmp_path / "out", WHOLE)
    assert [row["status"] for row in rows] == ["broken", "at work elsewhere", "done"]
    assert "cannot be read" in rows[0]["error"]
    assert not (tmp_path / "out" / "x" / "progress.json").exists()
    image = pyramid(tmp_path / "c" / "slide.svs", [discs(8, 200, 200)[0]])
    (row,) = run_slides(model, [image], tmp_path / "out", WHOLE)
    assert row["status"] == "broken"
    assert "of another slide" in row["error"]
    with filelock.FileLock(tmp_path / "out" / "slide" / ".lock"):
        (row,) = run_slides(model, [image], tmp_path / "out", WHOLE)
    assert "of another slide" in row["error"], "and not at work elsewhere"


def test_processes_share_a_folder_of_slides(tmp_path):
    """Two processes do what one does, byte by byte; what cannot be read is told of, and the rest is done."""
    torch.manual_seed(0)
    model, weights = CSAMNet(8).eval(), tmp_path / "w.safetensors"
    model.config = RunConfig(model="CSAMNet-XXS", tile=128, precision="fp32")
    save_weights(model.state_dict(), weights, config=json.dumps(model.config.to_dict()))
    slides = [pyramid(tmp_path / f"{i}.svs", [discs(i, 200, 260)[0]]) for i in range(3)]
    slides[1].write_bytes(b"II*\0 and no more")
    options = Options(at=0.5, whole=True, batch=2)
    run_slides(load(weights, "cpu"), slides, tmp_path / "one", options)
    ticks = []
    rows = share_slides(
        weights, slides, tmp_path / "two", options, device="cpu", devices=2, on_slide=lambda *t: ticks.append(t)
    )
    assert [row["status"] for row in rows] == ["done", "broken", "done"]
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    for name in "02":
        assert everything(tmp_path / "one" / name) == everything(tmp_path / "two" / name)
    with pytest.raises(InputError, match="not so many devices"):
        share_slides(weights, slides, tmp_path / "two", options, device="cpu", devices=os.cpu_count() + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_that_share_slides_end_with_the_one_that_started_them(tmp_path, how):
    slides = [pyramid(tmp_path / f"{i}.svs", [discs(i, 1600, 1600)[0]]) for i in range(2)]
    command = [sys.executable, "-m", "csamnet", "slide", *map(str, slides), "--out", str(tmp_path / "out"), "--whole"]
    command += ["--weights", "MoNuSeg", "--device", "cpu", "--devices", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(stream.__file__).parents[1])}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & is deaf to it
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "preexec_fn": heard}
    with subprocess.Popen(command, **options) as main:
        limit = time.time() + 120
        while len([*tmp_path.glob("out/*/progress.json")]) < 2 and time.time() < limit:
            time.sleep(0.1)
        children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
        assert len(children) >= 2
        main.send_signal(how)
        said = main.stderr.read().decode()  # until the last process that holds it has ended
    assert main.returncode in (130, -how)
    assert "Traceback" not in said
    limit = time.time() + 10
    while (left := [child for child in children if Path(f"/proc/{child}").exists()]) and time.time() < limit:
        time.sleep(0.05)
    assert not left
    assert set(overview(tmp_path / "out")["status"]) == {"stopped"}, "not worked to their end first"


def test_how_far_slides_are(tmp_path, model, path):
    with pytest.raises(InputError, match="no slide was begun"):
        overview(tmp_path)
    run_slides(model, [path], tmp_path / "out", WHOLE)
    other = tmp_path / "out" / "other"
    other.mkdir()
    job = json.loads((tmp_path / "out" / "slide" / "progress.json").read_text())
    (other / "progress.json").write_text(json.dumps(job | {"status": "begun", "rows": 450}))
    with filelock.FileLock(other / ".lock"):
        assert overview(tmp_path / "out")["status"].to_list() == ["at work", "done"]
    table = overview(tmp_path / "out").set_index("folder")
    assert table["status"].to_dict() == {"other": "stopped", "slide": "done"}
    assert table["done"].to_dict() == {"other": 0.5, "slide": 1}
    assert table["nuclei"]["slide"] > 5
    write_overview(tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["nuclei"].max() == table["nuclei"]["slide"]
    (other / "progress.json").write_text("{}")
    assert overview(tmp_path / "out")["status"].to_list() == ["unreadable", "done"]


def test_flips_and_turns_are_those_of_the_evaluation(tmp_path, path):
    class Left(Dark):
        """What lies to the right makes a pixel darker, so that a flip changes it."""

        def forward(self, x):
            return super().forward(0.5 * x + 0.5 * torch.roll(x, 9, 3))

    model, slide = Left().eval(), Slide(path)
    run_slide(model, path, tmp_path / "tta", WHOLE._replace(tta=True))
    found = zarr.open_array(tmp_path / "tta" / "probability.zarr", mode="r")[:] / STEPS
    np.testing.assert_allclose(found, whole(slide, model, tta=True), atol=5.1e-5)
    assert np.abs(found - whole(slide, model)).max() > 0.01


def test_changed_code_makes_a_slide_stale(tmp_path, model, path, monkeypatch):
    assert run_slide(model, path, tmp_path / "out", WHOLE)["status"] == "done"
    assert run_slide(model, path, tmp_path / "out", WHOLE)["status"] == "already done"
    monkeypatch.setattr(slide_run, "code_sha256", lambda *_: "other")
    assert run_slide(model, path, tmp_path / "out", WHOLE)["status"] == "done"


def test_only_our_own_files_are_ever_removed(tmp_path, model, path):
    """A folder of a slide's name may hold the slide itself."""
    own = path.with_suffix("") / path.name
    own.parent.mkdir()
    path.rename(own)
    (row,) = run_slides(model, [own], tmp_path, WHOLE)
    assert row["status"] == "broken"
    assert "holds other things" in row["error"]
    assert own.exists()
    (row,) = run_slides(model, [own], tmp_path / "out", WHOLE)
    (tmp_path / "out" / "slide" / "notes.txt").write_text("kept")
    (row,) = run_slides(model, [own], tmp_path / "out", WHOLE._replace(threshold=0.7))
    assert row["status"] == "done"
    assert (tmp_path / "out" / "slide" / "notes.txt").exists()


def test_what_is_missing_or_new_is_made_up_for(tmp_path, model, path):
    folder = tmp_path / "out"
    once = run_slide(model, path, folder, WHOLE)
    for name in ("mask.ome.tiff", "summary.csv", "probability.zarr/zarr.json"):
        (folder / name).unlink()
        if name.startswith("prob"):
            shutil.rmtree(folder / "probability.zarr")
        assert run_slide(model, path, folder, WHOLE)["status"] == "done"
        assert (folder / name).exists()
    (folder / "summary.csv").write_text("name\n")
    assert run_slide(model, path, folder, WHOLE)["nuclei"] == once["nuclei"]
    path.with_suffix(".xml").write_text(REGION.format("nan") + REGION.format(100))
    with pytest.raises(InputError, match="annotation"):
        run_slide(model, path, folder, WHOLE)
    path.with_suffix(".xml").write_text(f"<Annotations>{REGION.format('nan')}{REGION.format(100)}</Annotations>")
    assert run_slide(model, path, folder, WHOLE)["burden_inside"] > 0
    assert run_slide(model, path, folder, WHOLE)["status"] == "already done"


REGION = """<Annotation><Regions><Region><Vertices><Vertex X="{}" Y="100"/><Vertex X="700" Y="100"/>
<Vertex X="700" Y="800"/><Vertex X="100" Y="800"/></Vertices></Region></Regions></Annotation>"""


@pytest.mark.parametrize(
    "job",
    ["[]", "{}", '{"status": "done"}', None, {"rows": "x"}, {"rows": 10**9}, {"seconds": None}, {"batch": 0}],
)
def test_a_damaged_job_says_how_to_mend_it(tmp_path, model, path, job):
    run_slide(model, path, tmp_path / "out", WHOLE)
    file = tmp_path / "out" / "progress.json"
    file.write_text(
        job if isinstance(job, str) else json.dumps(json.loads(file.read_text()) | (job or {"settings": {}}))
    )
    with pytest.raises(InputError, match=r"remove this file"):
        run_slide(model, path, tmp_path / "out", WHOLE)
    assert overview(tmp_path)["status"].to_list() == ["unreadable"]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e9, 1e-9])
@pytest.mark.parametrize("key", ["mpp", "at"])
def test_impossible_resolutions(tmp_path, model, path, key, value):
    with pytest.raises(InputError, match=rf"--{key} cannot be used"):
        run_slides(model, [path], tmp_path / "out", WHOLE._replace(**{key: value}))
    assert not (tmp_path / "out").exists()


FORKS = """
import os, sys, time, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
import csamnet.slide_figures
from test_stream import Dark, WHOLE
from csamnet.slide_run import run_slide
class Slow(Dark):
    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        run_slide(Slow().eval(), Path({path!r}), Path({folder!r}), WHOLE)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Starts a slow run of a slide in a process of its own for every line it reads; prints its id, and how it ended."""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, model, path):
    run_slide(model, path, tmp_path / "once", WHOLE)
    expected, folder, rng = everything(tmp_path / "once"), tmp_path / "killed" / "once", np.random.default_rng(0)
    text = FORKS.format(tests=str(Path(__file__).parent), path=str(path), folder=str(folder))
    environment = os.environ | {"PYTHONPATH": str(Path(stream.__file__).parents[1])}
    pipes, ends, rows = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, [], []
    with subprocess.Popen([sys.executable, "-c", text], env=environment, **pipes) as forks:
        for _ in range(10):
            print(file=forks.stdin, flush=True)
            child = int(forks.stdout.readline())
            time.sleep(rng.uniform(0.05, 1.5))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            ends.append(int(forks.stdout.readline()))
            if (folder / "progress.json").exists():
                rows.append(json.loads((folder / "progress.json").read_text())["rows"])
        forks.stdin.close()
    assert set(ends) <= {0, -signal.SIGKILL}
    assert ends.count(-signal.SIGKILL) > 2
    assert rows == sorted(rows), "what was done is not done again"
    run_slide(model, path, folder, WHOLE)
    assert everything(folder) == expected
    assert pd.read_csv(folder / "summary.csv")["nuclei"][0] > 5
