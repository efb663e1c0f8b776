"""Look-alike slides: what scanners write, what annotations say, and that the task is like the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2hed
from skimage.draw import polygon
from tiny import digest

from csamnet.datasets import DATASETS
from csamnet.readers.slides import read_bach, read_regions, read_slides
from csamnet.samples.slides import bach2018, in_house
from csamnet.slides import Slide

MPP = 0.467


@pytest.fixture(scope="module")
def bach(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bach")
    bach2018(folder, 0, slides=3, size=1024)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    in_house(folder, 0, size=768)
    return folder


def coarse(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> a slide at 1.868 um per pixel, and its classes drawn from its XML."""
    found = {}
    for path in sorted(folder.rglob("*.svs")):
        slide = Slide(path)
        image = slide.read(0, 0, slide.size[0] // 4, slide.size[1] // 4, 4 * MPP)
        classes = np.zeros(image.shape[:2], np.uint8)
        for number, points in read_regions(path.with_suffix(".xml")):
            classes[polygon(points[:, 1] / 4, points[:, 0] / 4, classes.shape)] = number
        found[path.stem] = image, classes
    return found


def test_layout_of_the_release(bach):
    top = bach / "ICIAR2018_BACH_Challenge/WSI"
    names = ["A01", "A02", "A03"]
    assert sorted(path.name for path in top.iterdir() if path.is_file()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("svs", "xml")
    )
    assert sorted(path.name for path in (top / "gt_thumbnails").iterdir()) == [f"{name}.png" for name in names]


@pytest.mark.parametrize(("which", "mpp", "power"), [("bach", MPP, "20"), ("house", 0.25, "40")])
def test_openslide_takes_them_for_pyramids_of_an_aperio_scanner(request, which, mpp, power):
    for path in request.getfixturevalue(which).rglob("*.svs"):
        slide = openslide.OpenSlide(path)
        about = slide.properties
        assert about["openslide.vendor"] == "aperio"
        assert float(about["openslide.mpp-x"]) == float(about["openslide.mpp-y"]) == mpp
        assert about["openslide.objective-power"] == power
        assert slide.level_downsamples == (1, 4, 16)
        assert set(slide.associated_images) == {"thumbnail"}
        fine, small = (slide.read_region((0, 0), i, slide.level_dimensions[i]).convert("L") for i in (0, 2))
        apart = np.subtract(small, fine.reduce(16), dtype=int)
        assert abs(apart).mean() < 5
        assert abs(apart.mean()) < 1


def test_a_seed_fixes_every_byte(tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        for make in (bach2018, in_house):
            (tmp_path / folder / make.__name__).mkdir(parents=True)
            make(tmp_path / folder / make.__name__, seed, slides=1, size=128)
    one, again, other = (digest(tmp_path / folder) for folder in "abc")
    assert one == again
    assert one.keys() == other.keys()
    assert {name for name in one if name.endswith("svs") and one[name] == other[name]} == set()


def test_the_smallest_size(tmp_path):
    bach2018(tmp_path, 0, slides=5, size=64)
    assert len(list(tmp_path.rglob("*.svs"))) == 5
    for path in tmp_path.rglob("*.svs"):
        assert Slide(path).read(0, 0, 96, 64).shape == (64, 96, 3)


def test_small_pictures_of_the_truth_are_in_its_colours(bach):
    for name, (_, classes) in coarse(bach).items():
        (path,) = bach.rglob(f"gt_thumbnails/{name}.png")
        drawn = np.asarray(Image.open(path))
        assert {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()} <= {
            (0, 0, 0),
            (255, 0, 0),
            (0, 255, 0),
            (0, 0, 255),
        }
        same = classes[2::4, 2::4] == (drawn / 255) @ [1, 2, 3]
        assert same.mean() > 0.95


def test_cancer_of_both_kinds_and_benign_growths_on_tissue(bach):
    found = coarse(bach)
    assert set(np.unique([classes for _, classes in found.values()])) == {0, 1, 2, 3}
    for name, (_, classes) in found.items():
        mask, _ = Slide(next(bach.rglob(f"{name}.svs"))).tissue(longest=384)
        assert 0.3 < mask.mean() < 0.8
        assert 0.04 < (classes > 1).mean() < 0.4
        assert mask[classes[: mask.shape[0], : mask.shape[1]] > 1].mean() > 0.8


def test_cancer_is_bluer_than_the_rest_but_no_threshold_finds_it(bach):
    found = coarse(bach).values()
    for image, classes in found:
        blue, tissue = rgb2hed(image)[..., 0], image.min(-1) < 215
        assert blue[(classes > 1) & tissue].mean() > 1.2 * blue[(classes == 0) & tissue].mean()
    cancer = np.stack([classes > 1 for _, classes in found])
    for sigma in (0, 4, 10):
        blue = np.stack([gaussian_filter(rgb2hed(image)[..., 0], sigma) for image, _ in found])
        cuts = np.quantile(blue, np.linspace(0.3, 0.98, 40))
        dice = [2 * (cancer & (blue > cut)).sum() / (cancer.sum() + (blue > cut).sum()) for cut in cuts]
        assert max(dice) < 0.85


def test_readers_take_them(bach, house):
    release = read_bach(DATASETS["BACH2018"], [bach])
    assert release.problems == []
    assert {record.group for record in release.records} == {"A01", "A02", "A03"}
    pixels = [record.load() for record in release.records]
    assert {p.image.shape for p in pixels} == {(256, 256, 3)}
    assert any(p.mask.any() for p in pixels)
    release = read_slides(DATASETS["InHouse"], [house])
    assert (release.problems, release.notes, release.sample) == ([], [], True)
    assert [record.name for record in release.records] == ["SAMPLE-01", "SAMPLE-02"]
    one, two = (record.load().image for record in release.records)
    assert one.shape == two.shape == (768, 1024, 3)
    hues = [image[image.min(-1) < 200].mean(0) for image in (one, two)]
    assert np.ptp(hues, axis=0).max() > 20, "two laboratories"
