"""Look-alike releases of Kumar, CPM17 and PUMA: form, bytes fixed by a seed, and a task like the real one."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from scipy.io import loadmat
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu
from tiny import digest

from csamnet.datasets import DATASETS
from csamnet.files import read_json, write_json
from csamnet.readers.histology import PUMA_CLASSES, read_cpm17, read_kumar, read_puma
from csamnet.samples import histology

FORMS = {  # maker, reader, settings of the tests
    "Kumar": (histology.kumar, read_kumar, {"train": 3, "test": 2, "size": 192}),
    "CPM17": (histology.cpm17, read_cpm17, {"train": 4, "test": 2, "size": 192}),
    "PUMA": (histology.puma, read_puma, {"primary": 2, "metastatic": 2}),
}


def make(name: str, folder: Path, seed: int = 0, **settings) -> Path:
    folder.mkdir(parents=True)
    FORMS[name][0](folder, seed, **settings)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("samples")
    return {name: make(name, top / name, **settings) for name, (_, _, settings) in FORMS.items()}


@pytest.fixture(scope="module")
def releases(folders) -> dict:
    for folder in folders.values():
        write_json(folder / "SAMPLE.json", {"kind": "sample"})
    return {name: FORMS[name][1](DATASETS[name], [folder]) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def pixels(releases) -> dict[str, list]:
    return {name: [record.load() for record in release.records] for name, release in releases.items()}


@pytest.mark.parametrize("name", FORMS)
def test_readers_take_them_without_a_word(releases, pixels, name):
    release, settings = releases[name], FORMS[name][2]
    assert release.problems == release.notes == []
    assert len(release.records) == sum(count for key, count in settings.items() if key != "size")
    for record, held in zip(release.records, pixels[name], strict=True):
        assert all("cross or touch themselves" in note for note in held.notes), "cut off at the border"
        assert len(np.unique(held.labels)) - 1 == held.labels.max() > 5, "no nucleus is hidden"
        if record.split:
            assert Counter(other.split for other in release.records)[record.split] == settings[record.split]


@pytest.mark.parametrize("name", FORMS)
def test_a_seed_fixes_every_byte(tmp_path, name):
    make_one = partial(make, name)
    keys = [key for key in inspect.signature(FORMS[name][0]).parameters if key not in ("folder", "seed", "size")]
    small = dict.fromkeys(keys, 1) | {"size": 96}
    one = digest(make_one(tmp_path / "a", **small))
    assert digest(make_one(tmp_path / "b", **small)) == one
    other = digest(make_one(tmp_path / "c", seed=1, **small))
    assert set(other) == set(one)
    assert not set(other.values()) & set(one.values())
    more = digest(make_one(tmp_path / "d", **small | {keys[0]: 2}))
    kept = [value for value in one.values() if value in more.values()]
    assert len(kept) == len(one) == len(more) - 2, "more images change none"


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_size(tmp_path, name, seed):
    keys = [key for key in inspect.signature(FORMS[name][0]).parameters if key not in ("folder", "seed", "size")]
    make(name, tmp_path / "a", seed, size=64, **dict.fromkeys(keys, 2))


@pytest.mark.parametrize("name", FORMS)
def test_the_task_is_like_the_real_one(pixels, name):
    colours, scores, fractions = [], [], []
    for held in pixels[name]:
        colours.append(held.image.mean((0, 1)))
        red, green, blue = colours[-1]
        assert red > green, "pink and purple"
        assert blue > green, "pink and purple"
        assert held.image[held.mask].mean() < held.image[~held.mask].mean() - 15
        dye = rgb2hed(held.image)[..., 0]
        guess = dye > threshold_otsu(dye)
        scores.append((guess & held.mask).sum() / (guess | held.mask).sum())
        fractions.append(held.mask.mean())
    assert min(np.abs(a - b).max() for a, b in combinations(colours, 2)) > 2, "stains differ"
    assert max(scores) < 0.8, "a threshold does not solve it"
    assert np.mean(scores) < 0.7, "a threshold does not solve it"
    assert min(scores) > 0.2
    assert 0.05 < min(fractions) < max(fractions) < 0.45


def test_outlines_lie_on_the_edges_of_what_is_painted(pixels):
    for held in (image for images in pixels.values() for image in images):
        grey, scores = held.image.mean(-1), {}
        for shift in (-3, 0, 3):
            moved = np.roll(held.mask, (shift, shift), (0, 1))
            scores[shift] = grey[~moved].mean() - grey[moved].mean()
        assert max(scores, key=scores.get) == 0


def test_kumar_has_both_subsets_and_no_patient_twice(releases):
    records = releases["Kumar"].records
    assert releases["Kumar"].sample
    assert len({record.group for record in records}) == len(records)
    test = {record.organ for record in records if record.split == "test"}
    train = {record.organ for record in records if record.split == "train"}
    same, different = map(set, DATASETS["Kumar"].subsets.values())
    assert train <= same
    assert test & same
    assert test & different
    assert not test - same - different
    folder = records[0].files["image"].parents[1]
    assert {path.name for path in folder.iterdir()} == {"Tissue images", "Annotations"}
    assert all(record.name.startswith("SAMPLE-") for record in records)


def test_kumar_repeats_no_image_of_monuseg(tmp_path, folders):
    histology.monuseg(tmp_path, 0, train=1, test=1, size=192)  # the first are of one organ and stain
    images = [{tifffile.imread(path).tobytes() for path in top.rglob("*.tif")} for top in (tmp_path, folders["Kumar"])]
    assert [len(group) for group in images] == [2, 5]
    assert not images[0] & images[1]


def test_cpm17_has_the_form_of_the_release(folders, releases):
    folder = folders["CPM17"]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.name != "SAMPLE.json"} == {
        f"{split}/{kind}/image_{number:02d}.{suffix}"
        for split, count in (("train", 4), ("test", 2))
        for number in range(count)
        for kind, suffix in (("Images", "png"), ("Labels", "mat"))
    }
    for path in folder.rglob("*.mat"):
        assert path.read_bytes()[:11] == b"MATLAB 5.0 "
        assert loadmat(path)["inst_map"].dtype == np.int32
    assert {record.load().image.shape for record in releases["CPM17"].records} == {(192, 192, 3), (230, 230, 3)}


def test_cpm17_has_two_magnifications(releases, pixels):
    """At 20x a nucleus has a quarter of the pixels that it has at 40x."""
    sizes = {
        record.name: np.median(np.bincount(held.labels.ravel())[1:])
        for record, held in zip(releases["CPM17"].records, pixels["CPM17"], strict=True)
    }
    assert sizes["train_01"] < 0.5 * min(sizes["train_00"], sizes["train_03"])
    assert sizes["test_01"] < 0.5 * sizes["test_00"]


def test_puma_has_the_form_of_the_release(folders, shared):
    def keys(content, above=""):
        if isinstance(content, dict):
            return {above}.union(*(keys(value, f"{above}/{key}") for key, value in content.items()))
        return {above}.union(*(keys(value, above) for value in content)) if isinstance(content, list) else {above}

    real = shared / "data/native/PUMA/training_set_metastatic_roi_094"
    for path in folders["PUMA"].rglob("*.geojson"):
        assert keys(read_json(path)) <= keys(read_json(f"{real}_nuclei.geojson"))
    with tifffile.TiffFile(f"{real}.tif") as known:
        for path in folders["PUMA"].rglob("*.tif"):
            with tifffile.TiffFile(path) as ours:
                for key in ("compression", "photometric", "dtype", "planarconfig"):
                    assert getattr(ours.pages[0], key) == getattr(known.pages[0], key)
                assert ours.pages[0].shape == (256, 256, 4)
                assert (ours.asarray()[..., 3] == 255).all()


def test_puma_has_classes_holes_and_nuclei_of_two_parts(folders, pixels):
    kinds, classes = Counter(), set()
    for path in folders["PUMA"].rglob("*.geojson"):
        for feature in read_json(path)["features"]:
            shape = shapely.geometry.shape(feature["geometry"])
            assert shape.is_valid
            assert (shapely.get_coordinates(shape) % 1 == 0).all()
            kinds[shape.geom_type] += 1
            kinds["holed"] += any(part.interiors for part in shapely.get_parts(shape))
            classes.add(feature["properties"]["classification"]["name"])
    assert kinds["Polygon"] > 50
    assert kinds["MultiPolygon"] >= 2
    assert kinds["holed"] >= 4
    assert classes <= set(PUMA_CLASSES)
    assert {"nuclei_tumor", "nuclei_stroma", "nuclei_lymphocyte", "nuclei_neutrophil"} <= classes
    for held in pixels["PUMA"]:
        np.testing.assert_array_equal(held.classes > 0, held.mask)


def test_a_hole_is_lighter_than_the_nucleus_around_it(folders):
    for path in folders["PUMA"].rglob("*.geojson"):
        (image,) = folders["PUMA"].rglob(f"{path.stem.removesuffix('_nuclei')}.tif")
        grey = tifffile.imread(image)[..., :3].mean(-1)
        rows, columns = np.indices(grey.shape)
        for feature in json.loads(path.read_text())["features"]:
            shape = shapely.geometry.shape(feature["geometry"])
            for ring in shape.interiors if shape.geom_type == "Polygon" else ():
                hole = shapely.contains_xy(shapely.Polygon(ring), columns, rows)
                assert grey[hole].mean() > grey[shapely.contains_xy(shape, columns, rows)].mean() + 5


def test_some_cells_of_a_melanoma_are_brown(pixels):
    def brown(image: np.ndarray) -> float:
        red, green, blue = np.moveaxis(image.astype(int), -1, 0)
        return ((red > blue + 15) & (green > blue - 10) & (red < 180)).mean()

    assert np.mean([brown(held.image) for held in pixels["PUMA"]]) > 0.005
    assert np.mean([brown(held.image) for held in pixels["Kumar"]]) < 0.001
