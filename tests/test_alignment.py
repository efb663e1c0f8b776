"""Where annotations lie: found as it was made, undone in crops, redone before anything is compared."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny import ALIGNED, discs, make_tree, settings
from typer.testing import CliRunner

from csamnet.alignment import REACH, annotation_offset, typical_offset
from csamnet.cli import app
from csamnet.config import make_config, stored_config
from csamnet.data import Atlas, load_split
from csamnet.datasets import DATASETS
from csamnet.evaluate import annotation_of, as_annotated, evaluate, load_run, measure, validate
from csamnet.files import InputError
from csamnet.images import read_labels, write_image
from csamnet.prepare import prepare
from csamnet.results import read_summary
from csamnet.robustness import _joined
from csamnet.samples import make_sample

RECIPE = {"offset_x": 0.6, "offset_y": 0.3}


def cells(right: float, down: float, dark: bool = True, seed: int = 0):
    """Soft discs (H, W, 3) uint8 and a mask of them that lies so far to the right and down."""
    rng, (y, x) = np.random.default_rng(seed), np.indices((240, 260))
    cover, mask = np.zeros(x.shape), np.zeros(x.shape, bool)
    for row, column, radius in rng.uniform((10, 10, 6), (230, 250, 13), (40, 3)):
        cover = np.maximum(cover, np.clip(radius - np.hypot(y - row, x - column) + 0.5, 0, 1))
        mask |= np.hypot(y - row - down, x - column - right) < radius
    grey = gaussian_filter(215 - 120 * cover if dark else 70 + 120 * cover, 1) + rng.normal(0, 8, x.shape)
    return np.repeat(grey.clip(0, 255)[..., None], 3, -1).astype(np.uint8), mask


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("put", [(0, 0), (0.6, 0.3), (-0.5, 0.5), (1.3, -0.8), (2, 0)])
def test_an_offset_is_found_as_it_was_made(put, dark):
    assert annotation_offset(*cells(*put, dark)) == pytest.approx(put, abs=0.1)


def test_an_offset_that_cannot_be_told_is_not_told():
    image, mask = cells(0, 0)
    nothing, everything = np.zeros_like(mask), np.ones_like(mask)
    blank = np.full_like(image, 200)
    far = np.roll(mask, 2 * REACH, 1)
    assert [annotation_offset(*pair) for pair in ((image, nothing), (image, everything), (blank, mask))] == [None] * 3
    assert annotation_offset(image, far) is None


def sample(image, mask, **more):
    return SimpleNamespace(image=lambda: image, mask=lambda: mask, **more)


def test_the_typical_offset_is_the_median_of_those_that_can_be_told():
    put = [(0.2, 0.1), (0.6, -0.4), (1.4, 0.3)]
    samples = [sample(*cells(*at, seed=seed)) for seed, at in enumerate(put)]
    blank = sample(np.full((64, 64, 3), 200, np.uint8), np.eye(64, dtype=bool))
    right, down, images = typical_offset([*samples, blank])
    assert (right, down, images) == (pytest.approx(0.6, abs=0.1), pytest.approx(0.1, abs=0.1), 3)
    with pytest.raises(InputError, match="cannot be told"):
        typical_offset([blank])


def test_crops_are_read_where_the_annotation_lies():
    """In whatever position and size, a moved mask comes out as one that was never moved."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.random((40, 40)) < 0.5, np.ones((7, 7), bool))
    picture = np.repeat(255 * truth[..., None], 3, -1).astype(np.uint8)
    plain = make_config("sample", scale=1.3, stain=0, colour=0, blur=0, **ALIGNED)
    told = replace(plain, offset_x=5, offset_y=-3)
    moved = np.roll(truth, (-3, 5), (0, 1))
    agree = {}
    for name, mask, config in (("as it is", truth, plain), ("told", moved, told), ("not told", moved, plain)):
        atlas = Atlas([sample(picture, mask)], torch.device("cpu"), cache=None)
        x, found = atlas.crops(config, 24, torch.Generator().manual_seed(0))
        agree[name] = ((x[:, 0] > 0) == (found > 0)).float().mean().item()
    assert agree["told"] == pytest.approx(agree["as it is"], abs=0.01)  # less what lies beyond the border
    assert agree["told"] > 0.95
    assert agree["not told"] < 0.8


def test_a_probability_is_moved_to_the_annotation():
    ramp = np.tile(np.arange(6, dtype=np.float32), (4, 1)) + 10 * np.arange(4, dtype=np.float32)[:, None]
    moved = as_annotated(ramp, make_config(offset_x=0.5, offset_y=0.25))
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved[1:, 1:], ramp[1:, 1:] - 0.5 - 2.5, atol=1e-5)  # what was half a pixel to the left
    assert moved[0, 0] == 0  # nothing comes in from outside: the border goes on
    assert as_annotated(ramp, make_config(**ALIGNED)) is ramp


