"""Training on a tiny tree of bright discs: it learns, it resumes to the bit, it stops where it must."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from skimage.draw import disk

from csamnet import train as training
from csamnet.config import make_config
from csamnet.files import InputError, sha256_file
from csamnet.images import write_image
from csamnet.paths import ROOT
from csamnet.prepare import prepare
from csamnet.results import fingerprint, is_done, read_run
from csamnet.train import best_epoch, set_learning_rate, train, update_average

TINY = {"epochs": 3, "steps_per_epoch": 2, "batch": 4, "warmup": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A prepared data set of six images with purple discs on pink."""
    folder, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for number in range(6):
        split = ("train", "train", "train", "val", "test", "test")[number]
        image, labels = rng.normal((230, 180, 200), 8, (160, 176, 3)), np.zeros((160, 176), np.uint16)
        for label in range(1, 13):
            where = disk(rng.integers(10, 150, 2), rng.integers(6, 12), shape=labels.shape)
            image[where], labels[where] = rng.normal((90, 60, 140), 8, (len(where[0]), 3)), label
        for kind, plane in (("img", image.clip(0, 255).astype(np.uint8)), ("inst", labels)):
            write_image(folder / "made" / split / kind / f"P-{number}-x.png", plane)
    prepare("MoNuSeg", folder / "made", folder / "root")
    return folder / "root"


