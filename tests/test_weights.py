"""Weights that are shipped: half precision that predicts the same, and a card that is read from the results."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.special import logit
from tiny import discs
from typer.testing import CliRunner

import csamnet
from csamnet.cli import app
from csamnet.config import make_config
from csamnet.data import load_split
from csamnet.datasets import DATASETS, get_dataset
from csamnet.evaluate import evaluate, measure, validate, validation_scores, write_evaluation
from csamnet.files import InputError, read_json, write_json
from csamnet.inference import predict_files, target_of
from csamnet.metrics import EDGES
from csamnet.pages.measured import BINS, MEASURES, read_evaluation, read_objects
from csamnet.pages.tables import provenance, show_seeds
from csamnet.pages.weight_card import weaknesses, weights_card
from csamnet.results import read_config
from csamnet.robustness import changes_for
from csamnet.weights import NEAR, SAME, halved, ship

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "weights").glob("*.safetensors"))


@pytest.fixture(scope="module")
def folder(run, tree, tmp_path_factory) -> Path:
    """A run that was measured, in a results folder of its own."""
    folder = tmp_path_factory.mktemp("results") / "MoNuSeg" / "CSAMNet-XS-sample-seed7"
    shutil.copytree(run, folder)
    evaluate(folder, tree, device="cpu")
    return folder


def test_half_precision_predicts_the_same_and_has_a_card(folder, tree, tmp_path):
    path = ship(folder, tree, tmp_path / "weights", device="cpu")
    assert path == tmp_path / "weights" / "MoNuSeg.safetensors"
    assert path.stat().st_size < 0.55 * (folder / "weights.safetensors").stat().st_size
    with safe_open(path, "pt") as stored:
        kinds = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    assert kinds == {"F16", "F32", "I64"}, "statistics of batch norms in full, and their counts"
    image = discs(3, 150, 170)[0]
    full, half = (csamnet.predict(csamnet.load(file, "cpu"), image) for file in (folder, path))
    assert np.abs(full.probability - half.probability).max() < 0.02
    assert (full.mask != half.mask).mean() < 0.002
    text = path.with_suffix(".md").read_text()
    summary = read_json(folder / "test" / "summary.json")
    assert f"mIoU {100 * summary['pooled']['miou']:.2f} %" in text
    assert "not for commercial use" in text
    assert "one seed; *measured on real data*" in text
    assert read_json(folder / "run.json")["code_sha256"][:16] in text
    assert halved(csamnet.load(folder, "cpu"))["dcf.0.dc.weight_pooled"].dtype == torch.float32, "scalars of a channel"
    shipped = csamnet.load(path, "cpu")
    assert shipped.mpp == 0.25
    samples = load_split(tree, "MoNuSeg", "val")
    scores = [validation_scores(*validate(model, samples, model.config))["val_miou"]
              for model in (csamnet.load(folder, "cpu"), shipped)]  # fmt: skip
    assert f"changes the validation mIoU by {100 * abs(scores[1] - scores[0]):.4f} points" in text
    assert (SAME, NEAR) == (2e-4, 2e-3), "0.02 points, as the cards say"


def test_a_run_that_had_nothing_to_choose_on_says_so(folder, tree, tmp_path):
    """Its images are those of training and validation: four and one."""
    copy = Path(shutil.copytree(folder, tmp_path / "MoNuSeg" / folder.name))
    about = read_json(copy / "run.json")
    counts = about["data"]["counts"]
    write_json(copy / "run.json", about | {"best_val_miou": None, "config": about["config"] | {"refit": True}})
    text = ship(copy, tree, tmp_path / "weights", device="cpu").with_suffix(".md").read_text()
    assert f"{counts['train'] + counts['val']} images, none to choose on" in text
    assert "the last, as planned" in text
    assert "validation mIoU |" not in text
    write_json(copy / "run.json", read_json(copy / "run.json") | {"fingerprint": "of another training"})
    with pytest.raises(InputError, match="not the weights that were measured"):
        ship(copy, tree, tmp_path / "others", device="cpu")
    summary = read_json(copy / "test" / "summary.json")
    assert ", by validation mIoU |" in provenance(about, summary)
    assert ", the last, as planned |" in provenance(read_json(copy / "run.json"), summary)


def test_a_change_for_the_better_by_half_precision_is_a_change_too(folder, tree, tmp_path, monkeypatch):
    best = read_json(folder / "run.json")["best_val_miou"]
    for other, message in ((best + 0.001, "half precision"), (best + 0.0001, None)):
        scores = iter((best, other))
        monkeypatch.setattr("csamnet.weights._score", lambda *_, scores=scores: next(scores))
        if message:
            with pytest.raises(InputError, match=message):
                ship(folder, tree, tmp_path, device="cpu")
        else:
            assert ship(folder, tree, tmp_path, device="cpu").exists()
    for near in (0.003, -0.003, float("nan")):
        monkeypatch.setattr("csamnet.weights._score", lambda *_, near=near: best + near)
        with pytest.raises(InputError, match="not the weights that were measured"):
            ship(folder, tree, tmp_path, device="cpu")


def test_a_run_without_its_weights_is_measured_by_those_that_were_shipped(folder, tree, tmp_path, monkeypatch):
    monkeypatch.setattr("csamnet.evaluate.WEIGHTS", tmp_path / "weights")
    ship(folder, tree, tmp_path / "weights", device="cpu")
    copy = Path(shutil.copytree(folder, tmp_path / "MoNuSeg" / folder.name))
    (copy / "weights.safetensors").unlink()
    shutil.rmtree(copy / "test")
    summary = read_json(evaluate(copy, tree, device="cpu") / "summary.json")
    assert summary["weights"] == "MoNuSeg.safetensors"
    first = read_json(folder / "test" / "summary.json")
    assert first["weights"] == "weights.safetensors"
    assert summary["pooled"]["ap"] == pytest.approx(first["pooled"]["ap"], abs=2e-3)
    with pytest.raises(InputError, match="only the shipped weights"):
        ship(copy, tree, tmp_path / "again", device="cpu")
    (tmp_path / "weights" / "MoNuSeg.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(InputError, match="not a safetensors file"):
        evaluate(copy, tree, device="cpu")
    ship(folder, tree, tmp_path / "weights", device="cpu")
    write_json(copy / "run.json", read_json(copy / "run.json") | {"fingerprint": "of another training"})
    with pytest.raises(InputError, match="are not kept here"):
        evaluate(copy, tree, device="cpu")


def test_statistics_beyond_half_precision_are_kept(tmp_path):
    """As of a network that was trained on CT: a variance of 1.9e6, where half precision ends at 65,504."""
    model = csamnet.CSAMNet(16)
    model.neck.lateral[3][1].running_var.fill_(1.9e6)
    state = halved(model)
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for name, value in state.items() if "running" in name} == {torch.float32}
    assert sum(value.numel() for value in state.values() if value.dtype == torch.float16) > 1.6e6


def test_seeds_are_told_with_their_spread(folder, tree, tmp_path):
    """Of the same settings on the same data; what differs in either is none of them."""
    config, samples = read_config(folder), load_split(tree, "MoNuSeg", "test")
    summary, found = read_json(folder / "test" / "summary.json"), []
    for seed, epochs in ((7, config.epochs), (8, config.epochs), (9, 5)):
        one = replace(config, seed=seed, epochs=epochs)
        copy = tmp_path / "MoNuSeg" / f"CSAMNet-XS-sample-seed{seed}"
        write_json(copy / "run.json", read_json(folder / "run.json") | {"config": one.to_dict()})
        measured = measure(lambda image, seed=seed: np.float32(image[..., 0] < 100 + 5 * seed), samples, one, {})
        write_evaluation(copy / "test", measured, one, {"data": summary["data"]})
        found.append(read_json(copy / "test" / "summary.json")["pooled"]["miou"])
    text = weights_card(copy.with_name("CSAMNet-XS-sample-seed7"), DATASETS["MoNuSeg"], 0.0, 10**6, 8)
    assert found[0] != found[1]
    own, both = (f"mIoU {show_seeds('miou', some)}, Dice" for some in (found[:1], found[:2]))
    assert f"| {own}" in text  # of these weights, and then
    assert f"Over 2 seeds, mean ± standard deviation: {both}" in text


def test_how_far_a_probability_can_be_trusted(folder):
    """Three in four of the pixels at 0.9, and none of those at 0.02, are foreground."""
    scores = np.zeros((1, 2, BINS), int)
    at = np.searchsorted(EDGES, logit([0.9, 0.02]))
    scores[0, :, at[0]], scores[0, 0, at[1]] = (100, 300), 1600
    measured = read_evaluation(folder)._replace(scores=scores)
    told = next(line for line in weaknesses(measured, DATASETS["MoNuSeg"]) if "probabilit" in line.lower())
    assert "of pixels with about 0.90, 75 % are nucleus; expected calibration error 0.04" in told


def test_what_is_not_to_be_shipped(folder, tree, tmp_path, monkeypatch):
    summary = folder / "test" / "summary.json"
    kept = read_json(summary)
    try:
        write_json(summary, kept | {"data": kept["data"] | {"kind": "sample"}})
        with pytest.raises(InputError, match=r"not to be shipped(?s:.*)found: sample data"):
            ship(folder, tree, tmp_path, device="cpu")
        write_json(summary, kept | {"seen": 1})
        with pytest.raises(InputError, match=r"not to be shipped(?s:.*)found: a test on images that it has learned"):
            ship(folder, tree, tmp_path, device="cpu")
        summary.unlink()
        with pytest.raises(InputError, match=r"not to be shipped(?s:.*)found: no test"):
            ship(folder, tree, tmp_path, device="cpu")
    finally:
        write_json(summary, kept)
    monkeypatch.setattr("csamnet.weights.SAME", -1.0)
    with pytest.raises(InputError, match="half precision changes the network"):
        ship(folder, tree, tmp_path, device="cpu")
    assert not any(tmp_path.iterdir()), "nothing is written"


def test_weaknesses_are_those_of_the_results(folder, tmp_path):
    copy = tmp_path / "MoNuSeg" / folder.name
    shutil.copytree(folder, copy)
    sizes = pd.DataFrame({"name": "a", "area": range(1, 17), "iou": [0.2, 0.9, *[0.8] * 14]})
    sizes.to_csv(copy / "test" / "objects.csv", index=False)
    assert len(read_objects(copy)) == 16
    rows = [
        {"change": change, "factor": factor} | dict.fromkeys(MEASURES, 0.8) for change, factor in changes_for("H&E")
    ]
    next(row for row in rows if row["change"] == "eosin" and row["factor"] == 2)["miou"] = 0.5
    about = {"rows": rows, "run": read_json(copy / "run.json")["fingerprint"], "n": 2, "data": {"kind": "real"}}
    write_json(copy / "robustness-test.json", about)
    text = "\n".join(weaknesses(read_evaluation(copy), DATASETS["MoNuSeg"]))
    assert "50 % of the smallest eighth (up to 0 µm²) are found, against 94 % of all." in text
    assert "Worst of the changed images are those with 2 times the eosin: mIoU 50.00 %." in text
    next(row for row in rows if row["change"] == "coarser" and row["factor"] == 4)["miou"] = 0.25
    write_json(copy / "robustness-test.json", about)
    told = "those with 4 × 4 pixels joined: mIoU 25.00 %, and 80.00 % enlarged again."
    assert told in weaknesses(read_evaluation(copy), DATASETS["MoNuSeg"])[-1]
    assert "As objects: DQ " in text


def test_weaknesses_of_real_runs():
    root = ROOT / "results"
    busi = weaknesses(read_evaluation(root / "BUSI" / "CSAMNet-S-short-seed0"), DATASETS["BUSI"])
    assert busi[0] == "Of 3 test images without lesions, it marks something in 3."
    assert "on 18 of 43 test images with lesions" in busi[1]
    monuseg = weaknesses(read_evaluation(root / "MoNuSeg" / "CSAMNet-S-cpu-seed0"), DATASETS["MoNuSeg"])
    assert "Worst on breast: mIoU 74.11 %, mean of 2 test images." in monuseg


def test_the_command(folder, tree, tmp_path):
    given = ["ship", str(folder), "--root", str(tree), "--out", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "MoNuSeg.md").read_text().startswith("# MoNuSeg weights\n")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_are_small_and_told_of(path):
    assert path.stat().st_size < 15 * 2**20
    assert path.with_suffix(".md").read_text().startswith(f"# {path.stem} weights\n")
    assert f"({path.stem}.md)" in path.with_name("README.md").read_text()
    model = csamnet.load(path.stem, "cpu")
    assert model.config.dataset == path.stem
    found = csamnet.predict(model, np.full((130, 130, 3), 235, np.uint8))
    assert found.mask.mean() < 0.5, "nothing is not everything"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_card_says_what_the_results_say_now(path):
    card, entry = path.with_suffix(".md").read_text(encoding="utf-8"), get_dataset(path.stem)
    change, run = (re.search(told, card)[1] for told in (r"by (\S+) points", r"\*\*run\*\* \| `(.*?)`"))
    patients = re.search(r"([\d,]+) of the [\d,]+ published patients", card)
    groups = int(patients[1].replace(",", "")) if patients else 10**6  # the data themselves are not here
    assert card == weights_card(ROOT / run, entry, float(change) / 100, path.stat().st_size, groups)


def test_a_network_that_learned_from_look_alikes_is_not_shipped(folder, tree, tmp_path):
    copy = tmp_path / "MoNuSeg" / folder.name
    shutil.copytree(folder, copy)
    run = read_json(copy / "run.json")
    write_json(copy / "run.json", run | {"data": run["data"] | {"kind": "sample"}})
    with pytest.raises(InputError, match=r"not to be shipped(?s:.*)sample data"):
        ship(copy, tree, tmp_path / "out", device="cpu")


def test_weights_and_card_come_together_or_not_at_all(folder, tree, tmp_path):
    copy = tmp_path / "MoNuSeg" / folder.name
    shutil.copytree(folder, copy)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "MoNuSeg.safetensors").write_bytes(b"old")
    (copy / "test" / "objects.csv").write_text("damaged")
    with pytest.raises(InputError, match=r"objects\.csv"):
        ship(copy, tree, tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "MoNuSeg.safetensors").read_bytes() == b"old"


def test_other_weights_than_those_that_were_measured_are_refused(folder, tree, tmp_path):
    copy = tmp_path / "MoNuSeg" / folder.name
    shutil.copytree(folder, copy)
    path = copy / "weights.safetensors"
    save_file({name: value + 0.3 * value.is_floating_point() for name, value in load_file(path).items()}, path)
    with pytest.raises(InputError, match="not the weights that were measured"):
        ship(copy, tree, tmp_path / "out", device="cpu")
    save_file({name: value * float("nan") for name, value in load_file(path).items()}, path)
    with pytest.raises(InputError, match=r"no numbers(?s:.*)NaN"):
        ship(copy, tree, tmp_path / "out", device="cpu")


def test_detections_are_called_by_what_the_weights_find(tmp_path):
    model = csamnet.CSAMNet(16)
    for dataset, kind in (("BUSI", "Lesion"), ("MoNuSeg", "Nucleus"), ("Mine", "Object")):
        model.config = replace(make_config("sample"), dataset=dataset)
        assert target_of(model)[0].capitalize() == kind
    image = tmp_path / "a.png"
    Image.fromarray(np.full((130, 130, 3), 90, np.uint8)).save(image)
    model.config = replace(make_config("sample"), dataset="BUSI", threshold=0.0)
    predict_files(model, [image], tmp_path / "out")
    assert '"name":"Lesion"' in (tmp_path / "out" / "a_nuclei.geojson").read_text()
