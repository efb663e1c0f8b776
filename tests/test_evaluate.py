"""Sliding window, stitching, and the files that an evaluation writes."""

from __future__ import annotations

import errno
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from tiny import lay
from torch import nn

from csamnet.data import load_split, to_input
from csamnet.evaluate import (
    evaluate,
    known_images,
    load_run,
    measure,
    pick_device,
    pick_precision,
    predict_probability,
    predictor,
    tile_corners,
    tile_weight,
    validate,
    validation_scores,
)
from csamnet.files import InputError, read_json, sha256_file, write_json
from csamnet.manifest import read_manifest
from csamnet.metrics import COLUMNS, METRICS
from csamnet.model import CSAMNet
from csamnet.prepare import prepare
from csamnet.results import measured_in, read_summary


class Constant(nn.Module):
    """The same logits everywhere."""

    def __init__(self, foreground: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(foreground))

    def forward(self, x):
        return torch.stack([torch.zeros_like(x[:, 0]), self.value.expand_as(x[:, 0])], 1)


class Red(nn.Module):
    """The logit of a pixel is its red: what does not look around is the same in every tile and turn."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.stack([torch.zeros_like(x[:, 0]), self.scale * x[:, 0]], 1)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("length", "overlap"), [(128, 0.5), (129, 0.5), (300, 0.25), (1000, 0.5), (257, 0.0)])
def test_tiles_cover_an_axis_and_overlap(length, overlap):
    corners = tile_corners(length, 128, overlap)
    assert corners[0] == 0
    assert corners[-1] == length - 128
    steps = np.diff(corners)
    assert (steps <= math.ceil(128 * (1 - overlap))).all()
    assert len(corners) == 1 or (steps > 0).all()


def test_weight_is_smooth_symmetric_and_never_zero():
    weight = tile_weight(128, torch.device("cpu"))
    assert weight.min() > 0
    assert weight.max() <= 1
    assert torch.allclose(weight, weight.flip(0), atol=1e-6)
    assert torch.allclose(weight, weight.T)
    assert weight[63, 63] > 0.99
    line = np.sin(np.pi * np.array([0.5, 1.5, 2.5, 3.5]) / 4) ** 2
    assert tile_weight(4, torch.device("cpu")).numpy() == pytest.approx(np.outer(line, line), abs=1e-6)


def test_a_run_predicts_with_its_own_settings(monkeypatch):
    used = []
    monkeypatch.setattr("csamnet.evaluate.predict_probability", lambda model, image, **given: used.append(given))
    config = tiny.settings(tile=144, overlap=0.3, val_overlap=0.1, tta=True, batch=5, precision="bf16")
    predictor(None, config)(noise(4, 4))
    predictor(None, config, overlap=0.6)(noise(4, 4))
    own = {"tile": 144, "overlap": 0.3, "tta": True, "batch": 5, "precision": "bf16"}
    assert used == [own, own | {"overlap": 0.6}]


def test_validation_by_hand(tree, monkeypatch):
    """At the run's threshold, with the overlap of validations and one view."""
    used, samples = [], load_split(tree, "MoNuSeg", "val")

    def predict(model, image, **given):
        used.append(given)
        return np.where(image[..., 0] < 130, 0.8, np.where(image[..., 1] < 200, 0.6, 0.1)).astype(np.float32)

    monkeypatch.setattr("csamnet.evaluate.predict_probability", predict)
    config = tiny.settings(threshold=0.7, overlap=0.5, val_overlap=0.1, tta=True)
    counts, histogram = validate(None, samples, config)
    assert {(given["overlap"], given["tta"]) for given in used} == {(0.1, False)}
    truth = np.concatenate([sample.mask().ravel() for sample in samples])
    found = np.concatenate([(sample.image()[..., 0] < 130).ravel() for sample in samples])
    scores = validation_scores(counts, histogram)
    assert scores["val_miou"] == pytest.approx(jaccard_score(truth, found, average="macro"))
    assert scores["val_dice"] == pytest.approx(f1_score(truth, found))
    exact = np.concatenate([predict(None, sample.image()).ravel() for sample in samples])
    assert scores["val_ap"] == pytest.approx(average_precision_score(truth, exact), abs=1e-4)