def test_what_is_right_scores_best_when_the_offset_is_told():
    labels = np.pad(np.int32(discs(3, 150, 170)[1]), 4)
    moved, blank = np.roll(labels, (1, 2), (0, 1)), np.zeros((*labels.shape, 3), np.uint8)
    truth = sample(blank, moved > 0, name="one", group="one", organ="", touching=False, labels=lambda: moved)
    scores = [
        measure(lambda image: np.float32(labels > 0), [truth], make_config(offset_x=x, offset_y=y), {}).rows[0]["dice"]
        for x, y in ((2, 1), (1, 0.5), (0, 0), (-2, -1))
    ]
    assert scores[0] == 1
    assert sorted(scores, reverse=True) == scores
    assert scores[2] < 0.9


def test_validation_and_evaluation_look_where_the_annotation_lies(run, tree, tmp_path):
    """The discs once more, annotated three pixels to the right: as good as before when that is told."""
    release = tmp_path / "release"
    make_tree(tmp_path)
    for path in release.glob("*/inst/*.png"):
        write_image(path, np.roll(read_labels(path), 3, 1).astype(np.uint16))
    prepare("MoNuSeg", release, tmp_path / "moved")
    model, config = load_run(run)
    told, before, after = (
        replace(config, offset_x=3.0),
        *(load_split(at, "MoNuSeg", "val") for at in (tree, tmp_path / "moved")),
    )
    here, there, lost = (validate(model, *given)[0] for given in ((before, config), (after, told), (after, config)))
    assert abs(here - there).sum() < 0.03 * here.sum()
    assert lost[0] < 0.9 * here[0]


def test_settings_that_are_newer_than_a_run_had_no_effect_on_it():
    old = {key: value for key, value in make_config().to_dict().items() if not key.startswith("offset")}
    assert {key: getattr(make_config(), key) for key in RECIPE} == RECIPE
    assert {key: getattr(stored_config(old), key) for key in RECIPE} == ALIGNED
    assert stored_config(make_config().to_dict()) == make_config()
    with pytest.raises(InputError, match="offset_z"):
        stored_config({"offset_z": 1})


def test_another_data_set_lies_in_its_own_way(run, tree, tmp_path):
    assert (annotation_of("Kumar"), annotation_of("PUMA"), annotation_of("Mine")) == (RECIPE, ALIGNED, ALIGNED)
    run = Path(shutil.copytree(run, tmp_path / "run"))
    summary = read_summary(run, evaluate(run, tree, device="cpu").name)
    assert {key: summary["settings"][key] for key in RECIPE} == ALIGNED  # as its configuration says, not the table
    release = tmp_path / "release"
    make_tree(tmp_path)
    for name in ("Kumar", "Mine"):
        prepare(
            name, release, tmp_path / "other", own=None if name == "Kumar" else {"modality": "H&E tiles", "mpp": None}
        )
        folder = evaluate(run, tmp_path / "other", dataset=name, force=True, device="cpu")
        settings = read_summary(run, folder.name)["settings"]
        assert {key: settings[key] for key in RECIPE} == (RECIPE if name == "Kumar" else ALIGNED)


def test_of_joined_pixels_the_offset_is_less():
    config, changes = make_config(offset_x=0.6, offset_y=-0.4), ("coarser", "coarser, enlarged", "eosin")
    found = [_joined(config, change, 2) for change in changes]
    assert [(one.offset_x, one.offset_y) for one in found] == [pytest.approx((0.05, -0.45)), (0.6, -0.4), (0.6, -0.4)]


def test_look_alikes_are_annotated_as_the_real_ones(tmp_path):
    assert {name for name, entry in DATASETS.items() if "offset_x" in entry.recipe} == {"MoNuSeg", "Kumar"}
    prepare("MoNuSeg", make_sample("MoNuSeg", tmp_path), tmp_path / "prepared")
    right, down, images = typical_offset(load_split(tmp_path / "prepared", "MoNuSeg", "train"))
    assert (right, down) == pytest.approx((0.6, 0.3), abs=0.15)
    assert images > 3


def test_the_command_tells_what_it_found_and_what_is_used(tree):
    told = CliRunner().invoke(app, ["offset", "MoNuSeg", "--root", str(tree)])
    assert told.exit_code == 0
    assert "MoNuSeg, train: the annotation lies" in told.output
    assert "(median of 4 images)" in told.output
    assert "in use: offset_x 0.6, offset_y 0.3" in told.output


def test_impossible_offsets_are_refused():
    for value in (9, -9, "far", float("nan")):
        with pytest.raises(InputError, match="offset_x"):
            settings(offset_x=value)


def test_the_recipe_says_what_the_training_images_show(shared, tmp_path):
    """The real ones: 24 training images, to the tenth of a pixel that the table gives."""
    prepare("MoNuSeg", shared / "data" / "MoNuSeg", tmp_path)
    right, down, images = typical_offset(load_split(tmp_path, "MoNuSeg", "train"))
    assert images == 24
    assert {"offset_x": round(right, 1), "offset_y": round(down, 1)} == RECIPE
    assert json.loads((tmp_path / "MoNuSeg" / "dataset.json").read_text())["kind"] == "real"