def config(**changes):
    return make_config("sample", **(TINY | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns=["seconds", "images_per_s"])


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> Path:
    return train(config(), root, results=tmp_path_factory.mktemp("results"), device="cpu")


def test_run_folder_says_where_its_numbers_come_from(finished, root):
    run = read_run(finished)
    assert run["status"] == "done"
    assert run["data"]["kind"] == "real"
    assert run["data"]["manifest_sha256"] == sha256_file(root / "MoNuSeg" / "manifest.csv")
    assert run["parameters"] == 429_900
    assert {"torch", "python"} <= run["libraries"].keys()
    assert run["wall_s"] > 0 < run["images_per_s"]
    assert not (finished / "checkpoint.safetensors").exists()
    assert len(scores(finished)) == 3


def test_same_seed_same_bits_other_seed_others(finished, root, tmp_path):
    assert same(finished, train(config(), root, results=tmp_path / "a", device="cpu"))
    assert not same(finished, train(config(seed=1), root, results=tmp_path / "b", device="cpu"))


def test_finished_run_is_not_repeated(finished, root):
    before = sha256_file(finished / "run.json")
    assert train(config(), root, results=finished.parents[1], device="cpu") == finished
    assert sha256_file(finished / "run.json") == before


def test_learns_and_beats_its_beginning(root, tmp_path):
    folder = train(config(epochs=4, steps_per_epoch=15, lr=5e-3, ema=0.9), root, results=tmp_path, device="cpu")
    history = scores(folder)
    assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
    assert history["val_ap"].iloc[-1] > max(0.6, history["val_ap"].iloc[0])


KILLED = """
import sys
from csamnet.config import make_config
from csamnet.train import train
train(make_config("sample", **{settings}), sys.argv[1], results=sys.argv[2], device="cpu",
      on_step=lambda done, all: print("step", done, flush=True))
"""


@pytest.mark.parametrize("after", [1, 3, 5])
def test_killed_run_ends_with_the_same_bits(finished, root, tmp_path, after):
    """SIGKILL in the middle of an epoch; the same command goes on from the last checkpoint."""
    code = KILLED.replace("{settings}", repr(TINY))
    arguments = [sys.executable, "-c", code, str(root), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.strip() == f"step {after}":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    folder = tmp_path / finished.relative_to(finished.parents[1])
    assert not (folder / "weights.safetensors").exists()
    assert train(config(), root, results=tmp_path, device="cpu") == folder
    assert same(folder, finished)
    pd.testing.assert_frame_equal(scores(folder), scores(finished))


def test_not_a_number_stops_with_the_last_checkpoint_kept(root, tmp_path, monkeypatch):
    real = training.segmentation_loss
    calls = []

    def poisoned(*args):
        calls.append(1)
        return real(*args) if len(calls) <= 2 else tuple(part * float("nan") for part in real(*args))

    monkeypatch.setattr(training, "segmentation_loss", poisoned)
    with pytest.raises(InputError, match=r"no longer a number[\s\S]*epoch 2[\s\S]*learning rate"):
        train(config(), root, results=tmp_path, device="cpu")
    folder = next(tmp_path.glob("*/*"))
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "weights.safetensors").exists()
    assert len(scores(folder)) == 1


def test_two_processes_share_a_batch(root, tmp_path):
    """Two CPU processes through Fabric: the run ends, with one set of files and finite scores."""
    code = KILLED.replace("{settings}", repr(TINY)).replace('device="cpu"', 'device="cpu", devices=2')
    script = tmp_path / "two.py"
    script.write_text(code)
    arguments = [sys.executable, str(script), str(root), str(tmp_path / "results")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = next((tmp_path / "results").glob("*/*"))
    assert read_run(folder)["hardware"]["processes"] == 2
    history = scores(folder)
    assert len(history) == 3
    assert np.isfinite(history.to_numpy(float)).all()


def test_batch_that_cannot_be_shared_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="a number of 2 or more"):
        config(batch=1)


def test_stale_when_and_only_when_configuration_data_or_code_changed(finished, root, monkeypatch):
    card = json.loads((root / "MoNuSeg" / "dataset.json").read_text())["manifest_sha256"]
    fresh = fingerprint(config(), card)
    assert is_done(finished, fresh)
    assert not is_done(finished, fingerprint(config(lr=1e-4), card))
    assert not is_done(finished, fingerprint(config(), "other data"))
    monkeypatch.setattr("csamnet.results.code_sha256", lambda step: "other code")
    assert not is_done(finished, fingerprint(config(), card))


def test_comments_and_docstrings_do_not_make_stale(monkeypatch, tmp_path):
    from csamnet import results

    for name, text in {"a": "x = 1\n", "b": '"""Says."""\n\n\nx = 1  # one\n', "c": "x = 2\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    monkeypatch.setattr(results, "CODE", {name: (name,) for name in "abc"})
    assert results.code_sha256("a") == results.code_sha256("b") != results.code_sha256("c")


def test_learning_rate_warms_up_and_follows_a_cosine():
    plan = make_config("sample", epochs=10, steps_per_epoch=10, warmup=0.1, lr=0.01)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    rates = [set_learning_rate(optimizer, plan, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[9] == pytest.approx(0.01)
    assert rates[55] == pytest.approx(0.005)
    assert rates[99] == pytest.approx(0.005 * (1 + math.cos(math.pi * 89 / 90)))
    assert optimizer.param_groups[0]["lr"] == rates[99]


def test_average_of_weights_by_hand():
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(average.weight, 1.0)
    torch.nn.init.constant_(network.weight, 3.0)
    update_average(average, network, 0.9)
    assert average.weight.item() == pytest.approx(1.2)


def test_best_epoch_is_the_first_of_the_highest():
    assert best_epoch([{"val_miou": value} for value in (0.5, 0.7, 0.7, 0.6)]) == 2


def test_no_half_written_run(root, tmp_path, monkeypatch):
    """A full disk while the checkpoint is written: an error, and no file that looks whole."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        train(config(epochs=1), root, results=tmp_path, device="cpu")
    folder = next(tmp_path.glob("*/*"))
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]
    assert read_run(folder)["status"] == "training"


def test_time_is_counted_over_epochs(finished):
    history = pd.read_csv(finished / "history.csv")
    assert read_run(finished)["wall_s"] == pytest.approx(history["seconds"].sum(), abs=0.1)