@pytest.mark.parametrize("size", [(128, 128), (131, 307), (40, 500), (1, 1)])
@pytest.mark.parametrize("tta", [False, True])
def test_weights_cancel_at_every_pixel(size, tta):
    found = predict_probability(Constant(1.5), noise(*size), tile=128, overlap=0.5, tta=tta)
    assert found.shape == size
    assert found.dtype == np.float32
    assert np.allclose(found, 1 / (1 + math.exp(-1.5)), atol=1e-6)


@pytest.mark.parametrize("tta", [False, True])
def test_every_pixel_keeps_its_place(tta):
    image = noise(150, 290)
    expected = torch.sigmoid(to_input(torch.from_numpy(image[..., 0].astype(np.float32)))).numpy()
    assert np.allclose(predict_probability(Red(), image, tile=128, tta=tta), expected, atol=1e-5)


def test_one_tile_is_a_plain_pass():
    torch.manual_seed(0)
    model, image = CSAMNet(8).eval(), noise(128, 128)
    with torch.no_grad():
        logits = model(to_input(torch.from_numpy(image)).permute(2, 0, 1)[None])[0]
    expected = logits.softmax(0)[1].numpy()
    assert np.allclose(predict_probability(model, image, tile=128), expected, atol=1e-5)


def test_test_time_augmentation_is_the_mean_of_eight_views():
    torch.manual_seed(0)
    model, image = CSAMNet(8).eval(), noise(128, 128)
    views = []
    for turns in range(4):
        for flip in (False, True):
            view = np.rot90(image, turns)
            view = view[:, ::-1] if flip else view
            found = predict_probability(model, np.ascontiguousarray(view), tile=128)
            views.append(np.rot90(found[:, ::-1] if flip else found, -turns))
    assert np.allclose(predict_probability(model, image, tile=128, tta=True), np.mean(views, 0), atol=1e-5)


def test_of_a_normalised_image_there_is_one_view_or_the_mirrored_four():
    """One view is of the normalised image alone; of eight, four are of the image as it is."""
    torch.manual_seed(0)
    model, image = nn.Conv2d(3, 2, 9, padding=4), noise(128, 128)
    stained = np.uint8(image * 0.7)
    once = predict_probability(model, image, stained=stained, tile=128)
    assert np.array_equal(once, predict_probability(model, stained, tile=128))
    views = []
    for turns in range(4):
        for source, turn in ((image, lambda x: x), (stained, np.fliplr)):
            view = predict_probability(model, np.ascontiguousarray(turn(np.rot90(source, turns))), tile=128)
            views.append(np.rot90(turn(view), -turns))
    both = predict_probability(model, image, stained=stained, tile=128, tta=True)
    assert np.allclose(both, np.mean(views, 0), atol=1e-5)
    assert np.abs(both - predict_probability(model, stained, tile=128, tta=True)).max() > 1e-3, "it matters"


def test_a_small_image_is_extended_by_reflection():
    torch.manual_seed(0)
    look_around, image = nn.Conv2d(3, 2, 9, padding=4), noise(90, 100)
    whole = np.pad(image, [(0, 38), (0, 28), (0, 0)], mode="reflect")
    alone, extended = (predict_probability(look_around, one, tile=128) for one in (image, whole))
    np.testing.assert_allclose(alone, extended[:90, :100], atol=1e-6)


def test_batches_of_tiles_do_not_matter():
    torch.manual_seed(0)
    model, image = CSAMNet(8).eval(), noise(200, 300)
    one, many = (predict_probability(model, image, tile=128, batch=batch) for batch in (1, 7))
    assert np.allclose(one, many, atol=1e-5)


