"""Loading weights, predicting on any image, and the files that are written."""

from __future__ import annotations

import json
import pickle
import uuid
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import discs
from torch import nn

from csamnet import inference
from csamnet.config import MODELS, RunConfig, make_config
from csamnet.data import normalised
from csamnet.files import InputError
from csamnet.inference import Prediction, as_rgb, find_weights, load, nuclei, overlay, predict, stems
from csamnet.model import CSAMNet, save_weights

CONFIG = make_config("sample", tile=128, overlap=0.0)


class Dark(nn.Module):
    """Foreground is what is dark."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.config = CONFIG

    def forward(self, x):
        middle = self.scale * (0.5 - x.mean(1, keepdim=True).sigmoid())
        return torch.cat([-middle, middle], 1)


def picture(shape=(90, 140)) -> np.ndarray:
    """Three dark discs on white, two of them touching."""
    y, x = np.indices(shape)
    dark = sum((y - 45) ** 2 + (x - place) ** 2 <= 12**2 for place in (30, 51, 110)) > 0
    return np.where(dark[..., None], np.uint8([60, 20, 90]), np.uint8(240))


@pytest.fixture(scope="module")
def network() -> CSAMNet:
    torch.manual_seed(0)
    return CSAMNet(**MODELS[CONFIG.model]).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A run folder's weights with their settings."""
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_file(network.state_dict(), path, metadata={"config": json.dumps(CONFIG.to_dict())})
    return path


# loading


def test_load_file_folder_and_name(weights, network, monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "WEIGHTS", weights.parent)
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in (weights, str(weights), weights.parent, "weights"):
        model = load(source, device="cpu")
        assert model.config == CONFIG
        assert not model.training
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network.parameters(), strict=True))


def test_load_released_names(network, tmp_path):
    network.to_released(tmp_path / "released.safetensors")
    model = load(tmp_path / "released.safetensors", device="cpu")
    x = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), network(x))
    assert model.config.threshold == 0.5


def test_unknown_name_lists_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="there are none in"):
        load("MoNuSeg", device="cpu")
    (tmp_path / "MoNuSeg.safetensors").touch()
    with pytest.raises(InputError, match=r"(?s)expected: MoNuSeg\n.*found: 'Monuseg'"):
        find_weights("Monuseg")


