"""The look-alike releases: their layout, that a seed fixes every byte, that the task is like the real one."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tifffile
from defusedxml import ElementTree
from skimage.color import rgb2hed
from skimage.draw import polygon
from skimage.filters import threshold_otsu
from tiny import digest, overlap

from csamnet.files import InputError, read_json
from csamnet.samples import histology, make_sample
from csamnet.samples import tissue as samples
from csamnet.samples.tissue import LOOKS, ORGANS, STAINS, area, paint

SMALL = {"train": 2, "test": 1, "size": 96}


def outlines(path: Path) -> list[np.ndarray]:
    regions = ElementTree.parse(path).getroot().findall("./Annotation/Regions/Region")
    vertices = [[(float(v.get("X")), float(v.get("Y"))) for v in r.findall("./Vertices/Vertex")] for r in regions]
    return [np.array(v) for v in vertices]


def draw(regions: list[np.ndarray], size: int) -> np.ndarray:
    labels = np.zeros((size, size), int)
    for number, xy in enumerate(regions, 1):
        labels[polygon(xy[:, 1], xy[:, 0], labels.shape)] = number
    return labels


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return make_sample("MoNuSeg", tmp_path_factory.mktemp("samples"), train=6, test=4)


@pytest.fixture(scope="module")
def slides(release) -> dict[str, tuple[np.ndarray, list[np.ndarray], np.ndarray]]:
    """Name -> image, outlines as read back from the files, and their labels."""
    xml = {path.stem: outlines(path) for path in release.rglob("*.xml")}
    images = {path.stem: tifffile.imread(path) for path in sorted(release.rglob("*.tif"))}
    return {name: (image, xml[name], draw(xml[name], len(image))) for name, image in images.items()}


def test_layout_and_names(release):
    top = release / "MoNuSeg 2018 Training Data"
    train = {path.stem for path in (top / "Tissue Images").iterdir()}
    test = {path.stem for path in (release / "MoNuSegTestData").glob("*.tif")}
    assert len(train) == 6
    assert train == {path.stem for path in (top / "Annotations").glob("*.xml")}
    assert len(test) == 4
    assert test == {path.stem for path in (release / "MoNuSegTestData").glob("*.xml")}
    groups = [{name[:14] for name in names} for names in (train, test)]
    assert len(groups[0]) == 5, "one patient has two slides"
    assert not groups[0] & groups[1], "a patient is in one split"
    organs = [{ORGANS[name.split("-")[1]] for name in names} for names in (train, test)]
    assert len(organs[0]) >= 4, "the test has an organ that training lacks"
    assert organs[1] - organs[0], "the test has an organ that training lacks"
    card = read_json(release / "SAMPLE.json")
    assert (card["kind"], card["dataset"], card["seed"]) == ("sample", "MoNuSeg", 0)
    assert set(card["files"]) == set(digest(release)) - {"SAMPLE.json"}


def test_same_form_as_the_release(release, shared):
    real = next((shared / "data/native/MoNuSeg").rglob("*.tif"))
    ours = next(release.rglob("*.tif"))
    with tifffile.TiffFile(real) as a, tifffile.TiffFile(ours) as b:
        for key in ("compression", "photometric", "dtype", "samplesperpixel", "planarconfig"):
            assert getattr(a.pages[0], key) == getattr(b.pages[0], key)
        assert len(a.pages) == len(b.pages) == 1

    def paths(element, above=""):
        here = f"{above}/{element.tag}"
        return {here, *(f"{here}@{key}" for key in element.attrib)}.union(*(paths(e, here) for e in element))

    real, ours = (
        paths(ElementTree.parse(next(top.rglob("*.xml"))).getroot())
        for top in (shared / "data/native/MoNuSeg", release)
    )
    assert ours <= real
    for needed in ("@MicronsPerPixel", "/Annotation/Regions/Region/Vertices/Vertex@X"):
        assert f"/Annotations{needed}" in ours


def test_a_seed_fixes_every_byte(tmp_path):
    one = digest(make_sample("MoNuSeg", tmp_path / "a", **SMALL))
    assert digest(make_sample("MoNuSeg", tmp_path / "b", **SMALL)) == one
    other = digest(make_sample("MoNuSeg", tmp_path / "c", seed=1, **SMALL))
    assert set(other) == set(one)
    assert not set(other.values()) & set(one.values())
    more = digest(make_sample("MoNuSeg", tmp_path / "d", **SMALL | {"train": 3}))
    assert sum(more.get(name) == value for name, value in one.items()) == 4, "more images change none"


def test_nuclei_are_as_many_and_as_large_as_real_ones(slides):
    density, fraction, areas, touching = [], [], [], 0
    for image, regions, labels in slides.values():
        assert image.shape == (384, 384, 3)
        assert image.dtype == np.uint8
        flat = np.concatenate(regions)
        assert flat.min() >= 0
        assert flat.max() <= 383
        assert (flat % 1).any()
        assert len(np.unique(labels)) == len(regions) + 1, "no nucleus is hidden"
        density.append(len(regions) / labels.size * 1e6)
        fraction.append((labels > 0).mean())
        areas += np.bincount(labels.ravel())[1:].tolist()
        left, right = labels[:, :-1], labels[:, 1:]
        touching += ((left != right) & (left > 0) & (right > 0)).any()
    assert min(density) > 200
    assert max(density) < 900
    assert 400 < np.mean(density) < 700
    assert min(fraction) > 0.08
    assert max(fraction) < 0.4
    assert 0.17 < np.mean(fraction) < 0.28
    assert 350 < np.mean(areas) < 600
    low, high = np.quantile(2 * np.sqrt(np.array(areas) / np.pi), [0.1, 0.9])
    assert 12 < low < 20, "diameters"
    assert 28 < high < 38, "diameters"
    assert touching >= 8


def test_slides_differ_in_stain_and_have_what_tissue_has(slides):
    colours = [image.mean((0, 1)) for image, _, _ in slides.values()]
    assert np.ptp(colours, axis=0).min() > 20
    assert min(np.abs(a - b).max() for a, b in combinations(colours, 2)) > 2
    for image, _, labels in slides.values():
        red, green, blue = image.reshape(-1, 3).mean(0)
        assert red > green, "pink and purple"
        assert blue > green, "pink and purple"
        assert image[labels > 0].mean() < image[labels == 0].mean() - 15
    glass = [(image.min(-1) > 215).mean() for image, _, _ in slides.values()]
    assert np.mean(glass) > 0.02, "there are hollows and tears"


def test_a_threshold_does_not_solve_it(slides):
    scores = []
    for image, _, labels in slides.values():
        blue = rgb2hed(image)[..., 0]
        scores.append(overlap(blue > threshold_otsu(blue), labels > 0))
    assert min(scores) > 0.25
    assert max(scores) < 0.8
    assert 0.4 < np.mean(scores) < 0.7


def test_outlines_follow_what_is_drawn():
    shape = {"radius": 13.0, "tall": 2.0, "turn": 0.7, "dye": 1.0, "pale": 0.0, "soft": 1.5, "nucleolus": 0.0}
    for bumps, bend in ((np.zeros(3, complex), 0.0), (np.array([0.1, 0.05j, 0.03]), 0.01)):
        nucleus = samples.Nucleus(np.array([40.3, 44.8]), bumps=bumps, bend=bend, **shape)
        dye = np.zeros((3, 96, 96))
        nucleus.draw(dye, np.zeros((2, 96, 96)))
        assert overlap(dye[0] > 0.5, draw([nucleus.outline()], 96) > 0) > 0.95
        if not bend:  # an ellipse with half axes r sqrt(2) and r / sqrt(2)
            assert area(nucleus.outline()) == pytest.approx(np.pi * 13**2, rel=0.01)
            span = np.hypot(*(nucleus.outline() - [44.8, 40.3]).T)
            assert span.max() == pytest.approx(13 * 2**0.5)
            assert span.min() == pytest.approx(13 / 2**0.5)


@pytest.mark.parametrize("organ", LOOKS)
def test_every_look_at_the_smallest_size(organ):
    for seed in range(4):
        image, regions = paint(np.random.default_rng(seed), LOOKS[organ], STAINS["pink"], 64)
        assert image.shape == (64, 64, 3)
        assert all(r.shape == (48, 2) for r in regions)


def test_a_whole_sample_is_left_alone_and_a_broken_one_mended(tmp_path):
    folder = make_sample("MoNuSeg", tmp_path, **SMALL)
    before, times = digest(folder), {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert make_sample("MoNuSeg", tmp_path, **SMALL) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times
    next(folder.rglob("*.xml")).unlink()
    assert digest(make_sample("MoNuSeg", tmp_path, **SMALL)) == before
    make_sample("MoNuSeg", tmp_path, **SMALL | {"train": 1})
    assert len(list(folder.rglob("*.tif"))) == 2, "other settings replace it"
    assert [path.name for path in tmp_path.iterdir()] == ["MoNuSeg"]


def test_nothing_half_written(tmp_path, monkeypatch):
    write, calls = tifffile.imwrite, []

    def full_disk(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(path, *args, **kwargs)

    monkeypatch.setattr(histology.tifffile, "imwrite", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_sample("MoNuSeg", tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())
    folder = make_sample("MoNuSeg", tmp_path, **SMALL)
    before = digest(folder)
    calls.clear()
    with pytest.raises(OSError, match="No space"):
        make_sample("MoNuSeg", tmp_path, seed=5, **SMALL)
    assert digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["MoNuSeg"]


@pytest.mark.parametrize("settings", [{"seed": -1}, {"train": 0}, {"test": 0}, {"size": 63}])
def test_impossible_settings(tmp_path, settings):
    with pytest.raises(InputError, match="impossible settings"):
        make_sample("MoNuSeg", tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"did you mean MoNuSeg\?"):
        make_sample("MoNuSeg-without-bladder-colon-stomach", tmp_path)
    with pytest.raises(InputError, match="did you mean MoNuSeg"):
        make_sample("monuseg", tmp_path)
    real = tmp_path / "MoNuSeg"
    real.mkdir()
    (real / "slide.tif").write_text("somebody's")
    with pytest.raises(InputError, match="not a sample"):
        make_sample("MoNuSeg", tmp_path, **SMALL)
    assert [path.name for path in real.iterdir()] == ["slide.tif"]