def test_evaluation_writes_what_scikit_learn_finds(run, tree):
    folder = evaluate(run, tree, device="cpu")
    table, summary = pd.read_csv(folder / "per_image.csv"), read_json(folder / "summary.json")
    assert table.columns.tolist() == ["name", "group", "organ", "height", "width", *COLUMNS]
    assert summary["n"] == len(table) == 2
    assert set(summary["pooled"]) == set(summary["mean"]) == set(METRICS)
    model, config = load_run(run, "cpu")
    samples = load_split(tree, "MoNuSeg", "test")
    found = np.concatenate([predictor(model, config)(sample.image()).ravel() for sample in samples])
    truth = np.concatenate([sample.mask().ravel() for sample in samples])
    assert summary["pooled"]["ap"] == pytest.approx(
        average_precision_score(truth, found.round(5)), abs=5e-4
    )  # less the last bits
    both = jaccard_score(truth, found >= config.threshold, average="macro")
    assert summary["pooled"]["miou"] == pytest.approx(both, abs=1e-6)
    assert summary["mean"]["ap"] == pytest.approx(table["ap"].mean(), abs=1e-5)
    assert {"threshold", "precision", "recall", "fpr"} <= set(pd.read_csv(folder / "curves.csv"))
    assert {key: summary["settings"][key] for key in ("tta", "threshold", "precision")} == {
        "tta": False, "threshold": 0.5, "precision": "fp32"}, "what was computed with"  # fmt: skip
    first = pd.read_csv(folder / "curves.csv").iloc[0]
    assert first["recall"] < 0.1
    assert first["fpr"] < 0.1


def test_only_nuclei_are_split(tree, run):
    (sample, *_), (_, config) = load_split(tree, "MoNuSeg", "test"), load_run(run, "cpu")
    lobes = np.zeros(sample.mask().shape, np.float32)
    y, x = np.indices(lobes.shape)
    for column in (60, 82):
        lobes[(y - 70) ** 2 + (x - column) ** 2 <= 14**2] = 1
    counts = [measure(lambda image: lobes, [replace(sample, touching=touching)], config, {}).rows[0]["n_pred"]
              for touching in (True, False)]  # fmt: skip
    assert counts == [2, 1]


def test_measures_are_at_the_threshold_of_the_run(tree):
    samples = load_split(tree, "MoNuSeg", "test")

    def predict(image):
        return np.where(image[..., 0] < 130, 0.7, 0.6).astype(np.float32)

    low, high = (measure(predict, samples, tiny.settings(threshold=threshold), {}) for threshold in (0.65, 0.75))
    for row, sample in zip(low.rows, samples, strict=True):
        assert row["recall"] > 0.9
        assert (row["height"], row["width"]) == sample.mask().shape
        assert row["n_pred"] > 3, "nuclei too"
    assert [row["n_pred"] for row in high.rows] == [row["tp"] for row in high.rows] == [0, 0]
    assert len(low.objects) == sum(row["n_true"] for row in low.rows)
    blind = measure(predict, [samples[0], replace(samples[1], labels_path=None)], tiny.settings(), {})
    assert blind.objects.empty, "those of one image would be taken for all"


def test_other_data_are_measured_anew(run, tree, tmp_path):
    copy, root = Path(shutil.copytree(run, tmp_path / "run")), Path(shutil.copytree(tree, tmp_path / "prepared"))
    evaluate(copy, root, device="cpu")
    before = read_summary(copy)
    manifest, card = root / "MoNuSeg" / "manifest.csv", read_json(root / "MoNuSeg" / "dataset.json")
    table = pd.read_csv(manifest, keep_default_na=False)
    table.loc[table["split"] == "test", "organ"] = "skin"
    table.to_csv(manifest, index=False)
    write_json(root / "MoNuSeg" / "dataset.json", card | {"manifest_sha256": sha256_file(manifest)})
    folder = evaluate(copy, root, device="cpu")
    assert set(pd.read_csv(folder / "per_image.csv")["organ"]) == {"skin"}
    assert read_summary(copy)["fingerprint"] != before["fingerprint"]


def test_an_evaluation_is_not_repeated_until_something_changes(run, tree, monkeypatch):
    summary = evaluate(run, tree, device="cpu") / "summary.json"
    before = summary.stat().st_mtime_ns
    evaluate(run, tree, device="cpu", on_image=pytest.fail)
    assert summary.stat().st_mtime_ns == before
    content = sha256_file(summary)
    monkeypatch.setattr("csamnet.results.code_sha256", lambda *_: "other code")
    evaluate(run, tree, device="cpu")
    assert sha256_file(summary) != content