def test_a_folder_without_weights_is_told(tmp_path):
    with pytest.raises(InputError, match=r"(?s)no run folder.*run.json"):
        load(tmp_path, device="cpu")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_only_safetensors_are_opened(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save({"x": torch.zeros(2)}, tmp_path / "b.pt")
    (tmp_path / "c.safetensors").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.pth", "b.pt", "c.safetensors"):
        with pytest.raises(InputError, match="not a safetensors file"):
            load(tmp_path / name, device="cpu")


def test_weights_that_do_not_fit(network, tmp_path):
    with pytest.raises(InputError, match="no weights"):
        load(tmp_path / "missing.safetensors", device="cpu")
    path = tmp_path / "w.safetensors"
    for about, message in (
        (json.dumps(replace(CONFIG, model="CSAMNet-S").to_dict()), "width 32"),
        (json.dumps({"profile": "sample", "colour_of_hat": 1}), "not ours"),
        ("{", "not ours"),
        ("[1]", "not ours"),
    ):
        save_file(network.state_dict(), path, metadata={"config": about})
        with pytest.raises(InputError, match=message):
            load(path, device="cpu")
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        load(path, device="cpu")


# predicting


def test_predict_finds_three_discs():
    image = picture()
    prediction = predict(Dark(), image)
    assert prediction.probability.dtype == np.float32
    assert prediction.labels.max() == 3
    assert (prediction.mask == (image[..., 0] < 128)).all()
    assert not predict(Dark(), image, min_area=2000).labels.any()
    assert predict(Dark(), image, threshold=0.0).mask.all()


def test_an_image_of_another_resolution_is_seen_at_that_which_was_learned():
    """Half as fine as learned: discs of a quarter of the area, which lie where they are in the image."""
    model, coarse = Dark(), np.array(Image.fromarray(picture()).reduce(2))
    model.mpp = 0.25
    found, as_it_is = predict(model, coarse, mpp=0.5), predict(model, coarse)
    large = predict(model, np.array(Image.fromarray(coarse).resize((140, 90), Image.Resampling.BICUBIC)))
    assert found.probability.shape == found.mask.shape == found.labels.shape == (45, 70)
    assert len(np.unique(found.labels)) == len(np.unique(large.labels)) == 4
    table, expected = nuclei(found, mpp=0.5).sort_values("x"), nuclei(large, mpp=0.25).sort_values("x")
    np.testing.assert_allclose(table[["x", "y"]], expected[["x", "y"]] / 2, atol=0.5)
    np.testing.assert_allclose(table["area_um2"], expected["area_um2"], rtol=0.05)
    assert (found.mask != as_it_is.mask).mean() < 0.02
    np.testing.assert_array_equal(found.labels > 0, found.mask)
    assert found.probability.min() >= 0
    assert found.probability.max() <= 1
    for near in (None, 0.25, 0.26):
        np.testing.assert_array_equal(predict(model, coarse, mpp=near).probability, as_it_is.probability)
    model.mpp = None
    np.testing.assert_array_equal(predict(model, coarse, mpp=0.5).probability, as_it_is.probability)
    with pytest.raises(InputError, match="pixel size"):
        predict(model, coarse, mpp=-1)
    model.mpp = 0.25
    for wrong in (40, 0.001):
        with pytest.raises(InputError, match=r"cannot be worked at(?s:.*)such as 0\.25"):
            predict(model, coarse, mpp=wrong)
    with pytest.raises(InputError, match="536,870,912 pixels"):
        predict(model, np.zeros((8000, 300), np.uint8), mpp=4)


def test_weights_say_at_what_resolution_they_learned(network, weights, tmp_path):
    assert load(weights, "cpu").mpp == 0.25, "MoNuSeg's, since these do not say it"
    about = {"config": json.dumps(CONFIG.to_dict())}
    for said, expected in (("0.5", 0.5), ("null", None)):
        save_file(network.state_dict(), tmp_path / "w.safetensors", metadata=about | {"mpp": said})
        assert load(tmp_path / "w.safetensors", "cpu").mpp == expected
    save_file(network.state_dict(), tmp_path / "w.safetensors", metadata=about | {"mpp": "-1"})
    with pytest.raises(InputError, match="pixel size"):
        load(tmp_path / "w.safetensors", "cpu")


def test_lesions_are_not_split_as_nuclei_are():
    model = Dark()
    model.config = replace(CONFIG, dataset="BUSI")
    assert predict(model, picture()).labels.max() == 2
    model.config = replace(CONFIG, dataset="MyTissue")
    assert predict(model, picture()).labels.max() == 3


def test_impossible_settings_are_refused():
    for bad in ({"threshold": 7}, {"tile": 100}, {"overlap": 1}):
        with pytest.raises(InputError):
            predict(Dark(), picture(), **bad)


def test_network_takes_tiny_and_odd_images(network):
    for shape in ((1, 1, 3), (33, 150), (20, 30, 4)):
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        prediction = predict(network, image, tile=128, precision="fp32")
        assert prediction.probability.shape == prediction.mask.shape == prediction.labels.shape == shape[:2]


def test_equal_pictures_in_any_type():
    image = picture()
    wide, unit = image.astype(np.uint16) * 257, image / 255
    alpha = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    for same in (wide, unit, unit.astype(np.float32), alpha):
        np.testing.assert_array_equal(as_rgb(same), image)
    grey = image[..., 0]
    for same in (grey, grey[..., None], grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(as_rgb(same), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    "bad",
    [np.zeros(5), np.zeros((4, 4, 2)), np.zeros((3, 40, 40)), np.zeros((0, 4)), np.zeros((4, 4), complex)],
    ids=str,
)
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(InputError, match=r"not a picture(?s:.*)found: \("):
        as_rgb(bad)


def test_non_finite_pixels_are_refused():
    with pytest.raises(InputError, match="NaN"):
        predict(Dark(), np.full((8, 8), np.nan))


# writing


def by_hand() -> Prediction:
    """A 2 x 4 rectangle and a square of 3, on 10 x 12 pixels."""
    labels = np.zeros((10, 12), np.int32)
    labels[1:3, 2:6], labels[6:9, 8:11] = 1, 4
    probability = np.where(labels == 1, 0.75, np.where(labels == 4, 1.0, 0.25)).astype(np.float32)
    return Prediction(probability, labels > 0, labels)


def test_table_of_nuclei_by_hand():
    table = nuclei(by_hand(), mpp=0.5)
    assert table.drop(columns="eccentricity").to_dict("list") == {
        "label": [1, 4],
        "x": [4.0, 9.5],
        "y": [2.0, 7.5],
        "area_px": [8, 9],
        "area_um2": [2.0, 2.25],
        "mean_probability": [0.75, 1.0],
    }
    # the variance of n places in a row is (n^2 - 1) / 12
    assert table["eccentricity"].tolist() == pytest.approx([np.sqrt(1 - 3 / 15), 0])
    assert nuclei(by_hand())["area_um2"].isna().all()
    with pytest.raises(InputError, match="pixel size"):
        nuclei(by_hand(), mpp=0)


def test_written_files(tmp_path):
    image = picture()
    prediction = predict(Dark(), image)
    table = inference.write_prediction(prediction, image, "slide", tmp_path, mpp=0.25)
    names = {f"slide_{end}" for end in inference.FILES}
    assert {path.name for path in tmp_path.iterdir()} == names
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "slide_mask.png")), prediction.mask * 255)
    stored = tifffile.imread(tmp_path / "slide_probability.tif")
    np.testing.assert_array_equal(stored, prediction.probability)
    assert stored.dtype == np.float32
    drawn = np.array(Image.open(tmp_path / "slide_overlay.png"))
    changed = (drawn != image).any(axis=2)
    assert changed.any()
    assert (drawn[changed] == inference.OUTLINE).all()
    assert prediction.mask[changed].all()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "slide_nuclei.csv"), table, rtol=1e-5)


