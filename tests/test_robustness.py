"""Changed images against another library and by hand; measured, stopped, gone on with, and read back."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2hed
from tiny import discs, make_tree, settings
from typer.testing import CliRunner

from csamnet.cli import app
from csamnet.config import make_config
from csamnet.data import HED, draw_images, load_split
from csamnet.evaluate import evaluate
from csamnet.files import InputError, read_json, write_json
from csamnet.pages import generalisation
from csamnet.results import MEASURES, find_runs, read_summary
from csamnet.robustness import CHANGES, Changed, changes_for, read_robustness, robustness, stained
from csamnet.train import train


def tissue() -> np.ndarray:
    """Colours of stains that are not so deep that a byte cuts them off."""
    rng = np.random.default_rng(0)
    return rng.integers(110, 235, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize(("name", "channel"), [("haematoxylin", 0), ("eosin", 1)])
def test_a_stain_is_multiplied_and_the_others_stay(name, channel):
    pixels = np.full((8, 8, 3), (140, 80, 160), np.uint8)
    before, after = rgb2hed(pixels)[0, 0], rgb2hed(stained(pixels, **{name: 0.5}))[0, 0]
    assert before[channel] > 0.015, "there is some to change"
    wanted = before * np.where(np.arange(3) == channel, 0.5, 1)
    assert after == pytest.approx(wanted, abs=0.001)


def test_stains_that_are_not_changed_change_nothing():
    assert np.array_equal(stained(tissue()), tissue())


def test_a_changed_stain_is_rounded_and_cut_off():
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    hed = HED.double().numpy()
    density = -np.log((pixels + 1.0) / 256) @ np.linalg.inv(hed) * [0.5, 1, 1] @ hed
    expected = 256 * np.exp(-density) - 1
    assert (expected > 256).any(), "some would be brighter than white"
    assert np.abs(stained(pixels, haematoxylin=0.5) - expected.round().clip(0, 255)).max() <= 1
    assert (stained(pixels, haematoxylin=0.5) == expected.round().clip(0, 255)).mean() > 0.99


class Picture:
    name = "a"

    def __init__(self, image, labels):
        self.image, self.labels, self.mask = lambda: image, lambda: labels, lambda: labels > 0


def test_a_coarser_image_is_the_mean_of_its_pixels_and_its_truth_the_middle():
    image, labels = discs(0, 41, 50)
    small, large = (Changed(Picture(image, labels), change, 4) for change in ("coarser", "coarser, enlarged"))
    blocks = image[:40, :48].reshape(10, 4, 12, 4, 3).mean((1, 3))
    assert np.abs(small.image() - blocks).max() <= 0.51
    assert np.array_equal(small.labels(), labels[2:40:4, 2:48:4])
    assert np.array_equal(small.mask(), labels[2:40:4, 2:48:4] > 0)
    assert large.image().shape == (40, 48, 3)
    cubic = Image.fromarray(small.image()).resize((48, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(large.image(), np.array(cubic))
    assert np.array_equal(large.labels(), labels[:40, :48])
    assert np.abs(large.image().mean((0, 1)) - image[:40, :48].mean((0, 1))).max() < 1
    assert small.name == "a"


def test_what_is_not_stained_is_not_stained_otherwise():
    assert [change for change, _ in changes_for("CT")] == ["none"] + ["coarser"] * 2 + ["coarser, enlarged"] * 2
    assert len(changes_for("H&E tiles")) == 1 + sum(map(len, CHANGES.values()))
    assert CHANGES["haematoxylin"] == CHANGES["eosin"] == (0.5, 0.7, 1.4, 2.0), "half to double, as the book says"


def test_a_run_is_measured_stopped_and_gone_on_with(tree, run, tmp_path, monkeypatch):
    folder, said = tmp_path / "run", []
    shutil.copytree(run, folder)
    evaluate(folder, tree, device="cpu")
    path = robustness(folder, tree, device="cpu", on_change=lambda *told: said.append(told))
    assert said == [(done, 13) for done in range(1, 14)]
    about, table = read_robustness(folder)
    assert about["n"] == 2
    unchanged = table.iloc[0]
    for key in MEASURES:
        assert unchanged[key] == pytest.approx(read_summary(folder)["pooled"][key], abs=1e-6), key
    worst = table[table["change"] == "coarser"].set_index("factor")["miou"]
    assert worst[4] < unchanged["miou"] - 0.03, "discs of ten pixels are two and a half there"
    whole = path.read_bytes()
    found = read_json(path)
    write_json(path, found | {"rows": found["rows"][:5], "whole": False})
    with pytest.raises(InputError, match=r"robustness-test\.json(?s:.*)csamnet robustness"):
        read_robustness(folder)
    said.clear()
    robustness(folder, tree, device="cpu", on_change=lambda *told: said.append(told))
    assert path.read_bytes() == whole
    assert said[0] == (6, 13), "what was measured is not measured again"
    with monkeypatch.context() as patched:
        patched.setattr("csamnet.robustness.measure", None)
        assert robustness(folder, tree, device="cpu") == path, "nothing is to be done"
    write_json(path, found | {"fingerprint": "of other weights"})
    said.clear()
    robustness(folder, tree, device="cpu", on_change=lambda *told: said.append(told))
    assert len(said) == 13, "all is done anew"


def test_other_weights_are_measured_anew(run, tree, tmp_path, monkeypatch):
    """And each measure stands in its own place."""
    folder, calls = Path(shutil.copytree(run, tmp_path / "run")), []
    pooled = dict(zip(MEASURES, (0.1, 0.2, 0.3, 0.4), strict=True))
    found = SimpleNamespace(rows=[], histograms={"": None})
    monkeypatch.setattr("csamnet.robustness.measure", lambda *_: calls.append(1) or found)
    monkeypatch.setattr("csamnet.robustness.pool", lambda *_: pooled)
    robustness(folder, tree, device="cpu")
    assert read_robustness(folder)[1].iloc[3][[*MEASURES]].to_dict() == pooled
    assert len(calls) == 13
    write_json(folder / "run.json", read_json(folder / "run.json") | {"fingerprint": "another training"})
    robustness(folder, tree, device="cpu")
    assert len(calls) == 26


def test_normalised_images_have_a_file_of_their_own(run, tree, tmp_path, monkeypatch):
    folder, brought = Path(shutil.copytree(run, tmp_path / "run")), []
    pooled, found = dict.fromkeys(MEASURES, 0.5), SimpleNamespace(rows=[], histograms={"": None})

    def measured(predict, samples, config, _):
        brought.append(predict(samples[0].image()))
        return found

    monkeypatch.setattr("csamnet.robustness.measure", measured)
    monkeypatch.setattr("csamnet.robustness.pool", lambda *_: pooled)
    paths = [robustness(folder, tree, normalise=share, device="cpu") for share in (None, 0.0, 0.5, 1.0)]
    names = ["robustness-test", "robustness-test", "robustness-test-normalise0.5", "robustness-test-normalise1"]
    assert [path.stem for path in paths] == names
    assert len(brought) == 3 * 13, "0 is how the run was trained, and was measured"
    wanted = changes_for("H&E")
    as_is, half, whole = (dict(zip(wanted, brought[i : i + 13], strict=True)) for i in (0, 13, 26))
    for stain in ("haematoxylin", "eosin"):
        apart = [np.abs(of[stain, 2.0] - of["none", 1]).mean() for of in (as_is, half, whole)]
        assert apart[0] > 3 * apart[2], "what is brought to one stain was changed to no end"
    assert sorted(generalisation.changes_normalised(folder)) == ["0.5", "1"]
    assert generalisation.changes_normalised(folder)["1"].equals(read_robustness(folder, "test-normalise1")[1])


def test_images_that_a_run_knows_are_refused(tree, run):
    with pytest.raises(InputError, match="has learned from images"):
        robustness(run, tree, split="train", device="cpu")


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"rows": []}', '{"rows": [1], "whole": true, "data": {"kind": "real"}}']
)
def test_a_damaged_file_is_named(run, tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    assert read_robustness(folder) is None
    shutil.copy(run / "run.json", folder)
    (folder / "robustness-test.json").write_text(content)
    with pytest.raises(InputError, match=r"robustness-test\.json"):
        read_robustness(folder)


def test_the_command_prints_a_line_a_change(tree, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    result = CliRunner().invoke(app, ["robustness", str(tmp_path / "run"), "--root", str(tree), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "haematoxylin x 0.5" in result.output
    assert result.output.count("mIoU") == 13
    result = CliRunner().invoke(app, ["robustness", str(tmp_path / "run"), "--root", str(tree), "--normalise", "2"])
    assert result.exit_code == 2
    assert "normalise" in result.output
    result = CliRunner().invoke(app, ["robustness", str(tmp_path / "none")])
    assert result.exit_code == 2


# -------------------------------------------------------------------------------------- fewer images


def test_fewer_images_are_among_more_and_follow_from_the_seed(tree):
    samples = load_split(tree, "MoNuSeg", "train")
    drawn = [{sample.name for sample in draw_images(samples, count, 3)} for count in (1, 2, 3, 0)]
    assert [len(names) for names in drawn] == [1, 2, 3, 4]
    assert all(fewer < more for fewer, more in pairwise(drawn))
    assert len({draw_images(samples, 1, seed)[0].name for seed in range(12)}) > 1
    with pytest.raises(InputError, match="not so many training images"):
        draw_images(samples, 5, 0)


def test_a_run_on_fewer_images_stands_apart(tree, tmp_path):
    folders = [train(settings(images=count), tree, results=tmp_path, device="cpu") for count in (1, 0)]
    assert [folder.name for folder in folders] == ["CSAMNet-XS-sample-1images-seed0", "CSAMNet-XS-sample-seed0"]
    assert [len(read_json(folder / "images.json")["train"]) for folder in folders] == [1, 4]
    assert find_runs(tmp_path) == folders[1:], "it is none of the runs of a table"
    assert find_runs(tmp_path, images=1) == folders[:1]
    assert find_runs(tmp_path, images=None) == folders
    for folder in folders:
        evaluate(folder, tree, device="cpu")
    table = generalisation.curve_table(folders)
    assert table["images"].tolist() == [1, 4]
    assert generalisation.found_curve("MoNuSeg", tmp_path) == [], "look-alikes, and too few numbers"


def test_the_longest_curve_on_real_images_is_found(tmp_path):
    for profile, counts in (("short", (0, 2)), ("brief", (0, 1, 4)), ("paper", (0,))):
        for count in counts:
            config = make_config(profile, images=count)
            folder = tmp_path / "MoNuSeg" / config.name
            write_json(folder / "run.json", {"status": "done", "config": config.to_dict()})
            write_json(folder / "test" / "summary.json", {"pooled": {}, "data": {"kind": "real"}})
    found = generalisation.found_curve("MoNuSeg", tmp_path)
    assert {folder.name for folder in found} == {
        f"CSAMNet-S-brief{part}-seed0" for part in ("", "-1images", "-4images")
    }


def test_other_data_sets_stand_below_the_own(run, tree, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    evaluate(tmp_path / "run", tree, device="cpu")
    own = read_json(tmp_path / "run" / "test" / "summary.json")
    write_json(tmp_path / "run" / "PUMA-test" / "summary.json", own | {"n": 7})
    lines = generalisation.elsewhere(tmp_path / "run").splitlines()
    assert lines[2].startswith("| MoNuSeg | 2 |")
    assert lines[3].startswith("| PUMA | 7 |")


def test_normalised_images_and_eight_views_stand_below_those_as_they_are(tmp_path):
    pooled = {"miou": 0.5, "dice": 0.5, "ap": 0.5, "auc": 0.5}
    for dataset, kind in (
        ("MoNuSeg", "real"),
        ("MoNuSeg-without-colon-liver", "real"),
        ("Kumar", "real"),
        ("CPM17", "sample"),
    ):
        config = make_config("brief", dataset=dataset, seed=3)
        folder = tmp_path / dataset / config.name
        write_json(folder / "run.json", {"status": "done", "config": config.to_dict()})
        for part, share, score in (("val", 0.0, 0.5), ("val-normalise0.5", 0.5, 0.6), ("val-normalise1", 1.0, 0.7)):
            told = {
                "pooled": pooled | {"miou": score},
                "data": {"kind": kind},
                "n": 6,
                "settings": {"normalise": share},
            }
            write_json(folder / part / "summary.json", told)
    run = tmp_path / "MoNuSeg" / make_config("brief", seed=3).name
    told = {"pooled": pooled, "data": {"kind": "real"}, "n": 1}
    for part, share, seen in (("test", 1.0, 0), ("test-normalise0", 0.0, 0), ("PUMA-test-normalise1", 1.0, 2)):
        write_json(run / part / "summary.json", told | {"settings": {"normalise": share}, "seen": seen})
    write_json(run / "test-tta" / "summary.json", told | {"settings": {"normalise": 0, "tta": True}})
    rows = [line.split(" | ")[:7] for line in generalisation.used_otherwise("MoNuSeg", tmp_path).splitlines()[2:]]
    assert rows == [
        [f"| {organs}", "CSAMNet-S-brief-seed3", where, count, *share.split(), score]
        for organs, where, count, share, score in (
            ("colon, liver", "val", "6", "0 1", "50.00 %"),
            ("colon, liver", "val", "6", "0.5 1", "60.00 %"),
            ("colon, liver", "val", "6", "1 1", "70.00 %"),
            ("usual", "test", "1", "0 1", "50.00 %"),
            ("usual", "test", "1", "0 8", "50.00 %"),
            ("usual", "test", "1", "1 1", "50.00 %"),
            ("usual", "val", "6", "0 1", "50.00 %"),
            ("usual", "val", "6", "0.5 1", "60.00 %"),
            ("usual", "val", "6", "1 1", "70.00 %"),
        )
    ]
    assert generalisation.used_otherwise("PUMA", tmp_path) == ""
    assert generalisation.used_otherwise("CPM17", tmp_path) == "", "look-alikes"


def test_the_page_on_a_tiny_look_alike(tmp_path):
    from csamnet.pages.execution import ROOT, run_notebook

    root, out = make_tree(tmp_path), tmp_path / "page.ipynb"
    given = {"epochs": 1, "steps_per_epoch": 2, "results": str(tmp_path / "results"), "root": str(root), "others": ""}
    run_notebook(ROOT / "notebooks" / "generalisation.ipynb", out, given)
    page = out.read_text()
    assert "CSAMNet-XS-sample-2images-seed0" in page
    for name in ("changed_images", "robustness", "learning_curve"):
        assert f"drawn by csamnet.pages.figures.{name}" in page
    curve, nothing = "drawn by csamnet.pages.figures.learning_curve", "**Not run.**"
    for results, said in ((given["results"], curve), (str(tmp_path / "none"), nothing)):
        run_notebook(ROOT / "notebooks" / "generalisation.ipynb", out, {"measured": 1, "results": results})
        page = out.read_text()
        assert said in page
        assert "image/jpeg" not in page, "a photograph on a page that reads results only"


def test_what_was_measured_on_real_images_stays(tree, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(tree, tmp_path / "painted")
    card = tmp_path / "painted" / "MoNuSeg" / "dataset.json"
    write_json(card, read_json(card) | {"kind": "sample"})
    evaluate(tmp_path / "run", tree, device="cpu")
    write_json(tmp_path / "run" / "robustness-test.json", {"data": {"kind": "real"}})
    before = read_summary(tmp_path / "run")
    config = read_json(tmp_path / "run" / "run.json")
    write_json(tmp_path / "run" / "run.json", config | {"fingerprint": "another"})  # or nothing is to be done
    for measure in (evaluate, robustness):
        with pytest.raises(InputError, match="measured on real images"):
            measure(tmp_path / "run", tmp_path / "painted", device="cpu")
    assert read_summary(tmp_path / "run") == before


def test_robustness_of_another_training_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    rows = [{"change": change, "factor": factor, "miou": 0.5, "dice": 0.5, "ap": 0.5, "auc": None}
            for change, factor in changes_for("H&E")]  # fmt: skip
    path, own = tmp_path / "run" / "robustness-test.json", read_json(run / "run.json")["fingerprint"]
    write_json(path, {"rows": rows, "n": 2, "data": {"kind": "real"}, "run": own})
    assert np.isnan(read_robustness(tmp_path / "run")[1]["auc"]).all()
    write_json(path, {"rows": rows, "n": 2, "data": {"kind": "real"}, "run": "another"})
    with pytest.raises(InputError, match="measured of another training"):
        read_robustness(tmp_path / "run")


def test_images_too_small_are_named_before_anything_is_measured(tree, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr("csamnet.data.Sample.image", lambda sample: np.zeros((3, 50, 3), np.uint8))
    with pytest.raises(InputError, match="too small"):
        robustness(tmp_path / "run", tree, device="cpu")
    assert not list((tmp_path / "run").glob("robustness-*"))


@pytest.mark.parametrize("others", ["Foo", "InHouse", "LIDC-IDRI", "monuseg"])
def test_other_data_sets_are_looked_at_first(others, tmp_path):
    given = dict.fromkeys(generalisation.PARAMETERS) | {"dataset": "MoNuSeg", "profile": "sample", "others": others}
    with pytest.raises(InputError, match=r"others cannot be used|unknown data set"):
        generalisation.study(given | {"results": str(tmp_path), "root": str(tmp_path)})
    assert not any(tmp_path.iterdir())


def test_a_changed_tree_is_named(tree, run, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    shutil.copytree(run, tmp_path / "run")
    manifest = tmp_path / "tree" / "MoNuSeg" / "manifest.csv"
    manifest.write_text(manifest.read_text()[:-60])
    with pytest.raises(InputError, match="a manifest was changed"):
        evaluate(tmp_path / "run", tmp_path / "tree", device="cpu")
    write_json(manifest.with_name("dataset.json"), {})
    with pytest.raises(InputError, match="not what csamnet prepare writes"):
        evaluate(tmp_path / "run", tmp_path / "tree", device="cpu")