def test_normalised_images_are_measured_apart(run, tree, tmp_path):
    folder = shutil.copytree(run, tmp_path / run.name)
    plain, changed = (evaluate(folder, tree, device="cpu", normalise=share) for share in (None, 1.0))
    assert (plain.name, changed.name) == ("test", "test-normalise1")
    assert evaluate(folder, tree, device="cpu", normalise=0.0) == plain, "that is the run's own"
    assert len({measured_in(folder, None, "test", share) for share in (0.75, 0.7500004)}) == 2
    one, other = (read_json(out / "summary.json") for out in (plain, changed))
    assert (one["settings"]["normalise"], other["settings"]["normalise"]) == (0, 1)
    assert one["pooled"] != other["pooled"]


def test_eight_views_are_measured_apart(run, tree, tmp_path):
    """By the mean of the eight, as `predict_probability` takes it, which another test holds."""
    folder = shutil.copytree(run, tmp_path / run.name)
    out = evaluate(folder, tree, device="cpu", tta=True)
    summary, (model, config) = read_json(out / "summary.json"), load_run(folder, "cpu")
    assert (out.name, summary["settings"]["tta"]) == ("test-tta", True)
    predict, samples = predictor(model, replace(config, tta=True)), load_split(tree, "MoNuSeg", "test")
    tp = sum(((predict(sample.image()) >= 0.5) & sample.mask()).sum() for sample in samples)
    assert pd.read_csv(out / "per_image.csv")["tp"].sum() == tp


def test_a_full_disk_leaves_no_evaluation(run, tree, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("test")))
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space"):
        evaluate(copy, tree, device="cpu")
    assert list((copy / "test").iterdir()) == []


def test_runs_that_cannot_be_evaluated(run, tree, tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        evaluate(tmp_path, tree, device="cpu")
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("test")))
    about = read_json(copy / "run.json")
    write_json(copy / "run.json", about | {"status": "training"})
    with pytest.raises(InputError, match="the training has not ended"):
        evaluate(copy, tree, device="cpu")
    write_json(copy / "run.json", about)
    (copy / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="are not kept here"):
        evaluate(copy, tree, device="cpu")
    assert {path.name for path in copy.iterdir()} == {"run.json", "history.csv", "images.json"}


def test_device_and_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == cpu
    with pytest.raises(InputError, match=r"no CUDA device(?s:.*)--device cpu"):
        pick_device("cuda")
    with pytest.raises(InputError, match="unknown device"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == pick_device("cuda") == cuda
    for able, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        assert pick_precision("auto", cuda) == precision
    for able, precision in ((True, "bf16"), (False, "fp32")):  # matrix units, not the mere instructions
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda able=able: able, raising=False)
        assert pick_precision("auto", cpu) == precision
    assert pick_precision("fp16", cpu) == "fp16"


def test_half_precision_hardly_changes_the_probability(run, tree):
    (model, config), (sample, *_) = load_run(run, "cpu"), load_split(tree, "MoNuSeg", "val")
    full, half = (predictor(model, config, precision=name)(sample.image()) for name in ("fp32", "bf16"))
    assert 0 < np.abs(full - half).max() < 0.05


def test_better_beats_worse(tree):
    """Red tells the discs from the ground, its opposite does not, noise lies between."""
    samples, config = load_split(tree, "MoNuSeg", "val"), tiny.settings()
    worse, better = Red(), Red()
    with torch.no_grad():
        better.scale.fill_(-3.0)
        worse.scale.fill_(3.0)
    good, bad = (validation_scores(*validate(model, samples, config)) for model in (better, worse))
    assert good["val_miou"] > 0.9
    assert bad["val_miou"] < 0.2
    assert good["val_ap"] > 0.95 > 0.5 > bad["val_ap"]