def test_geojson_is_what_qupath_reads(tmp_path):
    image = picture()
    prediction = predict(Dark(), image)
    table = inference.write_prediction(prediction, image, "slide", tmp_path)
    collection = json.loads((tmp_path / "slide_nuclei.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(table) == 3
    for feature, row in zip(features, table.itertuples(), strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert feature["type"] == "Feature"
        assert shape.is_valid
        assert (shape.centroid.x, shape.centroid.y) == pytest.approx((row.x, row.y), abs=0.3)
        assert shape.area == pytest.approx(row.area_px, abs=0.51)
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"] == {"name": "Nucleus", "color": [255, 221, 0]}
        assert properties["measurements"]["area_px"] == row.area_px
        assert "area_um2" not in properties["measurements"]
    other = inference.geojson(prediction, table, "other")["features"]
    assert not {f["id"] for f in other} & {f["id"] for f in features}


def test_an_image_without_nuclei(tmp_path):
    image = np.full((40, 50), 255, np.uint8)
    prediction = predict(Dark(), image)
    table = inference.write_prediction(prediction, image, "blank", tmp_path)
    assert table.empty
    assert list(pd.read_csv(tmp_path / "blank_nuclei.csv")) == list(nuclei(by_hand()))
    assert json.loads((tmp_path / "blank_nuclei.geojson").read_text())["features"] == []
    assert (overlay(image, prediction.labels) == 255).all()


@pytest.mark.parametrize(("mpp", "side"), [(0.25, 100), (0.275, 100), (0.23, 100), (0.28, 112), (0.22, 88), (0.5, 200)])
def test_images_are_resized_where_they_are_more_than_a_tenth_off(mpp, side):
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    found = inference.at_resolution(image, mpp, 0.25)
    assert found.shape == (side, side, 3)
    if side != 100:
        expected = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found, np.array(expected))


def test_probability_is_resized_smoothly_and_labels_are_not():
    step = np.repeat([[0, 1]], 2, 0)
    assert set(np.unique(inference.resized(step.astype(np.int32) * 7, (8, 8)))) == {0, 7}
    smooth = inference.resized(step.astype(np.float32), (8, 8))
    assert ((smooth > 0.1) & (smooth < 0.9)).any()
    assert smooth.min() >= 0
    assert smooth.max() <= 1


def test_a_resolution_beyond_sixteen_times_is_refused():
    image = np.zeros((64, 64, 3), np.uint8)
    assert inference.at_resolution(image, 4.0, 0.25).shape == (1024, 1024, 3)
    for mpp in (4.1, 0.25 / 17):
        with pytest.raises(InputError, match="cannot be worked at"):
            inference.at_resolution(image, mpp, 0.25)


def test_the_threshold_of_a_prediction_is_foreground(monkeypatch):
    values = np.full((64, 64), 0.2, np.float32)
    values[20:40, 20:40] = 0.75
    monkeypatch.setattr(inference, "predictor", lambda model, config: lambda image: values)
    found = predict(Dark(), np.zeros((64, 64, 3), np.uint8), threshold=0.75)
    np.testing.assert_array_equal(found.mask, values > 0.5)
    np.testing.assert_array_equal(found.labels > 0, values > 0.5)


def test_what_is_asked_of_files_is_asked_of_each(tmp_path, monkeypatch):
    asked = []

    def recorded(model, image, **given):
        asked.append(given)
        return predict(model, image)

    Image.fromarray(picture()).save(tmp_path / "x.png")
    monkeypatch.setattr(inference, "predict", recorded)
    inference.predict_files(Dark(), [tmp_path / "x.png"], tmp_path / "out", mpp=0.5, threshold=0.7, tta=True)
    assert asked == [{"mpp": 0.5, "threshold": 0.7, "tta": True}]


def test_the_area_of_all_nuclei_is_not_that_of_the_mask(tmp_path):
    image = picture()
    image[2:5, 2:5] = 20  # too small to be counted
    Image.fromarray(image).save(tmp_path / "x.png")
    counts = inference.predict_files(Dark(), [tmp_path / "x.png"], tmp_path / "out")
    mask = np.array(Image.open(tmp_path / "out" / "x_mask.png")) > 0
    assert 0 < mask.sum() - counts["area_px"][0] <= 16
    assert counts["coverage"][0] == pytest.approx(mask.mean())


@pytest.mark.parametrize(("dataset", "stain", "split"), [("MoNuSeg", 0.25, True), ("BUSI", 0.0, False),
                                                          ("Mine", 0.25, True), ("Mine", 0.0, False)])  # fmt: skip
def test_what_is_not_stained_is_not_split(dataset, stain, split):
    assert inference.touching(RunConfig(dataset=dataset, stain=stain)) is split


def test_a_setting_of_none_is_that_of_the_weights():
    found = predict(Dark(), picture(), threshold=None, tile=None)
    np.testing.assert_array_equal(found.mask, predict(Dark(), picture()).mask)


def test_an_image_is_brought_to_the_stain_that_was_learned(network, weights, tmp_path):
    """As far as is asked; weights carry their stain, and files without one say so."""
    image, wanted = discs(0, 150, 140)[0], [[0.6, 0.3, 0.4], [0.3, 0.1, 0.1]]
    save_weights(network.state_dict(), tmp_path / "stained.safetensors", stain=json.dumps(wanted),
                 config=json.dumps(CONFIG.to_dict()))  # fmt: skip
    model = load(tmp_path / "stained.safetensors")
    assert model.stain == wanted
    for share in (0.5, 1):
        changed = predict(model, normalised(image, wanted, share)).probability
        np.testing.assert_array_equal(predict(model, image, normalise=share).probability, changed)
        assert not np.array_equal(changed, predict(model, image).probability)
    with pytest.raises(InputError, match="the stain that images could be normalised to") as told:
        predict(load(weights), image, normalise=1)
    assert str(weights) in str(told.value)
    with pytest.raises(InputError, match="normalise cannot be used"):
        predict(model, image, normalise=1.5)


@pytest.mark.parametrize(
    "stain",
    ["[[1, 2], [3, 4]]", "3", "{}", "[[1, 2, 3], [1, -1, 1]]", "[[NaN, 1, 1], [1, 1, 1]]", "[[1e308, 1, 1], [1, 1, 1]]",
     '[["a", 1, 1], [1, 1, 1]]', "[1, 2, 3, 4, 5, 6]", "[[1, 2], [3, 4], [5, 6]]", "[[1, 2, 3], [1]]", "["],
)  # fmt: skip
def test_a_stain_that_is_none_is_not_normalised_to(network, tmp_path, stain):
    save_weights(network.state_dict(), tmp_path / "a.safetensors", stain=stain,
                 config=json.dumps(CONFIG.to_dict()))  # fmt: skip
    with pytest.raises(InputError, match=r"stored with the weights is not ours(?s:.*)a\.safetensors"):
        load(tmp_path / "a.safetensors")


def test_stems_do_not_collide():
    paths = ["a/x.png", "b/x.tif", "x-2.png", "c/X.png", "y.png"]
    assert stems(paths) == ["x", "x-2", "x-2-2", "X-3", "y"]
    assert stems([]) == []


def test_predict_files(tmp_path):
    for folder, image in (("a", picture()), ("b", picture()[:, :80])):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "x.png")
    paths, out, seen = [tmp_path / "a/x.png", tmp_path / "b/x.png"], tmp_path / "out", []
    counts = inference.predict_files(Dark(), paths, out, mpp=0.5, on_image=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert counts["nuclei"].tolist() == [3, 2]
    assert counts["name"].tolist() == ["x", "x-2"]
    assert counts["area_um2"].tolist() == pytest.approx(counts["area_px"] / 4)
    assert counts["image"].tolist() == [str(path) for path in paths]
    for row in counts.itertuples():
        table = pd.read_csv(out / f"{row.name}_nuclei.csv")
        mask = np.array(Image.open(out / f"{row.name}_mask.png")) > 0
        assert (row.area_px, row.nuclei) == (table["area_px"].sum(), len(table))
        assert row.coverage == pytest.approx(mask.mean())
        assert table["area_um2"].tolist() == pytest.approx((table["area_px"] / 4).tolist())
    assert pd.read_csv(out / "counts.csv")["nuclei"].tolist() == [3, 2]
    assert len(list(out.iterdir())) == 2 * len(inference.FILES) + 1


def test_inputs_are_never_written_over(tmp_path):
    for name in ("x.png", "x_mask.png"):
        Image.fromarray(picture()).save(tmp_path / name)
    with pytest.raises(InputError, match="written over"):
        inference.predict_files(Dark(), sorted(tmp_path.iterdir()), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unreadable_image_leaves_nothing_half_written(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError):
        inference.predict_files(Dark(), [tmp_path / "broken.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_unreadable_image_does_not_keep_the_others(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "broken.png", "b.png")]
    for path in paths:
        Image.fromarray(picture()).save(path)
    paths[1].write_bytes(b"no image")
    paths.append(tmp_path / "a.png" / "c.png")
    seen = []
    with pytest.raises(InputError, match=r"2 of 4 images(?s:.*)the others are in (?s:.*)broken\.png"):
        inference.predict_files(Dark(), paths, tmp_path / "out", on_image=lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)], "one that cannot be read is done too"
    assert pd.read_csv(tmp_path / "out" / "counts.csv")["name"].to_list() == ["a", "b"]
    assert not list((tmp_path / "out").glob("broken*"))