@pytest.fixture(scope="module")
def kumar(tmp_path_factory) -> Path:
    """A root with Kumar in it: two test images, one of the run's training images and one that is new."""
    folder = tmp_path_factory.mktemp("kumar")
    release = lay(folder / "release", {"train": 4, "val": 2, "test": 2})
    for place in ("img", "inst"):
        shutil.move(release / "train" / place / "train0.png", release / "test" / place / "train0.png")
        (release / "test" / place / "test1.png").unlink()
    prepare("Kumar", release, folder / "prepared")
    return folder / "prepared"


def test_images_that_a_run_has_learned_from_are_refused(run, tree, kumar, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with pytest.raises(InputError, match=r"has learned from(?s:.*)1 of 2: train0(?s:.*)--force"):
        evaluate(copy, kumar, dataset="Kumar", device="cpu")
    with pytest.raises(InputError, match=r"4 of 4: train0"):
        evaluate(copy, tree, split="train", device="cpu")
    assert not (copy / "Kumar-test").exists()
    forced = evaluate(copy, kumar, dataset="Kumar", force=True, device="cpu")
    assert forced == copy / "Kumar-test"
    assert read_summary(copy, "Kumar-test")["seen"] == 1
    assert read_summary(copy, "Kumar-test")["data"]["name"] == "Kumar"
    assert read_json(evaluate(copy, tree, split="val", device="cpu") / "summary.json")["seen"] == 0, "its own"
    with pytest.raises(InputError, match="2 of 2: val0"):
        evaluate(copy, kumar, dataset="Kumar", split="val", device="cpu")
    (copy / "images.json").write_text('{"train": 3}')
    with pytest.raises(InputError, match=r"not what csamnet train writes(?s:.*)images\.json"):
        evaluate(copy, kumar, dataset="Kumar", device="cpu")
    (copy / "images.json").unlink()
    with pytest.raises(InputError, match=r"missing(?s:.*)images\.json"):
        evaluate(copy, kumar, dataset="Kumar", device="cpu")


def test_other_images_of_a_patient_that_a_run_has_learned_from_are_refused(run, tree, tmp_path):
    """As where a data set was prepared anew, otherwise: no pixel is the same."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    told, samples = read_json(copy / "images.json"), load_split(tree, "MoNuSeg", "test")
    assert told["groups"]["train"] == sorted({sample.group for sample in load_split(tree, "MoNuSeg", "train")})
    assert known_images(copy, samples, own=True, split="test") == []
    write_json(copy / "images.json", told | {"groups": {"train": [samples[0].group], "val": []}})
    with pytest.raises(InputError, match=f"1 of {len(samples)}: {samples[0].name}"):
        known_images(copy, samples, own=True, split="test")
    assert known_images(copy, samples, own=False, split="test") == [], "elsewhere a name is no patient"
    write_json(copy / "images.json", told | {"groups": {"train": [], "val": [samples[1].group]}})
    with pytest.raises(InputError, match=f"1 of {len(samples)}: {samples[1].name}"):
        known_images(copy, samples, own=True, split="test")


def test_subsets_are_measured_apart(run, kumar, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    table = read_manifest(kumar / "Kumar")
    parts = {"known": ("a",), "new": ("b",), "none": ("c",)}
    monkeypatch.setattr("csamnet.evaluate.get_subsets", lambda name: parts)
    samples = [replace(s, organ="ab"[i]) for i, s in enumerate(load_split(kumar, "Kumar", "test"))]
    monkeypatch.setattr("csamnet.evaluate.load_split", lambda *_: samples)
    summary = read_json(evaluate(copy, kumar, dataset="Kumar", force=True, device="cpu") / "summary.json")
    assert len(table) == 7
    assert set(summary["subsets"]) == {"known", "new"}
    rows = pd.read_csv(copy / "Kumar-test" / "per_image.csv").set_index("organ")
    for name, organ in (("known", "a"), ("new", "b")):
        part = summary["subsets"][name]
        assert part["n"] == 1
        for key in ("miou", "ap", "auc", "pq"):
            assert part["pooled"][key] == pytest.approx(rows.loc[organ, key], abs=1e-4)
    whole, parts = summary["pooled"]["miou"], [summary["subsets"][key]["pooled"]["miou"] for key in ("known", "new")]
    assert min(parts) < whole < max(parts)
